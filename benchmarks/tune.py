"""What `alphaedit tune` finds, against the files that ship and the derived settings, on facts that it has not seen.

    python benchmarks/tune.py MODEL FOLDER [--method memit] [--minutes 20] [--data counterfact.json] [--edits 100]

The facts are the last ones of --data; the search has those that ship as its pilot. It begins with the derived settings,
as for a model without a file. What is in FOLDER is not made again: a run that was killed goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from alphaedit_plugin import Hyperparameters, Preparation, Variant, compare, load, load_facts, shipped
from alphaedit_plugin.tuning.hparams_file import table, write_hparams
from alphaedit_plugin.tuning.search import PILOT, tune

COLUMNS = ("efficacy", "generalization", "specificity", "score", "exact", "perplexity")


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("model")
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--method", default="memit")
    arguments.add_argument("--minutes", type=float, default=20.0)
    arguments.add_argument("--pilot", type=int, default=PILOT)
    arguments.add_argument("--data", type=Path, default=Path("../shared/data/counterfact/counterfact_500.json"))
    arguments.add_argument("--edits", type=int, default=100)
    arguments.add_argument("--batch", type=int, default=10)
    options = arguments.parse_args()

    variant = Variant.parse(options.method)
    model, tokenizer = load(options.model)
    preparation = Preparation(progress=True)
    derived = Hyperparameters.derived(variant.method, model)
    pilot = load_facts(shipped("examples/facts.json"))[: options.pilot]
    path = options.folder / f"{variant}.yaml".lower()
    if not path.exists():
        found = tune(
            model,
            tokenizer,
            pilot,
            variant,
            minutes=options.minutes,
            start=derived,
            preparation=preparation,
            ledger=path.with_suffix(".trials.json"),
            progress=True,
        )
        command = f"python benchmarks/tune.py {options.model} {options.folder} --method {variant}"
        write_hparams(path, model, variant, found, command=command, facts="those that ship")
        print("\n".join(table(found)), flush=True)

    settings = {
        "tuned": Hyperparameters.from_yaml(path),
        "shipped": Hyperparameters.shipped_for(variant.method, options.model),
        "derived": derived,
        "derived, λ 15,000": replace(derived, mom2_update_weight=Hyperparameters.mom2_update_weight),
    }
    unseen = load_facts(options.data)[-options.edits :]
    print(f"\n{variant} on {options.model}, {len(unseen)} facts of {options.data.name} in batches of {options.batch}")
    print(f"{'':18}" + "".join(f"{name:>16}" for name in (*COLUMNS, "drift", "layers")))
    for name, values in settings.items():
        if values is None or (name.startswith("derived,") and values == derived):
            continue
        comparison = compare(
            model,
            tokenizer,
            unseen,
            [str(variant)],
            batch_size=options.batch,
            hyperparameters=values,
            preparation=preparation,
            folder=options.folder / f"{variant}-{name}".replace(", λ ", "-").replace(",", ""),
            progress=True,
        )
        row = comparison.rows[-1]
        shown = []
        for column in COLUMNS:
            estimate = row.metrics.get(column)
            scale = 1 if column == "perplexity" else 100
            shown.append("-" if estimate is None else f"{scale * estimate:.1f}")
        shown += [f"{100 * max(row.drift.values()):.1f}", f"{values.layers[0]}-{values.layers[-1]}"]
        print(f"{name:18}" + "".join(f"{cell:>16}" for cell in shown), flush=True)


if __name__ == "__main__":
    main()
