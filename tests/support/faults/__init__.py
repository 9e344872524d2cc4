"""Faults that attack the promises of this package from outside; `benchmarks/faults.py` runs them all."""
