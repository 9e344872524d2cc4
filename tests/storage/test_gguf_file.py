"""GGUF files written again: what is replaced is replaced, and nothing else, as the package `gguf` reads them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.gguf_files import contents_of, write_tensors
from support.mishaps import cut, no_file_above

from alphaedit_plugin.errors import ModelStructureError, StoreError
from alphaedit_plugin.storage.gguf_file import GgufFile

gguf = pytest.importorskip("gguf", reason="the package gguf makes the files, and is the oracle")

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1")


def numbers(rows: int, blocks: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 32 * blocks), np.float32)


def packed(values: np.ndarray, kind: str) -> tuple[int, bytes]:
    number = gguf.GGMLQuantizationType[kind]
    return int(number), gguf.quantize(values, number).tobytes()


@st.composite
def files(draw) -> tuple[dict[str, tuple[np.ndarray, str]], int]:
    """(tensors, alignment)."""
    names = draw(st.lists(st.sampled_from(["a", "blk.0.ffn_down.weight", "ü", "b", "c"]), min_size=1, unique=True))
    sizes, kinds = st.integers(1, 3), st.sampled_from(KINDS)
    tensors = {name: (numbers(draw(sizes), draw(sizes), place), draw(kinds)) for place, name in enumerate(names)}
    return tensors, draw(st.sampled_from([8, 16, 32, 64, 4096]))


@pytest.fixture
def sample(tmp_path) -> Path:
    path = tmp_path / "sample.gguf"
    write_tensors(path, {"first": (numbers(3, 2, 0), "Q4_1"), "last": (numbers(2, 1, 1), "F32")}, 64)
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=files(), data=st.data())
def test_what_is_replaced_is_replaced_and_nothing_else(made, data, tmp_path):
    tensors, alignment = made
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    write_tensors(source, tensors, alignment)
    chosen = data.draw(st.sets(st.sampled_from(sorted(tensors))))
    kinds = {name: data.draw(st.sampled_from(KINDS)) for name in sorted(chosen)}
    replaced = {name: packed(-tensors[name][0], kind) for name, kind in kinds.items()}
    GgufFile(source, StoreError).write(target, replaced, StoreError)
    (metadata, before), (metadata_now, after) = contents_of(source), contents_of(target)
    assert metadata_now == metadata
    assert list(after) == list(before)
    for name, found in after.items():
        if name in replaced:
            assert found == (kinds[name], before[name][1], replaced[name][1])
        else:
            assert found == before[name]
    again = GgufFile(target, StoreError)
    assert all((tensor.start - again.data) % alignment == 0 for tensor in again.tensors.values())
    assert again.alignment == alignment
    if all(kinds[name] == tensors[name][1] for name in chosen):
        assert target.stat().st_size == source.stat().st_size


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=files())
def test_with_nothing_replaced_it_is_the_same_file(made, tmp_path):
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    write_tensors(source, *made)
    with source.open("ab") as file:
        file.write(b"whatever lies behind the tensors")
    GgufFile(source, StoreError).write(target, {}, StoreError)
    assert target.read_bytes() == source.read_bytes()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=files())
def test_a_larger_and_then_the_old_tensor_give_the_old_file(made, tmp_path):
    tensors, _ = made
    paths = [tmp_path / f"{n}.gguf" for n in range(3)]
    write_tensors(paths[0], *made)
    old = {tensor.name: tensor for tensor in GgufFile(paths[0], StoreError).tensors.values()}
    wide = {name: packed(values, "F32") for name, (values, _) in tensors.items()}
    GgufFile(paths[0], StoreError).write(paths[1], wide, StoreError)
    back = {name: (tensor.kind, GgufFile(paths[0], StoreError).bytes_of(tensor)) for name, tensor in old.items()}
    GgufFile(paths[1], StoreError).write(paths[2], back, StoreError)
    assert paths[2].read_bytes() == paths[0].read_bytes()


def test_its_header_says_what_the_package_gguf_reads(sample):
    found, oracle = GgufFile(sample, StoreError), gguf.GGUFReader(sample)
    assert found.metadata["some.text"] == "Ünïcode"
    assert found.metadata["some.flag"] is True
    assert found.metadata["some.names"] is None
    assert [(t.name, t.kind, t.shape[::-1], t.start, t.size) for t in found.in_order] == [
        (t.name, t.tensor_type, tuple(t.shape), t.data_offset, t.n_bytes) for t in oracle.tensors
    ]


# -------------------------------------------------------------------------------------------------- what goes wrong


def test_a_file_cut_off_anywhere_is_refused_by_name(sample):
    whole = sample.read_bytes()
    end = max(tensor.start + tensor.size for tensor in GgufFile(sample, StoreError).tensors.values())
    for length in [*range(4, len(whole) - 200, 7), *range(end - 200, end)]:
        sample.write_bytes(whole[:length])
        with pytest.raises(ModelStructureError, match=r"sample\.gguf is (cut off|damaged).*ownload it again"):
            GgufFile(sample, ModelStructureError)
    sample.write_bytes(whole[:end])
    assert len(GgufFile(sample, ModelStructureError).tensors) == 2


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip file", b"weights"])
def test_what_is_no_gguf_file_is_refused_by_name(content, tmp_path):
    (tmp_path / "other.gguf").write_bytes(content)
    with pytest.raises(ModelStructureError, match=r"other\.gguf is no GGUF file"):
        GgufFile(tmp_path / "other.gguf", ModelStructureError)


@pytest.mark.parametrize("version", [1, 4, 3 << 24])
def test_another_version_is_refused(version, sample):
    content = bytearray(sample.read_bytes())
    struct.pack_into("<I", content, 4, version)
    sample.write_bytes(content)
    with pytest.raises(ModelStructureError, match="version"):
        GgufFile(sample, ModelStructureError)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_read_or_refused_by_name(data, sample):
    """Never an error of another kind, and never for long."""
    whole = bytearray(sample.read_bytes())
    length = GgufFile(sample, StoreError).data
    for place in data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    damaged = sample.with_name("damaged.gguf")
    damaged.write_bytes(whole)
    try:
        ends = [tensor.start + tensor.size for tensor in GgufFile(damaged, StoreError).tensors.values()]
    except StoreError as refused:
        said, ends = str(refused), [0]
    else:
        said = str(damaged)
    assert str(damaged) in said
    assert max(ends) <= len(whole)


def test_it_is_never_written_over_itself(sample):
    before = sample.read_bytes()
    sample.with_name("link.gguf").symlink_to(sample)
    for place in (sample, sample.with_name("link.gguf")):
        with pytest.raises(StoreError, match="write to another place"):
            GgufFile(sample, StoreError).write(place, {}, StoreError)
    assert sample.read_bytes() == before


def test_a_full_disk_leaves_what_was_there(sample):
    target = sample.with_name("target.gguf")
    target.write_bytes(b"before")
    for size in range(0, sample.stat().st_size, 100):
        with no_file_above(size), pytest.raises(StoreError, match=r"target\.gguf"):
            GgufFile(sample, StoreError).write(target, {"first": packed(numbers(3, 2, 5), "F32")}, StoreError)
        assert target.read_bytes() == b"before"
        assert sorted(path.name for path in sample.parent.iterdir() if "cache" not in path.name) == [
            "sample.gguf",
            "target.gguf",
        ]


def test_a_place_below_a_file_is_an_error_that_names_it(sample):
    with pytest.raises(StoreError, match=r"sample\.gguf"):
        GgufFile(sample, StoreError).write(sample / "below.gguf", {}, StoreError)


def test_a_source_that_has_been_cut_meanwhile_leaves_nothing(sample):
    """A copy that came out shorter is no file."""
    source, target = GgufFile(sample, StoreError), sample.with_name("target.gguf")
    cut(sample)
    with pytest.raises(StoreError, match=r"sample\.gguf"):
        source.write(target, {}, StoreError)
    assert not target.exists()
