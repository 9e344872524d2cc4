"""Locate-then-edit methods, one a file."""
