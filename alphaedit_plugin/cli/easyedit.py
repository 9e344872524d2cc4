"""`alphaedit easyedit`."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..errors import AlphaEditError, RequestError


def easyedit(
    script: Annotated[Path, Parameter(allow_leading_hyphen=True, help="A Python script that uses EasyEdit.")],
    /,
    *arguments: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="The script's own arguments, passed on as they are.")
    ],
) -> None:
    """Run a script with EasyEdit understanding `null_space`. Not a line of the script changes.

    What the script raises is shown as python would, from the script on; an error of ours with the script's line.
    """
    importlib.import_module("alphaedit_plugin.easyedit")
    if not script.is_file():
        raise RequestError(f"there is no script {script}")
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.resolve().parent))  # as python itself does
    try:
        runpy.run_path(str(script), run_name="__main__")
    except Exception as failure:
        own = failure.__traceback__
        while own is not None and own.tb_frame.f_code.co_filename != str(script):
            own = own.tb_next
        if isinstance(failure, AlphaEditError):
            raise AlphaEditError(f"{failure} ({script}{f', line {own.tb_lineno}' if own else ''})") from failure
        # As python itself would say it: from the script on, without the frames that led to it.
        sys.excepthook(type(failure), failure.with_traceback(own), own)
        sys.exit(1)
