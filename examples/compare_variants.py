"""Methods side by side from Python: same start, same facts, same order, plain and projected.

    python examples/compare_variants.py [--facts 4] [--methods memit memit+P rect rect+P]

`alphaedit compare` is this program with more options.
"""

import argparse

from rich.console import Console

from alphaedit_plugin.comparison.cell import compare
from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.evaluation.fact_scores import Facts
from alphaedit_plugin.evaluation.perplexity import Perplexity
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.nullspace.statistics import prepare_statistics
from alphaedit_plugin.report import table
from alphaedit_plugin.storage.shipped import shipped


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--facts", type=int, default=4)
    arguments.add_argument("--methods", nargs="+", default=["memit", "memit+P", "rect", "rect+P"])
    arguments.add_argument("--corpus", default=shipped("examples/heldout.txt"), help="text to preserve")
    options = arguments.parse_args()

    model, tokenizer = load("smollm2-135m")
    hyperparameters = Hyperparameters.for_model("memit", model, "smollm2-135m")
    statistics = prepare_statistics(
        model, tokenizer, hyperparameters.layers, source=options.corpus, tokens=2500, progress=True
    )
    held_out = shipped("examples/heldout.txt").read_text(encoding="utf-8")
    comparison = compare(
        model,
        tokenizer,
        load_facts(shipped("examples/facts.json"))[: options.facts],
        options.methods,
        hyperparameters,
        statistics,
        batch_size=2,
        measures=[Facts(), Perplexity(held_out[-6000:], tokenizer)],  # its beginning is preserved
        progress=True,
    )
    Console().print(table(comparison))


if __name__ == "__main__":
    main()
