"""The operations of a command, counted by torch, and its seconds of CPU, beside what `compare --plan` says.

OMP_NUM_THREADS=1 python benchmarks/operations.py compare --edits 20 --methods memit alphaedit --device cpu --quiet
"""

from __future__ import annotations

import sys
import time

from torch.utils.flop_counter import FlopCounterMode

from alphaedit_plugin.cli.app import run

words = sys.argv[1:]
sys.argv = ["alphaedit", *words]
with FlopCounterMode(display=False) as counter:
    run(words)
for name, count in counter.get_flop_counts()["Global"].items():
    print(f"{name}: {count / 1e12:.4g} TFLOP")
print(f"{time.process_time():.0f} s of CPU")
