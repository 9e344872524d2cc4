"""Locate-then-edit methods, one a file."""

from .memit import MEMIT

__all__ = ["MEMIT"]
