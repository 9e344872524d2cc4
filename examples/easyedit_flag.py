"""EasyEdit's MEMIT with `null_space` in its YAML, and without.

    PYTHONPATH=path/to/EasyEdit python examples/easyedit_flag.py [--facts 20] [--layers 4 5 6 7 8]

Needs EasyEdit (either edition). All that concerns the plug-in is the first import and a line of the YAML.
"""

import argparse
import copy
from pathlib import Path

import alphaedit_plugin.easyedit  # noqa: F401 isort: skip
from easyeditor import BaseEditor, MEMITHyperParams  # isort: skip

from rich.console import Console
from rich.table import Table

from alphaedit_plugin import Preparation, load, load_facts, score, shipped


def edit_with_easyedit(model, tokenizer, facts, hparams) -> None:
    """What an EasyEdit user writes. (A model by name would do too; this one is loaded already.)"""
    name, hparams.model_name = hparams.model_name, (model, tokenizer)
    editor = BaseEditor.from_hparams(hparams)
    editor.model_name = hparams.model_name = name
    editor.batch_edit(
        prompts=[fact.request.text for fact in facts],
        subject=[fact.request.subject for fact in facts],
        target_new=[fact.request.target_new for fact in facts],
        ground_truth=[fact.target_true for fact in facts],
        sequential_edit=True,
        verbose=False,
    )


def write_statistics(model, tokenizer, hparams, corpus) -> None:
    """Only the run without the flag needs this: EasyEdit would download Wikipedia where no file of its own lies."""
    statistics = Preparation(corpus=corpus, progress=True).statistics(model, tokenizer, hparams.layers)
    folder = Path(hparams.stats_dir) / model.config._name_or_path / f"{hparams.mom2_dataset}_stats"
    statistics.save_npz(model, folder, hparams.mom2_n_samples, dtype=hparams.mom2_dtype)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--facts", type=int, default=2)
    arguments.add_argument("--layers", type=int, nargs="+")
    arguments.add_argument("--corpus", help="text to preserve; by default the model writes its own")
    arguments.add_argument("--hparams", default=Path(__file__).parent / "easyedit_memit.yaml")
    options = arguments.parse_args()

    model, tokenizer = load("smollm2-135m")
    tokenizer.pad_token_id, tokenizer.padding_side = tokenizer.eos_token_id, "right"  # as BaseEditor does
    facts = load_facts(shipped("examples/facts.json"))[: options.facts]
    hparams = MEMITHyperParams.from_hparams(str(options.hparams))
    hparams.layers, hparams.batch_size = options.layers or hparams.layers, 10
    flag, start = hparams.null_space, copy.deepcopy(model.state_dict())
    write_statistics(model, tokenizer, hparams, options.corpus)

    table = Table(title=f"EasyEdit's MEMIT, {len(facts)} facts in batches of {hparams.batch_size}")
    table.add_column()
    metrics = ("efficacy", "generalization", "specificity")
    for metric in metrics:
        table.add_column(f"{metric} %", justify="right")
    for name, value in {"before": None, "without null_space": None, "with null_space": flag}.items():
        hparams.null_space = value
        if name != "before":
            edit_with_easyedit(model, tokenizer, facts, hparams)
        means = score(model, tokenizer, facts).means()
        model.load_state_dict(start)
        table.add_row(name, *(f"{100 * means[metric]:.0f}" for metric in metrics))
    Console().print(table)


if __name__ == "__main__":
    main()
