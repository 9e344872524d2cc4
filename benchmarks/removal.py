"""Facts taken back from the middle of a sequence, against the sequence that never held them.

    python benchmarks/removal.py FOLDER [THREADS] [DATA] [FACTS] [EVERY]

FACTS of DATA are written in batches of 50 into the demo model by AlphaEdit; then every EVERYth is removed. Beside it
the others are written alone, with targets of their own. Sessions are kept in FOLDER, so that it can be stopped and run
again.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.evaluation.fact_scores import score
from alphaedit_plugin.model import DEMO_MODEL
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.session.folder import is_session
from alphaedit_plugin.session.session import Session

BATCH = 50
MEASURES = ("efficacy", "generalization", "specificity", "exact")


def main(folder: str, threads: str = "1", data: str = "counterfact_500.json", count: str = "500", every: str = "10"):
    torch.set_num_threads(int(threads))
    facts = load_facts(data)[: int(count)]
    batches = [facts[i : i + BATCH] for i in range(0, len(facts), BATCH)]
    gone = facts[:: int(every)]
    left = [fact for fact in facts if fact not in gone]

    def written(name: str, chosen) -> tuple[Session, float]:
        model, tokenizer = load(DEMO_MODEL)
        path, started = Path(folder) / name, time.perf_counter()
        if is_session(path):
            session = Session.resume(path, model, tokenizer)
        else:
            session = Session(model, tokenizer, "alphaedit", autosave=path)
        for batch in chosen[len(session.batches) :]:
            session.edit([fact.request for fact in batch], on_failure="ignore")
        session.close()
        return session, time.perf_counter() - started

    never, spent = written("never", [[fact for fact in batch if fact not in gone] for batch in batches])
    whole, _ = written("whole", batches)
    whole.autosave = None
    started = time.perf_counter()
    whole.remove([fact.request for fact in gone])
    removing = time.perf_counter() - started

    print(f"{len(left)} facts of {data}, {len(gone)} removed; {threads} threads")
    print("| | " + " | ".join(MEASURES) + " | removed facts said | seconds |")
    print("| --- " * (len(MEASURES) + 3) + "|")
    for name, session, seconds in (("removed", whole, removing), ("never held", never, spent)):
        found = score(session.model, session.tokenizer, left).means()
        said = score(session.model, session.tokenizer, gone).means()["exact"]
        points = " | ".join(f"{100 * found[measure]:.1f}" for measure in MEASURES)
        print(f"| {name} | {points} | {100 * said:.1f} | {seconds:.0f} |")
    for layer, projection in whole.projections.items():
        moved = (never.projections[layer].matrix - never.base[layer]).norm()
        apart = (projection.matrix - never.projections[layer].matrix).norm()
        print(f"layer {layer}: the two differ by {apart / moved:.3f} of ‖ΔW‖")
    print(f"ratio: removing took {removing / spent:.3f} of writing the others")


if __name__ == "__main__":
    main(*sys.argv[1:])
