"""Target optimisation: the fast loop gives what the textbook loop gives, on every architecture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import oracle
from support.tiny import NAMES, model_of, tiny
from torch import Tensor, nn

from alphaedit_plugin.editors.hyperparameters import TargetSettings
from alphaedit_plugin.editors.optimisers import Adam
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.editors.target_loss import Rows, TargetLoss
from alphaedit_plugin.editors.targets import Targets, optimise_targets
from alphaedit_plugin.errors import EditError
from alphaedit_plugin.model.decoder import Decoder

REQUESTS = (
    Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
    Request("The mother tongue of {} is", "Danielle Darrieux", "English, or so they said"),
    Request("{}", "Curie", "France"),
    Request("In the war the people of the old village had forgotten that {} plays the sport of", "Jordan", "chess"),
)
CONTEXTS = ("{}", "The river flows. {}", "I said that they would come again. {}")
SETTINGS = TargetSettings(steps=6, lr=0.2)
LAYER = 1


def textbook(
    model,
    tokenizer,
    request: Request,
    contexts=CONTEXTS,
    settings=SETTINGS,
    layer=LAYER,
    stop_loss=Adam.enough,
    reference_norm=None,
) -> tuple[Tensor, Tensor]:
    return oracle.compute_target(
        model,
        tokenizer,
        {"prompt": request.prompt, "subject": request.subject, "target_new": request.target_new},
        contexts,
        Decoder(model).block(layer),
        steps=settings.steps,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        kl_factor=settings.kl_factor,
        clamp=settings.clamp,
        stop_loss=stop_loss,
        reference_norm=reference_norm,
    )


def assert_agrees(found: Targets, row: int, expected: tuple[Tensor, Tensor], tolerance: float) -> None:
    z_star, delta = expected
    assert float(delta.norm()) > 0
    assert float((found.delta[row].double() - delta).norm() / delta.norm()) <= tolerance
    assert float((found.z_star[row].double() - z_star).norm() / z_star.norm()) <= tolerance


@pytest.mark.parametrize("use_prefix_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_agrees_with_the_textbook(name, use_prefix_cache, tokenizer, exact):
    """Requests of different lengths share the batch."""
    model = model_of(name)
    found = optimise_targets(
        model, tokenizer, REQUESTS[:2], CONTEXTS, LAYER, SETTINGS, use_prefix_cache=use_prefix_cache
    )
    for row, request in enumerate(REQUESTS[:2]):
        assert_agrees(found, row, textbook(model, tokenizer, request), 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_subject_with_nothing_before_it_agrees_with_the_textbook(name, tokenizer, exact):
    """Its rows have an empty prefix, beside others whose prefix is long."""
    model = model_of(name)
    requests = (REQUESTS[1], Request("{} plays the sport of", "A", "chess"))
    assert tokenizer("A plays")["input_ids"][0] == tokenizer("A")["input_ids"][0]
    assert len(tokenizer("A")["input_ids"]) == 1
    found = optimise_targets(model, tokenizer, requests, CONTEXTS, LAYER, SETTINGS)
    for row, request in enumerate(requests):
        assert_agrees(found, row, textbook(model, tokenizer, request), 1e-6)


def test_float32_agrees_with_the_textbook(tokenizer):
    model = tiny("llama", vocab_size=512)
    found = optimise_targets(model, tokenizer, REQUESTS, CONTEXTS, LAYER, SETTINGS)
    assert found.delta.dtype == torch.float32
    for row, request in enumerate(REQUESTS):
        assert_agrees(found, row, textbook(model, tokenizer, request), 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_all_25_steps_in_float32_agree_with_the_textbook_on_every_architecture(name, tokenizer):
    model, settings = tiny(name, vocab_size=512), replace(SETTINGS, steps=25)
    model.set_attn_implementation("eager")
    found = optimise_targets(model, tokenizer, REQUESTS[:1], CONTEXTS, LAYER, settings)
    expected = textbook(model, tokenizer, REQUESTS[0], settings=settings)
    assert_agrees(found, 0, expected, 1e-4)


def test_all_25_steps_in_float32_agree_with_the_textbook_on_smollm2(demo):
    """A target that is hard to reach, so that no early stop ends it."""
    model, tokenizer = demo
    request = Request("{} is the capital of", "Tallinn", "Bolivia")
    settings = TargetSettings(steps=25, lr=0.1)
    found = optimise_targets(model, tokenizer, [request], CONTEXTS, 8, settings)
    assert int(found.steps[0]) == 24  # after the last step nothing looks at the loss any more
    assert_agrees(found, 0, textbook(model, tokenizer, request, settings=settings, layer=8), 1e-4)


def test_a_tokenizer_with_bos_agrees_with_the_textbook(bos_tokenizer, exact):
    model = model_of("llama")
    found = optimise_targets(model, bos_tokenizer, REQUESTS, CONTEXTS, LAYER, SETTINGS)
    for row, request in enumerate(REQUESTS):
        assert_agrees(found, row, textbook(model, bos_tokenizer, request), 1e-6)


@pytest.mark.parametrize("layer", [0, 3], ids=["first layer", "last layer"])
def test_the_first_and_the_last_layer_agree_with_the_textbook(layer, tokenizer, exact):
    """The prompt ends in its subject: at the last layer nothing else could feel δ."""
    model, request = model_of("llama"), REQUESTS[2]
    found = optimise_targets(model, tokenizer, [request], CONTEXTS, layer, SETTINGS)
    assert_agrees(found, 0, textbook(model, tokenizer, request, layer=layer), 1e-6)


SLIDING = {
    "mistral": {"sliding_window": 4},
    "gemma2": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4},
    "gpt_neo": {"window_size": 4},
    "starcoder2": {"sliding_window": 4},
}


@pytest.mark.parametrize("window", [4, 12, 24])
@pytest.mark.parametrize("name", SLIDING)
def test_a_window_shorter_than_the_prompt_agrees_with_the_textbook(name, window, tokenizer, exact):
    """With subjects so near the end that the target still feels them."""
    model, requests = model_of(name, **dict.fromkeys(SLIDING[name], window)), REQUESTS[1:3]
    found = optimise_targets(model, tokenizer, requests, CONTEXTS, LAYER, SETTINGS)
    for row, request in enumerate(requests):
        assert_agrees(found, row, textbook(model, tokenizer, request), 1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "opt", "gemma2"])
def test_a_batch_gives_what_its_requests_give_one_by_one(name, tokenizer, exact):
    model = model_of(name)
    together = optimise_targets(model, tokenizer, REQUESTS, CONTEXTS, LAYER, SETTINGS)
    split = optimise_targets(model, tokenizer, REQUESTS, CONTEXTS, LAYER, SETTINGS, batch_tokens=1)
    for row, request in enumerate(REQUESTS):
        alone = optimise_targets(model, tokenizer, [request], CONTEXTS, LAYER, SETTINGS)
        for found in (together, split):
            assert torch.allclose(found.delta[row], alone.delta[0], rtol=1e-6, atol=1e-9)
            assert torch.allclose(found.z[row], alone.z[0], rtol=1e-9, atol=1e-12)
            assert torch.allclose(found.losses[row], alone.losses[0], rtol=1e-6)
            assert found.steps[row] == alone.steps[0]


def test_converged_requests_leave_the_batch_and_keep_their_delta(tokenizer, exact, monkeypatch):
    """The loss at which to stop is put where the request that falls fastest gets to in the middle of the run."""
    model = model_of("llama")
    before, after = (
        optimise_targets(model, tokenizer, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, steps=steps)).losses
        for steps in (5, 6)
    )
    fastest = int((before - after).argmax())
    stop, settings = float(before[fastest] + after[fastest]) / 2, replace(SETTINGS, steps=12)
    monkeypatch.setattr(Adam, "enough", stop)
    found = optimise_targets(model, tokenizer, REQUESTS, CONTEXTS, LAYER, settings)
    assert found.losses[fastest] < stop
    assert 0 < found.steps[fastest] < 11
    assert found.steps.max() == 11
    for row, request in enumerate(REQUESTS):
        expected = textbook(model, tokenizer, request, settings=settings, stop_loss=stop)
        if found.steps[row]:
            assert_agrees(found, row, expected, 1e-6)
        else:
            assert torch.equal(found.delta[row], expected[1])


def test_the_first_loss_is_the_models_own(tokenizer):
    """With a single step nothing moves: the loss is the plain model's, and the KL term and the decay are 0."""
    model = model_of("gpt2")
    short = optimise_targets(model, tokenizer, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, steps=1))
    assert torch.equal(short.delta, torch.zeros_like(short.delta))
    assert short.steps.tolist() == [0] * len(REQUESTS)
    for row, request in enumerate(REQUESTS):
        texts = [c.replace("{}", request.text) for c in CONTEXTS]
        expected = -sum(oracle.success(model, tokenizer, t, request.target_new, "x")[0] for t in texts) / len(texts)
        assert float(short.losses[row]) == pytest.approx(expected, rel=1e-6)


def test_delta_stays_within_the_clamp_and_reaches_it(tokenizer, exact):
    model = model_of("llama")
    settings = replace(SETTINGS, lr=5.0, clamp=0.3)
    found = optimise_targets(model, tokenizer, REQUESTS, CONTEXTS, LAYER, settings)
    ratio = found.delta.norm(dim=1) / found.z.norm(dim=1)
    assert (ratio <= 0.3 * (1 + 1e-9)).all()
    assert ratio.max() == pytest.approx(0.3, rel=1e-9)
    for row, request in enumerate(REQUESTS):
        assert_agrees(found, row, textbook(model, tokenizer, request, settings=settings), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [1, 512], ids=["one by one", "together"])
def test_norms_take_the_place_of_that_of_z(name, batch_tokens, tokenizer, exact):
    """In the clamp and in the decay, each request its own, though requests are taken in another order."""
    model = model_of(name)
    settings = replace(SETTINGS, lr=1.0, clamp=0.5, weight_decay=3.0)
    norms = torch.tensor([0.5, 40.0, 1.5, 3.0], dtype=torch.float64)
    found = optimise_targets(
        model, tokenizer, REQUESTS, CONTEXTS, LAYER, settings, norms=norms, batch_tokens=batch_tokens
    )
    assert (found.delta.norm(dim=1) <= 0.5 * norms * (1 + 1e-9)).all()
    for row, request in enumerate(REQUESTS):
        expected = textbook(model, tokenizer, request, settings=settings, reference_norm=norms[row])
        assert_agrees(found, row, expected, 1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_the_model_is_left_as_it_was(name, tokenizer):
    model = tiny(name, vocab_size=512).train().requires_grad_(True)
    decoder = Decoder(model)
    attention = model.config._attn_implementation
    blocks, training = list(decoder.blocks), [module.training for module in model.modules()]
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimise_targets(model, tokenizer, REQUESTS[:2], CONTEXTS, LAYER, SETTINGS)
    assert all(now is before for now, before in zip(decoder.blocks, blocks, strict=True))
    assert model.config._attn_implementation == attention
    assert [module.training for module in model.modules()] == training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for n, parameter in model.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad
        assert torch.equal(parameter, weights[n])


def _poison(model: nn.Module, token: int) -> None:
    """Texts that hold this token have a logarithm of probability that is not finite."""
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.nan


def test_a_loss_that_is_not_finite_names_the_request_and_leaves_the_model_as_it_was(tokenizer):
    model = tiny("llama", vocab_size=512)
    culprit = next(r for r in REQUESTS if r.subject == "Jordan")
    harmless = [r for r in REQUESTS if r is not culprit]
    elsewhere = {token for r in harmless for token in tokenizer(f"{r.text} {r.target_new}")["input_ids"]}
    _poison(model, next(token for token in tokenizer(culprit.text)["input_ids"] if token not in elsewhere))
    decoder = Decoder(model)
    blocks, attention = list(decoder.blocks), model.config._attn_implementation
    with pytest.raises(EditError, match=r"Jordan.*chess"):
        optimise_targets(model, tokenizer, [*harmless, culprit], ["{}"], LAYER, SETTINGS)
    assert all(now is before for now, before in zip(decoder.blocks, blocks, strict=True))
    assert model.config._attn_implementation == attention
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_bfloat16_gives_finite_targets_close_to_those_of_float32(name, tokenizer):
    precise, rough = tiny(name, vocab_size=512), tiny(name, vocab_size=512, dtype=torch.bfloat16)
    precise.load_state_dict(rough.state_dict())
    one_step = replace(SETTINGS, steps=1)
    a = optimise_targets(precise, tokenizer, REQUESTS, CONTEXTS, LAYER, one_step)
    b = optimise_targets(rough, tokenizer, REQUESTS, CONTEXTS, LAYER, one_step)
    assert b.z.dtype == b.delta.dtype == torch.float32
    assert float((a.z - b.z).norm() / a.z.norm()) < 0.05
    several = optimise_targets(rough, tokenizer, REQUESTS, CONTEXTS, LAYER, SETTINGS)
    assert torch.isfinite(several.delta).all()
    assert several.losses.mean() < b.losses.mean()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_reduced_precision_gives_nearly_the_same_targets_and_leaves_the_model_as_it_was(name, tokenizer):
    model = tiny(name, vocab_size=512)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    exactly, roughly = (
        optimise_targets(
            model, tokenizer, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, steps=2, reduced_precision=reduced)
        )
        for reduced in (False, True)
    )
    assert roughly.z.dtype == roughly.delta.dtype == torch.float32
    assert float((exactly.z - roughly.z).norm() / exactly.z.norm()) < 0.05
    # Adam's first step is the gradient's sign: a rounding error counts only where the gradient is next to nothing.
    assert float((exactly.delta.sign() == roughly.delta.sign()).float().mean()) > 0.9
    for n, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[n])
        assert parameter.dtype == torch.float32


def test_reduced_precision_is_switched_off_again(tokenizer):
    before = torch.get_float32_matmul_precision()
    optimise_targets(
        tiny("llama", vocab_size=512), tokenizer, REQUESTS[:1], ["{}"], LAYER, replace(SETTINGS, reduced_precision=True)
    )
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("name", NAMES)
def test_the_prefix_is_computed_once_on_every_architecture(name, tokenizer):
    """With a usable cache a step runs the tokens from the subject's last on, and no others."""
    model = model_of(name)
    rows = [Rows.of(tokenizer, request, CONTEXTS) for request in REQUESTS[:2]]
    problem = TargetLoss(Decoder(model), LAYER, rows, True)
    assert problem.cache is not None
    assert problem.ids.shape[1] - problem.prefix == max(row.suffix for row in rows)
