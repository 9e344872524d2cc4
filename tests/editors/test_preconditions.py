"""What must hold before an edit: one error each, before any work, and nothing is changed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from support.editing import COVARIANCES, HYPERPARAMETERS, LAYERS, RECORDS, session, weights
from support.spaces import random_covariance
from support.tiny import model_of
from support.unusual import UNUSUAL, unusual
from torch import nn
from transformers import BertConfig, BertForMaskedLM
from transformers.integrations.finegrained_fp8 import FP8Linear

from alphaedit_plugin.editors.memit import MEMIT
from alphaedit_plugin.editors.preconditions import check_editable, check_requests, not_finite, position_limit
from alphaedit_plugin.editors.preserved import Preserved
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.errors import AlphaEditError, EditError, ModelStructureError, RequestError
from alphaedit_plugin.model.decoder import Decoder

LONG = {**RECORDS[1], "prompt": "The river flows. " * 30 + "The mother tongue of {} is", "case_id": 7}


class Untouchable:
    """Statistics that must not be asked for."""

    criterion = None

    def statistics(self, *_args, **_options):
        raise AssertionError("statistics were prepared before the model was looked at")


def bits(model):
    return {name: bytes(weight.untyped_storage()) for name, weight in model.named_parameters()}


def fitting(model):
    return {layer: random_covariance(each.d_in) for layer, each in Decoder(model).out_projections(LAYERS).items()}


def refused(model, tokenizer, error, message, records=RECORDS, method="memit", **options):
    """The session is refused before it prepares anything, or the edit before it writes; the weights are as before."""
    before = bits(model)
    with pytest.raises(error, match=message) as caught:
        session(model, tokenizer, method, **{"covariances": None, "preparation": Untouchable(), **options}).edit(
            records
        )
    assert "\n" not in str(caught.value)
    assert bits(model) == before
    return str(caught.value)


@pytest.mark.parametrize("method", ["memit", "rome"])
def test_inference_mode_is_refused_and_no_grad_is_not(method, tokenizer):
    model = model_of("llama")
    with torch.inference_mode():
        refused(model, tokenizer, EditError, "inference_mode.*edit outside of it", method=method)
    begun = session(model, tokenizer, method)
    with torch.inference_mode(), pytest.raises(EditError, match="inference_mode"):
        begun.edit(RECORDS)
    with torch.no_grad():
        assert len(begun.edit(RECORDS)) == len(RECORDS)


def test_a_model_loaded_under_inference_mode_is_refused_by_the_name_of_a_weight(tokenizer):
    with torch.inference_mode():
        model = model_of("llama")
    refused(model, tokenizer, EditError, r"layers\.0\.mlp\.down_proj\.weight was made under torch\.inference_mode")


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neo", "gptj", "openai-gpt", "mpt", "biogpt"])
@pytest.mark.parametrize("method", ["memit", "rome"])
def test_a_prompt_longer_than_the_positions_is_named_with_both_numbers(name, method, tokenizer):
    model = unusual(name) if name in UNUSUAL else model_of(name)
    tokens = len(tokenizer(LONG["prompt"].replace("{}", LONG["subject"]) + " " + LONG["target_new"])["input_ids"])
    message = rf"request 1 .*The river flows.* has {tokens} tokens, but .* has 128 positions"
    refused(model, tokenizer, RequestError, message, [RECORDS[0], LONG], method, covariances=fitting(model))


def test_a_prompt_that_only_its_context_makes_too_long_names_the_context(tokenizer):
    model, contexts = model_of("gpt2", n_positions=40), ("{}", "The river flows. " * 8 + "{}")
    message = r"request 0 .* tokens in the context 'The river flows\..*has 40 positions"
    refused(model, tokenizer, RequestError, message, covariances=COVARIANCES, contexts=contexts)


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt_neox", "bloom", "falcon"])
def test_positions_that_are_computed_have_no_limit(name, tokenizer):
    model = model_of(name)
    assert position_limit(model) is None
    assert session(model, tokenizer, covariances=fitting(model)).edit([LONG])


def test_a_tokenizer_larger_than_the_embeddings_names_both_sizes(tokenizer):
    model = model_of("llama", vocab_size=300)
    message = rf"{len(tokenizer)} tokens, but LlamaForCausalLM only 300 embeddings.*resize_token_embeddings"
    refused(model, tokenizer, ModelStructureError, message)


def test_special_tokens_may_lie_beyond_the_embeddings_but_a_prompt_cannot_hold_them(tokenizer):
    """Like the one of images in the tokenizer of Gemma 3, whose models of text alone have no embedding of it."""
    larger = copy.deepcopy(tokenizer)
    larger.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert len(larger) == len(tokenizer) + 1
    model = model_of("llama", vocab_size=len(tokenizer))
    begun = session(model, larger)
    assert begun.edit(RECORDS)
    before = weights(model)
    with pytest.raises(RequestError, match=r"request 1 .*'<image>' \(id \d+\), but the model has only"):
        begun.edit([RECORDS[0], {**RECORDS[1], "prompt": "<image> The mother tongue of {} is"}])
    assert all(torch.equal(weights(model)[layer], before[layer]) for layer in LAYERS)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.3.mlp.up_proj.weight", "lm_head.weight"])
def test_weights_that_are_not_finite_are_named(name, value, tokenizer):
    model = model_of("llama")
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = value
    assert not_finite(model) == name
    assert "v_lr" not in refused(model, tokenizer, EditError, f"{name} holds values that are not finite")


def test_a_model_that_is_finite_has_no_such_weight():
    assert not_finite(model_of("llama", torch.float16)) is None


class Looking(nn.Module):
    """Attention to every token, without saying so."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states, *args, **kwargs):
        mixed, weights_ = self.attention(hidden_states, *args, **kwargs)
        return mixed + hidden_states.mean(1, keepdim=True), weights_


def test_a_model_whose_tokens_see_later_ones_is_refused_though_it_does_not_say_so(tokenizer):
    model = model_of("llama")
    model.model.layers[0].self_attn = Looking(model.model.layers[0].self_attn)
    refused(model, tokenizer, ModelStructureError, "LlamaForCausalLM is no decoder: .* come after")


def test_a_masked_language_model_is_refused(tokenizer):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    model = BertForMaskedLM(BertConfig(vocab_size=512, **sizes)).eval()
    refused(model, tokenizer, ModelStructureError, "BertForMaskedLM is no decoder.*masked language model")


class Scaled(nn.Linear):
    """Weights that are codes, in an ordinary type."""

    def forward(self, input):
        return 0.1 * super().forward(input)


def test_a_matrix_that_multiplies_with_more_than_its_weight_is_refused(tokenizer):
    model = model_of("llama")
    scaled = Scaled(24, 16, bias=False, dtype=torch.float64)
    model.model.layers[2].mlp.down_proj = scaled.requires_grad_(False)
    refused(model, tokenizer, ModelStructureError, r"layers\.2\.mlp\.down_proj \(Scaled\) does not multiply")


def test_a_matrix_that_no_forward_pass_runs_is_refused(tokenizer):
    model = model_of("llama")
    model.model.layers[1].spare = nn.Linear(24, 16, dtype=torch.float64)
    decoder = Decoder(model, "model.layers.{}.spare")
    with pytest.raises(ModelStructureError, match=r"layers\.1\.spare runs 0 times.*not once"):
        check_editable(decoder, tokenizer, decoder.out_projections([1]))


def test_quantised_weights_are_refused_before_any_work(tokenizer):
    model = model_of("llama", torch.float32)
    for layer in model.model.layers:
        layer.mlp.down_proj = FP8Linear(24, 16, block_size=(8, 8)).requires_grad_(False)
    refused(model, tokenizer, ModelStructureError, r"layers\.0\.mlp\.down_proj\.weight is quantised .*bfloat16")


@pytest.mark.parametrize("undo", ["new", "old"])
def test_a_weight_norm_is_refused_before_any_work(undo, tokenizer):
    model = model_of("llama")
    norm = torch.nn.utils.parametrizations.weight_norm if undo == "new" else torch.nn.utils.weight_norm
    norm(model.model.layers[1].mlp.down_proj)
    refused(model, tokenizer, ModelStructureError, r"layers\.1\.mlp\.down_proj\.weight .*edit would be lost.*remove")


def test_the_check_leaves_the_model_and_its_modes_as_they_were(tokenizer):
    model = model_of("gpt2").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    decoder = Decoder(model)
    check_editable(decoder, tokenizer, decoder.out_projections(LAYERS))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_editor_checks_the_model_once_and_every_batch(tokenizer):
    """An editor by itself, without a session."""
    model = model_of("gpt2")
    editor = MEMIT(model, tokenizer, HYPERPARAMETERS, Preserved(COVARIANCES, {}), contexts=("{}",))
    with pytest.raises(RequestError, match="128 positions"):
        editor.edit([Request.parse(LONG, "request")])
    with torch.inference_mode(), pytest.raises(EditError, match="inference_mode"):
        editor.edit([Request.parse(RECORDS[0], "request")])
    with torch.no_grad():
        model.transformer.wte.weight[0, 0] = math.nan
    assert editor.checked
    editor.checked = False
    with pytest.raises(EditError, match=r"transformer\.wte\.weight holds values that are not finite"):
        editor.edit([Request.parse(RECORDS[0], "request")])


def test_every_request_that_can_be_read_is_accepted(tokenizer):
    decoder = Decoder(model_of("gpt2"))
    check_requests(decoder, tokenizer, [Request.parse(record, "request") for record in RECORDS])
    with pytest.raises(AlphaEditError):
        check_requests(decoder, tokenizer, [Request.parse(LONG, "request")])
