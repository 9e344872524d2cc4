"""What a plan counts is what a run does: operations by torch's own counter, files by their size, work by its number."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.command_line import FACTS
from support.gguf_files import write_model
from support.tiny import tiny
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from alphaedit_plugin.comparison.campaign import Campaign
from alphaedit_plugin.comparison.measuring import Measuring
from alphaedit_plugin.comparison.plan import Forecast, forecasts
from alphaedit_plugin.comparison.run_folder import read_run
from alphaedit_plugin.comparison.studies import FRONTIER_CLAMPS, Plan
from alphaedit_plugin.editors.hyperparameters import TargetSettings
from alphaedit_plugin.editors.optimisers import OPTIMISERS
from alphaedit_plugin.editors.targets import most_looks, optimise_targets
from alphaedit_plugin.errors import ModelStructureError
from alphaedit_plugin.evaluation.datasets import load_dataset
from alphaedit_plugin.evaluation.fact_scores import score
from alphaedit_plugin.evaluation.perplexity import Perplexity
from alphaedit_plugin.model import batches
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.model.outline import outlined
from alphaedit_plugin.nullspace.covariance import collect
from alphaedit_plugin.nullspace.projection import Criterion
from alphaedit_plugin.nullspace.statistics import Preparation
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.storage.store import Store

pytestmark = pytest.mark.slow

TEXT = "The river flows through the old town to the sea, where many ships lie at anchor. "
METHODS = ("memit", "memit+prune", "alphaedit", "memit+P")


@pytest.fixture
def campaign(tmp_path, tokenizer) -> Campaign:
    folder = tmp_path / "model"
    tiny("llama", vocab_size=512, hidden_size=32, intermediate_size=96, num_hidden_layers=6).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (tmp_path / "facts.json").write_text(json.dumps(FACTS))
    (tmp_path / "text.txt").write_text(TEXT * 60)
    return Campaign(
        models=(str(folder),),
        folder=tmp_path / "run",
        data=(str(tmp_path / "facts.json"),),
        plan=Plan(METHODS, every=1),
        batch=2,
        measuring=Measuring(held_out=tmp_path / "text.txt"),
        preparation=Preparation(
            tmp_path / "text.txt", tokens=600, criterion=Criterion(nullity=40), store=Store(tmp_path / "cache")
        ),
        layers=(1, 2),
        keep_sessions=True,
    )


def forecast(campaign: Campaign) -> Forecast:
    (found,) = forecasts(campaign, outlined)
    return found


def operations(found: Forecast, part: str) -> float:
    (work,) = [work for work in (*found.first, *found.shared) if work.part == part]
    return work.operations


def counted(work: Callable[[], object]) -> int:
    """Operations of matrix products in a model; those of attention, and of sums in float64, are counted elsewhere."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_flop_counts()["Global"][torch.ops.aten.mm]


@pytest.fixture
def alone(monkeypatch) -> None:
    """Each row is a batch of its own: nothing is padded."""
    for module in ("model.likelihood", "evaluation.perplexity"):
        monkeypatch.setattr(
            f"alphaedit_plugin.{module}.batches", lambda rows, _, device: batches.batches(rows, 1, device)
        )


def test_it_needs_no_weights(campaign, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))
    for weights in Path(campaign.models[0]).glob("*.safetensors"):
        weights.unlink()
    found = forecast(campaign)
    assert (found.blocks, found.shapes) == (6, {1: (96, 32), 2: (96, 32)})
    assert not campaign.folder.exists()
    assert not campaign.preparation.store.root.exists()


def test_a_plan_counts_the_work_that_the_run_then_does(campaign, monkeypatch):
    found = forecast(campaign)
    edited = []
    edit = Session.edit
    monkeypatch.setattr(
        Session, "edit", lambda self, batch, *rest, **more: edited.append(batch) or edit(self, batch, *rest, **more)
    )
    campaign.run(load)
    (comparison,) = read_run(campaign.folder)
    assert found.contenders == len(METHODS)
    assert found.trajectories == len(list(campaign.folder.glob("*/sessions/*"))) == 3
    assert found.batches == len(edited)
    assert found.facts == sum(map(len, edited))
    assert found.measurements == len(comparison.rows)
    assert found.parameters == sum(weight.numel() for weight in load(campaign.models[0])[0].parameters())


def test_a_plan_counts_the_bytes_that_the_run_then_takes(campaign):
    found = forecast(replace(campaign, plan=Plan(METHODS)))
    campaign.run(load)

    def taken(*patterns: str) -> int:
        paths = [path for pattern in patterns for path in campaign.folder.parent.glob(pattern)]
        return sum(path.stat().st_size for path in paths)

    headers = 2_000  # of a safetensors file
    assert 0 <= taken("cache/covariance/*.safetensors") - found.disk["cache: covariances"] <= 2 * headers
    assert 0 <= taken("cache/null-space/*.safetensors") - found.disk["cache: P, at most"] <= 4 * headers
    sessions = taken("run/*/sessions/*/*.safetensors", "run/*/sessions/*/batches/*.safetensors")
    assert 0 <= sessions - found.disk["run folder: sessions kept"] <= 3 * 4 * headers


def test_operations_of_asking_are_those_that_torch_counts(campaign, alone):
    found = forecast(replace(campaign, plan=Plan(("memit",), edits=1)))
    model, tokenizer = load(campaign.models[0])
    facts = list(load_dataset(campaign.data[0]).facts)[:1]
    assert operations(found, "facts asked") == 2 * counted(lambda: score(model, tokenizer, facts))
    text = Perplexity(TEXT * 60, tokenizer)
    assert operations(found, "perplexity") == 2 * counted(lambda: text(model, tokenizer, facts, None))


def test_operations_of_a_pass_over_text_are_those_that_torch_counts(campaign):
    """The pass ends before the last layer's out-projection: that is what a plan counts too much."""
    found = forecast(replace(campaign, plan=Plan(("memit",))))
    model = load(campaign.models[0])[0]
    windows = [list(range(100, 200))] * 6
    assert 0.8 < counted(lambda: collect(model, windows, [1, 2])) / operations(found, "covariances") <= 1


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("steps", [1, 3, 8, 25])
def test_operations_of_targets_are_those_of_a_fact_that_is_never_done(optimiser, steps, campaign, monkeypatch):
    """But for padding: every row is as long as the longest."""
    monkeypatch.setattr(OPTIMISERS[optimiser], "enough", -1.0)
    monkeypatch.setattr(OPTIMISERS[optimiser], "most", 15)
    method = f"memit@target_optimiser={optimiser}@v_num_grad_steps={steps}"
    found = forecast(replace(campaign, plan=Plan((method,), edits=1)))
    model, tokenizer = load(campaign.models[0])
    decoder = Decoder(model)
    decoder.prefix_cache = True
    request = load_dataset(campaign.data[0]).facts[0].request
    words = TEXT.split()
    contexts = ["{}", *[f"{' '.join(words[i : i + 4])}. {{}}" for i in range(5)]]
    settings = TargetSettings(steps=steps, optimiser=optimiser)
    done = counted(lambda: optimise_targets(decoder, tokenizer, [request], contexts, 2, settings))
    planned = operations(found, "targets, prompts") + operations(found, "targets, steps")
    assert 0.85 < done / planned < 1.15


@pytest.mark.parametrize("contexts", [1, 2, 6])
@pytest.mark.parametrize("steps", [1, 2, 3, 12, 25])
def test_the_last_look_is_one_more_than_the_steps(contexts, steps):
    for name, optimiser in OPTIMISERS.items():
        looks = most_looks(TargetSettings(steps=steps, optimiser=name), contexts)
        taken = min(steps - 1, optimiser.most or steps)
        assert looks.get(contexts, 0) >= 1
        assert sum(looks.values()) - taken in (1, 2), "a look that narrows or widens is taken twice"


def test_a_gguf_file_is_outlined_by_its_header(tmp_path, tokenizer):
    path = tmp_path / "tiny.gguf"
    model = write_model(path, tokenizer)
    found, its_tokenizer = outlined(str(path))
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert {name: tuple(weight.shape) for name, weight in found.named_parameters()} == shapes
    assert all(weight.is_meta for weight in found.parameters())
    assert its_tokenizer("The river")["input_ids"] == tokenizer("The river")["input_ids"]


def test_what_cannot_be_outlined_says_what_it_takes(tmp_path):
    with pytest.raises(ModelStructureError, match=r"config\.json and a tokenizer"):
        outlined(str(tmp_path))


def test_targets_that_are_found_once_cost_once(campaign):
    once = forecast(replace(campaign, targets_once=True, plan=Plan(("memit", "alphaedit"))))
    now = forecast(replace(campaign, plan=Plan(("memit", "alphaedit"))))
    assert 2 * operations(once, "targets, steps") == operations(now, "targets, steps")


def test_a_study_that_finds_targets_once_is_counted_so(campaign):
    found = forecast(replace(campaign, study="frontier", plan=Plan(("memit",), edits=1)))
    apart = forecast(
        replace(campaign, plan=Plan(tuple(f"memit@clamp_norm_factor={each}" for each in FRONTIER_CLAMPS), edits=1))
    )
    assert found.trajectories > apart.trajectories
    assert operations(found, "targets, steps") == operations(apart, "targets, steps")


def test_what_is_told_in_context_needs_neither_text_nor_layers(campaign):
    alone = forecast(replace(campaign, plan=Plan(("in-context",), edits=1)))
    assert (alone.shapes, alone.uncounted) == ({}, ["the edits of in-context"])
    assert {work.part for work in (*alone.first, *alone.shared)} == {"facts asked", "perplexity"}
    plain = forecast(replace(campaign, plan=Plan(("memit",), edits=1)))
    beside = forecast(replace(campaign, plan=Plan(("memit", "in-context"), edits=1)))
    assert beside.first == plain.first
    assert {**beside.memory, **beside.disk, "run folder: measurements": 0} == {
        **plain.memory, **plain.disk, "run folder: measurements": 0
    }  # fmt: skip


def test_hours_follow_from_rates_and_workers(campaign):
    found = forecast(campaign)
    one = found.hours(1e12, 5e11)
    assert found.hours(2e12, 1e12) == pytest.approx(one / 2)
    first = sum(work.hours(1e12, 5e11) for work in found.first)
    for workers, share in {1: 1, 2: 2 / 3, 3: 1 / 3, 99: 1 / 3}.items():  # of three trajectories
        assert found.hours(1e12, 5e11, workers) == pytest.approx(first + share * (one - first))


def test_what_a_plan_cannot_count_it_names(campaign, tmp_path):
    (tmp_path / "mine.py").write_text("def edit(model, tokenizer, requests): pass\n")
    found = forecast(replace(campaign, plan=Plan(("memit", f"{tmp_path}/mine.py:edit"), texts=2)))
    assert found.uncounted == ["the edits of mine.py:edit", "the measure texts"]
    crisp = forecast(replace(campaign, plan=Plan((f"{tmp_path}/mine.py:edit+crisp",))))
    assert crisp.uncounted == ["the edits of mine.py:edit+crisp", "the loss's gradients on the text, for +crisp"]
