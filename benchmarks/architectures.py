"""README's table of architectures: models of each learn a small world, and are then taught otherwise.

    python benchmarks/architectures.py [ARCHITECTURE …] > table.md

About fifteen seconds each. The settings are the same for all (`tests/support/bed.py`).
"""

import logging
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.bed import Bed
from support.learned import BOS, DECODERS

METHODS = ("memit", "memit+P", "alphaedit", "rome")
COLUMNS = ("efficacy", "generalization", "specificity")


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print("| architecture | branch | BOS | " + " | ".join(METHODS) + " | cosine, length | drift |")
    print("| --- " * (5 + len(METHODS)) + "|")
    for name in sys.argv[1:] or DECODERS:
        with tempfile.TemporaryDirectory() as folder:
            bed = Bed(name, Path(folder))
            found = {method: bed.outcome(method) for method in METHODS}
        cells = [" / ".join(f"{100 * found[method].scores[key]:.0f}" for key in COLUMNS) for method in METHODS]
        memit = found["memit"]
        reached = f"{memit.cosine:.2f}, {memit.length:.2f}"
        bos = "yes" if name in BOS else ""
        drift = f"{max(memit.drift.values()):.2f}"
        print(f"| {name} | {bed.branch} | {bos} | " + " | ".join(cells) + f" | {reached} | {drift} |", flush=True)


if __name__ == "__main__":
    main()
