"""Contenders side by side: same start, same facts, same order."""
