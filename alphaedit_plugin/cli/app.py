"""The application: its commands, and what happens to their errors."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter

from .. import __version__
from ..errors import AlphaEditError
from .apply import apply
from .ask import ask
from .cache import cache
from .compare import EXAMPLES, compare
from .console import console, log_to_terminal, print_error
from .easyedit import easyedit
from .edit import edit
from .inspect import inspect
from .merge import merge
from .methods import methods
from .options import ARGUMENTS
from .prepare import prepare
from .push import push
from .report import report
from .run_file import options_of_file
from .show import show
from .trace import trace
from .tune import tune
from .undo import undo


def _default(value: Any) -> Any:
    """What the help shows as a default: nothing for a flag that is off."""
    return None if value is False else value


UNTOUCHED: Mapping[str, Any] = {"help_flags": [], "version_flags": [], "end_of_options_delimiter": ""}
"""For a command that passes on words that are not its own, including `--help`."""

app = App(
    name="alphaedit",
    help="Null-space constrained knowledge editing (AlphaEdit) for the editors people already run.",
    version=__version__,
    console=console,
    help_format="plaintext",
    group_arguments=ARGUMENTS,
    group_parameters=Group("Options", sort_key=0),
    default_parameter=Parameter(negative=(), allow_repeating=True, show_default=_default),
)


def verbose(*command: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Before a command: say what is being done."""
    run(command, logging.INFO)


COMMANDS: tuple[Callable[..., Any], ...] = (
    report,
    edit,
    ask,
    show,
    undo,
    merge,
    apply,
    push,
    tune,
    trace,
    prepare,
    inspect,
    methods,
    cache,
)

app.command(
    compare,
    config=options_of_file,
    usage="Usage: alphaedit compare [MODEL | RUN.yaml] [OPTIONS]",
    help_epilogue=EXAMPLES,
    sort_key=0,
)
for place, command in enumerate(COMMANDS, start=1):
    app.command(command, sort_key=place)
app.command(easyedit, usage="Usage: alphaedit easyedit SCRIPT [ARGUMENTS]", sort_key=len(COMMANDS) + 1, **UNTOUCHED)
app.command(verbose, name=("--verbose", "-v"), **UNTOUCHED)
app.register_install_completion_command()


def run(words: Sequence[str], level: int = logging.WARNING) -> None:
    """Parse a command line and do what it says. Raises CycloptsError or AlphaEditError."""
    if list(words[:2]) in (["easyedit", "--help"], ["easyedit", "-h"]):  # further on they are the script's
        app.help_print(["easyedit"])
        return
    command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    if command not in (verbose, easyedit):  # how an EasyEdit script logs is its own business
        log_to_terminal(level)
    command(*bound.args, **bound.kwargs)


def main() -> None:
    """Entry point: errors of ours are one line, without a traceback."""
    # Threads that spin while they wait for each other are up to eight times slower beside a busy process. Said before
    # torch makes its threads, and to the processes that this one starts.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        run(sys.argv[1:])
    except (AlphaEditError, CycloptsError) as error:
        print_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
