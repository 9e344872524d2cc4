"""Finding out-projections, norms and heads in any decoder."""

from __future__ import annotations

from functools import cache

import accelerate
import pytest
import torch
from support.tiny import ARCHITECTURES, NAMES, tiny
from support.unusual import UNUSUAL, unusual
from torch import nn
from torch.nn.utils import prune
from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel, T5Config, T5ForConditionalGeneration

from alphaedit_plugin.errors import ModelStructureError
from alphaedit_plugin.model.decoder import Decoder, eager_attention, hidden_states, with_hidden_states

IDS = torch.tensor([[5, 9, 11, 3, 60]])
LAYERS = range(4)
SQUARE = {"intermediate_size": 16, "n_inner": 16, "ffn_dim": 16, "ffn_hidden_size": 16}

fixed = cache(tiny)  # for tests that leave the model as it is


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def seen_by(module: nn.Module, model: nn.Module):
    """(input, output) of a module in one forward pass, as they were then: falcon adds to them in place."""
    calls = []
    handle = module.register_forward_hook(
        lambda _module, args, output: calls.append((args[0].clone(), hidden_states(output).clone()))
    )
    try:
        logits(model)
    finally:
        handle.remove()
    ((given, returned),) = calls
    return given, returned


@pytest.mark.parametrize("name", NAMES)
def test_every_layers_out_projection_is_found_by_structure(name):
    _, template, transposed, _ = ARCHITECTURES[name]
    model = fixed(name)
    decoder = Decoder(model)
    found = decoder.out_projections(LAYERS)
    assert len(decoder) == 4
    assert [projection.name for projection in found.values()] == [template.format(layer) for layer in LAYERS]
    for layer, projection in found.items():
        assert projection.layer == layer
        assert projection.module is model.get_submodule(template.format(layer))
        assert projection.transposed is transposed


@pytest.mark.parametrize("name", NAMES)
def test_dimensions_and_orientation_are_those_of_what_goes_in_and_comes_out(name):
    model = fixed(name)
    for projection in Decoder(model).out_projections(LAYERS).values():
        key, value = seen_by(projection.module, model)
        assert (projection.d_in, projection.d_out) == (key.shape[-1], value.shape[-1])
        assert projection.matrix.shape == (projection.d_out, projection.d_in)
        bias = projection.module.bias if projection.module.bias is not None else 0
        torch.testing.assert_close(key @ projection.matrix.T + bias, value)


@pytest.mark.parametrize("name", NAMES)
def test_zeroing_an_out_projection_changes_the_blocks_output_and_the_logits(name):
    model = tiny(name)
    decoder = Decoder(model)
    for layer in LAYERS:
        matrix = decoder.out_projection(layer).matrix
        block_before, logits_before, saved = seen_by(decoder.block(layer), model)[1], logits(model), matrix.clone()
        matrix.zero_()
        assert not torch.allclose(seen_by(decoder.block(layer), model)[1], block_before)
        assert not torch.allclose(logits(model), logits_before)
        matrix.copy_(saved)
        assert torch.equal(logits(model), logits_before)


@pytest.mark.parametrize("name", NAMES)
def test_an_out_projections_input_is_not_read_from_other_tokens_by_the_feed_forward_part(name):
    """With attention's contribution cut off, the key of a token depends on that token alone."""
    model = tiny(name)
    decoder = Decoder(model)
    for block in decoder.blocks:
        for module in block.modules():
            if "attention" in type(module).__name__.lower():
                module.register_forward_hook(lambda _module, _args, output: with_hidden_states(output, 0 * output[0]))
    other = torch.cat([IDS.flip(1)[:, :-1], IDS[:, -1:]], 1)  # only the last token is the same
    for layer in LAYERS:
        keys = []

        def note(_module, args, keys=keys):
            keys.append(args[0].reshape(IDS.shape[1], -1)[-1])

        handle = decoder.out_projection(layer).module.register_forward_pre_hook(note)
        with torch.no_grad():
            model(input_ids=IDS, use_cache=False)
            model(input_ids=other, use_cache=False)
        handle.remove()
        torch.testing.assert_close(keys[0], keys[1])


@pytest.mark.parametrize("name", NAMES)
def test_final_norm_feeds_the_head_that_makes_the_logits(name):
    model = fixed(name)
    decoder = Decoder(model)
    assert decoder.final_norm is model.get_submodule(ARCHITECTURES[name][3])
    assert decoder.head is model.get_output_embeddings()
    _, normed = seen_by(decoder.final_norm, model)
    given, made = seen_by(decoder.head, model)
    assert torch.equal(normed, given)
    assert made.shape[-1] == logits(model).shape[-1] == decoder.model.config.vocab_size


@pytest.mark.parametrize("name", NAMES)
def test_a_square_matrix_is_still_the_out_projection_with_the_orientation_of_its_type(name):
    _, template, transposed, _ = ARCHITECTURES[name]
    model = tiny(name, **SQUARE)
    for layer, projection in Decoder(model).out_projections(LAYERS).items():
        assert projection.name == template.format(layer)
        assert projection.transposed is transposed
        key, value = seen_by(projection.module, model)
        bias = projection.module.bias if projection.module.bias is not None else 0
        torch.testing.assert_close(key @ projection.matrix.T + bias, value)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_square_case_is_really_square(name):
    assert tuple(Decoder(tiny(name, **SQUARE)).out_projection(0).matrix.shape) == (16, 16)


def test_embeddings_narrower_than_the_blocks_and_no_final_norm_as_in_opt_350m():
    model = tiny("opt", word_embed_proj_dim=8, do_layer_norm_before=False)
    decoder = Decoder(model)
    assert decoder.out_projection(3).name == "model.decoder.layers.3.fc2"
    assert decoder.out_projection(3).d_out == 16
    assert decoder.final_norm is None


def test_writing_to_matrix_writes_the_parameter():
    for name in ("llama", "gpt2"):
        projection = Decoder(tiny(name)).out_projection(2)
        projection.matrix[3, 7] = 42.0
        assert projection.module.weight[(7, 3) if projection.transposed else (3, 7)] == 42.0
        assert projection.stored is projection.module.weight


@pytest.mark.parametrize("name", NAMES)
def test_an_explicit_template_finds_the_same_modules(name):
    model = fixed(name)
    by_structure = Decoder(model).out_projections(LAYERS)
    assert Decoder(model, ARCHITECTURES[name][1]).out_projections(LAYERS) == by_structure


def test_a_decoder_is_used_again_unless_another_template_is_asked_for():
    model, template = fixed("llama"), ARCHITECTURES["llama"][1]
    plain, named = Decoder.of(model), Decoder.of(model, template)
    assert (plain.template, named.template) == (None, template)
    assert Decoder.of(plain) is plain
    assert Decoder.of(named) is Decoder.of(named, template) is named
    other = Decoder.of(plain, template)
    assert other.model is model
    assert other.template == template


@pytest.mark.parametrize(
    "template",
    [
        "model.layers.mlp.down_proj",  # no place for the layer
        "model.layers.{}.mlp.{}",  # two
        "model.layers.{}.mlp.{name}",  # another kind of hole
        "model.layers.{}.mlp.down_proj}",
        "model.layers.{}.mlp.nothing",  # no such module
        "model.layers.{}.mlp",  # no matrix
        "model.layers.{}.input_layernorm",
        "{}",
        "",
    ],
)
def test_a_template_that_does_not_fit_is_named_in_the_error(template):
    with pytest.raises(ModelStructureError) as caught:
        Decoder(fixed("llama"), template).out_projection(1)
    assert template.replace("{}", "1") in str(caught.value) or template in str(caught.value)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "olmoe"])
def test_a_mixture_of_experts_is_refused_by_name_of_the_block(name):
    decoder = Decoder(tiny(name))
    with pytest.raises(ModelStructureError, match=r"layers\.1 .*mixture of experts"):
        decoder.out_projection(1)


def test_a_template_overrides_the_refusal_of_a_mixture():
    decoder = Decoder(tiny("qwen2_moe"), "model.layers.{}.mlp.shared_expert.down_proj")
    assert decoder.out_projection(1).d_out == 16


def test_a_model_without_feed_forward_parts_is_refused():
    decoder = Decoder(tiny("mamba", state_size=4))
    with pytest.raises(ModelStructureError, match=r"layers\.0 .*template"):
        decoder.out_projection(0)


def test_what_is_no_decoder_at_all_is_refused():
    with pytest.raises(ModelStructureError, match="Linear has no list of blocks"):
        Decoder(nn.Linear(2, 2))


def test_a_model_without_a_head_is_refused_only_where_the_head_is_needed():
    decoder = Decoder(fixed("llama").model)
    assert decoder.out_projection(0).name == "layers.0.mlp.down_proj"
    with pytest.raises(ModelStructureError, match="head"):
        _ = decoder.head


@pytest.mark.parametrize("layer", [4, -1, True, 1.0, "1", None])
def test_a_layer_that_does_not_exist_is_named_with_those_that_do(layer):
    with pytest.raises(ModelStructureError, match="0 to 3") as caught:
        Decoder(fixed("llama")).out_projections([layer])
    assert repr(layer) in str(caught.value)


@pytest.mark.parametrize("layers", [[], [1, 2, 1]])
def test_no_layers_or_a_layer_twice_is_refused(layers):
    with pytest.raises(ModelStructureError, match=r"no layers|twice"):
        Decoder(fixed("llama")).out_projections(layers)


def test_layers_come_back_in_ascending_order():
    assert list(Decoder(fixed("llama")).out_projections([3, 0, 2])) == [0, 2, 3]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_weight_offloaded_by_accelerate_is_read_and_written_where_the_forward_pass_finds_it(name):
    plain, offloaded = tiny(name), tiny(name)
    accelerate.cpu_offload(offloaded, execution_device="cpu")
    here, there = Decoder(plain).out_projection(1), Decoder(offloaded).out_projection(1)
    assert there.module.weight.device.type == "meta"
    assert torch.equal(there.stored, here.stored)
    assert (there.d_in, there.d_out) == (here.d_in, here.d_out)
    before = logits(offloaded)
    for projection in (here, there):
        projection.matrix[:, 3] += 1.0
    assert torch.equal(logits(offloaded), logits(plain))
    assert not torch.equal(logits(offloaded), before)
    assert torch.equal(there.matrix, here.matrix)


def test_a_weight_offloaded_to_disk_is_refused(tmp_path):
    model = tiny("llama")
    accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    with pytest.raises(ModelStructureError, match=r"down_proj\.weight is offloaded to disk"):
        _ = Decoder(model).out_projection(1).stored


def test_a_model_without_weights_is_refused():
    with pytest.raises(ModelStructureError, match="meta device"):
        _ = Decoder(tiny("llama").to("meta")).out_projection(1).stored


class Codes(torch.Tensor):
    """A weight as torchao keeps it: it answers for codes and a scale, in the type of what they stand for."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: float) -> Codes:
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: torch.Tensor, scale: float) -> None:
        self.codes, self.scale = codes, scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def plain(value):
            return value.codes.float() * value.scale if isinstance(value, Codes) else value

        if func is torch.ops.aten.detach.default:
            return args[0]
        return func(*map(plain, args), **(kwargs or {}))


class FourBits(nn.Parameter):
    """A weight as bitsandbytes keeps it: two codes a byte, in a column."""


def int8(weight):
    return nn.Parameter(weight.to(torch.int8), requires_grad=False)


def float8(weight):
    return nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False)


def torchao(weight):
    return nn.Parameter(Codes((weight * 100).to(torch.int8), 0.01), requires_grad=False)


def bitsandbytes(weight):
    return FourBits(torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)


@pytest.mark.parametrize("quantised", [int8, float8, torchao, bitsandbytes])
def test_a_weight_that_is_codes_is_refused_as_quantised_with_the_remedy(quantised):
    model = tiny("llama")
    for block in model.model.layers:
        for module in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
            module.weight = quantised(module.weight)
    projection = Decoder(model).out_projection(1)
    assert (projection.d_in, projection.d_out) == (24, 16)
    with pytest.raises(ModelStructureError, match=r"layers\.1\.mlp\.down_proj\.weight is quantised .*bfloat16"):
        _ = projection.matrix


def test_the_stand_in_for_a_tensor_of_torchao_says_that_it_is_floating():
    assert torchao(torch.ones(2, 2)).is_floating_point()
    assert float8(torch.ones(2, 2)).is_floating_point()


def test_a_block_of_matrices_of_another_kind_says_which():
    class WQLinear(nn.Module):
        in_features, out_features = 16, 24

    model = tiny("llama")
    for block in model.model.layers:
        block.mlp = nn.Sequential(WQLinear(), WQLinear())
    with pytest.raises(ModelStructureError, match=r"its matrices are WQLinear; if they are quantised"):
        Decoder(model).out_projection(1)


def test_a_weight_distributed_over_devices_is_refused():
    class Sharded(nn.Parameter):
        def full_tensor(self):
            raise AssertionError

    model = tiny("llama")
    module = model.model.layers[1].mlp.down_proj
    module.weight = Sharded(module.weight, requires_grad=False)
    with pytest.raises(ModelStructureError, match=r"distributed over devices \(Sharded\).*gather"):
        _ = Decoder(model).out_projection(1).matrix


@pytest.mark.parametrize(
    ("reparametrise", "remedy"),
    [
        (nn.utils.parametrizations.weight_norm, "remove_parametrizations"),
        (nn.utils.parametrizations.orthogonal, "remove_parametrizations"),
        (nn.utils.weight_norm, "remove_weight_norm"),
        (lambda module: prune.random_unstructured(module, "weight", 0.5), "prune.remove"),
    ],
    ids=["weight_norm", "orthogonal", "old weight_norm", "pruning"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_a_weight_that_is_made_anew_in_every_pass_is_refused_with_the_remedy(reparametrise, remedy):
    model = tiny("llama")
    reparametrise(model.model.layers[1].mlp.down_proj)
    projection = Decoder(model).out_projection(1)
    with pytest.raises(ModelStructureError, match=rf"layers\.1\.mlp\.down_proj\.weight .*lost.*{remedy}"):
        _ = projection.matrix


def test_what_the_error_says_to_do_about_a_parametrised_weight_helps():
    model = tiny("llama")
    module = nn.utils.parametrizations.weight_norm(model.model.layers[1].mlp.down_proj)
    nn.utils.parametrize.remove_parametrizations(module, "weight")
    Decoder(model).out_projection(1).matrix[3, 7] = 42.0
    assert module.weight[3, 7] == 42.0


@pytest.mark.parametrize("share", ["block", "mlp", "down_proj"])
def test_a_module_that_several_layers_share_is_refused_with_their_numbers(share):
    model = tiny("llama")
    layers = model.model.layers
    if share == "block":
        layers[3] = layers[1]
    elif share == "mlp":
        layers[3].mlp = layers[1].mlp
    else:
        layers[3].mlp.down_proj = layers[1].mlp.down_proj
    decoder = Decoder(model)
    with pytest.raises(ModelStructureError, match=r"down_proj is shared by layers 1, 3: .*choose layers"):
        decoder.out_projection(1)
    assert decoder.out_projection(2).name == "model.layers.2.mlp.down_proj"


@pytest.mark.parametrize("name", UNUSUAL)
def test_side_paths_and_mixing_weights_are_not_taken_for_experts(name):
    found = Decoder(unusual(name)).out_projections(LAYERS)
    assert [each.name for each in found.values()] == [UNUSUAL[name][1].format(layer) for layer in LAYERS]


def test_an_encoder_decoder_is_named_for_what_it_is():
    config = T5Config(vocab_size=128, d_model=16, d_ff=24, num_layers=2, num_heads=2, d_kv=8)
    with pytest.raises(ModelStructureError, match=r"T5ForConditionalGeneration is an encoder-decoder.*Llama"):
        Decoder(T5ForConditionalGeneration(config))


@pytest.mark.parametrize("causal", [False, True])
def test_bert_is_a_decoder_only_if_its_attention_is_causal(causal):
    config = BertConfig(
        vocab_size=128,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        is_decoder=causal,
    )
    if causal:
        assert len(Decoder(BertLMHeadModel(config))) == 2
    else:
        with pytest.raises(ModelStructureError, match=r"BertForMaskedLM is no decoder.*Llama"):
            Decoder(BertForMaskedLM(config))


@pytest.mark.parametrize("name", NAMES)
def test_eager_attention_computes_the_same_and_restores_the_models_own_choice(name):
    model = tiny(name)
    choice, before = model.config._attn_implementation, logits(model)
    with eager_attention(model):
        assert model.config._attn_implementation == ("eager" if model._can_set_attn_implementation() else choice)
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == choice
    assert torch.equal(logits(model), before)


def test_eager_attention_is_undone_by_an_exception_and_may_be_nested():
    model = tiny("llama")
    choice = model.config._attn_implementation
    assert choice != "eager"
    with pytest.raises(KeyError), eager_attention(model), eager_attention(model):
        raise KeyError
    assert model.config._attn_implementation == choice
