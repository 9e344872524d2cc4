"""MEMIT against its formulas and against the textbook; a session writes all of a batch or nothing."""

from __future__ import annotations

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spaces import outside, random_covariance, random_spaces
from tiny import NAMES, tiny

from alphaedit_plugin.editors.keys import context_templates, subject_hidden, subject_keys
from alphaedit_plugin.editors.memit import MEMIT, cholesky, memit_update
from alphaedit_plugin.editors.targets import Targets
from alphaedit_plugin.errors import (
    AlphaEditError,
    EditError,
    HyperparameterError,
    RequestError,
    StatisticsError,
    WrongModelError,
)
from alphaedit_plugin.fingerprint import fingerprints
from alphaedit_plugin.hparams import Hyperparameters
from alphaedit_plugin.modules import Decoder
from alphaedit_plugin.nullspace import Criterion, NullSpace, NullSpaces
from alphaedit_plugin.requests import Request
from alphaedit_plugin.session import Session, Variant

LAYERS = (0, 1, 2)
CONTEXTS = ("{}", "The river flows. {}", "I said that they would come again. {}")
RECORDS = (
    {"prompt": "{} is located in the city of", "subject": "The Eiffel Tower", "target_new": "Rome"},
    {"prompt": "The mother tongue of {} is", "subject": "Danielle Darrieux", "target_new": "English, they said"},
    {"prompt": "{} plays the sport of", "subject": "Michael Jordan", "target_new": "chess"},
)
REQUESTS = [Request.parse(record, "request") for record in RECORDS]
HYPERPARAMETERS = Hyperparameters(
    layers=LAYERS, v_num_grad_steps=5, v_lr=0.2, mom2_update_weight=0.5, kl_factor=0.0625, clamp_norm_factor=0.75
)
COVARIANCES = {layer: random_covariance(24, layer) for layer in LAYERS}


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many models compute norms and softmax in torch.float32, which for a float64 model is a loss, not a gain."""
    monkeypatch.setattr(torch, "float32", torch.float64)


def model_of(name: str = "llama", dtype: torch.dtype = torch.float64, **changes):
    model = tiny(name, dtype=dtype, vocab_size=512, **changes)
    model.set_attn_implementation("eager")
    return model


def weights(model) -> dict[int, torch.Tensor]:
    """W as d_out × d_in."""
    return {layer: p.matrix.clone() for layer, p in Decoder(model).out_projections(list(LAYERS)).items()}


def session(model, tokenizer, method="memit", spaces=None, hyperparameters=HYPERPARAMETERS, **options) -> Session:
    made = Session(model, tokenizer, method, hyperparameters, COVARIANCES, spaces, **options)
    made.editor._contexts = CONTEXTS
    return made


# ---------------------------------------------------------------------------------------------------- formulas


@settings(max_examples=40, deadline=None)
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
    covariance = sample @ sample.T / (4 * d_in)
    expected = oracle.memit_delta(keys, residual, covariance, weight)
    found = memit_update(keys, residual, cholesky(covariance, "a layer"), weight)
    assert found.shape == (d_out, d_in)
    assert float((found - expected).norm()) <= 1e-8 * float(expected.norm())


def test_a_singular_covariance_is_an_error_that_names_the_layer():
    with pytest.raises(StatisticsError, match="layer 7"):
        cholesky(torch.zeros(3, 3), "layer 7")


@pytest.mark.parametrize("contexts", [CONTEXTS, CONTEXTS[:1]], ids=["three contexts", "no context"])
@pytest.mark.parametrize("name", NAMES)
def test_keys_and_hidden_states_are_the_textbooks_on_every_architecture(name, contexts, tokenizer, exact):
    model = model_of(name)
    decoder = Decoder(model)
    module, block = decoder.out_projection(2).module, decoder.block(2)
    keys = subject_keys(model, tokenizer, module, REQUESTS, contexts)
    hidden = subject_hidden(model, tokenizer, block, REQUESTS)
    assert keys.dtype == hidden.dtype == torch.float64
    for row, record in enumerate(RECORDS):
        expected = oracle.key(model, tokenizer, record, contexts, module)
        assert torch.allclose(keys[row], expected, rtol=1e-7, atol=1e-9)
        assert torch.allclose(hidden[row], oracle.current_z(model, tokenizer, record, block), rtol=1e-7, atol=1e-9)


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
    hyperparameters = Hyperparameters(layers=LAYERS, v_num_grad_steps=5, v_lr=0.2, mom2_update_weight=1e-9)
    editing = session(model, tokenizer, hyperparameters=hyperparameters)
    editing.editor._contexts = ("{}",)
    targets = editing.editor.targets(REQUESTS)
    editing.edit(RECORDS, targets)
    hidden = subject_hidden(model, tokenizer, Decoder(model).block(LAYERS[-1]), REQUESTS)
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
        MEMIT(model_of(), tokenizer, HYPERPARAMETERS, {0: COVARIANCES[0], 1: COVARIANCES[1]})


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


class _Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, _Interrupted])
@pytest.mark.parametrize("method", ["memit", "memit+P"])
def test_a_failure_in_the_middle_changes_nothing_and_the_session_goes_on(method, error, tokenizer):
    """The failure comes after the first layer has been written."""
    model, untouched = model_of(dtype=torch.float32), model_of(dtype=torch.float32)
    start = weights(model)
    editing = session(model, tokenizer, method, random_spaces(model, LAYERS))
    module = Decoder(model).out_projection(0).module
    factor = editing.editor._factor

    def failing(layer: int):
        if layer == LAYERS[1]:
            assert not torch.equal(Decoder(model).out_projection(0).matrix, start[0]), "nothing has been written yet"
            raise error
        return factor(layer)

    editing.editor._factor = failing
    with pytest.raises(error):
        editing.edit(RECORDS)
    assert all(torch.equal(w, start[layer]) for layer, w in weights(model).items())
    assert editing.facts == []
    assert type(module.weight) is torch.nn.Parameter
    editing.editor._factor = factor
    editing.edit(RECORDS)
    session(untouched, tokenizer, method, random_spaces(untouched, LAYERS)).edit(RECORDS)
    assert all(torch.equal(w, weights(untouched)[layer]) for layer, w in weights(model).items())
    assert editing.facts == REQUESTS


@pytest.mark.parametrize("method", ["memit", "memit+P"])
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


# --------------------------------------------------------------------------------------------------- variants


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("memit", Variant("memit", False)),
        ("MEMIT", Variant("memit", False)),
        ("memit+P", Variant("memit", True)),
        (" Memit+p ", Variant("memit", True)),
    ],
)
def test_variants_are_parsed_and_written_canonically(text, variant):
    assert Variant.parse(text) == variant
    assert Variant.parse(str(variant)) == variant


@pytest.mark.parametrize("text", ["", "+P", "rome?", "memit+", "memit+Q", "memit+P+P", "memit P"])
def test_what_is_no_variant_is_an_error_that_names_it_and_the_known_ones(text):
    with pytest.raises(HyperparameterError, match=r"memit\+P") as caught:
        Variant.parse(text)
    assert repr(text) in str(caught.value)


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
    hyperparameters = Hyperparameters(layers=(0, 1), v_num_grad_steps=3, rewrite_module_tmp=template)
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
