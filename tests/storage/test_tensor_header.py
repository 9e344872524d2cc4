"""What a header says, without the tensors: the same as the whole file, and errors that name it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from support.paths import ROOT

from alphaedit_plugin.errors import SessionError
from alphaedit_plugin.storage.tensor_header import stored_checksum, stored_metadata
from alphaedit_plugin.storage.tensors import read_tensors, write_tensors


def test_a_header_says_what_the_whole_file_says(tmp_path):
    metadata = {"requests": [{"subject": "日本\n"}], "n": None}
    checksum = write_tensors(tmp_path / "f.safetensors", {"a": torch.ones(3)}, metadata, SessionError)
    assert stored_metadata(tmp_path / "f.safetensors", SessionError) == metadata
    assert read_tensors(tmp_path / "f.safetensors", SessionError)[1] == metadata
    assert stored_checksum(tmp_path / "f.safetensors", SessionError) == checksum


@pytest.mark.parametrize("kind", ["absent", "no safetensors", "another program's", "no mapping"])
def test_what_has_no_header_of_ours_is_refused_by_name(kind, tmp_path):
    path = tmp_path / "f.safetensors"
    if kind == "no safetensors":
        path.write_bytes(b"text")
    elif kind != "absent":
        save_file({"a": torch.ones(3)}, path, {"alphaedit": "[1]", "sha256": "0"} if kind == "no mapping" else None)
    with pytest.raises(SessionError, match=str(path)):
        stored_metadata(path, SessionError)


def test_it_is_read_without_torch():
    code = "import sys, alphaedit_plugin.storage.tensor_header; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
