"""Windows of tokens, and how they are known."""

from __future__ import annotations

from alphaedit_plugin.model.batches import digest


def test_the_digest_depends_on_every_token_and_every_boundary():
    variants = [[[1, 2], [3]], [[1, 2, 3]], [[1], [2, 3]], [[3], [1, 2]], [[12], [3]], [[1, 2], [4]]]
    assert len({digest(variant) for variant in variants}) == len(variants)
    assert digest(((1, 2), (3,))) == digest([[1, 2], [3]])
