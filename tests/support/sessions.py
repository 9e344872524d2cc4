"""What the tests of a session share: tiny models of several kinds, facts in batches, and what "the same" means."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.targets import Targets
from alphaedit_plugin.editors.variant import Variant
from alphaedit_plugin.errors import AlphaEditError
from alphaedit_plugin.session.manifest import MANIFEST
from alphaedit_plugin.session.session import Session
from support.spaces import random_covariance, random_spaces
from support.tiny import tiny
from support.weights import assert_same, everything

LAYERS = (0, 1, 2)
CONTEXTS = ("{}", "The river flows. {}")
HYPERPARAMETERS = Hyperparameters(  # three small steps, whatever the gradient
    LAYERS, target_optimiser="adam", v_num_grad_steps=3, v_lr=0.2, mom2_update_weight=0.5, L2=0.5
)

METHODS = (
    "memit", "memit+P", "memit-seq", "memit-seq+P", "rect+P", "prune", "prune+P", "alphaedit", "rome", "rome+P",
    "revive+P", "rect+sphere", "evoedit", "memit-seq+rect+aligned+P",
    "betaedit@refresh=3", "encore@lambda_p=0.5", "alphaedit@blue=true", "memit-seq@nas=true+P",
)  # fmt: skip

# name -> (architecture, settings). In float64 no rounding hides a different order of summation; the wide one has
# matrices that are large enough for BLAS to sum in several orders.
KINDS = {
    "llama": ("llama", {}),
    "gpt2": ("gpt2", {}),
    "llama bfloat16": ("llama", {"dtype": torch.bfloat16}),
    "gpt2 float64": ("gpt2", {"dtype": torch.float64}),
    "wide llama": ("llama", {"hidden_size": 64, "intermediate_size": 300}),
}

ONE_LAYER = replace(HYPERPARAMETERS, layers=(1,))  # ROME's, as a rule
_FIRST, _SECOND = ("Eiffel", "old", "Leo", "Mary"), ("Tower", "river", "Jones", "city")
_SUBJECTS = [f"{first} {second}" for second in _SECOND for first in _FIRST]
_PLACES = ("Rome", "France", "the old town", "Warsaw")
FACTS = [
    {
        "prompt": ("{} is located in the city of", "The mother tongue of {} is")[number % 2],
        "subject": subject,
        "target_new": _PLACES[number % 4],
        "case_id": number,
    }
    for number, subject in enumerate(_SUBJECTS)
]
BATCHES = [FACTS[n : n + size] for n, size in ((0, 1), (1, 2), (3, 1), (4, 2), (6, 2), (8, 1), (9, 2), (11, 1))]
BATCHES += [FACTS[12:14], FACTS[14:16]]


def model_of_kind(kind: str = "llama", **changes):
    architecture, settings = KINDS[kind]
    return tiny(architecture, **{"vocab_size": 512, **settings, **changes})


def width_of(kind: str) -> int:
    return KINDS[kind][1].get("intermediate_size", 24)


@functools.cache
def covariances_of(kind: str = "llama") -> dict:
    d = width_of(kind)
    return {layer: random_covariance(d, layer, tokens=10 * d) for layer in LAYERS}


@functools.cache
def spaces_of(kind: str = "llama"):
    return random_spaces(model_of_kind(kind), LAYERS, nullity=round(0.6 * width_of(kind)))


def session_of(model, tokenizer, method: str, kind: str = "llama", **options) -> Session:
    chosen = ONE_LAYER if method.startswith("rome") else HYPERPARAMETERS
    settings = {"hyperparameters": chosen, "covariances": covariances_of(kind), "contexts": CONTEXTS}
    return Session(model, tokenizer, method, spaces_of(kind), **{**settings, **options})


def large_targets(model, count: int, seed: int) -> Targets:
    """So far away that the edits outgrow the weights."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, model.config.hidden_size)
    return Targets(
        torch.zeros(shape), 20 * torch.randn(shape, generator=generator), torch.zeros(count), torch.zeros(count)
    )


def write(session: Session, *numbers: int) -> list:
    """Edit these of BATCHES; under PRUNE by so much that there is something to damp."""
    for number in numbers:
        batch = BATCHES[number]
        targets = large_targets(session.model, len(batch), number) if session.at_end else None
        session.edit(batch, targets)
    return session.facts


def edited(kind: str, tokenizer, method: str, *numbers: int) -> Session:
    """A session that has done nothing but edit these batches."""
    session = session_of(model_of_kind(kind), tokenizer, method, kind)
    write(session, *numbers)
    return session


_UNTOUCHED: dict[tuple, Session] = {}


def reference(kind: str, tokenizer, method: str, *numbers: int) -> Session:
    """The same, shared by all tests: to compare with, never to go on with."""
    key = (kind, id(tokenizer), method, numbers)
    if key not in _UNTOUCHED:
        _UNTOUCHED[key] = edited(kind, tokenizer, method, *numbers)
    return _UNTOUCHED[key]


def in_memory(session: Session) -> dict[int | str, list[torch.Tensor]]:
    """What the editor keeps in mind of facts, by layer, and what it owes: every tensor of it."""

    def tensors(value) -> list[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            return [value]
        return [tensor for each in value for tensor in tensors(each)] if isinstance(value, tuple) else []

    owed = session.editor.owed
    return {
        layer: tensors(tuple(vars(kept).values())) for layer, kept in session.editor.memory.items() if kept.count
    } | {f"owed to {layer}": [owed[layer]] for layer in owed}


def assert_same_session(found: Session, expected: Session) -> None:
    """Weights and memory bit for bit, and the same history: whatever comes next will be the same too."""
    assert_same(everything(found.model), everything(expected.model))
    assert found.facts == expected.facts
    assert [batch.requests for batch in found.batches] == [batch.requests for batch in expected.batches]
    assert (found.variant, found.finished) == (expected.variant, expected.finished)
    assert found.variant == Variant.parse(str(expected.variant))
    ours, theirs = in_memory(found), in_memory(expected)
    assert ours.keys() == theirs.keys()
    for layer, kept in theirs.items():
        same = [torch.equal(one, other) for one, other in zip(ours[layer], kept, strict=True)]
        assert all(same), f"the memories of layer {layer} differ"


def state(session: Session) -> tuple:
    """Everything a call that fails must leave as it was; compare with `assert_state`."""
    return (
        everything(session.model),
        session.facts,
        [id(batch) for batch in session.batches],
        session.finished,
        session.editor.memory,
        session.editor.owed,
    )


def assert_state(session: Session, before: tuple) -> None:
    weights, facts, batches, finished, memory, owed = before
    assert_same(everything(session.model), weights)
    assert session.facts == facts
    assert [id(batch) for batch in session.batches] == batches
    assert session.finished == finished
    assert session.editor.memory is memory
    assert session.editor.owed is owed


IDS = torch.tensor([[5, 9, 11, 3, 77, 20], [1, 2, 3, 4, 90, 100]])
TRIALS = [(method, "llama") for method in METHODS] + [
    pytest.param(method, kind, marks=pytest.mark.slow)
    for kind, methods in {
        "gpt2": ("memit", "memit-seq+P", "rect+P", "prune+P", "alphaedit", "rome+P"),
        "llama bfloat16": ("memit+P", "memit-seq", "rect+P", "prune", "alphaedit", "rome"),
        "gpt2 float64": ("memit", "memit-seq", "memit-seq+P", "alphaedit"),
        "wide llama": ("memit+P", "memit-seq", "memit-seq+P", "alphaedit"),
    }.items()
    for method in methods
]
every_method = pytest.mark.parametrize("method", METHODS)
every_trial = pytest.mark.parametrize(("method", "kind"), TRIALS, ids=lambda value: value)


def raised(call: Callable[[], object]) -> BaseException | None:
    """The error of ours, or the interrupt, that a call ends with, if it does."""
    try:
        call()
    except (AlphaEditError, KeyboardInterrupt) as failure:
        return failure
    return None


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def manifest(folder: Path) -> dict:
    return json.loads((folder / MANIFEST).read_text())


def batch_files(folder: Path) -> list[Path]:
    """In the manifest's order."""
    return [folder / "batches" / name for name in manifest(folder)["batches"]]


def assert_folder_holds(folder: Path, expected: Session, kind: str = "llama") -> None:
    assert_same_session(Session.resume(folder, model_of_kind(kind), read_only=True), expected)


def contents(path: Path) -> tuple:
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
