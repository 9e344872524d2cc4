"""Ctrl-C in the blocks that change a model or the process: whenever it comes, everything is as it was."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support.interrupting import Interrupted, at_every_point, at_random_points, interrupted
from support.spaces import random_spaces
from support.tiny import tiny
from support.weights import bits
from torch import nn

from alphaedit_plugin.baselines.hush import hushed
from alphaedit_plugin.baselines.isolation import working_in
from alphaedit_plugin.comparison.private_modules import PrivateModules
from alphaedit_plugin.easyedit.undoable import putting
from alphaedit_plugin.model.decoder import Decoder, eager_attention
from alphaedit_plugin.model.gradients import gradients
from alphaedit_plugin.model.precision import reduced_precision
from alphaedit_plugin.model.snapshot import put_back
from alphaedit_plugin.model.standin import standing_in
from alphaedit_plugin.model.trace import evaluating, hooks, inputs_of, logits_at
from alphaedit_plugin.model.undisturbed import seeded, undisturbed
from alphaedit_plugin.nullspace.guard import guard
from alphaedit_plugin.tuning.budget import Budget

IDS = torch.tensor([[1, 5, 9, 3]])


@pytest.fixture(autouse=True)
def _ctrl_c_as_python_has_it():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def model():
    model = tiny("llama")
    model.train()
    model.set_attn_implementation("sdpa")
    return model


def of_model(model: nn.Module) -> list[Any]:
    """The arrangement of a model, and its weights to the bit."""
    found: list[Any] = [model.config._attn_implementation]
    for name, module in model.named_modules(remove_duplicate=False):
        hooks_of = [list(table) for table in (module._forward_hooks, module._forward_pre_hooks)]
        weights = [(key, id(weight), type(weight)) for key, weight in module._parameters.items()]
        found.append((name, id(module), type(module), module.training, hooks_of, weights))
    return found


def of_process() -> list[Any]:
    root = logging.getLogger()
    return [
        Path.cwd(), torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision(),
        id(sys.stdout), id(sys.stderr), list(sys.path), list(sys.modules), list(root.handlers), root.level,
        signal.getsignal(signal.SIGINT),
    ]  # fmt: skip


def of_randomness() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # noqa: NPY002


TABLE = {"kept": 1}
LONG = ("standing_in", "put_back", "seeded", "hushed")
"""Blocks with some thousand points."""


class _OneModule(PrivateModules):
    """Asks one module for its file, not the two thousand that are loaded."""

    def _loaded(self) -> dict[str, ModuleType]:
        return {"this": sys.modules["this"]} if "this" in sys.modules else {}


def _blocks(model: nn.Module) -> dict[str, Callable[[], Any]]:
    decoder = Decoder(model)
    positions = torch.tensor([0]), torch.tensor([2])
    return {
        "hooks": lambda: hooks((model.lm_head, print), before=[(model.lm_head, print), (decoder.blocks[1], print)]),
        "logits_at": lambda: logits_at(decoder.head, *positions),
        "evaluating": lambda: evaluating(decoder.blocks[0]),
        "standing_in": lambda: standing_in(decoder, 2, None, torch.zeros(1)),
        "put_back": lambda: put_back(decoder.out_projections([1, 2])),
        "budget": lambda: Budget(60).enforced(model),
        "reduced_precision": reduced_precision,
        "seeded": lambda: seeded(3),
        "undisturbed": undisturbed,
        "hushed": hushed,
        "working_in": lambda: working_in(Path("/")),
        "private modules": _OneModule(Path("/tmp")).in_place,
        "putting": lambda: putting((TABLE, "kept", 2), (TABLE, "new", 3)),
    }


@pytest.mark.parametrize("name", _blocks(tiny("llama")))
def test_an_interrupt_anywhere_in_a_block_leaves_model_and_process_as_they_were(name, model):
    make = _blocks(model)[name]
    weights = {key: bits(weight).clone() for key, weight in model.named_parameters()}
    with make():
        pass  # what is imported or cached at the first call
    before = of_model(model), of_process(), dict(TABLE)
    randomness = of_randomness()

    def run() -> None:
        with make():
            if name == "undisturbed":
                os.chdir("/")

    tried = 0
    for outcome in _near_the_ends_and_between(run, 100) if name in LONG else at_every_point(run):
        assert isinstance(outcome.raised, KeyboardInterrupt), outcome.where
        assert (of_model(model), of_process(), dict(TABLE)) == before, outcome.where
        assert of_randomness() == randomness, outcome.where
        tried += 1
    assert tried > 40
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert all(torch.equal(bits(weight), weights[key]) for key, weight in model.named_parameters())


def test_an_interrupt_anywhere_leaves_the_models_own_attention(model):
    """All of its points are some ten thousand, most of them in transformers: those near its ends, and some between."""
    before = of_model(model)

    def run() -> None:
        with eager_attention(model):
            assert model.config._attn_implementation == "eager"

    tried = 0
    for outcome in _near_the_ends_and_between(run, 60):
        assert isinstance(outcome.raised, KeyboardInterrupt), outcome.where
        assert of_model(model) == before, outcome.where
        tried += 1
    assert tried > 60


def _near_the_ends_and_between(run: Callable[[], Any], count: int):
    last = interrupted(run, None).points
    ends = {*range(1, count // 2), *range(max(1, last - count // 2), last + 1)}
    for at in sorted(ends):
        outcome = interrupted(run, at)
        if outcome.where is not None:  # caches may make a later call shorter
            yield outcome
    yield from at_random_points(run, count, seed=0)


@gradients(False)  # torch.no_grad() itself does not survive an interrupt at every point
def _pass_through(model: nn.Module, block: Callable[[], Any]) -> None:
    with block():
        model(IDS, use_cache=False)


@pytest.mark.parametrize("name", ["standing_in", "logits_at", "inputs_of"])
def test_an_interrupt_during_a_forward_pass_leaves_nothing_behind(name, model):
    decoder = Decoder(model)
    hidden = torch.zeros(1, 4, 16)
    runs: dict[str, Callable[[], Any]] = {
        "standing_in": partial(_pass_through, model, lambda: standing_in(decoder, 1, hidden, hidden)),
        "logits_at": partial(_pass_through, model, _blocks(model)["logits_at"]),
        "inputs_of": lambda: inputs_of({1: decoder.out_projection(1).module}, lambda: model(IDS), last=1),
    }
    before = of_model(model)
    _assert_each_restores(at_random_points(runs[name], 50, seed=1), lambda: of_model(model), before)


def test_an_interrupt_of_a_guard_leaves_no_weight_guarded_and_no_half_edit():
    """Either the block was done, and everything written is there; or nothing is."""
    model = tiny("llama")
    spaces = random_spaces(model, [1, 2])
    projections = Decoder(model).out_projections([1, 2])
    start = {layer: projection.stored.clone() for layer, projection in projections.items()}
    before = of_model(model)

    @gradients(False)  # torch.no_grad() itself does not survive an interrupt at every point
    def run() -> None:
        with guard(model, spaces, check_model=False):
            for projection in projections.values():
                projection.module.weight.add_(1)

    run()
    done = {layer: projection.stored.clone() for layer, projection in projections.items()}

    def whole() -> bool:
        return any(
            all(torch.equal(bits(p.stored), bits(weights[layer])) for layer, p in projections.items())
            for weights in (start, done)
        )

    def begin_again() -> None:
        for layer, projection in projections.items():
            projection.stored.copy_(start[layer])

    begin_again()
    last = interrupted(run, None).points
    between = random.Random(0).sample(range(50, last - 50), 60)
    tried = 0
    for at in (*range(1, 50), *between, *range(last - 50, last + 1)):
        begin_again()
        outcome = interrupted(run, at)
        assert of_model(model) == before, outcome.where
        assert whole(), outcome.where
        tried += outcome.where is not None
    assert tried > 100


def _assert_each_restores(outcomes: Any, state: Callable[[], Any], before: Any) -> None:
    tried = 0
    outcome: Interrupted
    for outcome in outcomes:
        tried += 1
        assert state() == before, outcome.where
    assert tried > 20


def test_many_threads_that_enter_one_guard_leave_it_free():
    """Of those that are inside together one works and the others are refused; nothing stays guarded."""
    model = tiny("llama")
    spaces = random_spaces(model, [1, 2])
    failures: list[BaseException] = []

    def run() -> None:
        for _ in range(20):
            try:
                with guard(model, spaces, check_model=False):
                    pass
            except BaseException as failure:
                failures.append(failure)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {type(failure).__name__ for failure in failures} <= {"GuardError"}
    assert all(type(p.module.weight) is nn.Parameter for p in Decoder(model).out_projections([1, 2]).values())
