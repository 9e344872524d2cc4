"""A patch takes base weights to edited ones and back, bit for bit, or refuses and touches nothing."""

from __future__ import annotations

import math
import re
import tracemalloc
import zlib
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.spaces import random_spaces
from support.tiny import tiny
from support.tries import tries
from support.weights import assert_same, bits, differ, everything, matrices
from torch import nn

from alphaedit_plugin.errors import PatchError
from alphaedit_plugin.session import patch
from alphaedit_plugin.session.patch import apply_patch, revert_patch, write_patch
from alphaedit_plugin.storage.tensors import read_tensors, write_tensors

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYERS = [1, 3]
WIDE = {"hidden_size": 64, "n_embd": 64, "intermediate_size": 256, "n_inner": 256}  # makes factors worth their place
PROVENANCE = {"method": "memit+P", "facts": ["é"], "n": 2}


def copies(model, layers=LAYERS):
    return {layer: matrix.clone() for layer, matrix in matrices(model, layers).items()}


def same_bits(model, expected):
    """Also of zeros and their signs, which == does not tell apart."""
    return all(torch.equal(bits(now), bits(expected[layer])) for layer, now in matrices(model, list(expected)).items())


def edit(model, *, rank=2, rounds=3, scale=0.1, seed=0):
    """(base, factors) of low-rank updates written one after another, each rounded to the weights' precision."""
    generator = torch.Generator().manual_seed(seed)
    base, factors = copies(model), {}
    for layer, matrix in matrices(model, LAYERS).items():
        lefts, rights = [], []
        for _ in range(rounds):
            left = torch.randn(matrix.shape[0], rank, generator=generator) * scale
            right = torch.randn(matrix.shape[1], rank, generator=generator)
            matrix += (left @ right.T).to(matrix.dtype)
            lefts.append(left)
            rights.append(right)
        factors[layer] = (torch.cat(lefts, 1), torch.cat(rights, 1))
    return base, factors


def stored_ranks(path):
    tensors, _ = read_tensors(path, PatchError)
    return {layer: tensors[f"{layer}.left"].shape[1] for layer in LAYERS}


def sparse_edit(model, *, count=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = copies(model)
    for matrix in matrices(model, LAYERS).values():
        rows, columns = (torch.randint(n, (count,), generator=generator) for n in matrix.shape)
        matrix[rows, columns] = torch.randn(count, generator=generator).to(matrix.dtype)
    return base


@pytest.fixture
def path(tmp_path):
    return tmp_path / "edit.safetensors"


@pytest.fixture
def patched(path):
    """(path, base, edited) of a patch of the tiny Llama."""
    model = tiny("llama")
    base, factors = edit(model)
    write_patch(path, model, base, factors, PROVENANCE)
    return path, base, copies(model)


# ------------------------------------------------------------------------------------------------------ exactness


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-4, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("given_factors", [True, False])
def test_apply_gives_the_edited_weights_and_revert_the_base_bit_for_bit(path, name, dtype, scale, given_factors):
    model = tiny(name, dtype=dtype, **WIDE)
    before = everything(model)
    base, factors = edit(model, rank=1, scale=scale)
    edited, after = copies(model), everything(model)
    write_patch(path, model, base, factors if given_factors else dict.fromkeys(LAYERS), PROVENANCE)
    assert_same(everything(model), after)
    assert differ(everything(model), before)
    if not given_factors or scale == 0.1:
        assert stored_ranks(path) == dict.fromkeys(LAYERS, 3 if given_factors else 0)

    assert revert_patch(model, path) == PROVENANCE
    assert_same(everything(model), before)
    fresh = tiny(name, dtype=dtype, **WIDE)
    assert apply_patch(fresh, str(path)) == PROVENANCE
    assert same_bits(fresh, edited)
    assert_same(everything(fresh), after)
    assert revert_patch(fresh, path) == PROVENANCE
    assert_same(everything(fresh), before)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sparse_update_that_is_of_no_low_rank_is_exact_and_small(path, name, dtype):
    model = tiny(name, dtype=dtype, **WIDE)
    base = sparse_edit(model)
    edited = copies(model)
    write_patch(path, model, base, {}, {})
    assert path.stat().st_size < sum(m.numel() * m.itemsize for m in edited.values()) / 4
    revert_patch(model, path)
    assert same_bits(model, base)
    apply_patch(model, path)
    assert same_bits(model, edited)


@tries(60)
@given(
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
    rank=st.integers(0, 12),
    scale=st.sampled_from([0.0, 1e-30, 1e-4, 1.0, 100.0]),
    transposed=st.booleans(),
)
def test_any_bits_before_and_after_whatever_the_factors_say(tmp_path_factory, dtype, seed, rank, scale, transposed):
    """Zeros of both signs, denormals, sign flips, the largest numbers, factors that have nothing to do with it."""
    generator = torch.Generator().manual_seed(seed)
    info = torch.finfo(dtype)
    extremes = [0.0, -0.0, info.smallest_normal / 2, -info.tiny, info.max, info.min, 1.0, -1.0, 1 + info.eps]
    pool = torch.tensor(extremes, dtype=torch.float64).to(dtype)

    def weights(like):
        chosen = pool[torch.randint(len(pool), like.shape, generator=generator)]
        ordinary = torch.randn(like.shape, generator=generator).to(dtype)
        return torch.where(torch.rand(like.shape, generator=generator) < 0.5, chosen, ordinary)

    model = tiny("gpt2" if transposed else "llama", dtype=dtype)
    for matrix in matrices(model, LAYERS).values():
        matrix.copy_(weights(matrix))
    base = copies(model)
    for matrix in matrices(model, LAYERS).values():
        matrix.copy_(weights(matrix))
    matrices(model, LAYERS)[1][:3] = -base[1][:3]
    edited = copies(model)
    factors = {
        layer: tuple(torch.randn(d, rank, generator=generator) * scale for d in matrix.shape)
        for layer, matrix in matrices(model, LAYERS).items()
    }
    path = tmp_path_factory.mktemp("patch") / "edit.safetensors"
    write_patch(path, model, base, factors, {})
    revert_patch(model, path)
    assert same_bits(model, base)
    apply_patch(model, path)
    assert same_bits(model, edited)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_factors_that_fit_are_used_exactly_even_where_the_sum_overflows(dtype):
    """The parts of the file themselves, so that the choice of the smaller encoding hides nothing."""
    generator = torch.Generator().manual_seed(0)
    info = torch.finfo(dtype)
    before = torch.randn(16, 24, generator=generator).to(dtype)
    before[0] = info.max
    after = torch.randn(16, 24, generator=generator).to(dtype)
    work = torch.promote_types(dtype, torch.float32)
    for scale in (1e-20, 1.0, 1e18):
        left = torch.randn(16, 5, generator=generator).to(work) * scale
        right = torch.randn(24, 5, generator=generator).to(work) * scale
        parts = patch._encode(before, after, (left, right))
        assert torch.equal(bits(patch._forward(before, parts)), bits(after))
        assert torch.equal(bits(patch._backward(after, parts)), bits(before))


@tries(40)
@given(
    rank=st.integers(0, 70),
    seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    spread=st.sampled_from([0, 3, 12]),
)
def test_the_product_does_not_depend_on_the_order_of_summation(rank, seed, dtype, spread):
    generator = torch.Generator().manual_seed(seed)

    def factor(d):
        sizes = 10.0 ** (spread * (torch.rand(rank, generator=generator, dtype=torch.float64) - 0.5))
        return (torch.randn(d, rank, generator=generator, dtype=torch.float64) * sizes).to(dtype)

    left, right = factor(9), factor(13)
    product = patch._product(left, right)
    order = torch.randperm(rank, generator=generator)
    assert torch.equal(patch._product(left[:, order], right[:, order]), product)
    assert torch.equal(patch._product(right, left).T, product)
    largest = float(left.abs().max() * right.abs().max()) if rank else 0.0
    torch.testing.assert_close(
        product, left.double() @ right.double().T, rtol=0, atol=2.0**-38 * max(1, rank) * largest
    )


@pytest.mark.parametrize("size", [0.0, 5e-324, 1e-310, 1e-100, 1e99])
def test_the_product_of_the_smallest_and_largest_factors_is_a_number(size):
    left, right = torch.full((2, 3), size, dtype=torch.float64), torch.full((4, 3), -size, dtype=torch.float64)
    torch.testing.assert_close(patch._product(left, right), torch.full((2, 4), -3 * size * size, dtype=torch.float64))


@pytest.mark.parametrize("rank", [1, 2, 3, 64, 1000])
def test_the_slices_of_the_product_are_summed_without_rounding(rank):
    left, right = (torch.randn(2, rank, generator=torch.Generator().manual_seed(rank + i)) for i in range(2))
    left[0, 0] = right[0, 0] = 4.0  # a power of two: the largest that a slice has to hold
    cut = (53 - max(0, rank - 1).bit_length()) // 2
    (lh, ll), (rh, rl) = patch._slices(left, cut), patch._slices(right, cut)

    def exact(a, b):
        return sum((Fraction(x) * Fraction(y) for x, y in zip(a.tolist(), b.tolist(), strict=True)), Fraction())

    high = exact(lh[0], rh[0])
    cross = exact(lh[0], rl[0]) + exact(ll[0], rh[0])
    assert Fraction(float(high)) == high
    assert Fraction(float(cross)) == cross
    assert float(patch._product(left, right)[0, 0]) == float(high) + float(cross)
    assert torch.equal((lh + ll)[0, :1], left[0, :1].double())
    assert float((lh + ll - left.double()).abs().max()) <= float(left.abs().max()) * 2.0 ** (1 - 2 * cut)


# ----------------------------------------------------------------------------------------------------------- size


class Block(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.up, self.down = nn.Linear(256, 512, dtype=dtype), nn.Linear(512, 256, bias=False, dtype=dtype)


def one_layer(dtype, seed=0):
    """Found by template, with no more around it than `Decoder` needs."""
    model = nn.Module()
    model.blocks = nn.ModuleList([Block(dtype), Block(dtype)])
    for i, block in enumerate(model.blocks):
        generator = torch.Generator().manual_seed(seed + i)
        block.down.weight.data.copy_(torch.randn(256, 512, generator=generator) * 0.05)
    return model.requires_grad_(False)


@pytest.mark.parametrize(
    ("dtype", "rounds", "share"),
    [
        (torch.float32, 1, 0.15),
        (torch.float32, 10, 0.25),
        (torch.bfloat16, 1, 0.27),
        (torch.float16, 1, 0.27),
        (torch.bfloat16, 10, 0.5),
    ],
    ids=str,
)
def test_a_patch_of_rank_20_is_much_smaller_than_the_matrix(path, dtype, rounds, share):
    model, name = one_layer(dtype), "blocks.{}.down"
    weight = model.blocks[0].down.weight
    base, lefts, rights = weight.clone(), [], []
    generator = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        left, right = (torch.randn(d, 20 // rounds, generator=generator) * 0.01 for d in (256, 512))
        weight.data.copy_(weight.float() + left @ right.T)
        lefts.append(left)
        rights.append(right)
    edited = weight.clone()
    write_patch(path, model, {0: base}, {0: (torch.cat(lefts, 1), torch.cat(rights, 1))}, {}, template=name)
    assert path.stat().st_size < share * weight.numel() * weight.itemsize
    revert_patch(model, path)
    assert torch.equal(weight, base)
    apply_patch(model, path)
    assert torch.equal(weight, edited)


def test_factors_that_make_the_file_larger_are_left_out(tmp_path):
    model = tiny("llama")
    base = sparse_edit(model, count=2)
    useless = {layer: tuple(torch.randn(d, 20) for d in matrix.shape) for layer, matrix in base.items()}
    sizes = []
    for factors in ({}, useless):
        write_patch(tmp_path / "p", model, base, factors, {})
        sizes.append((tmp_path / "p").stat().st_size)
    assert sizes[0] == sizes[1]


# ----------------------------------------------------------------------------------------- refusals change nothing


def refused(call, model, *words):
    before = everything(model)
    with pytest.raises(PatchError) as caught:
        call()
    assert_same(everything(model), before)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: tiny("llama", seed=1), ["another model", "model.layers.1.mlp.down_proj"]),
        (lambda: tiny("gpt2"), ["another model", "transformer.h.1.mlp.c_proj"]),
        (lambda: tiny("llama", intermediate_size=32), ["(16, 24)", "(16, 32)"]),
        (lambda: tiny("llama", num_hidden_layers=2), ["layer 3 does not exist"]),
        (lambda: tiny("llama", dtype=torch.bfloat16), ["torch.float32", "torch.bfloat16", "check_model=False"]),
        (lambda: tiny("llama").bfloat16().float(), ["another model", "edited otherwise"]),
        (lambda: nn.Linear(3, 3), ["does not fit"]),
    ],
    ids=["other weights", "other family", "other width", "fewer layers", "other precision", "rounded", "no decoder"],
)
@pytest.mark.parametrize("call", [apply_patch, revert_patch])
def test_another_model_is_refused_and_stays_as_it_was(patched, other, words, call):
    model = other()
    refused(lambda: call(model, patched[0]), model, "edit.safetensors", *words)


def test_a_patch_is_applied_once_and_reverted_once(patched):
    path, base, edited = patched
    model = tiny("llama")
    refused(lambda: revert_patch(model, path), model, "not applied", "model.layers.1.mlp.down_proj")
    apply_patch(model, path)
    refused(lambda: apply_patch(model, path), model, "applied to this model already")
    assert same_bits(model, edited)
    revert_patch(model, path)
    refused(lambda: revert_patch(model, path), model, "not applied")
    assert same_bits(model, base)
    apply_patch(model, path)
    assert same_bits(model, edited)


def test_one_wrong_layer_of_two_stops_both(patched):
    model = tiny("llama")
    matrices(model, LAYERS)[3][0, 0] += 1
    refused(lambda: apply_patch(model, patched[0]), model, "model.layers.3.mlp.down_proj")


def test_patches_stack_and_are_reverted_latest_first(tmp_path):
    model = tiny("llama")
    before, states = everything(model), []
    for i in range(3):
        base, factors = edit(model, seed=i)
        write_patch(tmp_path / f"{i}", model, base, factors, {"i": i})
        states.append(copies(model))
    fresh = tiny("llama")
    refused(lambda: apply_patch(fresh, tmp_path / "1"), fresh, "order")
    for i in range(3):
        assert apply_patch(fresh, tmp_path / f"{i}") == {"i": i}
        assert same_bits(fresh, states[i])
    refused(lambda: revert_patch(fresh, tmp_path / "0"), fresh, "latest first")
    for i in reversed(range(3)):
        revert_patch(fresh, tmp_path / f"{i}")
    assert_same(everything(fresh), before)


@pytest.mark.parametrize("call", [apply_patch, revert_patch])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_a_file_cut_short_is_refused_by_name(patched, keep, call):
    path, model = patched[0], tiny("llama")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    refused(lambda: call(model, path), model, "edit.safetensors")


def test_a_file_with_any_altered_byte_is_refused_by_name(patched):
    path, model = patched[0], tiny("llama")
    content = path.read_bytes()
    for position in range(0, len(content), 97):
        altered = bytearray(content)
        altered[position] ^= 0x04
        path.write_bytes(bytes(altered))
        refused(lambda: apply_patch(model, path), model, "edit.safetensors")
    path.write_bytes(content)
    assert apply_patch(model, path) == PROVENANCE


def test_absent_files_and_those_of_another_kind_are_refused_by_name(path):
    model = tiny("llama")
    refused(lambda: apply_patch(model, path), model, "edit.safetensors")
    random_spaces(model, LAYERS).save(path)
    refused(lambda: apply_patch(model, path), model, "edit.safetensors", "no patch")
    refused(lambda: revert_patch(model, path), model, "edit.safetensors", "no patch")
    path.write_text("not even safetensors")
    refused(lambda: apply_patch(model, path), model, "edit.safetensors")
    write_tensors(path, {}, {"format": 2, "patch": {}}, PatchError)
    refused(lambda: apply_patch(model, path), model, "edit.safetensors", "format 2")


def test_factors_that_lead_elsewhere_are_noticed_before_anything_is_written(patched, monkeypatch):
    path, base, _ = patched
    plus = patch._plus
    monkeypatch.setattr(patch, "_plus", lambda weight, delta: plus(weight, delta * (1 + 1e-6)))
    model = tiny("llama")
    refused(lambda: apply_patch(model, path), model, "edit.safetensors", "model.layers.1.mlp.down_proj")
    assert same_bits(model, base)


@pytest.mark.parametrize("call", [apply_patch, revert_patch])
@pytest.mark.parametrize("copies_before", [0, 1, 2])
def test_an_interruption_while_writing_leaves_all_weights_as_they_were(patched, monkeypatch, call, copies_before):
    path, _, edited = patched
    model = tiny("llama")
    if call is revert_patch:
        apply_patch(model, path)
        assert same_bits(model, edited)
    before = everything(model)
    done, copy = [], torch.Tensor.copy_

    def interrupted(self, source, *args):
        if len(done) == copies_before:
            done.append(None)
            raise KeyboardInterrupt
        done.append(None)
        return copy(self, source, *args)

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    if copies_before < len(LAYERS):
        with pytest.raises(KeyboardInterrupt):
            call(model, path)
        assert_same(everything(model), before)
    else:
        call(model, path)
        assert len(done) == len(LAYERS)
        assert differ(everything(model), before)


# ------------------------------------------------------------------------------------------------ check_model=False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_edit_can_be_transferred_to_another_model(path, dtype):
    model = tiny("gpt2")
    base, factors = edit(model)
    write_patch(path, model, base, factors, PROVENANCE)
    other = tiny("gpt2", seed=5, dtype=dtype)
    before = copies(other)
    assert apply_patch(other, path, check_model=False) == PROVENANCE
    for layer, matrix in matrices(other, LAYERS).items():
        left, right = factors[layer]
        exact = before[layer].double() + left.double() @ right.double().T
        spacing = exact.abs().clamp_min(torch.finfo(dtype).tiny) * torch.finfo(dtype).eps
        assert ((matrix.double() - exact).abs() <= 0.51 * spacing).all()


def test_a_transfer_of_bits_without_factors_is_refused(path):
    model = tiny("llama")
    write_patch(path, model, sparse_edit(model), {}, {})
    other = tiny("llama", seed=5)
    refused(lambda: apply_patch(other, path, check_model=False), other, "edit.safetensors", "only to the very model")


def test_a_transfer_leaves_layers_alone_that_the_edit_left_alone(path):
    model = tiny("llama")
    base, factors = edit(model)
    base[2] = copies(model, [2])[2]
    write_patch(path, model, base, factors, {})
    other = tiny("llama", seed=5)
    before = copies(other, [1, 2, 3])
    apply_patch(other, path, check_model=False)
    after = copies(other, [1, 2, 3])
    assert [torch.equal(before[layer], after[layer]) for layer in (1, 2, 3)] == [False, True, False]


def test_a_transfer_must_still_fit_and_be_finite(path):
    model = tiny("llama", **WIDE)
    base, factors = edit(model, rank=1, rounds=1, scale=100.0)
    write_patch(path, model, base, factors, {})
    full = tiny("llama", dtype=torch.float16, **WIDE)
    matrices(full, LAYERS)[3][:] = 65504
    for other, word in (
        (full, "model.layers.3.mlp.down_proj.weight not finite"),
        (tiny("llama", intermediate_size=32), "(16, 32)"),
        (tiny("mistral", num_hidden_layers=2, **WIDE), "layer 3"),
        (tiny("gpt2", **WIDE), "transformer.h.1.mlp.c_proj"),
    ):
        refused(lambda other=other: apply_patch(other, path, check_model=False), other, "edit.safetensors", word)


# -------------------------------------------------------------------------------------------------------- writing


def test_what_does_not_fit_is_not_written(path):
    model = tiny("llama")
    base, factors = edit(model)
    left, right = factors[1]
    bad = left.clone()
    bad[0, 0] = torch.nan
    for base_, factors_, word in (
        ({}, {}, "no layers"),
        ({9: base[1]}, {}, "layer 9"),
        ({1: base[1].T}, {}, "(24, 16)"),
        ({1: base[1].half()}, {}, "torch.float16"),
        ({1: base[1] * torch.inf}, {}, "not finite"),
        ({1: base[1]}, factors, "[3]"),
        (base, {1: (right, left)}, "(24, 6)"),
        (base, {1: (left, right[:, 1:])}, "(24, 5)"),
        (base, {1: (left[:, 0], right[:, 0])}, "(16,)"),
        (base, {1: (bad, right)}, "not finite"),
        (base, {1: (left * torch.inf, right)}, "not finite"),
    ):
        refused(lambda base=base_, f=factors_: write_patch(path, model, base, f, {}), model, word)
        assert not path.exists()
    large = tiny("llama", dtype=torch.float64)
    huge = {1: (left.double() * 1e160, right.double() * 1e160)}
    refused(lambda: write_patch(path, large, copies(large), huge, {}), large, "1e100")
    matrices(model, LAYERS)[3][2, 2] = math.inf
    refused(lambda: write_patch(path, model, base, factors, {}), model, "not finite", "layers.3")
    assert not path.exists()


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    model = tiny("llama")
    base, factors = edit(model)
    (tmp_path / "file").touch()
    refused(lambda: write_patch(tmp_path / "file" / "p", model, base, factors, {}), model, "file/p")


def test_the_template_travels_with_the_patch(path):
    model, template = tiny("llama"), "model.layers.{}.mlp.up_proj"
    weight = model.model.layers[2].mlp.up_proj.weight
    base = weight.clone()
    weight.data[3, 4] += 1.0
    edited = weight.clone()
    write_patch(path, model, {2: base}, {}, {}, template=template)
    fresh = tiny("llama")
    apply_patch(fresh, path)
    assert torch.equal(fresh.model.layers[2].mlp.up_proj.weight, edited)


DAMAGE = {
    "no layers": lambda tensors, metadata: metadata.update(patch=[]),
    "a layer without a name": lambda tensors, metadata: metadata["patch"]["1"].pop("module"),
    "a layer that is a word": lambda tensors, metadata: metadata["patch"].update(x=metadata["patch"]["1"]),
    "a layer that is not there": lambda tensors, metadata: metadata["patch"].update({"99": metadata["patch"]["1"]}),
    "a shape of words": lambda tensors, metadata: metadata["patch"]["1"].update(shape=["a", "b"]),
    "no digest": lambda tensors, metadata: metadata["patch"]["1"].update(edited=7),
    "no template": lambda tensors, metadata: metadata.pop("template"),
    "a template that is none": lambda tensors, metadata: metadata.update(template=5),
    "no provenance": lambda tensors, metadata: metadata.pop("provenance"),
    "no format": lambda tensors, metadata: metadata.pop("format"),
    "no correction": lambda tensors, metadata: tensors.pop("1.forward"),
    "no factors": lambda tensors, metadata: tensors.pop("3.left"),
    "factors of another shape": lambda tensors, metadata: tensors.update({"1.left": torch.zeros(3, 2)}),
    "whole numbers as factors": lambda tensors, metadata: tensors.update({"1.left": tensors["1.left"].long()}),
    "a correction that is no code": lambda tensors, metadata: tensors.update({"1.forward": torch.ones(9).byte()}),
    "a short correction": lambda tensors, metadata: tensors.update({"1.forward": packed(8)}),
    "a correction of a gigabyte": lambda tensors, metadata: tensors.update({"1.forward": packed(1 << 30)}),
    "a correction cut short": lambda tensors, metadata: tensors.update({"1.forward": packed(1 << 20)[:-9]}),
}


def packed(size: int) -> torch.Tensor:
    """So many zeros, compressed."""
    squeezing = zlib.compressobj()
    pieces = [squeezing.compress(bytes(min(size, 1 << 20))) for _ in range(max(1, size >> 20))]
    return torch.frombuffer(bytearray(b"".join([*pieces, squeezing.flush()])), dtype=torch.uint8)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("call", [apply_patch, revert_patch])
def test_a_patch_with_a_right_checksum_and_wrong_content_is_refused_by_name(damage, call, patched):
    """And one that inflates to a gigabyte takes no more memory than the weight it is for."""
    model, path = tiny("llama"), patched[0]
    if call is revert_patch:
        apply_patch(model, path)
    tensors, metadata = read_tensors(path, PatchError)
    DAMAGE[damage](tensors, metadata)
    write_tensors(path, tensors, metadata, PatchError)
    before = everything(model)
    tracemalloc.start()
    try:
        with pytest.raises(PatchError, match=re.escape(str(path))):
            call(model, path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()
    assert_same(everything(model), before)
