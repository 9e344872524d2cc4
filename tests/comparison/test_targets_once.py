"""Targets that are found once, on the unedited model: shared, and resumed."""

from __future__ import annotations

import pytest
import torch
from support.comparing import compared, fresh, timeless
from support.editing import weights
from support.mishaps import Interrupted, cut

from alphaedit_plugin.editors import layered
from alphaedit_plugin.errors import CompareError
from alphaedit_plugin.session.session import Session


@pytest.fixture
def searched(monkeypatch) -> list[int]:
    """How many targets each search has found, and a place to interrupt them."""
    calls, optimise = [], layered.optimise_targets

    def counted(model, tokenizer, requests, *args, **options):
        calls.append(len(requests))
        return optimise(model, tokenizer, requests, *args, **options)

    monkeypatch.setattr(layered, "optimise_targets", counted)
    return calls


def test_all_facts_in_one_batch_are_written_as_they_are_with_targets_of_now(tokenizer):
    options = {"facts": 3, "batch_size": 3}
    once, now = (
        compared(fresh(), tokenizer, ["memit", "alphaedit"], targets_once=of, **options) for of in (True, False)
    )
    for one, other in zip(once.rows[1:], now.rows[1:], strict=True):
        assert one.drift == pytest.approx(other.drift, rel=1e-5)
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4)
    assert once.settings["cell"] != now.settings["cell"]


def test_targets_are_found_once_for_all_who_can_share_them(searched, tokenizer, tmp_path):
    names = ["memit", "memit+P", "alphaedit", "alphaedit@v_lr=0.3"]
    compared(fresh(), tokenizer, names, folder=tmp_path, targets_once=True)
    assert searched == [2, 1, 2, 1]  # two batches, for two settings of targets
    compared(fresh(), tokenizer, [*names, "memit-seq"], folder=tmp_path, targets_once=True)
    assert searched == [2, 1, 2, 1]


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_run_that_was_killed_is_that_of_an_uninterrupted_one(killed_at, tokenizer, tmp_path, monkeypatch):
    names = ["alphaedit", "memit"]
    expected = compared(fresh(), tokenizer, names, every=2, targets_once=True)
    calls, edit = [], Session.edit

    def interrupted(self, *args, **options):
        calls.append(self)
        if len(calls) == killed_at:
            raise Interrupted
        return edit(self, *args, **options)

    monkeypatch.setattr(Session, "edit", interrupted)
    with pytest.raises(Interrupted):
        compared(fresh(), tokenizer, names, every=2, targets_once=True, folder=tmp_path)
    found = compared(fresh(), tokenizer, names, every=2, targets_once=True, folder=tmp_path)
    assert list(map(timeless, found.rows)) == list(map(timeless, expected.rows))


def test_damaged_targets_are_named_and_found_again(searched, tokenizer, tmp_path, caplog):
    expected = compared(fresh(), tokenizer, ["alphaedit"], folder=tmp_path, targets_once=True)
    first, second = sorted((tmp_path / "targets").iterdir())
    cut(first, 0.5)
    second.write_bytes(first.read_bytes())
    found = compared(fresh(), tokenizer, ["memit"], folder=tmp_path, targets_once=True)
    assert searched == [2, 1, 2, 1]
    assert first.name in caplog.text
    assert second.name in caplog.text
    again = compared(fresh(), tokenizer, ["memit"], targets_once=True)
    assert timeless(found.final[1]) == timeless(again.final[1])
    assert expected.settings["targets_found"] == "once"


def test_targets_of_another_name_are_not_believed(searched, tokenizer, tmp_path, caplog):
    compared(fresh(), tokenizer, ["alphaedit"], folder=tmp_path, targets_once=True)
    first, second = sorted((tmp_path / "targets").iterdir())
    second.write_bytes(first.read_bytes())
    compared(fresh(), tokenizer, ["memit"], folder=tmp_path, targets_once=True)
    assert len(searched) == 3
    assert "holds other targets than its name says" in caplog.text


def test_methods_that_find_their_own_are_refused_by_name(tokenizer):
    model = fresh()
    before = weights(model)
    with pytest.raises(CompareError, match=r"rome finds its own targets .* leave it out"):
        compared(model, tokenizer, ["memit", "rome"], targets_once=True)
    for layer, weight in weights(model).items():
        assert torch.equal(weight, before[layer])
