"""AlphaEdit on SmolLM2: seconds a fact, ours against the real EasyEdit, and whether the edits are as good.

Same facts, hyperparameters, null spaces and context templates; batches of 20, turn by turn. Targets alone too. Ours
runs with each optimiser of targets, in float32 and in bfloat16 where the processor has it; EasyEdit has Adam, float32.
`EASYEDIT_HOME=… python benchmarks/easyedit.py THREADS FACTS [FILE]`; FILE is CounterFact's, by default ours.
"""

import sys
import time
from dataclasses import replace

import easyedit_home
import torch

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.keys import context_templates
from alphaedit_plugin.editors.optimisers import OPTIMISERS
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
threads, count = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)
easyedit_home.load()
model, tokenizer = load(DEMO_MODEL)
facts = load_facts(sys.argv[3] if len(sys.argv) > 3 else shipped("examples/facts.json"))[:count]
batches = [[fact.request for fact in facts[i : i + BATCH]] for i in range(0, count, BATCH)]
settings = Hyperparameters.for_model("alphaedit", model, DEMO_MODEL)
statistics = prepare_statistics(model, tokenizer, settings.layers)
spaces = null_spaces_of(statistics, settings.null_space)
contexts = context_templates(model, tokenizer)
dense = {layer: space.dense().float() for layer, space in spaces.items()}


def session(optimiser: str, reduced: bool) -> Session:
    chosen = replace(settings, target_optimiser=optimiser, reduced_precision=reduced)
    return Session(model, tokenizer, "alphaedit", spaces, hyperparameters=chosen, contexts=contexts, check_model=False)


theirs = easyedit_home.AlphaEdit(model, tokenizer, {}, dense, contexts)
precisions = {"float32": False} | ({"bfloat16": True} if in_bfloat16(model) is not model else {})
ours = {f"{name}, {precision}": session(name, precisions[precision]) for name in OPTIMISERS for precision in precisions}
projections = next(iter(ours.values())).projections


def quality(of: list[Fact]) -> str:
    pairs = [(fact.request.text, fact.request.target_new) for fact in of]
    probability = score_pairs(model, tokenizer, pairs).mean_log_probability.exp().mean()
    found = FactScores()(model, tokenizer, of, None).estimates
    shown = (f"{name} {100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]" for name, e in found.items())
    return f"target probability {probability:.3f}, " + ", ".join(shown)


# Each editor has its own copy of the weights, put in place for its turn.
editors = {"EasyEdit": theirs, **{name: each.edit for name, each in ours.items()}}
states = {name: {layer: p.matrix.clone() for layer, p in projections.items()} for name in editors}
seconds, targets = dict.fromkeys(editors, 0.0), dict.fromkeys(editors, 0.0)
with put_back(projections):
    for requests in batches:
        for name, edit in editors.items():
            for layer, projection in projections.items():
                projection.matrix.copy_(states[name][layer])
            started = time.perf_counter()
            edit(requests)
            seconds[name] += time.perf_counter() - started
            states[name] = {layer: p.matrix.clone() for layer, p in projections.items()}
    results = {}
    for name, weights in states.items():
        for layer, projection in projections.items():
            projection.matrix.copy_(weights[layer])
        results[name] = quality(facts)

alone = batches[0][:4]
for request in alone:
    started = time.perf_counter()
    easyedit_home.compute_z(model, tokenizer, request, {}, max(settings.layers), contexts)
    targets["EasyEdit"] += (time.perf_counter() - started) / len(alone)
for name, each in ours.items():
    started = time.perf_counter()
    each.editor.targets(batches[0])  # type: ignore[attr-defined]
    targets[name] = (time.perf_counter() - started) / len(batches[0])

print(f"{count} facts in batches of {BATCH}, {threads} thread(s); targets: {len(alone)} facts, ours {len(batches[0])}")
for name in editors:
    print(f"{name:20} {seconds[name] / count:7.2f} s a fact, targets {targets[name]:6.2f} s   {results[name]}")
for name in ours:
    print(
        f"{name:20} {seconds['EasyEdit'] / seconds[name]:7.1f} ×,         {targets['EasyEdit'] / targets[name]:6.1f} ×"
    )
