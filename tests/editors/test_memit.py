"""MEMIT against its formulas and against the textbook; a session writes all of a batch or nothing."""

from __future__ import annotations

import re

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
from support.spaces import outside, random_covariance, random_spaces
from support.tiny import NAMES, model_of
from support.tries import tries

from alphaedit_plugin.editors import keys as keys_module
from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.keys import Sweep, context_templates, half_bare
from alphaedit_plugin.editors.memit import MEMIT
from alphaedit_plugin.editors.preserved import Preserved
from alphaedit_plugin.editors.ridge import Ridge
from alphaedit_plugin.editors.targets import Targets
from alphaedit_plugin.editors.update import Update
from alphaedit_plugin.editors.whitening import Whitening, cholesky
from alphaedit_plugin.errors import AlphaEditError, EditError, RequestError, StatisticsError, WrongModelError
from alphaedit_plugin.model.decoder import Decoder, OutProjection
from alphaedit_plugin.model.fingerprint import fingerprints
from alphaedit_plugin.nullspace.covariance import Covariance
from alphaedit_plugin.nullspace.null_spaces import NullSpaces
from alphaedit_plugin.nullspace.projection import Criterion, NullSpace
from alphaedit_plugin.session.session import Session

pytestmark = pytest.mark.slow

# ---------------------------------------------------------------------------------------------------- formulas


@tries(40)
@given(
    d_in=st.integers(2, 20),
    d_out=st.integers(1, 12),
    n=st.integers(1, 30),
    weight=st.floats(1e-2, 1e5),
    seed=st.integers(0, 10_000),
)
def test_the_dual_form_is_the_textbook_formula(d_in, d_out, n, weight, seed):
    """More facts than dimensions included."""
    generator = torch.Generator().manual_seed(seed)
    keys, residual, sample = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((d_in, n), (d_out, n), (d_in, 4 * d_in))
    )
    covariance = Covariance.empty(d_in)
    covariance.add(sample.T)
    expected = oracle.memit_delta(keys, residual, covariance.matrix, weight)
    whitening = Whitening({3: covariance}, {3: OutProjection(3, "a layer", torch.nn.Linear(d_in, d_out))})
    solution = whitening.unwhiten(3, Ridge(weight, d_in).add(whitening.whiten(3, keys))[0])
    found = Update(3, residual, solution).dense()
    assert found.shape == (d_out, d_in)
    assert float((found - expected).norm()) <= 1e-8 * float(expected.norm())


def test_a_singular_covariance_is_an_error_that_names_the_layer():
    with pytest.raises(StatisticsError, match="layer 7"):
        cholesky(torch.zeros(3, 3), "layer 7")
    model = model_of(dtype=torch.float32)
    tokens = torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
    tokens[:, 5] = 0
    dead = Covariance.empty(24)
    dead.add(tokens)
    name = Decoder(model).out_projection(1).name
    whitening = Whitening({1: dead}, Decoder(model).out_projections([1]))
    with pytest.raises(StatisticsError, match=re.escape(name)):
        whitening.whiten(1, torch.ones(24, 1))


@pytest.mark.parametrize("contexts", [CONTEXTS, CONTEXTS[:1]], ids=["three contexts", "no context"])
@pytest.mark.parametrize("name", NAMES)
def test_keys_and_hidden_states_are_the_textbooks_on_every_architecture(name, contexts, tokenizer, exact):
    model = model_of(name)
    decoder = Decoder(model)
    projection, block = decoder.out_projection(2), decoder.block(2)
    sweep = Sweep(model, tokenizer, REQUESTS, contexts)
    keys, hidden = sweep.keys(projection), sweep.hidden(2)
    assert keys.shape == (len(REQUESTS), len(contexts), projection.d_in)
    assert keys.dtype == hidden.dtype == torch.float64
    averaged = half_bare(keys)
    for row, record in enumerate(RECORDS):
        expected = oracle.key(model, tokenizer, record, contexts, projection.module)
        assert torch.allclose(averaged[row], expected, rtol=1e-7, atol=1e-9)
        assert torch.allclose(hidden[row], oracle.current_z(model, tokenizer, record, block), rtol=1e-7, atol=1e-9)
        for context, found in zip(contexts, keys[row], strict=True):
            alone = oracle.key(model, tokenizer, record, [context], projection.module)
            assert torch.allclose(found, alone, rtol=1e-7, atol=1e-9)


def _assert_fresh(model, tokenizer, sweep: Sweep, layer: int, last: int) -> None:
    """What a sweep says of a layer is what a plain forward pass says, one prompt at a time, as the weights are now."""
    projection, block = Decoder(model).out_projection(layer), Decoder(model).block(last)
    keys, hidden = sweep.keys(projection), sweep.hidden(last)
    for row, record in enumerate(RECORDS):
        for context, found in zip(CONTEXTS, keys[row], strict=True):
            alone = oracle.key(model, tokenizer, record, [context], projection.module)
            assert torch.allclose(found, alone, rtol=1e-7, atol=1e-9)
        assert torch.allclose(hidden[row], oracle.current_z(model, tokenizer, record, block), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (1, 3)], ids=["every layer", "some layers"])
@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_sees_the_weights_as_they_are_while_the_layers_are_edited(name, layers, tokenizer, exact):
    """Before and after every edit, at the layer that was edited and at the next; the last one is edited too."""
    model = model_of(name)
    sweep = Sweep(model, tokenizer, REQUESTS, CONTEXTS)
    generator = torch.Generator().manual_seed(1)
    projections = Decoder(model).out_projections(list(layers))
    blocks = list(Decoder(model).blocks)
    for layer, projection in projections.items():
        _assert_fresh(model, tokenizer, sweep, layer, layers[-1])
        weight = projection.matrix
        before = oracle.current_z(model, tokenizer, RECORDS[0], blocks[layers[-1]])
        weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * weight.std())
        after = oracle.current_z(model, tokenizer, RECORDS[0], blocks[layers[-1]])
        assert float((after - before).norm()) > 1e-2 * float(before.norm())
        _assert_fresh(model, tokenizer, sweep, layer, layers[-1])
    assert all(now is before for now, before in zip(Decoder(model).blocks, blocks, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2"])
def test_a_sweep_runs_every_block_once_and_none_above_what_is_asked_for(name, tokenizer):
    """Keys of all layers together cost one pass: what lies below a layer is stood in for once it is known."""
    model = model_of(name)
    runs = dict.fromkeys(range(4), 0)

    def count(layer: int) -> None:
        runs[layer] += 1

    for layer, block in enumerate(Decoder(model).blocks):
        block.register_forward_hook(lambda _m, _a, _o, layer=layer: count(layer))
    sweep = Sweep(model, tokenizer, REQUESTS, CONTEXTS)
    assert len(sweep._parts) == 1
    for layer, projection in Decoder(model).out_projections([0, 2, 3]).items():
        sweep.keys(projection)
        sweep.keys(projection)
        assert runs == {below: int(below < layer) for below in range(4)}
    sweep.hidden(3)
    assert runs == dict.fromkeys(range(4), 1)


@pytest.mark.parametrize("tokens", [1, 12, 30])
def test_a_sweep_does_not_depend_on_its_batches(tokens, tokenizer, exact, monkeypatch):
    """Also where a batch holds no bare prompt."""
    model = model_of()
    projections = Decoder(model).out_projections([0, 2])
    whole = Sweep(model, tokenizer, REQUESTS, CONTEXTS)
    monkeypatch.setattr(keys_module, "_BATCH_TOKENS", tokens)
    split = Sweep(model, tokenizer, REQUESTS, CONTEXTS)
    assert len(split._parts) > len(whole._parts)
    for layer, projection in projections.items():
        assert torch.allclose(split.keys(projection), whole.keys(projection), rtol=1e-10)
        assert torch.allclose(split.hidden(layer), whole.hidden(layer), rtol=1e-10)


def test_the_bare_prompt_weighs_as_much_as_all_other_contexts():
    keys = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(half_bare(keys), 0.5 * keys[:, 0] + 0.5 * keys[:, 1:].mean(1))
    assert torch.equal(half_bare(keys[:, :1]), keys[:, 0])


def test_context_templates_hold_one_place_each_begin_with_the_bare_prompt_and_repeat(tokenizer):
    model = model_of(dtype=torch.float32)
    templates = context_templates(model, tokenizer)
    assert templates[0] == "{}"
    assert len(templates) > 1
    for template in templates:
        assert template.count("{}") == 1
        assert template.count("{") == template.count("}") == 1
    assert templates == context_templates(model, tokenizer)


# -------------------------------------------------------------------------------------------- the whole of MEMIT


def _textbook(model, tokenizer, records, projections=None) -> None:
    decoder = Decoder(model)
    h = HYPERPARAMETERS
    oracle.memit(
        model,
        tokenizer,
        records,
        CONTEXTS,
        LAYERS,
        decoder.blocks,
        {layer: p.module for layer, p in decoder.out_projections(list(LAYERS)).items()},
        {layer: covariance.matrix for layer, covariance in COVARIANCES.items()},
        h.mom2_update_weight,
        projections,
        steps=h.v_num_grad_steps,
        lr=h.v_lr,
        weight_decay=h.v_weight_decay,
        kl_factor=h.kl_factor,
        clamp=h.clamp_norm_factor,
    )


@pytest.mark.parametrize("projected", [False, True], ids=["memit", "memit+P"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_two_batches_leave_the_weights_that_the_textbook_leaves(name, projected, tokenizer, exact):
    """Under the guard the textbook multiplies by the dense P, relative to the weights before each batch."""
    ours, theirs = model_of(name), model_of(name)
    start = weights(ours)
    spaces = random_spaces(ours, LAYERS)
    method = "memit+P" if projected else "memit"
    editing = session(ours, tokenizer, method, spaces)
    for batch in (RECORDS[:2], RECORDS[2:]):
        editing.edit(batch)
        _textbook(theirs, tokenizer, batch, {n: s.dense() for n, s in spaces.items()} if projected else None)
    expected = weights(theirs)
    for layer, weight in weights(ours).items():
        moved = float((expected[layer] - start[layer]).norm())
        assert moved > 0
        assert float((weight - expected[layer]).norm()) <= 1e-6 * float(expected[layer].norm())
        assert float((weight - expected[layer]).norm()) <= 1e-4 * moved


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_projected_edits_stay_in_the_null_space_and_plain_ones_do_not(name, tokenizer):
    for method, inside in (("memit", False), ("memit+P", True)):
        model = model_of(name, torch.float32)
        start, spaces = weights(model), random_spaces(model, LAYERS, seed=100)
        editing = session(model, tokenizer, method, spaces)
        editing.edit(RECORDS[:2])
        editing.edit(RECORDS[2:])
        for layer, weight in weights(model).items():
            out, size = outside(spaces[layer], start[layer], weight, transposed=False)
            assert out <= 1e-5 * size if inside else out > 1e-3 * size


def test_nothing_but_the_edited_weights_changes(tokenizer):
    model = model_of(dtype=torch.float32).train().requires_grad_(True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    edited = {p.name + ".weight" for p in Decoder(model).out_projections(list(LAYERS)).values()}
    session(model, tokenizer).edit(RECORDS)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in edited), name
        assert parameter.grad is None
        assert parameter.requires_grad
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_with_next_to_no_regularisation_the_hidden_states_become_the_targets(name, tokenizer, exact):
    """Fewer facts than dimensions and only the bare prompt as context: nothing of the residual remains."""
    model = model_of(name)
    hyperparameters = Hyperparameters(
        layers=LAYERS, v_num_grad_steps=5, v_lr=0.2, mom2_update_weight=1e-9, target_optimiser="adam"
    )
    editing = session(model, tokenizer, hyperparameters=hyperparameters, contexts=["{}"])
    targets = editing.editor.targets(REQUESTS)
    editing.edit(RECORDS, targets)
    block = Decoder(model).block(LAYERS[-1])
    hidden = torch.stack([oracle.current_z(model, tokenizer, record, block) for record in RECORDS])
    assert float((targets.z - targets.z_star).norm()) > 0.1
    assert torch.allclose(hidden, targets.z_star, atol=1e-6)


@pytest.mark.parametrize("method", ["memit", "memit+P"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_16_bit_model_is_edited_and_stays_16_bit(dtype, method, tokenizer):
    model = model_of(dtype=dtype)
    start, spaces = weights(model), random_spaces(model, LAYERS)
    session(model, tokenizer, method, spaces).edit(RECORDS)
    for layer, weight in weights(model).items():
        assert weight.dtype == dtype
        assert torch.isfinite(weight).all()
        assert not torch.equal(weight, start[layer])


def test_missing_covariances_are_named(tokenizer):
    with pytest.raises(StatisticsError, match=r"\[2\]"):
        MEMIT(model_of(), tokenizer, HYPERPARAMETERS, Preserved({0: COVARIANCES[0], 1: COVARIANCES[1]}))
    with pytest.raises(StatisticsError, match=re.escape(Decoder(model_of()).out_projection(1).name)):
        MEMIT(model_of(), tokenizer, HYPERPARAMETERS, Preserved({**COVARIANCES, 1: random_covariance(23)}))


def test_targets_given_are_the_targets_used(tokenizer):
    ours, theirs = model_of(), model_of()
    first, second = session(ours, tokenizer), session(theirs, tokenizer)
    targets = first.editor.targets(REQUESTS)
    first.edit(RECORDS, targets)
    second.edit(RECORDS)
    for layer, weight in weights(ours).items():
        assert torch.equal(weight, weights(theirs)[layer])


# ------------------------------------------------------------------------------------------------- transactions


@pytest.mark.parametrize("method", ["memit", "memit+P"])
@pytest.mark.parametrize("position", range(3))
def test_a_malformed_request_anywhere_in_the_batch_changes_nothing(method, position, tokenizer):
    model = model_of(dtype=torch.float32)
    start = weights(model)
    editing = session(model, tokenizer, method, random_spaces(model, LAYERS))
    batch = [*RECORDS[:position], {"prompt": "no place for it", "subject": "X", "target_new": "Y"}, *RECORDS[position:]]
    with pytest.raises(RequestError, match=f"request {position}"):
        editing.edit(batch)
    assert all(torch.equal(w, start[layer]) for layer, w in weights(model).items())
    assert editing.facts == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Interrupted])
@pytest.mark.parametrize("method", ["memit", "memit+P"])
def test_a_failure_in_the_middle_changes_nothing_and_the_session_goes_on(method, error, tokenizer):
    """The failure comes after the first layer has been written."""
    model, untouched = model_of(dtype=torch.float32), model_of(dtype=torch.float32)
    start = weights(model)
    editing = session(model, tokenizer, method, random_spaces(model, LAYERS))
    module = Decoder(model).out_projection(0).module
    write = editing.editor.write

    def failing(projection: OutProjection, update: Update, *owed: dict) -> Update:
        if update.layer == LAYERS[1]:
            assert not torch.equal(Decoder(model).out_projection(0).matrix, start[0]), "nothing has been written yet"
            raise error
        return write(projection, update, *owed)

    editing.editor.write = failing
    with pytest.raises(error):
        editing.edit(RECORDS)
    assert all(torch.equal(w, start[layer]) for layer, w in weights(model).items())
    assert editing.facts == []
    assert type(module.weight) is torch.nn.Parameter
    editing.editor.write = write
    editing.edit(RECORDS)
    session(untouched, tokenizer, method, random_spaces(untouched, LAYERS)).edit(RECORDS)
    assert all(torch.equal(w, weights(untouched)[layer]) for layer, w in weights(model).items())
    assert editing.facts == REQUESTS


@pytest.mark.parametrize(
    "method",
    [
        *("memit", "memit+P", "memit-seq", "alphaedit", "rect", "alphaedit+rect", "prune+P"),
        *("memit@mom2_update_weight=0", "memit-seq@mom2_update_weight=0+P", "alphaedit@L2=0"),
    ],
)
def test_a_result_that_is_not_finite_is_an_edit_error_and_changes_nothing(method, tokenizer):
    model = model_of(dtype=torch.float32)
    start = weights(model)
    editing = session(model, tokenizer, method, random_spaces(model, LAYERS))
    z = torch.zeros(3, 16)
    poison = Targets(z, torch.full_like(z, torch.nan), torch.zeros(3), torch.zeros(3))
    with pytest.raises(AlphaEditError) as caught:
        editing.edit(RECORDS, poison)
    assert all(torch.equal(w, start[layer]) for layer, w in weights(model).items())
    assert editing.facts == []
    assert isinstance(caught.value, EditError), "as Session.edit promises"


@pytest.mark.parametrize("records", [[], {}, "text", None, RECORDS[0]], ids=["[]", "{}", "text", "None", "one record"])
def test_what_is_no_list_of_requests_is_refused(records, tokenizer):
    with pytest.raises(RequestError):
        session(model_of(dtype=torch.float32), tokenizer).edit(records)


def test_edit_returns_the_requests_as_understood_and_remembers_them(tokenizer):
    editing = session(model_of(dtype=torch.float32), tokenizer)
    assert editing.edit(RECORDS[:1]) == REQUESTS[:1]
    assert editing.edit(REQUESTS[1:]) == REQUESTS[1:]
    assert editing.facts == REQUESTS


# ------------------------------------------------------------------------------------------------- null spaces


def test_a_projected_method_needs_a_null_space_for_every_layer_of_this_model(tokenizer):
    model, other = model_of(), model_of(seed=1)
    with pytest.raises(EditError, match="null_spaces"):
        session(model, tokenizer, "memit+P")
    with pytest.raises(EditError, match=r"\[2\]"):
        session(model, tokenizer, "memit+P", random_spaces(model, [0, 1]))
    with pytest.raises(WrongModelError):
        session(other, tokenizer, "memit+P", random_spaces(model, LAYERS))
    session(other, tokenizer, "memit+P", random_spaces(model, LAYERS), check_model=False).edit(RECORDS)


def test_a_projected_session_guards_the_module_that_the_template_names(tokenizer):
    """Also where it is not the one that would be found: an attention's projection, say."""
    template = "model.layers.{}.self_attn.o_proj"
    model = model_of(dtype=torch.float32)
    hyperparameters = Hyperparameters(
        layers=(0, 1), v_num_grad_steps=3, mom2_update_weight=0.5, rewrite_module_tmp=template
    )
    covariances = {layer: random_covariance(16, layer) for layer in (0, 1)}
    spaces = {layer: NullSpace.of(covariances[layer], Criterion(nullity=8)) for layer in (0, 1)}
    prints = fingerprints(model, [0, 1])
    provenance = {"model": "tiny", "fingerprints": {str(layer): prints[layer] for layer in (0, 1)}}
    options = {"method": "memit+P", "hyperparameters": hyperparameters, "covariances": covariances}
    with pytest.raises(EditError, match=r"down_proj.*o_proj"):
        Session(model, tokenizer, null_spaces=NullSpaces(spaces, provenance), **options)

    named = NullSpaces(spaces, {**provenance, "template": template})
    before = {layer: p.matrix.clone() for layer, p in Decoder(model, template).out_projections([0, 1]).items()}
    Session(model, tokenizer, null_spaces=named, contexts=CONTEXTS, **options).edit(RECORDS[:1])
    for layer, projection in Decoder(model, template).out_projections([0, 1]).items():
        out, size = outside(spaces[layer], before[layer], projection.matrix, transposed=False)
        assert size > 0
        assert out <= 1e-5 * size


def test_a_plain_method_ignores_null_spaces(tokenizer):
    with_them, without = model_of(), model_of()
    session(with_them, tokenizer, "memit", random_spaces(model_of(seed=1), LAYERS)).edit(RECORDS)
    session(without, tokenizer, "memit").edit(RECORDS)
    assert all(torch.equal(w, weights(without)[layer]) for layer, w in weights(with_them).items())
