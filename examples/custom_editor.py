"""An editor of your own, and what one line does to it.

    python examples/custom_editor.py [--facts 3]

The editor below knows nothing of null spaces: it takes gradient steps on two matrices until the model says the new
object. Decorated, each of its steps is projected as it is written.
"""

import argparse

import torch
from rich.console import Console
from rich.table import Table

from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.evaluation.fact_scores import score
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.model.snapshot import put_back
from alphaedit_plugin.nullspace.guard import null_space_constrained
from alphaedit_plugin.nullspace.null_spaces import null_spaces_of
from alphaedit_plugin.nullspace.projection import Criterion
from alphaedit_plugin.nullspace.statistics import prepare_statistics
from alphaedit_plugin.storage.shipped import shipped

LAYERS = [7, 8]


def my_editor(model, tokenizer, requests, steps=25, learning_rate=1e-3):
    """Gradient descent on the loss of the new objects, one fact after the other."""
    weights = [projection.module.weight for projection in Decoder(model).out_projections(LAYERS).values()]
    for request in requests:
        prompt = tokenizer(request.text, return_tensors="pt").input_ids
        target = tokenizer(" " + request.target_new, return_tensors="pt").input_ids
        ids = torch.cat([prompt, target], 1)
        labels = torch.cat([torch.full_like(prompt, -100), target], 1)
        for weight in weights:
            weight.requires_grad_(True)
        optimiser = torch.optim.Adam(weights, lr=learning_rate)
        for _ in range(steps):
            loss = model(ids, labels=labels).loss
            if loss < 0.05:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        for weight in weights:
            weight.requires_grad_(False)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--facts", type=int, default=5)
    arguments.add_argument("--corpus", default=shipped("examples/heldout.txt"), help="text to preserve")
    options = arguments.parse_args()

    model, tokenizer = load("smollm2-135m")
    facts = load_facts(shipped("examples/facts.json"))[: options.facts]
    requests = [fact.request for fact in facts]

    statistics = prepare_statistics(model, tokenizer, LAYERS, source=options.corpus, tokens=2500, progress=True)
    null_spaces = null_spaces_of(statistics, Criterion(nullity=0.7))
    my_projected_editor = null_space_constrained(null_spaces)(my_editor)  # or @null_space_constrained(null_spaces)

    table = Table(title=f"{len(facts)} facts, gradient steps on layers {LAYERS}")
    table.add_column()
    metrics = ("efficacy", "generalization", "specificity")
    for metric in metrics:
        table.add_column(f"{metric} %", justify="right")
    for name, editor in {"before": None, "my_editor": my_editor, "… projected": my_projected_editor}.items():
        with put_back(Decoder(model).out_projections(LAYERS)):
            if editor is not None:
                editor(model, tokenizer, requests)
            means = score(model, tokenizer, facts).means()
        table.add_row(name, *(f"{100 * means[metric]:.0f}" for metric in metrics))
    Console().print(table)


if __name__ == "__main__":
    main()
