"""Target optimisation with a frozen prefix against the same loop over whole sequences; 8 facts, 6 steps."""

from dataclasses import replace

from interleaved import seconds

from alphaedit_plugin.editors.hyperparameters import TargetSettings
from alphaedit_plugin.editors.keys import context_templates
from alphaedit_plugin.editors.targets import optimise_targets
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.model import DEMO_MODEL
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.storage.shipped import shipped

model, tokenizer = load(DEMO_MODEL)
requests = [fact.request for fact in load_facts(shipped("examples/facts.json"))[:8]]
contexts = context_templates(model, tokenizer)
exact = TargetSettings(steps=6)
reduced = replace(exact, reduced_precision=True)


def run(settings: TargetSettings, use_prefix_cache: bool):  # type: ignore[no-untyped-def]
    return optimise_targets(
        model, tokenizer, requests, contexts, 8, settings, use_prefix_cache=use_prefix_cache, batch_tokens=512
    )


whole, frozen = run(exact, False), run(exact, True)
difference = ((whole.delta - frozen.delta).norm(dim=1) / whole.delta.norm(dim=1)).max()
times = seconds(
    {
        "whole": lambda: run(exact, False),
        "frozen": lambda: run(exact, True),
        "reduced": lambda: run(reduced, True),
    },
    rounds=2,
)
print(f"whole sequences               {times['whole'] / 8:8.2f} s a fact")
print(f"frozen prefix                 {times['frozen'] / 8:8.2f} s a fact")
print(f"… in reduced precision        {times['reduced'] / 8:8.2f} s a fact")
print(f"ratio (whole/frozen)          {times['whole'] / times['frozen']:8.2f} ×, δ differs by {difference:.1e} at most")
print(f"ratio (whole/reduced)         {times['whole'] / times['reduced']:8.2f} ×")
