"""Which device a model goes to."""

from __future__ import annotations

import pytest
import torch

from alphaedit_plugin.errors import ModelStructureError
from alphaedit_plugin.model.device import device_of


def accelerator(monkeypatch, device: str | None) -> None:
    """A machine with this accelerator, or with none."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: device is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: device and torch.device(device))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


def test_auto_is_the_accelerator_and_without_one_the_cpu(monkeypatch):
    accelerator(monkeypatch, None)
    assert device_of("auto") == torch.device("cpu")
    accelerator(monkeypatch, "meta")
    assert device_of("auto") == torch.device("meta")


def test_an_accelerator_without_float64_is_passed_over(monkeypatch):
    accelerator(monkeypatch, "meta")
    empty = torch.empty

    def like_apples(*size, dtype=None, device=None):
        if torch.device(device).type == "meta" and dtype == torch.float64:
            raise TypeError("no float64")
        return empty(*size, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "empty", like_apples)
    assert device_of("auto") == torch.device("cpu")


def test_a_name_is_taken_at_its_word(monkeypatch):
    accelerator(monkeypatch, "meta")
    assert device_of("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["foo", "", "cpu cpu", "meta", "cuda:99"])
def test_a_device_that_cannot_compute_here_is_refused_with_those_that_can(name, monkeypatch):
    with pytest.raises(ModelStructureError, match=r"say cpu.* or auto") as caught:
        device_of(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)
    accelerator(monkeypatch, "cuda")
    with pytest.raises(ModelStructureError, match="say cpu, cuda:0, cuda:1 or auto"):
        device_of(name)
