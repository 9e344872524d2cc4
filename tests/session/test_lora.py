"""The adapter is the edit, as PEFT itself reads and merges it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.tiny import ARCHITECTURES, NAMES, tiny
from support.weights import matrices

from alphaedit_plugin.errors import PatchError
from alphaedit_plugin.session import lora
from alphaedit_plugin.session.lora import write_lora

peft = pytest.importorskip("peft", reason="whether PEFT can read an adapter, only PEFT can tell")

LAYERS = [1, 2]
IDS = torch.tensor([[5, 9, 11, 3, 77, 20], [1, 2, 3, 4, 90, 100]])
WIDE = {"hidden_size": 64, "intermediate_size": 96}


def edit(model, ranks=(2, 5), *, scale=1.0, rounds=1, seed=0):
    """The base of an edit of the given rank in each of LAYERS, `scale` times as large as the weights."""
    generator = torch.Generator().manual_seed(seed)
    base = {layer: matrix.clone() for layer, matrix in matrices(model, LAYERS).items()}
    for rank, matrix in zip(ranks, matrices(model, LAYERS).values(), strict=True):
        size = matrix.double().norm() * scale / math.sqrt(rounds)
        left, right = (torch.randn(d, rank, generator=generator, dtype=torch.float64) for d in matrix.shape)
        for _ in range(rounds):
            mixing = torch.eye(rank) + 0.3 * torch.randn(rank, rank, generator=generator, dtype=torch.float64)
            delta = left @ mixing @ right.T
            matrix.copy_(matrix.double() + delta * size / delta.norm())
    return base


def full_edit(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = {layer: matrix.clone() for layer, matrix in matrices(model, LAYERS).items()}
    for matrix in matrices(model, LAYERS).values():
        matrix += torch.randn(matrix.shape, generator=generator) * 0.1
    return base


def difference(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def loaded(folder, name="llama", **changes):
    return peft.PeftModel.from_pretrained(tiny(name, **changes), folder)


def config_in(folder):
    return json.loads((folder / "adapter_config.json").read_text())


# ---------------------------------------------------------------------------------------------- as PEFT reads it


@pytest.mark.parametrize("name", NAMES)
def test_the_adapter_gives_the_edited_models_logits_merged_or_not(name, tmp_path, recwarn):
    model = tiny(name)
    unedited = model(IDS).logits
    base = edit(model)
    expected = model(IDS).logits
    assert difference(unedited, expected) > 1e-2
    assert write_lora(tmp_path, model, base) == {1: 2, 2: 5}

    adapted = loaded(tmp_path, name)
    assert difference(adapted(IDS).logits, expected) < 1e-4
    merged = adapted.merge_and_unload()
    assert difference(merged(IDS).logits, expected) < 1e-4
    for layer, matrix in matrices(model, LAYERS).items():
        torch.testing.assert_close(
            matrices(merged, LAYERS)[layer], matrix, rtol=0, atol=1e-5 * float(matrix.abs().max())
        )
    assert not [str(w.message) for w in recwarn if "peft" in str(w.filename)]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_only_the_edited_layers_are_adapted(name, tmp_path):
    model = tiny(name)
    write_lora(tmp_path, model, edit(model))
    adapted = [n for n, m in loaded(tmp_path, name).base_model.model.named_modules() if hasattr(m, "lora_A")]
    assert adapted == [ARCHITECTURES[name][1].format(layer) for layer in LAYERS]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_dense_update_has_full_rank_and_works(name, tmp_path):
    model = tiny(name)
    base = full_edit(model)
    assert write_lora(tmp_path, model, base) == {1: 16, 2: 16}
    assert difference(loaded(tmp_path, name)(IDS).logits, model(IDS).logits) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_models_in_other_precisions_have_adapters_too(dtype, tmp_path):
    model = tiny("llama", dtype=dtype)
    base = edit(model, scale=0.3)
    write_lora(tmp_path, model, base)
    merged = loaded(tmp_path, dtype=dtype).merge_and_unload()
    for layer, matrix in matrices(model, LAYERS).items():
        left_out = (matrices(merged, LAYERS)[layer].double() - matrix.double()).norm() / matrix.double().norm()
        assert left_out < max(1e-6, torch.finfo(dtype).eps)


# ------------------------------------------------------------------------------------------------- what is written


def test_the_files_hold_what_peft_documents(tmp_path):
    model = tiny("gpt2")
    model.config._name_or_path = "acme/base"
    ranks = write_lora(tmp_path / "new" / "folder", model, edit(model))
    config = config_in(tmp_path / "new" / "folder")
    names = [f"transformer.h.{layer}.mlp.c_proj" for layer in ranks]
    assert config == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "acme/base",
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
        "r": 5,
        "lora_alpha": 5,
        "target_modules": names,
        "fan_in_fan_out": True,
    }
    tensors = load_file(tmp_path / "new" / "folder" / "adapter_model.safetensors")
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    assert shapes == {
        f"base_model.model.{name}.lora_{side}.weight": (shape, torch.float32)
        for name in names
        for side, shape in (("A", (5, 24)), ("B", (16, 5)))
    }
    for name in names:
        a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        torch.testing.assert_close(a @ a.T, b.T @ b, rtol=0, atol=1e-5 * float(a.norm()) ** 2)


def test_linear_layers_are_not_transposed_and_the_base_can_be_named(tmp_path):
    model = tiny("llama")
    write_lora(str(tmp_path), model, edit(model), base_model="acme/other")
    assert config_in(tmp_path)["fan_in_fan_out"] is False
    assert config_in(tmp_path)["base_model_name_or_path"] == "acme/other"
    write_lora(tmp_path, model, {1: torch.zeros_like(matrices(model, LAYERS)[1])})
    assert config_in(tmp_path)["base_model_name_or_path"] is None


def test_layers_that_did_not_change_have_no_entry(tmp_path):
    model = tiny("llama")
    base = edit(model)
    base[3] = matrices(model, [3])[3].clone()
    base[1] = matrices(model, LAYERS)[1].clone()
    assert write_lora(tmp_path, model, base) == {2: 5}
    assert config_in(tmp_path)["target_modules"] == ["model.layers.2.mlp.down_proj"]
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 2


def test_the_template_says_which_matrix(tmp_path):
    model, template = tiny("llama"), "model.layers.{}.mlp.up_proj"
    weight = model.model.layers[2].mlp.up_proj.weight
    base = weight.clone()
    weight.data[3, 4] += 1.0
    assert write_lora(tmp_path, model, {2: base}, template=template) == {2: 1}
    assert difference(loaded(tmp_path)(IDS).logits, model(IDS).logits) < 1e-4


# ------------------------------------------------------------------------------------------------------------ rank


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("rounds", [1, 30])
def test_the_exact_rank_is_that_of_the_edit_and_not_of_its_rounding(dtype, scale, rounds, tmp_path):
    model = tiny("llama", dtype=dtype, **WIDE)
    base = edit(model, (3, 11), scale=scale, rounds=rounds)
    assert write_lora(tmp_path, model, base) == {1: 3, 2: 11}


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 6e-3), (torch.float16, 8e-4)], ids=str)
@pytest.mark.parametrize("rounds", [1, 3])
def test_in_16_bits_a_small_edit_is_neither_lost_in_its_rounding_nor_drowned_in_it(dtype, scale, rounds, tmp_path):
    model = tiny("llama", dtype=dtype, **WIDE)
    wanted = tiny("llama", dtype=torch.float64, **WIDE)
    for layer, matrix in matrices(wanted, LAYERS).items():
        matrix.copy_(matrices(model, LAYERS)[layer])
    start = edit(wanted, (3, 4), scale=scale)
    base = edit(model, (3, 4), scale=scale, rounds=rounds)
    ranks = write_lora(tmp_path, model, base)
    assert ranks == {1: 3, 2: 4}
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for layer, matrix in matrices(model, LAYERS).items():
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_"
        found = tensors[f"{name}B.weight"].double() @ tensors[f"{name}A.weight"].double()
        written = matrix.double() - base[layer].double()
        assert (found - written).norm() < 0.5 * written.norm()
        if rounds == 1:  # what is left out was indeed not part of the edit
            unrounded = matrices(wanted, LAYERS)[layer] - start[layer]
            assert (found - unrounded).norm() < 0.5 * (written - unrounded).norm()


def test_energy_takes_the_smallest_rank_that_holds_the_share(tmp_path):
    model = tiny("llama")
    base = full_edit(model)
    ranks = []
    for energy in (0.1, 0.5, 0.9, 0.99, 1.0):
        found = write_lora(tmp_path, model, base, energy=energy)
        for layer, rank in found.items():
            squares = torch.linalg.svdvals(matrices(model, LAYERS)[layer].double() - base[layer].double()) ** 2
            held = squares.cumsum(0) / squares.sum()
            assert held[rank - 1] >= energy - 1e-12
            assert rank == 1 or held[rank - 2] < energy
        ranks.append(found[1])
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[2] < ranks[-1] == 16


@pytest.mark.parametrize("rank", [1, 3, 16])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_rank_gives_numpys_truncated_svd_on_every_layer(name, rank, tmp_path):
    model = tiny(name)
    base = full_edit(model)
    adapter = write_lora(tmp_path, model, base, rank=rank)
    assert adapter == {1: rank, 2: rank}
    assert config_in(tmp_path)["r"] == rank
    merged = loaded(tmp_path, name).merge_and_unload()
    for layer, matrix in matrices(model, LAYERS).items():
        change = (matrix.double() - base[layer].double()).numpy()
        u, singular, v = np.linalg.svd(change, full_matrices=False)
        best = (u[:, :rank] * singular[:rank]) @ v[:rank]
        found = (matrices(merged, LAYERS)[layer].double() - base[layer].double()).numpy()
        assert np.abs(found - best).max() < 1e-5 * np.abs(best).max()
        assert adapter.kept[layer] == pytest.approx((best**2).sum() / (change**2).sum(), abs=1e-9)


def test_a_rank_above_the_edits_own_is_filled_up_and_changes_nothing(tmp_path):
    model = tiny("llama")
    base = edit(model)
    for rank in (8, 64):
        write_lora(tmp_path, model, base, rank=rank)
        assert config_in(tmp_path)["r"] == rank
        shapes = {tensor.shape for tensor in load_file(tmp_path / "adapter_model.safetensors").values()}
        assert shapes == {(rank, 24), (16, rank)}
        assert difference(loaded(tmp_path)(IDS).logits, model(IDS).logits) < 1e-4
        assert lora.chosen_rank(tmp_path) == rank


def test_a_rank_that_nobody_chose_is_not_kept(tmp_path):
    model = tiny("llama")
    assert lora.chosen_rank(tmp_path) is None
    write_lora(tmp_path, model, edit(model))
    assert lora.chosen_rank(tmp_path) is None


def test_no_energy_asks_for_more_ranks_than_an_edit_has(tmp_path):
    model = tiny("llama")
    base = edit(model)
    assert write_lora(tmp_path, model, base, energy=1.0) == {1: 2, 2: 5}
    assert write_lora(tmp_path, model, base, energy=1e-9) == {1: 1, 2: 1}


def test_even_a_change_of_one_last_bit_is_an_edit(tmp_path):
    model = tiny("llama", dtype=torch.bfloat16)
    base = {1: matrices(model, LAYERS)[1].clone()}
    matrices(model, LAYERS)[1].view(torch.int16)[0, 0] ^= 1
    assert write_lora(tmp_path, model, base) == {1: 1}


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("energy", [0, -0.5, 1.01, float("nan"), True, "0.9"])
def test_a_senseless_energy_is_refused(energy, tmp_path):
    model = tiny("llama")
    with pytest.raises(PatchError, match="energy"):
        write_lora(tmp_path, model, edit(model), energy=energy)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, "8"])
def test_a_senseless_rank_is_refused(rank, tmp_path):
    model = tiny("llama")
    with pytest.raises(PatchError, match="rank"):
        write_lora(tmp_path, model, edit(model), rank=rank)
    assert not list(tmp_path.iterdir())


def test_energy_and_rank_exclude_each_other(tmp_path):
    model = tiny("llama")
    with pytest.raises(PatchError, match="energy and rank"):
        write_lora(tmp_path, model, edit(model), rank=8, energy=0.9)


def test_what_is_no_edit_of_this_model_is_refused(tmp_path):
    model = tiny("llama")
    same = {layer: matrix.clone() for layer, matrix in matrices(model, LAYERS).items()}
    for base, word in (
        (same, "no edit"),
        ({}, "no layers"),
        ({9: same[1]}, "layer 9"),
        ({1: same[1].T}, r"\(24, 16\)"),
        ({1: same[1].half()}, "float16"),
        ({1: same[1] * torch.nan}, "not finite"),
    ):
        with pytest.raises(PatchError, match=word):
            write_lora(tmp_path, model, base)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    model = tiny("llama")
    (tmp_path / "file").touch()
    with pytest.raises(PatchError, match="file/adapter_model"):
        write_lora(tmp_path / "file", model, edit(model))


@pytest.mark.parametrize("stop_at", ["save_file", "write_text"])
@pytest.mark.parametrize("there_before", [False, True])
def test_an_interrupted_export_is_not_taken_for_an_adapter(stop_at, there_before, tmp_path, monkeypatch):
    model = tiny("llama")
    if there_before:
        write_lora(tmp_path, model, edit(model, (4, 4)))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr(lora, stop_at, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_lora(tmp_path, model, edit(model, seed=1))
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if stop_at == "save_file":
        assert after == before
    else:
        assert list(after) == ["adapter_model.safetensors"]
        with pytest.raises((ValueError, OSError), match="adapter_config"):
            loaded(tmp_path)
