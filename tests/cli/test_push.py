"""`alphaedit push` and `alphaedit edit --push`, on a Hub of our own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from support.command_line import FACTS, SMALL, assert_one_line
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A cache that these tests share."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def edit(run, checkpoint, prepared, tmp_path):
    """Edit the tiny model, which learns nothing, into `out`; its name on the Hub is acme/base, as its cache has it."""
    snapshot = tmp_path / "models--acme--base" / "snapshots" / "0123"
    shutil.copytree(checkpoint, snapshot)
    (tmp_path / "two.json").write_text(json.dumps(FACTS[:2]))
    (tmp_path / "quick.yaml").write_text("layers: [1, 2]\nv_num_grad_steps: 3\nmom2_update_weight: 0.5\nL2: 0.5\n")

    def call(*arguments: object, model: object = snapshot, judged: bool = False) -> tuple[int, str, str]:
        return run(
            "edit", model, tmp_path / "two.json", "--out", tmp_path / "out", "--hparams", tmp_path / "quick.yaml",
            *SMALL, "--cache", prepared, *([] if judged else ["--allow-failures"]), *arguments,
        )  # fmt: skip

    return call


@pytest.mark.parametrize("kind", ["lora", "model"])
def test_edit_publishes_what_it_wrote_and_not_the_session(kind, edit, hub, tmp_path):
    code, output, errors = edit(*(["--lora"] if kind == "lora" else []), "--push", "acme/edited")
    assert (code, errors) == (0, "")
    assert f"{hub.address}/acme/edited" in output
    here = {path.name: path.read_bytes() for path in (tmp_path / "out" / kind).iterdir()}
    assert {name: data for name, data in hub.files["acme/edited"].items() if name != ".gitattributes"} == here
    assert hub.private == {"acme/edited": True}
    assert hub.tags("acme/edited")[:2] == ["knowledge-editing", "alphaedit"]


def test_a_fact_that_failed_is_not_published_unless_it_is_asked_for(edit, run, hub, tmp_path):
    code, output, _ = edit("--push", "acme/edited", judged=True)
    assert code == 3
    assert hub.files == {}
    assert "not published" in output
    code, output, errors = run("push", tmp_path / "out", "acme/edited", "--public")
    assert (code, errors) == (0, "")
    assert "model.safetensors" in hub.files["acme/edited"]
    assert hub.private == {"acme/edited": False}


def test_where_nothing_can_be_published_nothing_is_edited(edit, hub, tmp_path):
    hub.files["acme/other"] = {"theirs.txt": b""}
    hub.private["acme/other"] = True
    assert_one_line(edit("--push", "acme/other"), "acme/other holds other things", "choose another name")
    assert_one_line(edit("--push", "edited"), "write USER/NAME")
    assert_one_line(edit("--public"), "--push")
    assert not (tmp_path / "out").exists()


def test_of_two_results_one_must_be_named(edit, run, hub, tmp_path):
    edit("--lora")
    edit()
    assert_one_line(run("push", tmp_path / "out", "acme/edited"), "out/model or ", "out/lora")
    assert run("push", tmp_path / "out" / "lora", "acme/edited")[0] == 0
    assert "adapter_config.json" in hub.files["acme/edited"]
    assert run("push", tmp_path / "out" / "model", "acme/edited")[0] == 0, "the one takes the place of the other"
    assert "adapter_config.json" not in hub.files["acme/edited"]


def test_what_was_not_written_here_is_not_published(run, checkpoint, hub, tmp_path):
    assert_one_line(run("push", checkpoint, "acme/edited"), "no model and no adapter that `alphaedit edit` wrote")
    assert hub.files == {}


def test_an_adapter_of_a_model_that_only_this_machine_has_needs_its_name(edit, run, checkpoint, hub, tmp_path):
    lora = tmp_path / "out" / "lora"
    assert_one_line(edit("--lora", "--push", "acme/edited", model=checkpoint), "adapter_config.json", "without --lora")
    assert not (tmp_path / "out").exists()
    edit("--lora", model=checkpoint)
    assert_one_line(run("push", tmp_path / "out", "acme/edited"), "adapter_config.json", "others do not have")
    config = json.loads((lora / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == checkpoint
    (lora / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "acme/mine"}))
    assert run("push", tmp_path / "out", "acme/edited")[0] == 0

    edit("--lora", model=checkpoint)  # written anew, the name stays
    assert json.loads((lora / "adapter_config.json").read_text())["base_model_name_or_path"] == "acme/mine"
    assert ModelCard.load(lora / "README.md").data.base_model == "acme/mine"


def test_without_a_token_or_a_network_push_is_one_line(edit, run, hub, tmp_path, monkeypatch):
    edit()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert_one_line(run("push", tmp_path / "out", "acme/edited"), "hf auth login")
    monkeypatch.setenv("HF_TOKEN", "x")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert_one_line(run("push", tmp_path / "out", "acme/edited"), "cannot publish acme/edited", "try again")


# ---------------------------------------------------------------------------------------------------------------- rank


def rank_in(folder: Path) -> int:
    ranks = {
        tensor.shape[0] for name, tensor in load_file(folder / "adapter_model.safetensors").items() if "_A" in name
    }
    (rank,) = ranks
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == rank
    return rank


def test_a_rank_is_written_said_and_kept_until_another_is_chosen(edit, run, tmp_path):
    code, output, errors = edit("--lora", "--rank", 8, "--batch", 1)
    assert (code, errors) == (0, "")
    assert "PEFT adapter, rank 8, 100 % of ‖ΔW‖²" in output
    lora = tmp_path / "out" / "lora"
    assert rank_in(lora) == 8
    assert run("undo", tmp_path / "out", "--quiet")[0] == 0
    assert rank_in(lora) == 8
    edit("--lora", "--batch", 1)
    assert rank_in(lora) == 8
    edit("--lora", "--rank", 1)
    assert rank_in(lora) == 1
    assert " to " in (lora / "README.md").read_text(encoding="utf-8").partition("- Rank: 1, holding ")[2][:30]


@pytest.mark.parametrize("arguments", [("--rank", 8), ("--lora", "--rank", 0)])
def test_a_rank_without_an_adapter_or_of_zero_is_one_line(arguments, edit, tmp_path):
    assert_one_line(edit(*arguments), "--rank")
    assert not (tmp_path / "out").exists()


def test_the_card_of_a_model_belongs_to_the_model_that_lies_there(edit, tmp_path):
    edit()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model") is not None
    text = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert "acme/base" in text
    assert "2 facts" in text
