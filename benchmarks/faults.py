"""The campaign of faults: kills, flips, interrupts, full disks, races, fuzz. Exit code 1 if a promise was broken.

`python benchmarks/faults.py [KIND …] [--seed N] [--scale 1.0] [--minutes M] [--only KIND:SEED]`. A KIND may be the
beginning of several (`flips`). Each failure is printed with the seed that repeats it alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from support.faults.campaign import Tally, attempted, campaign, made, row, table  # noqa: E402
from support.faults.kinds import KINDS, chosen  # noqa: E402


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(kind.name for kind in KINDS))
    arguments.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="by default another each time")
    arguments.add_argument("--scale", type=float, default=1.0, help="a share of the full counts")
    arguments.add_argument("--minutes", type=float, default=float("inf"), help="at most; every kind gets its share")
    arguments.add_argument("--only", metavar="KIND:SEED", help="repeat this one attempt")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if options.only:
        name, _, seed = options.only.rpartition(":")
        with made(chosen([name])[0]) as kind:
            outcome = attempted(kind, int(seed))
        print(outcome.broken or f"{name}: held ({outcome.faults} tried)")
        return int(outcome.broken is not None)
    print(f"seed {options.seed}", flush=True)
    tallies = campaign(
        chosen(options.kinds),
        options.seed,
        scale=options.scale,
        seconds=60 * options.minutes,
        on_tally=told,
        keep=True,
    )
    print()
    print(table(tallies))
    return int(any(tally.failures for tally in tallies))


def told(tally: Tally) -> None:
    print(row(tally), flush=True)
    for seed, broken in tally.failures[:5]:
        print(f"    --only {tally.name}:{seed}   {broken[:300]}", flush=True)
    if len(tally.failures) > 5:
        print(f"    … and {len(tally.failures) - 5} more: {' '.join(str(seed) for seed, _ in tally.failures[5:25])}")


if __name__ == "__main__":
    sys.exit(main())
