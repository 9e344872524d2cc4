"""Text files are whole or absent."""

from __future__ import annotations

import errno
import os

import pytest

from alphaedit_plugin.errors import StoreError
from alphaedit_plugin.storage import files
from alphaedit_plugin.storage.files import write_text


def test_text_is_written_atomically_too(tmp_path, monkeypatch):
    write_text(tmp_path / "a.json", "old é", StoreError)
    monkeypatch.setattr(files.os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    with pytest.raises(StoreError, match=r"a\.json"):
        write_text(tmp_path / "a.json", "new", StoreError)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "old é"


def test_others_may_read_what_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x", StoreError)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
