"""What ships with the package."""

from __future__ import annotations

from alphaedit_plugin.storage.shipped import shipped


def test_shipped_files_are_where_they_are_looked_for():
    assert shipped("examples").is_dir()
    assert shipped("hparams").is_dir()
