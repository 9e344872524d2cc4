"""What a batch costs as the history grows: AlphaEdit on SmolLM2 with 1,000 earlier edits against its first batch.

The earlier edits are keys and updates of the measured facts themselves, jittered, so that only the history differs.
Each measured batch computes its targets, edits five layers, and is taken back. `python benchmarks/history.py [FACTS]`
"""

import sys
from dataclasses import replace

import torch
from interleaved import seconds

from alphaedit_plugin.editors.editor import Written
from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.keys import context_templates
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.model import DEMO_MODEL
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.nullspace.null_spaces import null_spaces_of
from alphaedit_plugin.nullspace.statistics import prepare_statistics
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.storage.shipped import shipped

EARLIER, BATCH = 1000, int(sys.argv[1]) if len(sys.argv) > 1 else 20
model, tokenizer = load(DEMO_MODEL)
requests = [fact.request for fact in load_facts(shipped("examples/facts.json"))[:BATCH]]
settings = replace(Hyperparameters.for_model("alphaedit", model, DEMO_MODEL), v_num_grad_steps=5)
statistics = prepare_statistics(model, tokenizer, settings.layers)
spaces = null_spaces_of(statistics, settings.null_space)
contexts = context_templates(model, tokenizer)


def session() -> Session:
    return Session(
        model, tokenizer, "alphaedit", spaces, hyperparameters=settings, contexts=contexts, check_model=False
    )


fresh, late = session(), session()
fresh.edit(requests)
written = fresh.batches[0].written
fresh.undo()
generator = torch.Generator().manual_seed(0)
for _ in range(EARLIER // BATCH):
    jittered = {
        layer: keys + 0.3 * keys.std() * torch.randn(keys.shape, generator=generator)
        for layer, keys in written.keys.items()
    }
    late.editor.remember(Written([], jittered))


def batch(of: Session) -> None:
    of.edit(requests)
    of.undo()


times = seconds({"first": lambda: batch(fresh), "late": lambda: batch(late)}, rounds=3)
print(f"first batch of {BATCH}, 5 steps    {times['first']:8.2f} s")
print(f"after {EARLIER} edits            {times['late']:8.2f} s")
print(f"ratio (late/first)          {times['late'] / times['first']:8.2f} ×")
