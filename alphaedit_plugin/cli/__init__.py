"""The command `alphaedit`: one file per command, the options declared once in `options`.

Nothing here imports torch before the arguments are parsed and checked, so that help and errors are answered at once.
"""

from .app import main

__all__ = ["main"]
