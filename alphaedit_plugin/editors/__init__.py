"""Locate-then-edit methods, one a file."""

from .alphaedit import AlphaEdit
from .editor import Editor, Written
from .memit import MEMIT, MEMITSequential
from .prune import damped
from .rect import sparsified
from .rome import ROME
from .update import Update, Write

__all__ = [
    "MEMIT",
    "ROME",
    "AlphaEdit",
    "Editor",
    "MEMITSequential",
    "Update",
    "Write",
    "Written",
    "damped",
    "sparsified",
]
