"""Covariances: exact whatever the batching, resumable, mergeable, and exchanged with ROME and EasyEdit."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.processes import results_of_two
from support.spaces import same_covariances
from support.tiny import ARCHITECTURES, NAMES, tiny
from support.tries import tries

from alphaedit_plugin.errors import StatisticsError
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.covariance import Covariance, collect
from alphaedit_plugin.nullspace.null_spaces import NullSpaces
from alphaedit_plugin.nullspace.projection import NullSpace

LAYERS = [0, 1, 3]
WINDOWS = [[5, 9, 11, 3], [60], [7, 7, 7, 100, 2, 0, 0, 1, 33], [0, 0], [8, 4, 2], [1, 2, 3, 4, 5, 6, 7]]

fixed = cache(tiny)  # for tests that leave the model as it is
windows_of_any_length = st.lists(st.lists(st.integers(0, 127), min_size=1, max_size=12), min_size=1, max_size=8)


@pytest.fixture
def model():
    return tiny("llama")


def oracle(model, name, windows, layer):
    """(C, N) by whole forward passes, one text at a time, no padding."""
    keys = []
    module = model.get_submodule(ARCHITECTURES[name][1].format(layer))
    handle = module.register_forward_hook(lambda _module, args, _output: keys.append(args[0].double().clone()))
    with torch.no_grad():
        for window in windows:
            model(input_ids=torch.tensor([list(window)]))
    handle.remove()
    stacked = torch.cat([key.reshape(-1, key.shape[-1]) for key in keys])
    return stacked.T @ stacked / len(stacked), len(stacked)


def distance(a, b):
    return float((a - b).norm() / b.norm())


def forwards(model):
    """A list that grows by one at every forward pass of the model."""
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


class interrupted_at:
    """Raises KeyboardInterrupt in the middle of the n-th forward pass inside the block."""

    def __init__(self, model, n):
        self.model, self.left = model, n

    def __enter__(self):
        self.handle = Decoder(self.model).block(0).register_forward_hook(self.count)

    def __exit__(self, *_):
        self.handle.remove()

    def count(self, *_):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@tries(25)
@given(windows=windows_of_any_length, batch_tokens=st.integers(1, 120), data=st.data())
def test_any_batching_and_any_order_give_the_oracles_covariance(name, windows, batch_tokens, data):
    model = fixed(name, dtype=torch.float64)
    shuffled = data.draw(st.permutations(windows))
    found = collect(model, shuffled, LAYERS, batch_tokens=batch_tokens)
    for layer in LAYERS:
        expected, count = oracle(model, name, windows, layer)
        assert found[layer].count == count == sum(map(len, windows))
        assert distance(found[layer].matrix, expected) < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_never_counted_in_any_architecture(name):
    model = fixed(name, dtype=torch.float64)
    found = collect(model, WINDOWS, LAYERS, batch_tokens=10_000)
    for layer in LAYERS:
        expected, count = oracle(model, name, WINDOWS, layer)
        assert found[layer].count == count
        assert distance(found[layer].matrix, expected) < 1e-6  # GPT-J and GPT-Neo compute attention in float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_keys_of_16_bit_models_are_summed_in_float64(dtype):
    model = fixed("llama", dtype=dtype)
    found = collect(model, [WINDOWS[2]], [1])[1]
    expected, _ = oracle(model, "llama", [WINDOWS[2]], 1)
    assert found.matrix.dtype == torch.float64
    assert distance(found.matrix, expected) < 1e-10


@tries(15)
@given(chunks=st.lists(st.integers(1, 50), min_size=1, max_size=6), d_in=st.integers(1, 40), seed=st.integers(0, 99))
def test_the_sum_is_exact_and_symmetric_for_any_width_and_any_chunks(chunks, d_in, seed):
    keys = torch.randn(sum(chunks), d_in, generator=torch.Generator().manual_seed(seed))
    covariance = Covariance.empty(d_in)
    for chunk in keys.split(chunks):
        covariance.add(chunk)
    assert covariance.count == len(keys)
    assert covariance.d_in == d_in
    assert torch.equal(covariance.total, covariance.total.T)
    assert distance(covariance.total, keys.double().T @ keys.double()) < 1e-12


def test_several_layers_in_one_pass_equal_each_alone(model):
    together = collect(model, WINDOWS, [3, 0, 2])
    assert list(together) == [0, 2, 3]
    for layer in together:
        assert same_covariances(collect(model, WINDOWS, [layer]), {layer: together[layer]})


@pytest.mark.parametrize("last", [0, 2, 3])
def test_the_pass_stops_at_the_last_layer_needed(model, last):
    decoder = Decoder(model)
    ran = []
    for layer, block in enumerate(decoder.blocks):
        block.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
        block.register_forward_hook(lambda *_, layer=layer: ran.append(f"end of {layer}"))
    decoder.head.register_forward_pre_hook(lambda *_: ran.append("head"))
    collect(model, WINDOWS, sorted({0, last}), batch_tokens=10_000)
    assert ran == [step for layer in range(last) for step in (layer, f"end of {layer}")] + [last]


def test_collecting_leaves_no_hook_behind_even_when_it_is_interrupted(model):
    with interrupted_at(model, 2), pytest.raises(KeyboardInterrupt):
        collect(model, WINDOWS, LAYERS, batch_tokens=4)
    collect(model, WINDOWS, LAYERS)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_dropout_is_off_in_a_model_left_in_training_mode():
    model = tiny("gpt2")
    expected = collect(model, WINDOWS, LAYERS)
    model.train()
    assert same_covariances(collect(model, WINDOWS, LAYERS), expected)
    assert model.training


def test_merging_two_halves_gives_the_whole(model):
    whole = collect(model, WINDOWS, [2])[2]
    merged = collect(model, WINDOWS[:3], [2])[2].merge(collect(model, WINDOWS[3:], [2])[2])
    assert merged.count == whole.count
    assert distance(merged.matrix, whole.matrix) < 1e-6  # the model's float32, not the sum


@tries(15)
@given(a=st.integers(1, 30), b=st.integers(1, 30), d_in=st.integers(1, 20))
def test_merging_is_addition_and_leaves_its_arguments_alone(a, b, d_in):
    keys = torch.randn(a + b, d_in, generator=torch.Generator().manual_seed(a))
    parts = [Covariance.empty(d_in) for _ in range(3)]
    for part, some in zip(parts, (keys, keys[:a], keys[a:]), strict=True):
        part.add(some)
    whole, left, right = parts
    before = left.total
    merged = left.merge(right)
    assert (merged.count, left.count) == (whole.count, a)
    assert distance(merged.total, whole.total) < 1e-13
    assert torch.equal(left.total, before)


def test_merging_different_widths_is_refused():
    with pytest.raises(StatisticsError, match="3 and 4"):
        Covariance.empty(3).merge(Covariance.empty(4))


# ---------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("at", [1, 2, 4])
def test_resuming_after_an_interruption_gives_the_uninterrupted_result_bit_for_bit(model, tmp_path, at):
    checkpoint = tmp_path / "partial.safetensors"
    expected = collect(model, WINDOWS, LAYERS, batch_tokens=9)
    settings = {"batch_tokens": 9, "partial": checkpoint, "partial_seconds": 0}
    calls = forwards(model)
    collect(model, WINDOWS, LAYERS, **settings)
    whole = len(calls)
    with interrupted_at(model, at), pytest.raises(KeyboardInterrupt):
        collect(model, WINDOWS, LAYERS, **settings)
    assert checkpoint.exists() is (at > 1)
    calls.clear()
    assert same_covariances(collect(model, WINDOWS, LAYERS, **settings), expected)
    assert len(calls) == whole - (at - 1)
    assert list(tmp_path.iterdir()) == []


def damage_by_cutting(path):
    path.write_bytes(path.read_bytes()[:-5])


def damage_by_flipping(path):
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def damage_by_replacing(path):
    path.write_text("not a checkpoint")


def put_another_kind_of_file_there(path):
    NullSpaces({0: NullSpace.of(torch.diag(torch.tensor([1e-3, 1.0])))}, {}).save(path)


@pytest.mark.parametrize(
    "damage", [damage_by_cutting, damage_by_flipping, damage_by_replacing, put_another_kind_of_file_there]
)
def test_a_damaged_checkpoint_is_reported_and_the_work_starts_anew(model, tmp_path, caplog, damage):
    checkpoint = tmp_path / "partial.safetensors"
    settings = {"batch_tokens": 9, "partial": checkpoint, "partial_seconds": 0}
    with interrupted_at(model, 3), pytest.raises(KeyboardInterrupt):
        collect(model, WINDOWS, LAYERS, **settings)
    damage(checkpoint)
    expected = collect(model, WINDOWS, LAYERS, batch_tokens=9)
    assert same_covariances(collect(model, WINDOWS, LAYERS, **settings), expected)
    assert str(checkpoint) in caplog.text
    assert not checkpoint.exists()


@pytest.mark.parametrize(("windows", "layers"), [(WINDOWS[::-1], LAYERS), (WINDOWS, [0, 1, 2]), (WINDOWS[:1], LAYERS)])
def test_a_checkpoint_of_other_text_or_other_layers_is_not_continued(model, tmp_path, windows, layers):
    settings = {"batch_tokens": 9, "partial": tmp_path / "partial.safetensors", "partial_seconds": 0}
    with interrupted_at(model, 3), pytest.raises(KeyboardInterrupt):
        collect(model, WINDOWS, LAYERS, **settings)
    expected = collect(model, windows, layers, batch_tokens=9)
    assert same_covariances(collect(model, windows, layers, **settings), expected)


# ------------------------------------------------------------------------------------------------------ files


@tries(15)
@given(d_in=st.integers(1, 30), tokens=st.integers(1, 40))
def test_packing_is_exact(d_in, tokens):
    covariance = Covariance.empty(d_in)
    covariance.add(torch.randn(tokens, d_in, generator=torch.Generator().manual_seed(tokens)))
    packed = covariance.packed()
    assert packed["triangle"].numel() == d_in * (d_in + 1) // 2
    again = Covariance.unpacked(packed)
    assert torch.equal(again.total, covariance.total)
    assert again.count == covariance.count == tokens


def test_an_npz_is_written_as_rome_and_easyedit_read_it(model, tmp_path):
    covariance = collect(model, WINDOWS, [1])[1]
    path = tmp_path / "model.layers.1.mlp.down_proj_float32_mom2_100.npz"
    covariance.save_npz(path, sample_size=100)
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {"mom2.constructor", "mom2.count", "mom2.mom2", "sample_size"}
        assert str(file["mom2.constructor"]) == "util.runningstats.SecondMoment()"
        assert int(file["sample_size"]) == 100
        assert int(file["mom2.count"]) == covariance.count
        assert file["mom2.mom2"].dtype == np.float32
        np.testing.assert_array_equal(file["mom2.mom2"], covariance.total.numpy().astype(np.float32))


def test_an_npz_is_read_back(model, tmp_path):
    covariance = collect(model, WINDOWS, [1])[1]
    covariance.save_npz(tmp_path / "stats.npz")
    again = Covariance.load_npz(tmp_path / "stats.npz")
    assert again.count == covariance.count
    assert distance(again.matrix, covariance.matrix) < 1e-6
    assert torch.equal(again.total, again.total.T)
    assert again.total.dtype == torch.float64


def good_arrays():
    return {"mom2.constructor": np.array("x"), "mom2.count": np.array(5), "mom2.mom2": np.eye(3, dtype=np.float32)}


@pytest.mark.parametrize(
    "changes",
    [
        {"mom2.mom2": None},
        {"mom2.count": None},
        {"mom2.mom2": np.ones((2, 3), np.float32)},
        {"mom2.mom2": np.ones(9, np.float32)},
        {"mom2.mom2": np.arange(9, dtype=np.float32).reshape(3, 3)},
        {"mom2.mom2": np.array([{"an": "object"}])},
        {"mom2.mom2": np.array([["a", "b"], ["b", "a"]])},
        {"mom2.mom2": np.zeros((0, 0), np.float32)},
        {"mom2.count": np.array(0)},
        {"mom2.count": np.array("many")},
    ],
    ids=lambda changes: "-".join(f"{name} {getattr(value, 'shape', None)}" for name, value in changes.items()),
)
def test_an_npz_that_holds_something_else_is_refused_by_name(tmp_path, changes):
    path = tmp_path / "stats.npz"
    np.savez(path, **{name: value for name, value in {**good_arrays(), **changes}.items() if value is not None})
    with pytest.raises(StatisticsError, match=r"stats\.npz"):
        Covariance.load_npz(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_npz_that_is_not_finite_is_refused_for_that_reason(tmp_path, value):
    path = tmp_path / "stats.npz"
    np.savez(path, **{**good_arrays(), "mom2.mom2": np.full((3, 3), value, np.float32)})
    with pytest.raises(StatisticsError, match=r"stats\.npz.*finite"):
        Covariance.load_npz(path)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_an_npz_cut_short_is_refused_by_name(tmp_path, keep):
    path = tmp_path / "stats.npz"
    np.savez(path, **good_arrays())
    data = path.read_bytes()
    path.write_bytes(data[: keep if keep >= 1 else int(keep * len(data))])
    with pytest.raises(StatisticsError, match=r"stats\.npz"):
        Covariance.load_npz(path)


def test_an_npz_that_is_absent_or_a_folder_is_refused_by_name(tmp_path):
    for path in (tmp_path / "nothing.npz", tmp_path):
        with pytest.raises(StatisticsError, match=path.name):
            Covariance.load_npz(path)


def test_an_npz_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StatisticsError, match=r"stats\.npz"):
        Covariance(torch.eye(2), 1).save_npz(tmp_path / "file" / "stats.npz")


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_activations_that_are_not_finite_are_an_error_naming_the_layer(model, value):
    model.model.layers[1].mlp.up_proj.weight[0, 0] = value
    with pytest.raises(StatisticsError, match=r"layers\.1\.mlp\.down_proj is not finite"):
        collect(model, WINDOWS, [0, 1])


def test_no_text_at_all_is_an_error(model):
    with pytest.raises(StatisticsError, match="no tokens"):
        collect(model, [], [0])


# -------------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize("windows", [WINDOWS, WINDOWS[:1]], ids=["both have work", "one has none"])
def test_two_processes_together_compute_what_one_does(tmp_path, windows):
    def collected() -> dict:
        found = collect(fixed("llama", dtype=torch.float64), windows, LAYERS, batch_tokens=8)
        return {layer: (covariance.total.numpy(), covariance.count) for layer, covariance in found.items()}

    by_rank = results_of_two(collected, tmp_path)
    alone = collect(fixed("llama", dtype=torch.float64), windows, LAYERS, batch_tokens=8)
    assert set(by_rank) == {0, 1}
    for found in by_rank.values():
        for layer, (total, count) in found.items():
            assert count == alone[layer].count
            assert distance(torch.from_numpy(total), alone[layer].total) < 1e-10
