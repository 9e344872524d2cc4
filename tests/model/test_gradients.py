"""Whether gradients are recorded is as before, whenever Ctrl-C comes."""

from __future__ import annotations

import pytest
import torch
from support.interrupting import at_every_point

from alphaedit_plugin.model.gradients import gradients


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_an_interrupt_at_any_point_leaves_them_as_they_were(recorded, before):
    seen = []

    def block() -> None:
        with gradients(recorded):
            seen.append(torch.is_grad_enabled())

    with torch.set_grad_enabled(before):
        for outcome in at_every_point(block):
            assert torch.is_grad_enabled() == before, outcome.where
    assert set(seen) == {recorded}


def test_a_decorated_function_runs_without_and_keeps_its_result():
    @gradients(False)
    def product(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    x = torch.ones(1, requires_grad=True)
    for _ in range(2):
        assert not product(x).requires_grad
    assert (2 * x).requires_grad
