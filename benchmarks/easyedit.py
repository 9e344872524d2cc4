"""AlphaEdit on SmolLM2: seconds a fact, ours against the real EasyEdit, and whether the edits are as good.

Same facts, hyperparameters, null spaces and context templates; batches of 20, turn by turn. Targets alone too.
`EASYEDIT_HOME=… python benchmarks/easyedit.py THREADS FACTS [FILE] [--float32]`; FILE is CounterFact's, or ours. With
--float32 targets are optimised as on a processor without bfloat16. (EasyEdit uses float32 everywhere.)
"""

import sys
import time
from dataclasses import replace

import easyedit_home
import torch

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.keys import context_templates
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.evaluation.fact_scores import FactScores
from alphaedit_plugin.evaluation.facts import Fact
from alphaedit_plugin.evaluation.likelihood import score_pairs
from alphaedit_plugin.model import DEMO_MODEL
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.model.precision import in_bfloat16
from alphaedit_plugin.model.snapshot import put_back
from alphaedit_plugin.nullspace.null_spaces import null_spaces_of
from alphaedit_plugin.nullspace.statistics import prepare_statistics
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.storage.shipped import shipped

BATCH = 20
arguments = [argument for argument in sys.argv[1:] if argument != "--float32"]
threads, count = int(arguments[0]), int(arguments[1])
torch.set_num_threads(threads)
easyedit_home.load()
model, tokenizer = load(DEMO_MODEL)
facts = load_facts(arguments[2] if len(arguments) > 2 else shipped("examples/facts.json"))[:count]
batches = [[fact.request for fact in facts[i : i + BATCH]] for i in range(0, count, BATCH)]
settings = Hyperparameters.for_model("alphaedit", model, DEMO_MODEL)
if "--float32" in sys.argv:
    settings = replace(settings, reduced_precision=False)
reduced = settings.reduced_precision and in_bfloat16(model) is not model
statistics = prepare_statistics(model, tokenizer, settings.layers)
spaces = null_spaces_of(statistics, settings.null_space)
contexts = context_templates(model, tokenizer)
dense = {layer: space.dense().float() for layer, space in spaces.items()}
theirs = easyedit_home.AlphaEdit(model, tokenizer, {}, dense, contexts)
ours = Session(model, tokenizer, "alphaedit", spaces, hyperparameters=settings, contexts=contexts, check_model=False)


def quality(of: list[Fact]) -> str:
    pairs = [(fact.request.text, fact.request.target_new) for fact in of]
    probability = score_pairs(model, tokenizer, pairs).mean_log_probability.exp().mean()
    found = FactScores()(model, tokenizer, of, None).estimates
    shown = (f"{name} {100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]" for name, e in found.items())
    return f"target probability {probability:.3f}, " + ", ".join(shown)


# Each editor has its own copy of the weights, put in place for its turn.
states = {name: {layer: p.matrix.clone() for layer, p in ours.projections.items()} for name in ("theirs", "ours")}
seconds = {"theirs": 0.0, "ours": 0.0, "their targets": 0.0, "our targets": 0.0}
with put_back(ours.projections):
    for requests in batches:
        for name, edit in (("theirs", theirs), ("ours", ours.edit)):
            for layer, projection in ours.projections.items():
                projection.matrix.copy_(states[name][layer])
            started = time.perf_counter()
            edit(requests)
            seconds[name] += time.perf_counter() - started
            states[name] = {layer: p.matrix.clone() for layer, p in ours.projections.items()}
    results = {}
    for name, weights in states.items():
        for layer, projection in ours.projections.items():
            projection.matrix.copy_(weights[layer])
        results[name] = quality(facts)

alone = batches[0][:4]
for request in alone:
    started = time.perf_counter()
    easyedit_home.compute_z(model, tokenizer, request, {}, max(settings.layers), contexts)
    seconds["their targets"] += time.perf_counter() - started
started = time.perf_counter()
ours.editor.targets(batches[0])  # type: ignore[attr-defined]
seconds["our targets"] = (time.perf_counter() - started) / len(batches[0])
seconds["their targets"] /= len(alone)

print(
    f"{count} facts in batches of {BATCH}, {threads} thread(s), our targets in {'bfloat16' if reduced else 'float32'}"
)
print(f"EasyEdit        {seconds['theirs'] / count:8.2f} s a fact   {results['theirs']}")
print(f"ours            {seconds['ours'] / count:8.2f} s a fact   {results['ours']}")
print(f"ratio           {seconds['theirs'] / seconds['ours']:8.1f} ×")
print(f"compute_z       {seconds['their targets']:8.2f} s a fact ({len(alone)} facts)")
print(f"our targets     {seconds['our targets']:8.2f} s a fact ({len(batches[0])} facts)")
print(f"ratio           {seconds['their targets'] / seconds['our targets']:8.1f} ×")
