"""Whole editors against the textbook, and what every method promises about the weights that it leaves."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import oracle
from support.editing import (
    CONTEXTS,
    COVARIANCES,
    HYPERPARAMETERS,
    LAYERS,
    RECORDS,
    REQUESTS,
    session,
    weights,
)
from support.mishaps import Interrupted
from support.spaces import assert_inside, in_float64, outside, random_covariance, random_spaces
from support.textbook import TARGETS, assert_near, edit_by_textbook, solver_of
from support.tiny import model_of
from support.tries import tries
from support.weights import assert_same
from torch import Tensor, nn

from alphaedit_plugin.editors import update as update_module
from alphaedit_plugin.editors.alphaedit import AlphaEdit
from alphaedit_plugin.editors.memit import MEMITSequential
from alphaedit_plugin.editors.preserved import Preserved
from alphaedit_plugin.editors.prune import damped
from alphaedit_plugin.editors.rect import PAPER_KEEP, sparsified
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.editors.rome import ROME
from alphaedit_plugin.editors.targets import Targets
from alphaedit_plugin.editors.update import Update
from alphaedit_plugin.editors.variant import Variant
from alphaedit_plugin.errors import EditError, NullSpaceError, StatisticsError
from alphaedit_plugin.model.decoder import Decoder, OutProjection
from alphaedit_plugin.nullspace.guard import guard
from alphaedit_plugin.nullspace.null_spaces import NullSpaces
from alphaedit_plugin.session.session import Session

pytestmark = pytest.mark.slow

HYPERPARAMETERS = replace(HYPERPARAMETERS, L2=0.3)
QUICK = replace(HYPERPARAMETERS, v_num_grad_steps=2)  # where any target will do
EXTRA = (
    {"prompt": "The king of {} came home from", "subject": "Paris", "target_new": "America"},
    {"prompt": "{} was born in", "subject": "Marie Curie", "target_new": "Rome"},
)
BATCHES = (RECORDS[:2], RECORDS[2:], EXTRA)

# Every method there is, but for changed hyperparameters.
METHODS = [
    f"{solver}{marks}"
    for solver in ("rome", "memit", "memit-seq", "alphaedit")
    for marks in ("", "+P", "+rect", "+rect+P", "+prune", "+prune+P", "+rect+prune", "+rect+prune+P")
    if not (solver == "alphaedit" and marks.endswith("+P"))
]
LAYERED = [method for method in METHODS if not method.startswith("rome")]
UNDAMPED = [method for method in METHODS if "prune" not in method]
DAMPED = ["rome+prune", "memit+rect+prune+P", "memit-seq+prune", "alphaedit+prune"]
CONSTRAINED = [method for method in METHODS if Variant.parse(method).projected]
IN_MEMORY = [method for method in LAYERED if method.startswith(("memit-seq", "alphaedit"))]


def editing(
    model, tokenizer, method: str, spaces: NullSpaces | None = None, hyperparameters=HYPERPARAMETERS
) -> Session:
    return session(model, tokenizer, method, spaces, hyperparameters)


def huge(model, count: int, size: float, seed: int = 0) -> Targets:
    """Targets far away from where the model is, in directions of their own."""
    delta = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed), dtype=model.dtype) * size
    return Targets(torch.zeros_like(delta), delta, torch.zeros(count), torch.zeros(count))


# -------------------------------------------------------------------------------------------------- the textbook


def _post(method: str, spaces: NullSpaces) -> oracle.Post:
    variant = Variant.parse(method)

    def write(layer: int, delta: Tensor, weight: Tensor) -> Tensor:
        if "rect" in variant.modifiers:
            delta = oracle.rect(delta, weight)
        return delta @ spaces[layer].dense() if variant.projected else delta

    return write


def textbook(model, tokenizer, method: str, spaces: NullSpaces, batches=BATCHES) -> None:
    edit_by_textbook(model, tokenizer, batches, solver_of(method, spaces, HYPERPARAMETERS), _post(method, spaces))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [(name, method) for name in ("llama", "gpt2") for method in LAYERED if method in UNDAMPED]
    + [("opt", method) for method in ("memit+rect+P", "memit-seq", "alphaedit")],
)
def test_three_batches_leave_the_weights_that_the_textbook_leaves(name, method, tokenizer, exact):
    ours, theirs = model_of(name), model_of(name)
    start, spaces = weights(ours), in_float64(random_spaces(ours, LAYERS))
    running = editing(ours, tokenizer, method, spaces)
    for batch in BATCHES:
        running.edit(batch)
    textbook(theirs, tokenizer, method, spaces)
    assert_near(weights(ours), weights(theirs), start, 1e-7)


@pytest.mark.parametrize("method", IN_MEMORY)
def test_what_is_remembered_matters(method, tokenizer):
    """Or the comparison with the textbook would say nothing about it."""
    with_memory, without = model_of(), model_of()
    start, spaces = weights(with_memory), random_spaces(with_memory, LAYERS)
    for model in (with_memory, without):
        running = editing(model, tokenizer, method, spaces)
        for batch in BATCHES[:2]:
            running.edit(batch)
            if model is without:
                running.editor.memory = {}
    for layer, weight in weights(without).items():
        moved = weights(with_memory)[layer] - start[layer]
        assert float((weight - weights(with_memory)[layer]).norm()) > 1e-3 * float(moved.norm())


@pytest.mark.slow
@pytest.mark.parametrize("projected", [False, True], ids=["rome", "rome+P"])
@pytest.mark.parametrize(
    ("name", "adjusted"),
    [("llama", True), ("llama", False), ("gpt2", True), ("gpt2", False), ("opt", True), ("gemma2", True)],
    ids=str,
)
def test_rome_leaves_the_weights_that_the_textbook_leaves(name, adjusted, projected, tokenizer, exact):
    """Over two batches; of each request every layer is edited before the next request."""
    ours, theirs = model_of(name), model_of(name)
    start, spaces = weights(ours), in_float64(random_spaces(ours, LAYERS))
    layers = (0, 2)
    hyperparameters = replace(HYPERPARAMETERS, layers=layers, mom2_adjustment=adjusted)
    running = editing(ours, tokenizer, "rome+P" if projected else "rome", spaces, hyperparameters)
    for batch in BATCHES[:2]:
        running.edit(batch)
    decoder = Decoder(theirs)
    for record in RECORDS:
        for layer in layers:
            oracle.rome(
                theirs,
                tokenizer,
                [record],
                CONTEXTS,
                layer,
                decoder.block(layer),
                decoder.out_projection(layer).module,
                COVARIANCES[layer].matrix if adjusted else None,
                spaces[layer].dense() if projected else None,
                norms_follow=name == "gemma2",
                **TARGETS,
            )
    found, expected = weights(ours), weights(theirs)
    assert torch.equal(found.pop(1), start[1])
    assert_near(found, expected, start, 1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gptj"])
def test_romes_bare_prompt_is_mapped_to_v_star_exactly(name, tokenizer, exact):
    """v* = v + δ, δ as the textbook finds it; only where the bare prompt and its contexts have different keys."""
    model = model_of(name)
    module, block = Decoder(model).out_projection(1).module, Decoder(model).block(1)
    running = editing(model, tokenizer, "rome", hyperparameters=replace(HYPERPARAMETERS, layers=(1,)))
    for record in RECORDS:
        text, end = oracle._text(record, "{}")
        ids = tokenizer(text)["input_ids"]
        position = oracle.subject_last(tokenizer, text, end)
        value = oracle._module_output(model, ids, module, position)
        _, delta = oracle.compute_target(
            model, tokenizer, record, CONTEXTS, block, reference_norm=value.norm(), **TARGETS
        )
        running.edit([record])
        assert float(delta.norm()) > 1e-2 * float(value.norm())
        assert torch.allclose(oracle._module_output(model, ids, module, position), value + delta, rtol=1e-7, atol=1e-8)


def test_rome_takes_no_targets_and_changes_nothing_when_given_some(tokenizer):
    model = model_of(dtype=torch.float32)
    start = weights(model)
    running = editing(model, tokenizer, "rome")
    with pytest.raises(ValueError, match="ROME"):
        running.edit(RECORDS, huge(model, 3, 1.0))
    assert_same(weights(model), start)
    assert running.facts == []


def test_rome_without_adjustment_needs_no_covariance_and_with_it_does(tokenizer):
    plain = replace(HYPERPARAMETERS, mom2_adjustment=False)
    ROME(model_of(), tokenizer, plain, Preserved(), contexts=CONTEXTS).edit(REQUESTS[:1])
    with pytest.raises(StatisticsError, match=r"\[1, 2\]"):
        ROME(model_of(), tokenizer, HYPERPARAMETERS, Preserved({0: COVARIANCES[0]}), contexts=CONTEXTS)


def test_missing_or_foreign_null_spaces_and_covariances_are_named(tokenizer):
    model = model_of()
    spaces = random_spaces(model, LAYERS)
    with pytest.raises(NullSpaceError, match="layer 2"):
        AlphaEdit(model, tokenizer, HYPERPARAMETERS, Preserved(null_spaces={0: spaces[0], 1: spaces[1]}))
    wider = random_spaces(model_of(intermediate_size=32), LAYERS)
    with pytest.raises(NullSpaceError, match="layer 0 has 32"):
        AlphaEdit(model, tokenizer, HYPERPARAMETERS, Preserved(null_spaces=wider))
    with pytest.raises(StatisticsError, match=r"\[0\]"):
        MEMITSequential(model, tokenizer, HYPERPARAMETERS, Preserved({1: COVARIANCES[1], 2: COVARIANCES[2]}))


def test_null_spaces_that_are_empty_are_no_null_spaces(tokenizer):
    """Found out before anything is edited, as one that lacks a layer is."""
    model = model_of()
    none = NullSpaces({}, random_spaces(model, LAYERS).provenance)
    for method in ("memit+P", "alphaedit"):
        with pytest.raises(EditError, match="null space"):
            editing(model, tokenizer, method, none)


# ----------------------------------------------------------------------------------------------- null spaces


@pytest.mark.parametrize("method", CONSTRAINED)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_all_that_a_constrained_method_writes_lies_in_the_null_space(name, method, tokenizer):
    """In both precisions; and what the same method writes without P, where there is such a thing, does not."""
    for dtype, share in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model = model_of(name, dtype)
        start, spaces = weights(model), random_spaces(model, LAYERS, seed=100)
        spaces = spaces if dtype == torch.float32 else in_float64(spaces)
        running = editing(model, tokenizer, method, spaces, QUICK)
        for batch in BATCHES[:2]:
            running.edit(batch)
        running.finish()
        assert_inside(spaces, start, weights(model), share)
        assert all(value <= share for value in running.report().outside.values())


@pytest.mark.parametrize("method", [method for method in METHODS if method not in CONSTRAINED])
def test_what_a_plain_method_writes_does_not_lie_in_the_null_space(method, tokenizer):
    model = model_of()
    start, spaces = weights(model), random_spaces(model, LAYERS, seed=100)
    running = editing(model, tokenizer, method)
    running.edit(RECORDS)
    for layer, weight in weights(model).items():
        out, size = outside(spaces[layer], start[layer], weight, transposed=False)
        assert out > 1e-2 * size


@pytest.mark.parametrize("method", [method for method in UNDAMPED if method.endswith("+P")])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_projection_in_a_session_is_the_plain_editor_inside_the_hook(name, method, tokenizer, exact):
    """Over two batches: the hook of the second begins at the weights that the first one left."""
    ours, theirs = model_of(name), model_of(name)
    start, spaces = weights(ours), in_float64(random_spaces(ours, LAYERS))
    running, plain = _projected_and_plain(ours, theirs, tokenizer, method, spaces)
    for batch in (REQUESTS[:2], REQUESTS[2:]):
        running.edit(batch)
        with guard(theirs, spaces, check_model=False):
            plain.edit(batch)
    assert_near(weights(ours), weights(theirs), start, 1e-9)


@pytest.mark.parametrize("method", [method for method in UNDAMPED if method.endswith("+P")])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_projection_in_a_session_is_the_plain_editor_inside_the_hook_in_float32(name, method, tokenizer):
    """One batch with the same targets, so that Adam does not carry rounding on, and updates smaller than weights."""
    ours, theirs = model_of(name, torch.float32), model_of(name, torch.float32)
    start, spaces = weights(ours), random_spaces(ours, LAYERS)
    hyperparameters, requests, targets = replace(HYPERPARAMETERS, mom2_update_weight=50.0), REQUESTS, None
    if method.startswith("rome"):
        hyperparameters, requests = replace(HYPERPARAMETERS, layers=(0,)), REQUESTS[:1]
    running, plain = _projected_and_plain(ours, theirs, tokenizer, method, spaces, hyperparameters)
    if not method.startswith("rome"):
        targets = running.editor.targets(requests)
    running.edit(requests, targets)
    with guard(theirs, spaces):
        plain.edit(requests, targets)
    for layer in hyperparameters.layers:
        weight = weights(theirs)[layer]
        assert float((weight - start[layer]).norm()) > 1e-3 * float(weight.norm())
        rounding = 32 * torch.finfo(torch.float32).eps
        assert float((weights(ours)[layer] - weight).norm()) <= rounding * float(weight.norm())


def _projected_and_plain(ours, theirs, tokenizer, method: str, spaces: NullSpaces, hyperparameters=HYPERPARAMETERS):
    """A session of a projected method, and the editor that does the same without projecting, on another model."""
    plain = Variant.parse(method.removesuffix("+P"))
    return (
        editing(ours, tokenizer, method, spaces, hyperparameters),
        plain.editor(
            theirs, tokenizer, hyperparameters, Preserved(COVARIANCES), base=weights(theirs), contexts=CONTEXTS
        ),
    )


def test_alphaedit_needs_no_projection_afterwards(tokenizer):
    """Its Δ is in the null space by itself: `+P` is the same method, and nothing is projected as it is written."""
    assert Variant.parse("alphaedit+P") == Variant.parse("alphaedit")
    model = model_of()
    running = editing(model, tokenizer, "alphaedit", random_spaces(model, LAYERS))
    assert not running.editor.write.projects


# ------------------------------------------------------------------------------------------- transactions, memory


@pytest.mark.parametrize("method", UNDAMPED + DAMPED)
def test_a_batch_that_fails_leaves_weights_and_memory_and_the_session_goes_on(method, tokenizer):
    """It fails after the first layer has been written; the batch before it and those after it know nothing of it."""
    model, untouched = model_of(dtype=torch.float32), model_of(dtype=torch.float32)
    spaces = random_spaces(model, LAYERS)
    running, other = (editing(each, tokenizer, method, spaces, QUICK) for each in (model, untouched))
    running.edit(RECORDS[:1])
    other.edit(RECORDS[:1])
    before, memory = weights(model), dict(running.editor.memory)
    kept = copy.deepcopy(memory)
    write = running.editor.write

    def failing(projection: OutProjection, update: Update, *owed: dict) -> Update:
        if update.layer == LAYERS[1]:
            assert not torch.equal(weights(model)[LAYERS[0]], before[LAYERS[0]]), "nothing has been written yet"
            raise Interrupted
        return write(projection, update, *owed)

    running.editor.write = failing
    with pytest.raises(Interrupted):
        running.edit(EXTRA)
    running.editor.write = write
    assert_same(weights(model), before)
    assert running.facts == REQUESTS[:1]
    assert all(ridge is memory[layer] for layer, ridge in running.editor.memory.items())
    assert set(running.editor.memory) == set(memory)
    for layer, ridge in running.editor.memory.items():
        for found, expected in ((ridge.keys, kept[layer].keys), (ridge.rows, kept[layer].rows)):
            assert all(torch.equal(block, other) for block, other in zip(found, expected, strict=True))
    for each in (running, other):
        each.edit(RECORDS[1:])
        each.finish()
    assert_same(weights(model), weights(untouched))
    assert {layer: ridge.count for layer, ridge in running.editor.memory.items()} == dict.fromkeys(
        LAYERS if method in IN_MEMORY else (), len(RECORDS)
    )


@pytest.mark.parametrize("method", ["rome", "rect+P", *IN_MEMORY])
def test_what_turns_out_not_to_be_finite_is_not_remembered(method, tokenizer):
    """Found out after the editor has done all its work."""
    model = model_of(dtype=torch.float32)
    running = editing(model, tokenizer, method, random_spaces(model, LAYERS), QUICK)
    running.edit(RECORDS[:1])
    before, memory, write = weights(model), dict(running.editor.memory), running.editor.write

    def spoiling(projection: OutProjection, update: Update, *owed: dict) -> Update:
        written = write(projection, update, *owed)
        if update.layer == LAYERS[-1]:
            projection.matrix[0, 0] = torch.inf
        return written

    running.editor.write = spoiling
    with pytest.raises(EditError):
        running.edit(EXTRA[:1])
    assert_same(weights(model), before)
    assert running.facts == REQUESTS[:1]
    assert set(running.editor.memory) == set(memory)
    assert all(ridge is memory[layer] for layer, ridge in running.editor.memory.items())


@pytest.mark.parametrize("method", ["prune", *IN_MEMORY])
def test_an_undoing_that_fails_undoes_nothing(method, tokenizer):
    model = model_of(dtype=torch.float32)
    running = editing(model, tokenizer, method, random_spaces(model, LAYERS), QUICK)
    running.edit(RECORDS[:1])
    running.edit(RECORDS[1:])
    running.finish()
    before, memory, write = weights(model), dict(running.editor.memory), running.editor.write
    finished = running.finished

    class Failing:
        def again(self, *_: object) -> None:
            raise Interrupted

    running.editor.write = Failing()
    with pytest.raises(Interrupted):
        running.undo()
    running.editor.write = write
    assert_same(weights(model), before)
    assert running.facts == REQUESTS
    assert running.finished == finished
    assert all(ridge is memory[layer] for layer, ridge in running.editor.memory.items())
    assert running.undo() == REQUESTS[1:]


@pytest.mark.parametrize("method", UNDAMPED + DAMPED)
def test_what_was_undone_leaves_no_trace(method, tokenizer):
    model, untouched = model_of(dtype=torch.float32), model_of(dtype=torch.float32)
    spaces = random_spaces(model, LAYERS)
    running, other = (editing(each, tokenizer, method, spaces, QUICK) for each in (model, untouched))
    running.edit(RECORDS[:1])
    other.edit(RECORDS[:1])
    running.edit(EXTRA[:1])
    running.edit(EXTRA[1:])
    running.finish()
    assert running.undo(2) == [Request.parse(record, "request") for record in EXTRA]
    assert_same(weights(model), weights(untouched))
    running.edit(RECORDS[1:])
    other.edit(RECORDS[1:])
    assert_same(weights(model), weights(untouched))


def test_a_target_that_is_not_finite_in_one_place_only_is_an_edit_error_under_rect_too(tokenizer):
    """RECT, which writes 40 % of an update, must not pass over the part that is not a number."""
    model = model_of(dtype=torch.float32)
    start = weights(model)
    running = editing(model, tokenizer, "rect")
    targets = running.editor.targets(REQUESTS)
    targets.delta[1, 3] = torch.nan
    with pytest.raises(EditError):
        running.edit(RECORDS, targets)
    assert_same(weights(model), start)


@pytest.mark.parametrize(
    ("dtype", "method"),
    [(torch.bfloat16, method) for method in METHODS]
    + [(torch.float16, method) for method in ("rome+P", "memit+prune", "memit-seq+rect+P", "alphaedit")],
    ids=str,
)
def test_a_16_bit_model_is_edited_by_every_method(dtype, method, tokenizer):
    """The first fact by as much as in float32, which is all that the precision promises; then others."""
    model, precise = model_of(dtype=dtype), model_of(dtype=torch.float32)
    precise.load_state_dict(model.state_dict())
    start = weights(model)
    running, other = (editing(each, tokenizer, method, random_spaces(each, LAYERS), QUICK) for each in (model, precise))
    for each in (running, other):
        each.edit(RECORDS[:1])
    for layer in LAYERS[:1] if method.startswith("rome") else LAYERS:  # ROME finds new targets on what it has edited
        moved, expected = (
            float((weights(of)[layer].double() - start[layer].double()).norm()) for of in (model, precise)
        )
        assert 0.5 < moved / expected < 2
    running.edit(RECORDS[1:])
    running.finish()
    for layer, weight in weights(model).items():
        assert weight.dtype == dtype
        assert torch.isfinite(weight).all()
        assert not torch.equal(weight, start[layer])


# -------------------------------------------------------------------------------------------------------- λ = 0

SAME_SUBJECT = (
    {"prompt": "{} is located in the city of", "subject": "The Eiffel Tower", "target_new": "Rome"},
    {"prompt": "{} plays the sport of", "subject": "The Eiffel Tower", "target_new": "Paris"},
    {"prompt": "{} plays the sport of", "subject": "Michael Jordan", "target_new": "chess"},
)


@pytest.mark.parametrize("records", [RECORDS, SAME_SUBJECT], ids=["three subjects", "one subject twice"])
@pytest.mark.parametrize(
    "method",
    [
        "memit@mom2_update_weight=0",
        "memit@mom2_update_weight=0+P",
        "memit-seq@mom2_update_weight=0",
        "memit-seq@mom2_update_weight=0+rect+P",
        "alphaedit@L2=0",
    ],
)
def test_without_regularisation_a_method_is_its_own_limit(method, records, tokenizer, exact):
    """Over two batches; the second one repeats a fact of the first."""
    ours, theirs = model_of(), model_of()
    start, spaces = weights(ours), in_float64(random_spaces(ours, LAYERS))
    limit = editing(ours, tokenizer, method, spaces)
    near = editing(theirs, tokenizer, method.replace("=0", "=1e-8"), spaces)
    assert 0 in (limit.hyperparameters.mom2_update_weight, limit.hyperparameters.L2)
    for batch in (records[:2], records[1:]):
        limit.edit(batch)
        near.edit(batch)
    for layer, weight in weights(ours).items():
        assert torch.isfinite(weight).all()
        assert not torch.equal(weight, start[layer])
    if "rect" not in method:  # which entries are largest may hang on the last digit
        assert_near(weights(ours), weights(theirs), start, 1e-3)


def test_without_regularisation_the_facts_are_met_exactly(tokenizer, exact):
    model = model_of()
    running = session(model, tokenizer, "memit@mom2_update_weight=0", contexts=["{}"])
    targets = running.editor.targets(REQUESTS)
    running.edit(RECORDS, targets)
    block = Decoder(model).block(LAYERS[-1])
    hidden = torch.stack([oracle.current_z(model, tokenizer, record, block) for record in RECORDS])
    assert torch.allclose(hidden, targets.z_star, atol=1e-8)


# ---------------------------------------------------------------------------------------------------------- RECT

entries = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -3.0, 1e-12, 1e12]) | st.floats(-10, 10)


@st.composite
def matrix_pairs(draw) -> tuple[Tensor, Tensor]:
    """Δ and W of one shape, float64, with zeros in both."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    numbers = st.lists(entries, min_size=rows * columns, max_size=rows * columns)
    delta, weight = (torch.tensor(draw(numbers), dtype=torch.float64).view(rows, columns) for _ in range(2))
    return delta, weight


@tries(300)
@given(pair=matrix_pairs(), keep=st.floats(0, 1) | st.just(PAPER_KEEP))
def test_rect_keeps_the_share_of_entries_with_the_largest_ratio(pair, keep):
    """A change of a zero weight is infinitely large; no change is none, even of a zero weight."""
    delta, weight = pair
    before = delta.clone()
    found = sparsified(delta, weight, keep)
    assert torch.equal(delta, before)
    kept = (found == delta) & (delta != 0)
    assert torch.equal(found[~kept], torch.zeros_like(found[~kept]))
    wanted = round(keep * delta.numel())
    assert int(kept.sum()) == min(wanted, int((delta != 0).sum()))
    ratio = torch.where(delta == 0, 0.0, delta.abs() / weight.abs())
    dropped = ~kept & (delta != 0)
    if kept.any() and dropped.any():
        assert ratio[kept].min() >= ratio[dropped].max()
    if len(ratio.unique()) == ratio.numel():  # no ties, which may be decided either way
        assert torch.equal(found, oracle.rect(delta, weight, keep))


@tries(50)
@given(rows=st.integers(1, 8), columns=st.integers(1, 8), keep=st.floats(0, 1), seed=st.integers(0, 1000))
def test_rect_is_the_textbooks(rows, columns, keep, seed):
    """Weights in 16 bits, float32 and float64 included."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        expected = oracle.rect(delta, weight.to(dtype), keep)
        assert torch.equal(sparsified(delta, weight.to(dtype), keep), expected)


@pytest.mark.parametrize("method", ["rect", "rome+rect", "memit-seq+rect"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_rect_leaves_all_other_entries_of_the_weight_bit_for_bit(name, method, tokenizer):
    model = model_of(name)
    start = weights(model)
    editing(model, tokenizer, method).edit(RECORDS[:1])
    for layer, weight in weights(model).items():
        assert int((weight != start[layer]).sum()) == round(PAPER_KEEP * weight.numel())


# ---------------------------------------------------------------------------------------------------------- PRUNE


@tries(100)
@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 8),
    rank=st.integers(1, 8),
    size=st.floats(-2, 3).map(lambda exponent: 10**exponent),
    seed=st.integers(0, 1000),
)
def test_damping_is_the_textbooks(rows, columns, rank, size, seed):
    """Wide and tall; from an update far below the weight to one far above it; of low rank, too."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (rows, columns))
    delta = left @ right.T * size
    before = delta.clone()
    found = damped(delta, weight)
    assert torch.equal(delta, before)
    expected = oracle.prune(weight, delta)
    assert float((found - expected).norm()) <= 1e-9 * float(expected.norm())
    largest = torch.linalg.svdvals(weight)[0]
    if torch.linalg.svdvals(delta)[0] < largest * (1 - 1e-9):
        assert found is delta
    elif torch.linalg.svdvals(delta)[0] > largest * (1 + 1e-9) and largest > 1:
        assert torch.linalg.svdvals(found)[0] < torch.linalg.svdvals(delta)[0]


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_damping_computes_in_float64_whatever_it_is_given(weight_dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 9, generator=generator).to(weight_dtype)
    delta = torch.randn(6, 9, generator=generator) * 10
    found = damped(delta, weight)
    assert found.dtype == torch.float64
    assert torch.allclose(found, oracle.prune(weight, delta), rtol=1e-10)


def _damped_by_the_textbook(start: Mapping[int, Tensor], now: Mapping[int, Tensor], spaces: NullSpaces | None):
    result = {}
    for layer, weight in now.items():
        change = oracle.prune(start[layer], weight - start[layer])
        assert float((change - (weight - start[layer])).norm()) > 1e-2 * float(change.norm()), "nothing was damped"
        result[layer] = start[layer] + (change @ spaces[layer].dense() if spaces else change)
    return result


@pytest.mark.parametrize("method", [method for method in LAYERED if "prune" in method])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_finished_sequence_is_the_textbooks_from_the_weights_before_it(name, method, tokenizer):
    """Repeating it changes nothing, the next edit goes on from the undamped weights, and so does undoing."""
    model, twin = model_of(name), model_of(name)
    start, spaces = weights(model), in_float64(random_spaces(model, LAYERS))
    running = editing(model, tokenizer, method, spaces)
    undamped = editing(twin, tokenizer, str(Variant.parse(method).trajectory), spaces)
    constrained = running.variant.projected
    for seed, batch in enumerate(BATCHES):
        for each in (running, undamped):
            each.edit(batch, huge(model, len(batch), 1000.0, seed))
        assert not running.finished
        assert_same(weights(model), weights(twin))
        running.finish()
        assert running.finished
        expected = _damped_by_the_textbook(start, weights(twin), spaces if constrained else None)
        assert_near(weights(model), expected, start, 1e-8)
        finished = weights(model)
        running.finish()
        assert_same(weights(model), finished)
        if constrained:
            assert_inside(spaces, start, weights(model), 1e-9)
        largest = {layer: torch.linalg.svdvals(weight - start[layer])[0] for layer, weight in weights(twin).items()}
        for layer, weight in finished.items():
            assert torch.linalg.svdvals(weight - start[layer])[0] < largest[layer]
    running.undo()
    undamped.undo()
    assert not running.finished
    assert_same(weights(model), weights(twin))
    running.finish()
    expected = _damped_by_the_textbook(start, weights(twin), spaces if constrained else None)
    assert_near(weights(model), expected, start, 1e-8)


@pytest.mark.parametrize("method", [method for method in METHODS if "prune" in method])
def test_damping_keeps_its_hands_off_what_has_not_outgrown_the_weight(method, tokenizer):
    model = model_of(dtype=torch.float32)
    running = editing(model, tokenizer, method, random_spaces(model, LAYERS), replace(HYPERPARAMETERS, v_lr=1e-3))
    running.finish()
    assert not running.finished, "there is nothing to finish yet"
    running.edit(RECORDS)
    before = weights(model)
    running.finish()
    assert running.finished
    assert_same(weights(model), before)


@pytest.mark.parametrize("method", UNDAMPED)
def test_other_methods_have_nothing_to_finish(method, tokenizer):
    model = model_of(dtype=torch.float32)
    running = editing(model, tokenizer, method, random_spaces(model, LAYERS), QUICK)
    targets = None if method.startswith("rome") else huge(model, 3, 1000.0)
    running.edit(RECORDS, targets)
    before = weights(model)
    running.finish()
    assert not running.finished
    assert_same(weights(model), before)


def test_an_edit_that_fails_leaves_a_finished_sequence_finished(tokenizer):
    model = model_of()
    running = editing(model, tokenizer, "prune")
    running.edit(RECORDS, huge(model, 3, 1000.0))
    running.finish()
    before = weights(model)
    with pytest.raises(EditError):
        running.edit(EXTRA, huge(model, 2, math.nan))
    assert running.finished
    assert_same(weights(model), before)
    running.edit(EXTRA[:1])
    assert not running.finished


# --------------------------------------------------------------------------------------------------- every method


@pytest.mark.parametrize("method", UNDAMPED + DAMPED)
def test_nothing_but_the_edited_weights_changes(method, tokenizer):
    model = model_of(dtype=torch.float32).train().requires_grad_(True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    edited = {p.name + ".weight" for p in Decoder(model).out_projections(list(LAYERS)).values()}
    running = editing(model, tokenizer, method, random_spaces(model, LAYERS), QUICK)
    running.edit(RECORDS)
    running.finish()
    for name, parameter in model.named_parameters():
        assert type(parameter) is nn.Parameter
        assert torch.equal(parameter, before[name]) == (name not in edited), name
        assert parameter.grad is None
        assert parameter.requires_grad
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@tries(20)
@given(rank=st.integers(1, 5), layer=st.integers(0, 9), seed=st.integers(0, 1000))
def test_an_updates_factors_are_its_matrix(rank, layer, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(6, rank, generator=generator), torch.randn(4, rank, generator=generator)
    dense = Update(layer, left, right).dense()
    assert dense.dtype == torch.float64
    assert torch.allclose(dense, torch.einsum("ir,jr->ij", left.double(), right.double()))


@pytest.mark.parametrize("method", UNDAMPED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_updates_that_a_batch_returns_repeat_it_bit_for_bit(dtype, method, tokenizer):
    """Written again, from the same weights, they leave the same weights: a history can be replayed."""
    model, twin = model_of(dtype=dtype), model_of(dtype=dtype)
    spaces = random_spaces(model, LAYERS)
    running = editing(model, tokenizer, method, spaces, QUICK)
    for batch in BATCHES:
        running.edit(batch)
    again = running.editor.write.again
    projections = Decoder(twin).out_projections(list(LAYERS))
    for batch in running.batches:
        for update in batch.written.updates:
            again(projections[update.layer], update)
    assert_same(weights(twin), weights(model))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 5])
@pytest.mark.parametrize("method", ["memit", "memit+P", "alphaedit", "rect+P"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_weight_may_be_written_in_blocks_of_any_size(name, method, rows, tokenizer, monkeypatch):
    whole, split = model_of(name), model_of(name)
    start, spaces = weights(whole), random_spaces(whole, LAYERS)
    editing(whole, tokenizer, method, spaces, QUICK).edit(RECORDS)
    monkeypatch.setattr(update_module, "_ROWS", rows)
    editing(split, tokenizer, method, spaces, QUICK).edit(RECORDS)
    assert_near(weights(split), weights(whole), start, 1e-9)


@pytest.mark.parametrize("method", [method for method in UNDAMPED if "rect" not in method])
def test_the_updates_that_a_batch_returns_add_up_to_what_was_written(method, tokenizer):
    model = model_of()
    start, spaces = weights(model), in_float64(random_spaces(model, LAYERS))
    running = editing(model, tokenizer, method, spaces, QUICK)
    for batch in BATCHES:
        running.edit(batch)
    total = {layer: weight.clone() for layer, weight in start.items()}
    for batch in running.batches:
        for update in batch.written.updates:
            total[update.layer] += update.dense()
    assert_near(weights(model), total, start, 1e-10)


def test_the_covariances_of_the_tests_are_what_they_seem():
    """Positive definite, and of the width of the tiny models' keys."""
    for layer, covariance in COVARIANCES.items():
        assert torch.equal(covariance.matrix, random_covariance(24, layer).matrix)
        assert torch.linalg.eigvalsh(covariance.matrix)[0] > 0
