"""The directions that are flat on both sides: by themselves, in a guard, and around a training loop."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import world
from support.learned import BOS, learned
from support.spaces import as_d_out_by_d_in, matrix_with, random_covariance
from support.tiny import model_of, tiny
from support.tokenizer import make_tokenizer
from support.tries import tries
from torch import nn

from alphaedit_plugin.editors.constrained import null_space_constrained
from alphaedit_plugin.errors import GuardError, NullSpaceError, WrongModelError
from alphaedit_plugin.evaluation.perplexity import negative_log_likelihoods
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.covariance import collect
from alphaedit_plugin.nullspace.curvature import output_gradients
from alphaedit_plugin.nullspace.guard import guard
from alphaedit_plugin.nullspace.kronecker import Kronecker, LowCurvature
from alphaedit_plugin.nullspace.projection import Criterion, NullSpace
from alphaedit_plugin.storage.store import Store

LAYERS = [1, 2]


def flat(outputs, inputs, allowed):
    """The projection of vec(ΔW), row by row, onto eigenvectors of B ⊗ C: the textbook's, d_out·d_in square.

    `allowed` says of the ascending eigenvalues which may be written.
    """
    values, vectors = torch.linalg.eigh(torch.kron(outputs, inputs))
    basis = vectors[:, allowed(values)]
    return basis @ basis.T


def factors(d_out, d_in, seed):
    """B and C, whose eigenvalues spread over four orders of magnitude."""
    return tuple(random_covariance(d, seed + i).matrix for i, d in enumerate((d_out, d_in)))


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@tries(40)
@given(
    d_out=st.integers(1, 6),
    d_in=st.integers(2, 7),
    seed=st.integers(0, 10**6),
    share=st.floats(0.05, 0.95),
)
def test_it_is_the_textbooks_projection_onto_flat_eigenvectors_of_the_kronecker_product(d_out, d_in, seed, share):
    outputs, inputs = factors(d_out, d_in, seed)
    count = min(max(1, round(share * d_out * d_in)), d_out * d_in - 1)
    dense = flat(outputs, inputs, lambda values: torch.arange(len(values)) < count)
    space = Kronecker.of(inputs, outputs, Criterion(nullity=count))
    delta, other = noise(d_out, d_in, seed=seed), noise(d_out, d_in, seed=seed + 1)
    found = space.project(delta)
    assert space.nullity == count
    assert torch.allclose(found, (dense @ delta.flatten()).view(d_out, d_in), atol=1e-5)
    assert torch.allclose(space.project(found), found, atol=1e-5)
    assert float((space.project(other) * delta).sum() - (other * found).sum()) == pytest.approx(0, abs=1e-5)


def test_gamma_bounds_the_curvature_of_what_may_be_written():
    outputs, inputs = factors(5, 7, 3)
    for gamma in torch.kron(*(torch.linalg.eigvalsh(each) for each in (outputs, inputs))).quantile(
        torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    ):
        space = Kronecker.of(inputs, outputs, Criterion(threshold=float(gamma)))
        dense = flat(outputs, inputs, lambda values, gamma=gamma: values < gamma)
        delta = space.project(noise(5, 7))
        assert torch.allclose(delta.flatten(), dense @ noise(5, 7).flatten(), atol=1e-5)
        assert float((outputs @ delta @ inputs * delta).sum()) <= float(gamma * (delta**2).sum()) * (1 + 1e-5)


def test_by_a_share_of_energy_a_sink_decides_nothing():
    """With a giant among the input's eigenvalues the other directions are chosen as if it were not there."""
    outputs, plain = matrix_with([0.1, 1.0, 4.0]), torch.tensor([0.01, 0.1, 0.5, 1.0, 2.0])
    for sink in (1e2, 1e6):
        space = Kronecker.of(matrix_with([*plain, sink]), outputs, Criterion(energy=0.2))
        products = torch.outer(torch.tensor([0.1, 1.0, 4.0]), plain).flatten().sort().values
        assert space.nullity == int((products.cumsum(0) <= 0.2 * 5.1 * float(plain.sum())).sum())
        assert space.leakage <= 0.2
    assert space.leakage < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_type_comes_back_and_another_shape_is_an_error(dtype):
    outputs, inputs = factors(3, 6, 0)
    space = Kronecker.of(inputs, outputs, Criterion(nullity=0.5))
    assert (space.d_out, space.d_in) == (3, 6)
    assert space.project(noise(3, 6).to(dtype)).dtype == dtype
    with pytest.raises(NullSpaceError, match="3 × 6"):
        space.project(noise(6, 3).to(dtype))


def test_what_leaves_nothing_or_everything_free_is_an_error():
    outputs, inputs = factors(3, 6, 0)
    with pytest.raises(NullSpaceError, match="nothing is flat in layer 4 at threshold 1e-30: its curvatures"):
        Kronecker.of(inputs, outputs, Criterion(threshold=1e-30), name="layer 4")
    with pytest.raises(NullSpaceError, match="everything is flat"):
        Kronecker.of(inputs, outputs, Criterion(threshold=1e30))
    with pytest.raises(NullSpaceError, match="gradient covariance of the layer is not finite"):
        Kronecker.of(inputs, outputs * torch.nan, Criterion(nullity=1))


# ------------------------------------------------------------------------------------------- around a training loop


def low_curvature(model, windows, layers, criterion):
    inputs, outputs = collect(model, windows, layers), output_gradients(model, windows, layers)
    return {layer: Kronecker.of(inputs[layer], outputs[layer], criterion) for layer in layers}


def fine_tune(model, layers, windows, spaces=None, *, rate=1e-3, until=0.0, steps=300):
    """Full fine-tuning by AdamW until the windows' last tokens are learned: (their loss, layer → ΔW)."""
    projections = Decoder(model).out_projections(layers)
    start = {layer: projection.stored.detach().clone() for layer, projection in projections.items()}
    weights = [projection.stored.requires_grad_(True) for projection in projections.values()]
    optimiser = torch.optim.AdamW(weights, lr=rate)
    with guard(model, spaces) if spaces else nullcontext():
        for _ in range(steps):
            logits = torch.cat([model(input_ids=torch.tensor([ids])).logits[:, -2] for ids in windows])
            loss = nn.functional.cross_entropy(logits.float(), torch.tensor([ids[-1] for ids in windows]))
            if loss.item() <= until:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return loss.item(), {
        layer: as_d_out_by_d_in(projection.stored, projection.transposed)
        - as_d_out_by_d_in(start[layer], projection.transposed)
        for layer, projection in projections.items()
    }


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_guarded_adamw_loop_ends_inside_and_elsewhere(name, dtype):
    windows = [[5, 9, 11, 3], [7, 7, 7, 100, 2, 4, 6, 1, 33], [1, 2, 3, 4, 5, 6, 7]] * 10
    spaces = low_curvature(tiny(name), windows, LAYERS, Criterion(energy=0.2))
    ends = {}
    for guarded in (True, False):
        model = tiny(name, dtype=dtype)
        _, ends[guarded] = fine_tune(model, LAYERS, [[8, 4, 2, 9]], spaces if guarded else None, rate=0.01, steps=5)
    for layer, space in spaces.items():
        delta, size = ends[True][layer], float(ends[True][layer].norm())
        # In 16 bits a weight is rounded after it was projected.
        assert float((delta - space.project(delta)).norm()) <= (1e-4 if dtype == torch.float32 else 0.1) * size
        free = ends[False][layer]
        assert float((free - space.project(free)).norm()) > 0.3 * float(free.norm())
        assert float((delta - free).norm()) > 0.3 * size > 0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_guarded_trainer_learns_as_much_and_forgets_less(name):
    """Both are taught the same to the same loss; what was to be preserved suffers less, also from ΔW of one size."""
    model, tokenizer = learned(name)
    facts = [fact.requests[0] for fact in world.counterfacts(6)]
    taught = [tokenizer(f"{each.prompt.format(each.subject)} {each.target_new}")["input_ids"] for each in facts]
    edited = {each.subject for each in facts}
    true = [" ".join(said) for each in world.statements() if each.subject not in edited for said in each.sentences()]
    preserved = [tokenizer(f"{sentence} .")["input_ids"] for sentence in (*true, *world.plain_sentences())]
    assert (preserved[0][0] == tokenizer.bos_token_id) is (name in BOS)
    layers = list(range(4))
    spaces = low_curvature(model, preserved, layers, Criterion(energy=0.1))

    def kept():
        losses, counts = negative_log_likelihoods(model, preserved)
        return float(losses.sum() / counts.sum())

    weights = {layer: projection.matrix for layer, projection in Decoder(model).out_projections(layers).items()}
    start = {layer: weight.clone() for layer, weight in weights.items()}
    before, rise, rise_at_size = kept(), {}, {}
    for guarded in (True, False):
        loss, delta = fine_tune(model, layers, taught, spaces if guarded else None, until=0.3)
        assert loss <= 0.3, "it did not learn"
        rise[guarded] = kept() - before
        size = sum(float(each.norm()) ** 2 for each in delta.values()) ** 0.5
        for layer, weight in weights.items():
            weight.copy_(start[layer] + delta[layer] * (2 / size))
        rise_at_size[guarded] = kept() - before
        for layer, weight in weights.items():
            weight.copy_(start[layer])
    assert rise[False] > 0
    assert rise[True] < 0.5 * rise[False]
    assert rise_at_size[True] < 0.5 * rise_at_size[False]


# ------------------------------------------------------------------------------------------- as users prepare it


def test_prepared_once_it_guards_its_model_and_no_other(tmp_path):
    text, store = tmp_path / "text.txt", Store(tmp_path / "cache")
    text.write_text("the king came home from the war and saw the old town by the river\n\n" * 40)
    model, tokenizer = model_of("gpt2", torch.float32, n_positions=1024), make_tokenizer(bos=False)

    def prepared(**criterion):
        return LowCurvature.prepare(model, tokenizer, LAYERS, corpus=text, tokens=400, store=store, **criterion)

    spaces, again, wider = prepared(), prepared(energy=0.1), prepared(energy=0.4)
    assert spaces.layers == LAYERS
    assert spaces.provenance["criterion"] == "energy 0.1"
    assert all(torch.equal(spaces[layer].left, again[layer].left) for layer in LAYERS)
    assert all(spaces[layer].nullity < wider[layer].nullity for layer in LAYERS)
    projection = Decoder(model).out_projection(1)
    start = projection.stored.detach().clone()

    @null_space_constrained(spaces)
    def edit(model):
        projection.stored.add_(noise(*projection.stored.shape).float())

    edit(model)
    delta = as_d_out_by_d_in(projection.stored - start, transposed=True)
    assert torch.allclose(spaces[1].project(delta), delta, atol=1e-4)
    with pytest.raises(WrongModelError, match="has been edited"), guard(model, spaces):
        pass
    with guard(model, spaces, check_model=False):
        pass


def test_layers_that_share_a_weight_are_refused():
    model = tiny("llama")
    first, second = (Decoder(model).out_projection(layer).module for layer in LAYERS)
    second.weight = first.weight
    outputs, inputs = factors(16, 24, 0)
    shared = dict.fromkeys(LAYERS, Kronecker.of(inputs, outputs))
    with pytest.raises(GuardError, match="share one weight"), guard(model, shared):
        pass
    mixed = {1: shared[1], 2: NullSpace.of(inputs, Criterion(nullity=4))}
    with pytest.raises(GuardError, match="share one weight"), guard(model, mixed):
        pass
    assert isinstance(first, nn.Linear)
