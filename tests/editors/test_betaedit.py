"""BetaEdit against its textbook, P chosen anew included; its memory follows from the keys alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.editing import COVARIANCES, LAYERS, RECORDS, REQUESTS, session, weights
from support.spaces import assert_inside, random_covariance, random_spaces
from support.successors import BATCHES, EXTRA, HYPERPARAMETERS, add, hidden, keys, z_stars
from support.tiny import model_of
from support.tries import tries
from support.weights import assert_same
from torch import Tensor

from alphaedit_plugin.editors.betaedit import LeakageMemory, Rules
from alphaedit_plugin.editors.variant import Variant
from alphaedit_plugin.errors import HyperparameterError, NullSpaceError, StatisticsError
from alphaedit_plugin.nullspace.null_spaces import NullSpaces
from alphaedit_plugin.nullspace.projection import Criterion, NullSpace
from alphaedit_plugin.session.session import Session

LAST = LAYERS[-1]
BETA = replace(HYPERPARAMETERS, null_space=Criterion(nullity=15))
LEAKAGE = 0.02
METHOD = f"betaedit@leakage={LEAKAGE}@refresh=2"


def betaedit_delta(k, residual, earlier, covariance, projection, leakage: float, lam: float) -> Tensor:
    """Xᵀ of (P(KKᵀ + KpKpᵀ + λ1C) + λ2I)X = P K Rᵀ, dense, in float64, as the authors solve it."""
    k, residual, earlier, p = k.double(), residual.double(), earlier.double(), projection.double()
    system = p @ (k @ k.T + earlier @ earlier.T + leakage * covariance) + lam * torch.eye(len(p), dtype=p.dtype)
    return torch.linalg.solve(system, p @ k @ residual.T).T


def next_projection(earlier: Tensor, covariance: Tensor, leakage: float, nullity: int) -> Tensor:
    """P of the keys so far and of C, dense, by the singular value decomposition."""
    protected = (earlier @ earlier.T / earlier.shape[1] + leakage * covariance) / (leakage + 1)
    null = torch.linalg.svd(protected)[0][:, len(protected) - nullity :]
    return null @ null.T


def textbook(model, tokenizer, spaces, refresh: int, batches=BATCHES) -> None:
    projections = {layer: spaces[layer].dense() for layer in LAYERS}
    earlier = {layer: projections[layer][:, :0] for layer in LAYERS}
    count, refreshed = 0, 0
    for records in batches:
        if count - refreshed >= refresh > 0:
            refreshed = count
            for layer in LAYERS:
                projections[layer] = next_projection(earlier[layer], COVARIANCES[layer].matrix, LEAKAGE, 15)
        wanted = z_stars(model, tokenizer, LAST, records)
        for left, layer in zip((3, 2, 1), LAYERS, strict=True):
            k = keys(model, tokenizer, layer, records)
            residual = (wanted - hidden(model, tokenizer, LAST, records)).T / left
            covariance = COVARIANCES[layer].matrix
            add(
                model,
                layer,
                betaedit_delta(k, residual, earlier[layer], covariance, projections[layer], LEAKAGE, BETA.L2),
            )
            earlier[layer] = torch.cat([earlier[layer], k], 1)
        count += len(records)


def precise(spaces: NullSpaces) -> NullSpaces:
    """P orthogonal to the last bit that float64 has."""
    return NullSpaces(
        {layer: replace(s, factor=torch.linalg.qr(s.factor.double())[0]) for layer, s in spaces.items()},
        spaces.provenance,
    )


@pytest.mark.slow
@pytest.mark.parametrize("refresh", [0, 1, 2, 1000])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_three_batches_leave_the_weights_that_the_textbook_leaves(name, refresh, tokenizer, exact):
    ours, theirs = model_of(name), model_of(name)
    start, spaces = weights(ours), precise(random_spaces(ours, LAYERS))
    running = session(ours, tokenizer, f"betaedit@leakage={LEAKAGE}@refresh={refresh}", spaces, BETA)
    for batch in BATCHES:
        running.edit(batch)
    textbook(theirs, tokenizer, spaces, refresh)
    for layer, expected in weights(theirs).items():
        moved = float((expected - start[layer]).norm())
        assert moved > 1e-3 * float(start[layer].norm())
        assert float((weights(ours)[layer] - expected).norm()) <= 1e-5 * moved  # a new P is kept in float32


@tries(40)
@given(
    d=st.integers(3, 20),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    refresh=st.integers(0, 6),
    lam=st.sampled_from([0.0, 1e-3, 1.0, 100.0]),
    leakage=st.sampled_from([1e-3, 1.0, 3000.0]),
    seed=st.integers(0, 1000),
)
def test_the_memory_solves_the_dense_system_also_with_more_facts_than_dimensions(d, sizes, refresh, lam, leakage, seed):
    generator = torch.Generator().manual_seed(seed)
    covariance, nullity = random_covariance(d, seed).matrix, max(1, d // 2)
    space = NullSpace.of(covariance, Criterion(nullity=nullity))
    space = replace(space, factor=torch.linalg.qr(space.factor.double())[0])
    history = LeakageMemory(Rules(covariance, space, Criterion(nullity=nullity), leakage, lam, refresh, "a layer"))
    projection, earlier, refreshed = space.dense(), covariance[:, :0], 0
    for size in sizes:
        k = torch.randn(d, size, generator=generator, dtype=torch.float64)
        if earlier.shape[1] - refreshed >= refresh > 0:
            refreshed = earlier.shape[1]
            projection = next_projection(earlier, covariance, leakage, nullity)
        found, history = history.add(k)
        basis = torch.linalg.eigh(projection)[1][:, -nullity:]  # the system in the null space, where λ2 = 0 has one too
        everything = torch.cat([earlier, k], 1)
        inner = basis.T @ (everything @ everything.T + leakage * covariance) @ basis + lam * torch.eye(nullity).double()
        expected = basis @ torch.linalg.solve(inner, basis.T @ k)
        # What P takes out of λ1C leaves its rounding behind; and a new P is kept in float32.
        share = 1e-8 + 1e-13 * float(leakage * covariance.norm() / torch.linalg.eigvalsh(inner)[0])
        share += 1e-6 * float(torch.linalg.cond(inner)) if refreshed else 0.0
        assert float((found - expected).norm()) <= share * float(expected.norm())
        if lam >= 1:  # as the authors solve it, outside of the null space too, where a small λ2 is lost in λ1C
            whole = betaedit_delta(k, torch.eye(size), earlier, covariance, projection, leakage, lam).T
            assert float((whole - expected).norm()) <= share * float(expected.norm())
        earlier = everything
        assert history.count == earlier.shape[1]


@pytest.mark.slow
def test_without_leakage_and_refresh_it_is_alphaedit(tokenizer, exact):
    ours, theirs = model_of(), model_of()
    start, spaces = weights(ours), precise(random_spaces(ours, LAYERS))
    for model, method in ((ours, "betaedit@leakage=0@refresh=0"), (theirs, "alphaedit")):
        running = session(model, tokenizer, method, spaces, BETA)
        for batch in BATCHES:
            running.edit(batch)
    for layer, expected in weights(theirs).items():
        assert float((weights(ours)[layer] - expected).norm()) <= 1e-8 * float((expected - start[layer]).norm())


def test_it_writes_inside_the_null_space_and_the_dearer_leakage_is_the_less_leaks(tokenizer):
    leaks = []
    for leakage in (0.0, 1.0, 100.0):
        model = model_of()
        start, spaces = weights(model), random_spaces(model, LAYERS)
        running = session(model, tokenizer, f"betaedit@leakage={leakage}@refresh=0", spaces, BETA)
        targets = running.editor.targets(REQUESTS)
        running.edit(RECORDS, targets)
        assert_inside(spaces, start, weights(model), 1e-5)
        delta = weights(model)[0] - start[0]
        leaks.append(float(torch.trace(delta @ COVARIANCES[0].matrix @ delta.T)))
    assert leaks[0] > leaks[1] > leaks[2]


def test_it_is_undone_saved_and_resumed_bit_for_bit_across_new_projections(tokenizer, tmp_path):
    models = [model_of(dtype=torch.float32) for _ in range(3)]
    spaces = random_spaces(models[0], LAYERS)
    batches = (*BATCHES, RECORDS[:1], EXTRA[:1])
    whole, half = (session(m, tokenizer, METHOD, spaces, BETA) for m in models[:2])
    for batch in batches:
        whole.edit(batch)
    for batch in batches[:2]:
        half.edit(batch)
    half.save(tmp_path / "s")
    resumed = Session.resume(tmp_path / "s", models[2])
    for batch in batches[2:]:
        resumed.edit(batch)
    assert [history.refreshed for history in resumed.editor.memory.values()] == [5, 5, 5]
    assert_same(weights(models[2]), weights(models[0]))
    for undone in (1, 2, 3, 4):  # within the last projection's time, to its beginning, before it, before any new one
        whole.undo(undone)
        if undone == 3:
            assert_same(weights(models[0]), weights(models[1]))
        for batch in batches[len(whole.batches) :]:
            whole.edit(batch)
        assert_same(weights(models[0]), weights(models[2]))


def test_what_it_needs_and_settings_out_of_range_are_named(tokenizer):
    variant = Variant.parse("betaedit")
    assert variant.needs_covariances
    assert variant.needs_null_spaces
    assert Variant.parse("betaedit+P") == variant
    for name, named in (
        ("betaedit@leakage=-1", "leakage must not be negative, not -1"),
        ("betaedit@refresh=-1", "refresh must not be negative, not -1"),
        ("betaedit@refresh=1.5", "refresh must be a whole number"),
        ("betaedit@leakage=0@L2=0", "leakage and L2 cannot both be 0"),
    ):
        with pytest.raises(HyperparameterError, match=named) as caught:
            Variant.parse(name)
        assert name in str(caught.value)
    model = model_of()
    spaces = random_spaces(model, LAYERS)
    few = {layer: COVARIANCES[layer] for layer in LAYERS[:2]}
    with pytest.raises(StatisticsError, match=r"\[2\]"):
        session(model, tokenizer, "betaedit", spaces, BETA, covariances=few)


def test_a_criterion_by_which_nothing_is_null_any_more_is_an_error_and_changes_nothing(tokenizer):
    model = model_of(dtype=torch.float32)
    strict = replace(BETA, null_space=Criterion(threshold=1e-12))
    running = session(model, tokenizer, METHOD, random_spaces(model, LAYERS), strict)
    running.edit(RECORDS)
    before = weights(model)
    with pytest.raises(NullSpaceError, match="nothing is null"):
        running.edit(EXTRA)
    assert_same(weights(model), before)
    assert len(running.batches) == 1
