"""A run of the real EasyEdit under our guard against the same run without it: its AlphaEdit, 2 facts, 5 steps.

EasyEdit's layered loop (MEMIT's) writes every layer, reads it in forward passes, restores all and writes again: all
that a guard can see. `EASYEDIT_HOME=… python benchmarks/guard.py`
"""

from contextlib import nullcontext

import easyedit_home
from interleaved import seconds

from alphaedit_plugin.editors.keys import context_templates
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.model import DEMO_MODEL
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.model.snapshot import put_back
from alphaedit_plugin.nullspace.guard import guard
from alphaedit_plugin.nullspace.null_spaces import null_spaces_of
from alphaedit_plugin.nullspace.statistics import prepare_statistics
from alphaedit_plugin.storage.shipped import shipped

LAYERS = [4, 5, 6, 7, 8]
model, tokenizer = load(DEMO_MODEL)
requests = [fact.request for fact in load_facts(shipped("examples/facts.json"))[:2]]
spaces = null_spaces_of(prepare_statistics(model, tokenizer, LAYERS))
dense = {layer: space.dense().float() for layer, space in spaces.items()}
contexts = context_templates(model, tokenizer)
projections = Decoder(model).out_projections(LAYERS)


def run(guarded: bool) -> None:
    edit = easyedit_home.AlphaEdit(model, tokenizer, {"v_num_grad_steps": 5}, dense, contexts)
    with put_back(projections), guard(model, spaces, check_model=False) if guarded else nullcontext():
        edit(requests)


times = seconds({"plain": lambda: run(False), "guarded": lambda: run(True)}, rounds=5)
print(f"EasyEdit            {times['plain']:8.2f} s")
print(f"… under our guard   {times['guarded']:8.2f} s")
print(f"ratio               {times['guarded'] / times['plain']:8.3f} ×")
