"""`easyedit:METHOD+P` as a contender writes what the flag writes, in the EasyEdit that is installed."""

from __future__ import annotations

from support import real_easyedit

real_easyedit.load()

import copy
import importlib

import pytest
import torch
from support.easyedit_methods import FACTS, LAYERS, model_of, weights

import alphaedit_plugin.easyedit as plugin
from alphaedit_plugin.baselines.baseline import baseline
from alphaedit_plugin.baselines.hyperparameters import hyperparameters
from alphaedit_plugin.baselines.names import Named
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.undisturbed import seeded
from alphaedit_plugin.nullspace.null_spaces import null_spaces_of
from alphaedit_plugin.nullspace.projection import Criterion
from alphaedit_plugin.nullspace.statistics import prepare_statistics

TABLE = importlib.import_module("easyeditor.util.alg_dict").ALG_DICT
FEW = {"layers": LAYERS, "v_num_grad_steps": 3, "v_lr": 0.2, "mom2_update_weight": 10.0}
GIVEN = {
    "MEMIT": FEW,
    "ROME": {"layers": LAYERS[:1], "v_num_grad_steps": 3, "v_lr": 0.2, "context_template_length_params": [[3, 5]]},
    "FT": {"layers": LAYERS, "num_steps": 3, "lr": 5e-3},
    "AlphaEdit": {**FEW, "nullspace_threshold": 0.5, "L2": 1.0},
    "SPHERE": {**FEW, "L2": 1.0, "cumulative_ratio": 0.5, "suppression_strength": 0.5},
}
OWN = [name for name in GIVEN if name in TABLE and TABLE[name].__module__.startswith("easyeditor.")]
IN_BATCHES = importlib.import_module("easyeditor.editors.batch_editor").BatchEditor.is_batchable_method
BATCHES = {name: [FACTS[:2], FACTS[2:]] if IN_BATCHES(name) else [[fact] for fact in FACTS] for name in OWN}
# FT's template, as some of EasyEdit's files write it, holds the bias too: gpt2 has one.
CASES = [*((name, "llama", {}) for name in OWN), ("FT", "gpt2", {"rewrite_module_tmp": "transformer.h.{}.mlp.c_proj"})]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with real_easyedit.on_cpu():
        yield


@pytest.mark.parametrize("installed", [False, True], ids=["alone", "beside the flag"])
@pytest.mark.parametrize(("name", "architecture", "more"), CASES, ids=str)
def test_a_projected_contender_equals_the_flagged_run(name, architecture, more, installed, tokenizer, tmp_path):
    model, given = model_of(architecture), {**GIVEN[name], **more}
    statistics = prepare_statistics(model, tokenizer, range(4))
    null_spaces = null_spaces_of(statistics, Criterion(nullity=12))
    (plugin.install if installed else plugin.uninstall)()
    with baseline(
        f"easyedit:{name}+P", model, tokenizer, hparams=given, statistics=statistics, null_spaces=null_spaces
    ) as contender:
        for batch in BATCHES[name]:
            contender.edit([Request.parse(fact, "a fact") for fact in batch])
        found = weights(model)

    plugin.install()
    before = weights(model)
    hparams = hyperparameters(Named(name), model, given)
    null_spaces.save(tmp_path / "p.safetensors")
    hparams.null_space = {"path": str(tmp_path / "p.safetensors"), "progress": False}
    if hasattr(hparams, "stats_dir"):
        _npz(statistics, model, hparams, tmp_path)
    theirs = copy.deepcopy(tokenizer)
    theirs.unk_token, theirs.padding_side = theirs.eos_token, "right"
    written = 0
    for batch in BATCHES[name]:
        records = [
            {**fact, "prompt": Request.parse(fact, "a fact").text, "case_id": written + i}
            for i, fact in enumerate(batch)
        ]
        with seeded(written), torch.enable_grad():
            TABLE[name](model, theirs, records, hparams)
        written += len(batch)

    moved = [n for n, weight in weights(model).items() if not torch.equal(weight, before[n])]
    assert len(moved) == len(given["layers"])
    assert all(n.endswith(".weight") for n in moved)
    assert all(torch.equal(weight, found[n]) for n, weight in weights(model).items())


def _npz(statistics, model, hparams, folder):
    """Statistics where either edition looks for them, in the words of these hyperparameters."""
    hparams.stats_dir = str(folder / "stats")
    name, size = model.config._name_or_path, hparams.mom2_n_samples
    for place in {name.rsplit("/")[-1], name.replace("/", "_")}:
        for layer, projection in Decoder(model).out_projections(range(4)).items():
            file = f"{projection.name}_{hparams.mom2_dtype}_mom2_{size}.npz"
            statistics.covariances[layer].save_npz(folder / "stats" / place / "wikipedia_stats" / file, size)
