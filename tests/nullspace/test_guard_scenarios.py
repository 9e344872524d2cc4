"""300 things that people do under a guard, drawn at random: all inside the null space, or all as it was."""

from __future__ import annotations

import pytest
from support.guard_scenarios import scenario

SHARE = 20


@pytest.mark.filterwarnings("ignore")  # what torch and peft say of weight_norm, and of adapters
@pytest.mark.parametrize("first", range(0, 300, SHARE))
def test_what_was_written_lies_inside_or_everything_is_as_before(first):
    kinds = [scenario(seed) for seed in range(first, first + SHARE)]
    assert len(set(kinds)) > SHARE // 4
