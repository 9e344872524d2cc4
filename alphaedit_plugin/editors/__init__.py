"""Locate-then-edit methods, one per file."""
