"""Methods side by side from Python: same start, same facts, same order, plain and projected.

    python examples/compare_variants.py [--facts 4] [--methods memit memit+P rect rect+P]

`alphaedit compare` is this program with more options.
"""

import argparse

from rich.console import Console

from alphaedit_plugin import Preparation, compare, load, load_facts, shipped, table


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--facts", type=int, default=4)
    arguments.add_argument("--methods", nargs="+", default=["memit", "memit+P", "rect", "rect+P"])
    arguments.add_argument("--corpus", default=shipped("examples/heldout.txt"), help="text to preserve")
    options = arguments.parse_args()

    model, tokenizer = load("smollm2-135m")
    comparison = compare(
        model,
        tokenizer,
        load_facts(shipped("examples/facts.json"))[: options.facts],
        options.methods,
        batch_size=2,
        preparation=Preparation(corpus=options.corpus, tokens=2500, progress=True),
        progress=True,
    )
    Console().print(table(comparison))


if __name__ == "__main__":
    main()
