"""An editor of your own in a comparison: plain and projected, beside MEMIT and AlphaEdit, in one command.

    alphaedit compare --methods memit alphaedit custom_editor.py:my_editor custom_editor.py:my_editor+P

or, from Python, `python examples/custom_editor.py [--facts 5]`. The editor knows nothing of null spaces: it takes
gradient steps on two matrices until the model says the new object. With +P each of its steps is projected as it is
written. It gets what our own methods get: the same facts in the same order, every metric, the report.
"""

import argparse

import torch
from rich.console import Console

from alphaedit_plugin import Preparation, compare, load, load_facts, shipped, table, write_report


def my_editor(model, tokenizer, requests, *, layers=(7, 8), steps=25, learning_rate=1e-3):
    """Gradient descent on the loss of the new objects, one fact after the other."""
    weights = [model.get_submodule(f"model.layers.{layer}.mlp.down_proj").weight for layer in layers]
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    for request in requests:
        prompt = tokenizer(request.text, return_tensors="pt").input_ids.to(model.device)
        target = tokenizer(request.completion, return_tensors="pt", add_special_tokens=False).input_ids.to(model.device)
        ids = torch.cat([prompt, target], 1)
        labels = torch.cat([torch.full_like(prompt, -100), target], 1)
        optimiser = torch.optim.Adam(weights, lr=learning_rate)
        for _ in range(steps):
            loss = model(ids, labels=labels).loss
            if loss < 0.05:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--facts", type=int, default=5)
    arguments.add_argument("--corpus", default=shipped("examples/heldout.txt"), help="text to preserve")
    arguments.add_argument("--out", default="custom-editor", help="folder for the results")
    options = arguments.parse_args()

    model, tokenizer = load("smollm2-135m")
    comparison = compare(
        model,
        tokenizer,
        load_facts(shipped("examples/facts.json"))[: options.facts],
        {"memit": "memit", "alphaedit": "alphaedit", "my_editor": my_editor, "my_editor+P": my_editor},
        preparation=Preparation(corpus=options.corpus, tokens=2500, progress=True),
        folder=options.out,
        progress=True,
    )
    Console().print(table(comparison))
    print("report:", write_report([comparison], options.out))


if __name__ == "__main__":
    main()
