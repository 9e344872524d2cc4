"""The file that a search leaves: read by us as what was found, and by EasyEdit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from support.tiny import model_of

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.registry import find
from alphaedit_plugin.editors.variant import Variant
from alphaedit_plugin.errors import TuningError
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.projection import Criterion
from alphaedit_plugin.storage.shipped import shipped
from alphaedit_plugin.tuning.hparams_file import table, write_hparams
from alphaedit_plugin.tuning.search import Tuning
from alphaedit_plugin.tuning.trials import Trial

BEST = Hyperparameters(
    layers=(1, 2),
    v_lr=0.25,
    clamp_norm_factor=1.1,
    mom2_update_weight=76.0,
    L2=3.2,
    null_space=Criterion(threshold=3e-3),
)
SCORES = {"efficacy": 1.0, "generalization": 0.85, "specificity": 0.7}
TUNING = Tuning(
    Trial(BEST, SCORES, 0.05, 9.0),
    [Trial(replace(BEST, v_lr=0.5), failure="the target loss is not finite"), Trial(BEST, SCORES, 0.05, 9.0)],
    None,
    20,
    600.0,
    True,
)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("method", ["memit", "memit+P", "alphaedit", "rome", "rect", "prune"])
def test_a_file_is_read_as_what_was_found_and_has_the_keys_of_those_that_ship(method, architecture, tmp_path):
    model, path, variant = model_of(architecture), tmp_path / "tuned.yaml", Variant.parse(method)
    best = Hyperparameters.derived("rome", model) if method == "rome" else BEST
    trial = replace(TUNING.best, hyperparameters=best)
    write_hparams(path, model, method, replace(TUNING, best=trial, trials=[trial]), name="some/model")
    values = yaml.safe_load(path.read_text("utf-8"))
    folder = find(variant.method).folder
    ships = yaml.safe_load(shipped(f"hparams/{folder}/llama3-8b.yaml").read_text("utf-8"))
    assert values["alg_name"] == folder
    assert set(values) - {"null_space"} == set(ships) - {"null_space"}
    assert ("null_space" in values) == (method == "memit+P")  # EasyEdit has another key for AlphaEdit's
    template = values["rewrite_module_tmp"]
    assert template.replace("{}", "1") == Decoder(model).out_projection(1).name
    for key in ("layer_module_tmp", "mlp_module_tmp", "attn_module_tmp"):
        model.get_submodule(values[key].replace("{}", "1"))
    read = Hyperparameters.from_yaml(path)
    unused = {} if variant.projected else {"null_space": Hyperparameters(layers=(0,)).null_space}
    unused |= {} if method == "alphaedit" else {"L2": 10.0}
    unused |= {} if method != "rome" else {"mom2_update_weight": 15000.0}
    assert read == replace(best, rewrite_module_tmp=template, **unused)


def test_the_comments_say_what_was_measured_and_how_to_use_it(tmp_path):
    path = tmp_path / "tuned.yaml"
    write_hparams(path, model_of(), "memit", TUNING, command="alphaedit tune some/model", facts="pilot.json", name="m")
    comments = [line for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
    text = " ".join(" ".join(comments).replace("#", " ").split())
    for part in ("20 facts of pilot.json", "--hparams tuned.yaml", "alphaedit tune some/model", "efficacy 100.0"):
        assert part in text
    assert "failed: the target loss" in text
    assert sum(line.startswith("# *") for line in comments) == 1
    assert [line.removeprefix("# ") for line in comments if line.removeprefix("# ") in table(TUNING)] == table(TUNING)


def test_a_file_that_cannot_be_written_is_one_error_and_the_old_one_stays(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(TuningError, match=r"tuned\.yaml"):
        write_hparams(tmp_path / "folder" / "tuned.yaml", model_of(), "memit", TUNING)
    assert (tmp_path / "folder").read_text() == "a file"
