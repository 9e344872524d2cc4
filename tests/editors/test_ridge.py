"""Ridge regression over a growing set of keys against dense float64 algebra, in both sizes and at every λ."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support import oracle
from support.tiny import tiny
from support.tries import tries
from torch import Tensor

from alphaedit_plugin.editors.alphaedit import AlphaEdit
from alphaedit_plugin.editors.editor import Written
from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.layered import LayeredEditor
from alphaedit_plugin.editors.memit import MEMIT, MEMITSequential
from alphaedit_plugin.editors.preserved import Preserved
from alphaedit_plugin.editors.ridge import Ridge, product
from alphaedit_plugin.errors import EditError
from alphaedit_plugin.nullspace.covariance import Covariance
from alphaedit_plugin.nullspace.projection import PAPER, PAPER_THRESHOLD, NullSpace

dimensions = st.integers(1, 12)
sizes = st.lists(st.integers(1, 6), min_size=1, max_size=6)
weights = st.floats(-3, 5).map(lambda exponent: 10**exponent)
seeds = st.integers(0, 10_000)


def keys_of(d: int, batches: list[int], seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """A batch of keys, d × m, for each of `batches`."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(d, m, generator=generator, dtype=torch.float64).to(dtype) for m in batches]


def dense(weight: float, earlier: Tensor, new: Tensor) -> Tensor:
    """(λI + KKᵀ + kkᵀ)⁻¹ k as it is written."""
    earlier, new = earlier.double(), new.double()
    system = weight * torch.eye(len(new), dtype=torch.float64) + earlier @ earlier.T + new @ new.T
    return torch.linalg.solve(system, new)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def ridge_of(weight: float, d: int, batches: list[Tensor]) -> Ridge:
    ridge = Ridge(weight, d)
    for new in batches:
        ridge = ridge.add(new)[1]
    return ridge


def all_keys(ridge: Ridge) -> Tensor:
    """K, d × n, float64."""
    return torch.cat([torch.zeros(ridge.d, 0, dtype=torch.float64), *(block.double() for block in ridge.keys)], 1)


def assert_invariant(ridge: Ridge) -> None:
    """What the class says of its fields: λI + KᵀK in a lower triangle of block rows, or λI + KKᵀ, and never both."""
    keys = all_keys(ridge)
    assert ridge.count == keys.shape[1]
    if ridge.count > ridge.d:
        assert ridge.rows == ()
        expected = keys @ keys.T + ridge.regularisation * torch.eye(ridge.d, dtype=torch.float64)
        assert ridge.primal.dtype == torch.float64
        assert relative(ridge.primal, expected) <= 1e-12
        return
    assert ridge.primal is None
    factor, end = torch.zeros(ridge.count, ridge.count, dtype=torch.float64), 0
    for block, row in zip(ridge.keys, ridge.rows, strict=True):
        start, end = end, end + block.shape[1]
        assert row.dtype == torch.float64
        factor[start:end, :end] = row
    assert torch.equal(factor, factor.tril())
    expected = keys.T @ keys + ridge.regularisation * torch.eye(ridge.count, dtype=torch.float64)
    assert ridge.count == 0 or relative(factor @ factor.T, expected) <= 1e-12


def assert_same_ridge(found: Ridge, expected: Ridge) -> None:
    """Bit for bit, block by block."""
    assert (found.regularisation, found.d, found.count) == (expected.regularisation, expected.d, expected.count)
    for blocks, others in ((found.keys, expected.keys), (found.rows, expected.rows)):
        assert all(torch.equal(block, other) for block, other in zip(blocks, others, strict=True))
    assert (found.primal is None) == (expected.primal is None)
    assert found.primal is None or torch.equal(found.primal, expected.primal)


# ------------------------------------------------------------------------------------------------ growing and shrinking


@tries(100)
@given(d=dimensions, batches=sizes, weight=weights, seed=seeds)
def test_every_batch_is_solved_as_by_dense_algebra(d, batches, weight, seed):
    """More keys than dimensions included, and the step from one size to the other within a batch."""
    ridge = Ridge(weight, d)
    earlier = torch.zeros(d, 0, dtype=torch.float64)
    for new in keys_of(d, batches, seed):
        assert ridge.count == earlier.shape[1]
        found, ridge = ridge.add(new)
        assert found.dtype == torch.float64
        assert found.shape == new.shape
        assert relative(found, dense(weight, earlier, new)) <= 1e-8
        earlier = torch.cat([earlier, new], 1)
        assert torch.equal(all_keys(ridge), earlier)
        assert_invariant(ridge)


@tries(100)
@given(d=dimensions, batches=sizes, weight=st.one_of(st.just(0.0), weights), seed=seeds, data=st.data())
def test_a_truncated_ridge_is_one_that_was_never_extended(d, batches, weight, seed, data):
    """At the end of any batch, bit for bit, in both sizes and from one to the other."""
    keep = data.draw(st.integers(0, len(batches)))
    keys = keys_of(d, batches, seed)
    never = ridge_of(weight, d, keys[:keep])
    found = ridge_of(weight, d, keys).truncated(never.count)
    assert_same_ridge(found, never)
    if weight:
        assert_invariant(found)
    (new,) = keys_of(d, [3], seed + 1)
    (solution, longer), (expected, never_longer) = found.add(new), never.add(new)
    assert torch.equal(solution, expected)
    assert_same_ridge(longer, never_longer)


@tries(50)
@given(d=dimensions, batches=sizes, weight=weights, seed=seeds, data=st.data())
def test_a_truncation_may_cut_a_batch_in_two(d, batches, weight, seed, data):
    ridge = ridge_of(weight, d, keys_of(d, batches, seed))
    count = data.draw(st.integers(0, ridge.count))
    found = ridge.truncated(count)
    assert torch.equal(all_keys(found), all_keys(ridge)[:, :count])
    assert_invariant(found)
    (new,) = keys_of(d, [2], seed + 1)
    assert relative(found.add(new)[0], dense(weight, all_keys(found), new)) <= 1e-8


@tries(50)
@given(d=dimensions, batches=sizes, weight=st.one_of(st.just(0.0), weights), seed=seeds)
def test_nothing_changes_in_place(d, batches, weight, seed):
    """A memory that is replaced as a whole can be put back as a whole."""
    keys = keys_of(d, [*batches, 2], seed)
    ridge = ridge_of(weight, d, keys[:-1])
    before, given = copy.deepcopy(ridge), keys[-1].clone()
    longer = ridge.add(keys[-1])[1]
    longer.add(keys[0])
    longer.truncated(1).add(keys[0])
    assert_same_ridge(ridge, before)
    assert_same_ridge(longer, before.add(given)[1])
    assert torch.equal(keys[-1], given)


@tries(50)
@given(d=dimensions, batches=sizes, seed=seeds)
def test_keys_stay_in_the_type_they_come_in(d, batches, seed):
    """float32 keys are solved for exactly as the float64 keys of the same value."""
    single, double = Ridge(3.0, d), Ridge(3.0, d)
    for new in keys_of(d, batches, seed, torch.float32):
        (found, single), (expected, double) = single.add(new), double.add(new.double())
        assert relative(found, expected) <= 1e-10
        assert all(block.dtype == torch.float32 for block in single.keys)
        assert all(row.dtype == torch.float64 for row in single.rows)


def test_a_weight_too_small_to_tell_keys_apart_is_an_error_that_names_it():
    """Not a matrix that is not positive definite, and not a wrong solution."""
    (new,) = keys_of(8, [2], 0)
    ridge = Ridge(1e-20, 8).add(new)[1]
    with pytest.raises(EditError, match="1e-20"):
        ridge.add(new)
    found = Ridge(0.0, 8).add(new)[1].add(new)[0]
    assert torch.isfinite(found).all()


@tries(25)
@given(rows=st.integers(1, 5000), columns=st.tuples(st.integers(0, 3), st.integers(1, 3)), seed=seeds)
def test_the_product_is_that_of_float64_however_many_rows(rows, columns, seed):
    a, b = keys_of(rows, list(columns), seed, torch.float32)
    assert torch.allclose(product(a, b), a.double().T @ b.double(), rtol=1e-12, atol=1e-12 * rows)


# -------------------------------------------------------------------------------------------------------------- λ = 0


@tries(100)
@given(d=dimensions, batches=sizes, seed=seeds, data=st.data())
def test_without_regularisation_it_is_the_pseudo_inverse(d, batches, seed, data):
    """Also for keys that come twice, within a batch and in different ones, and for more keys than dimensions."""
    keys = keys_of(d, batches, seed)
    for _ in range(data.draw(st.integers(0, 3))):
        of, column = (data.draw(st.integers(0, len(keys) - 1)) for _ in range(2))
        keys[of][:, -1] = keys[column][:, 0]
    ridge = Ridge(0.0, d)
    for new in keys:
        together = torch.cat([all_keys(ridge), new], 1)
        values = torch.linalg.svdvals(together)
        assume(float(values[values > 1e-8 * values[0]].min()) > 1e-2)
        expected = torch.linalg.pinv(together.T, rtol=1e-8)[:, ridge.count :]
        found, ridge = ridge.add(new)
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-8)
        limit = 1e-9 * torch.eye(d, dtype=torch.float64)  # the formula itself, very near the limit
        textbook = torch.linalg.solve(limit + together @ together.T, new)
        assert torch.allclose(found, textbook, rtol=1e-3, atol=1e-3)
    count = data.draw(st.integers(0, ridge.count))
    assert torch.equal(all_keys(ridge.truncated(count)), all_keys(ridge)[:, :count])


def test_without_regularisation_new_facts_are_met_exactly_and_old_ones_left_alone():
    """Δ = R Nᵀ gives Δk = R and ΔK = 0, for fewer keys than dimensions."""
    earlier, new = keys_of(9, [4, 3], 0)
    solution, _ = ridge_of(0.0, 9, [earlier]).add(new)
    assert torch.allclose(solution.T @ new, torch.eye(3, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(solution.T @ earlier, torch.zeros(3, 4, dtype=torch.float64), atol=1e-10)


def test_two_facts_with_one_key_share_it_without_regularisation():
    """Least squares: the layer answers their mean."""
    (new,) = keys_of(6, [3], 1)
    new[:, 2] = new[:, 0]
    residual = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    answers = residual @ Ridge(0.0, 6).add(new)[0].T @ new
    assert torch.allclose(answers[:, 0], (residual[:, 0] + residual[:, 2]) / 2)
    assert torch.allclose(answers[:, 1], residual[:, 1])


# ------------------------------------------------------------------------------ float32 storage, at a real model's size

D_IN, D_OUT, EARLIER, BATCH = 1536, 64, 500, 20
_NULL_SHARE = 0.6


@pytest.fixture(scope="module")
def real_size() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(C, Kp, K1, R) as of SmolLM2's width: eigenvalues fall as a power, 60 % of them below the paper's threshold.

    Float64; the keys are drawn from C.
    """
    generator = torch.Generator().manual_seed(0)
    rank = torch.arange(1, D_IN + 1, dtype=torch.float64)
    eigenvalues = PAPER_THRESHOLD * (D_IN * (1 - _NULL_SHARE) / rank)
    basis = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=generator, dtype=torch.float64))[0]
    root = basis * eigenvalues.sqrt()
    covariance = root @ root.T
    keys = root @ torch.randn(D_IN, EARLIER + BATCH, generator=generator, dtype=torch.float64)
    residual = torch.randn(D_OUT, BATCH, generator=generator, dtype=torch.float64)
    return (covariance + covariance.T) / 2, keys[:, :EARLIER], keys[:, EARLIER:], residual


def solved(editor: LayeredEditor, earlier: Tensor, new: Tensor) -> Tensor:
    """N of Δ = R Nᵀ as an editor of a float32 model finds it, batch by batch; nothing is kept in more than float32."""
    for batch in earlier.split(BATCH, dim=1):
        editor.remember(Written([], {0: editor.transform_keys(0, batch).to(torch.float32)}))
    keys = editor.transform_keys(0, new)
    solution, _ = editor._ridge(0).add(keys.to(torch.float32) if editor.sequential else keys)
    return editor.restore_solution(0, solution).to(torch.float32).double()


def editor_of(kind: type[LayeredEditor], source: NullSpace | Covariance, **hyperparameters: float) -> LayeredEditor:
    model = tiny("llama", intermediate_size=D_IN, num_hidden_layers=1)
    preserved = Preserved(null_spaces={0: source}) if isinstance(source, NullSpace) else Preserved({0: source})
    return kind(model, None, Hyperparameters(layers=(0,), **hyperparameters), preserved)


@pytest.mark.slow
def test_alphaedit_with_500_earlier_edits_is_the_dense_formula_to_1e_4(real_size):
    """Its P is the one that `NullSpace` finds and keeps in float32; the dense formula's is float64 throughout.

    Float32 mixes neighbours across the threshold, which moves the projected keys by 4e-5 here. (The P of the published
    recipe, an SVD in float32, moves them by 1.7e-4.)
    """
    covariance, earlier, new, residual = real_size
    weight, space = 10.0, NullSpace.of(covariance, PAPER)
    assert abs(space.nullity / D_IN - _NULL_SHARE) < 0.01
    editor = editor_of(AlphaEdit, space, L2=weight)
    found = residual @ solved(editor, earlier, new).T
    assert editor.memory[0].count == EARLIER
    expected = oracle.alphaedit_delta(new, residual, earlier, oracle.projection(covariance, PAPER_THRESHOLD), weight)
    assert relative(found, expected) <= 1e-4
    without_memory = oracle.alphaedit_delta(new, residual, earlier[:, :0], space.dense(), weight)
    assert relative(without_memory, expected) > 1e-2, "the earlier edits must matter here"


def test_memit_seq_with_500_earlier_edits_is_the_dense_formula_to_1e_5(real_size):
    covariance, earlier, new, residual = real_size
    editor = editor_of(MEMITSequential, Covariance(covariance.triu(), 1), mom2_update_weight=1000.0)
    found = residual @ solved(editor, earlier, new).T
    assert editor.memory[0].count == EARLIER
    expected = oracle.memit_seq_delta(new, residual, earlier, covariance, 1000.0)
    assert relative(found, expected) <= 1e-5
    without_memory = oracle.memit_delta(new, residual, covariance, 1000.0)
    assert relative(without_memory, expected) > 1e-2, "the earlier edits must matter here"


def test_memit_at_a_real_size_is_the_dense_formula_to_1e_5(real_size):
    covariance, _, new, residual = real_size
    editor = editor_of(MEMIT, Covariance(covariance.triu(), 1), mom2_update_weight=1000.0)
    found = residual @ solved(editor, new[:, :0], new).T
    assert relative(found, oracle.memit_delta(new, residual, covariance, 1000.0)) <= 1e-5


@pytest.mark.parametrize("earlier", [0, 3, 30], ids=["none", "fewer than dimensions", "more than dimensions"])
def test_a_key_made_longer_and_longer_is_learnt_in_the_end(earlier):
    """kᵀ(λI + KKᵀ + kkᵀ)⁻¹k goes to 1: λ is a scale of keys."""
    old, new = keys_of(8, [earlier, 1], 3)
    ridge = ridge_of(5.0, 8, [old] if earlier else [])
    learnt = [float((new * scale).T @ ridge.add(new * scale)[0]) for scale in (1.0, 10.0, 100.0, 1000.0)]
    assert learnt == sorted(learnt)
    assert math.isclose(learnt[-1], 1.0, abs_tol=1e-3)
