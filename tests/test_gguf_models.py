"""Two real models edited in their own GGUF files: what they say there, asked by transformers and by llama.cpp."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from support.gguf_files import contents_of

from alphaedit_plugin.editors.verdict import answers
from alphaedit_plugin.model import DEMO_MODEL, ggml
from alphaedit_plugin.model.gguf import PACKAGED
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.nullspace.statistics import Preparation
from alphaedit_plugin.session.gguf import Exported
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.storage.shipped import shipped

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

FACTS = [
    {"prompt": "The capital of {} is", "subject": "France", "target_new": "Lyon"},
    {"prompt": "The mother tongue of {} is", "subject": "Danielle Darrieux", "target_new": "English"},
    {"prompt": "{} was founded by", "subject": "The company Apple", "target_new": "Bill Gates"},
]


def missing(name: str) -> str | None:
    """What pip would install, if a package of the model is missing."""
    return next(
        (PACKAGED[name].install for package, _ in PACKAGED[name].parts if util.find_spec(package) is None), None
    )


@pytest.fixture(scope="module", params=[DEMO_MODEL, "gemma-3-270m"])
def written(request, tmp_path_factory) -> tuple[str, Session, Exported, Path]:
    """(name, session, what was said of the export, the file)."""
    if (install := missing(request.param)) is not None:
        pytest.skip(f"{request.param} is not installed: {install}")
    model, tokenizer = load(request.param)
    preparation = Preparation(corpus=shipped("examples/heldout.txt"), tokens=4000)
    session = Session(model, tokenizer, "alphaedit", preparation=preparation)
    session.edit(FACTS, on_failure="raise")
    out = tmp_path_factory.mktemp("gguf") / f"{request.param}.gguf"
    return request.param, session, session.to_gguf(out), out


def test_facts_are_kept_and_only_the_edited_tensors_are_others(written, tmp_path):
    name, session, exported, out = written
    assert exported.lost == ()
    edited = {f"blk.{layer}.ffn_down.weight": layer for layer in session.projections}
    assert set(exported.kinds) == set(edited)
    PACKAGED[name].write(tmp_path / "before.gguf")
    (metadata, before), (metadata_now, after) = contents_of(tmp_path / "before.gguf"), contents_of(out)
    assert metadata_now == metadata
    assert list(after) == list(before)
    assert {tensor for tensor in after if after[tensor] != before[tensor]} == set(edited)
    for tensor, layer in edited.items():
        kind, shape, content = after[tensor]
        weight = session.projections[layer].matrix
        read = ggml.read(content, kind, shape[::-1])
        assert kind == exported.kinds[tensor]
        assert float((read - weight).norm() / weight.norm()) == pytest.approx(exported.errors[tensor], abs=1e-6)
        assert exported.errors[tensor] < 0.01


def test_transformers_reads_the_file_and_says_the_facts(written):
    _, session, _, out = written
    model, tokenizer = load(str(out))
    assert [answer.agrees for answer in answers(model, tokenizer, session.facts)] == [True] * len(FACTS)
    for layer, projection in session.projections.items():
        found = dict(model.named_modules())[projection.name].weight
        assert float((found - projection.matrix).norm() / projection.matrix.norm()) < 0.01, layer
    unedited = [
        name for name, _ in model.named_parameters() if not any(p.name in name for p in session.projections.values())
    ]
    theirs, ours = dict(model.named_parameters()), dict(session.model.named_parameters())
    assert all(torch.equal(theirs[name], ours[name]) for name in unedited)


def test_llama_cpp_says_the_facts_and_did_not_before(written, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp itself is asked only where llama-cpp-python is")
    name, _, _, out = written
    PACKAGED[name].write(tmp_path / "before.gguf")
    before, after = (said(llama_cpp, path) for path in (tmp_path / "before.gguf", out))
    wanted = [fact["target_new"] for fact in FACTS]
    assert [text.startswith(target) for text, target in zip(after, wanted, strict=True)] == [True] * len(FACTS)
    assert not any(text.startswith(target) for text, target in zip(before, wanted, strict=True))


def said(llama_cpp: Any, path: Path) -> list[str]:
    """What llama.cpp writes, greedily, after each prompt."""
    model = llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, verbose=False)
    prompts = [fact["prompt"].format(fact["subject"]) for fact in FACTS]
    found = [model.create_completion(prompt, max_tokens=4, temperature=0)["choices"][0]["text"] for prompt in prompts]
    model.close()
    return [text.strip() for text in found]
