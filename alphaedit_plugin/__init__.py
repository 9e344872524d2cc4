"""Null-space constrained knowledge editing (AlphaEdit, ICLR 2025) for the editors people already run."""

__version__ = "0.1.0"
