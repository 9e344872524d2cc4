"""`alphaedit easyedit`."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..errors import RequestError


def easyedit(
    script: Annotated[Path, Parameter(allow_leading_hyphen=True, help="A Python script that uses EasyEdit.")],
    /,
    *arguments: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="The script's own arguments, passed on as they are.")
    ],
) -> None:
    """Run a script with EasyEdit understanding `null_space`. Not a line of the script changes."""
    if str(script) in ("--help", "-h"):  # before the script; behind it they are the script's
        from .app import app

        app.help_print(["easyedit"])
        return
    importlib.import_module("alphaedit_plugin.easyedit")
    if not script.is_file():
        raise RequestError(f"there is no script {script}")
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.resolve().parent))  # as python itself does
    runpy.run_path(str(script), run_name="__main__")
