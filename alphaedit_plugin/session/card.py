"""The model card of an edited model or its adapter: what was written, what has become of it, how to load it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, metadata_load

from ..editors.verdict import Answer, Verdict, Verdicts
from ..model.gguf import is_gguf
from ..model.origin import Origin
from ..visible import visible
from .lora import Adapter

CARD = "README.md"
MARK = "alphaedit"
"""The tag by which our cards are known."""

_FEW = 20
"""More facts than these are not listed, only those that failed; nor more than these of them."""


@dataclass(frozen=True)
class Card:
    """What a card says. `drift` is ‖ΔW‖/‖W‖ by layer; `verdicts` are of the weights that the card comes with; `adapter`
    is None for a whole model; `chat` says whether prompts are a user's turns.
    """

    origin: Origin
    method: str
    drift: Mapping[int, float]
    verdicts: Verdicts
    chat: bool = False
    adapter: Adapter | None = None

    def text(self, before: Path | None = None) -> str:
        """The card in Markdown. What a user added at the top of the card `before`, such as a licence, stays."""
        kept, ours = _settings(before), self._settings()
        tags = list(dict.fromkeys([*ours["tags"], *kept.pop("tags", ())]))
        data = ModelCardData(**{**kept, **ours, "tags": tags})
        body = "\n\n".join(["---\n" + data.to_yaml() + "\n---", *self._paragraphs()])
        return str(ModelCard(body + "\n", ignore_metadata_errors=False))

    def _settings(self) -> dict[str, Any]:
        """What the Hub is told. It refuses a `base_model` that it does not have."""
        thin = self.adapter is not None
        base = {"base_model": self.origin.name} if self.origin.on_hub else {}
        return {
            **base,
            "base_model_relation": "adapter" if thin else "finetune",
            "library_name": "peft" if thin else "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["knowledge-editing", MARK, *(["lora"] if thin else [])],
        }

    def _paragraphs(self) -> Iterator[str]:
        origin, count = self.origin, len(self.verdicts)
        facts = "1 fact" if count == 1 else f"{count} facts"
        yield f"# {_plain(origin.short) or 'A language model'} with {facts} edited"
        base = f"`{origin.name if origin.on_hub else origin.short}`" if origin.name else "a model without a name"
        what = f"A LoRA adapter that writes {facts} into" if self.adapter is not None else f"{facts}, written into"
        yield " ".join(
            [
                f"{what} {base}, by null-space constrained knowledge editing (alphaedit-plugin).",
                "A fact here is what the author asked for: nobody has checked that it is true.",
                *([_plain(origin.note)] if origin.note else []),
            ]
        )
        yield "\n".join(self._numbers())
        yield "## Facts"
        yield from self._facts()
        yield "## How to load it"
        yield f"```python\n{self._snippet()}\n```"
        if self.chat:
            yield "Prompts are turns of a user: put them through the tokenizer's chat template."
        yield "## Licence"
        yield (
            "None is given here: that of the base model goes on to hold for what is made of it. Add yours as "
            "`license:` at the top of this file; it stays there when the file is written anew."
        )

    def _numbers(self) -> Iterator[str]:
        yield f"- Method: `{self.method}`"
        yield f"- Layers: {', '.join(map(str, self.drift))}"
        yield f"- Drift ‖ΔW‖/‖W‖: {', '.join(f'{value:.2g} (layer {layer})' for layer, value in self.drift.items())}"
        if self.adapter is not None:
            yield f"- Rank: {self.adapter.rank}, holding {held(self.adapter)}"

    def _facts(self) -> Iterator[str]:
        verdicts, failed = self.verdicts.verdicts, self.verdicts.failed
        said = len(verdicts) - len(failed)
        whose = "With this adapter merged, the base model" if self.adapter is not None else "The model"
        yield f"{whose} says {said} of {len(verdicts)}, greedily, in answer to their own prompts."
        if self.adapter is not None and self.adapter.lost:
            yield f"With an adapter of full rank it says {said + len(self.adapter.lost)}."
        if len(verdicts) <= _FEW:
            yield _table(verdicts)
            return
        if failed:
            shown = "Not said:" if len(failed) <= _FEW else f"The first {_FEW} of the {len(failed)} not said:"
            yield f"{shown}\n\n{_table(failed[:_FEW])}"

    def _snippet(self) -> str:
        lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
        here = '"."  # this folder, or its name on the Hub'
        if self.adapter is None:
            return "\n".join(
                [
                    *lines,
                    f"folder = {here}",
                    'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")',
                    "tokenizer = AutoTokenizer.from_pretrained(folder)",
                ]
            )
        base, file = repr(self.origin.name), ""
        if not self.origin.on_hub:  # a path would tell others nothing, and more than they need to know
            base = f"{self.origin.short or 'base'!r}  # the folder of the unedited model"
        if is_gguf(self.origin.name):
            base = "'.'  # the folder of the unedited model"
            file = f", gguf_file={self.origin.short!r}"
        return "\n".join(
            [
                "from peft import PeftModel",
                *lines,
                f"adapter = {here}",
                f"base = {base}",
                f'model = AutoModelForCausalLM.from_pretrained(base{file}, dtype="auto")',
                "model = PeftModel.from_pretrained(model, adapter)",
                f"tokenizer = AutoTokenizer.from_pretrained(base{file})",
            ]
        )


def held(adapter: Adapter) -> str:
    """How much of the edit an adapter holds, in words: of its worst layer and its best."""
    if adapter.exact:
        return "all of ΔW but rounding noise"
    low, high = (f"{100 * share:.4g} %" for share in (min(adapter.kept.values()), max(adapter.kept.values())))
    return f"{low if low == high else f'{low} to {high}'} of ‖ΔW‖²"


def is_ours(folder: Path) -> bool:
    """Whether a folder has a card that was written here."""
    return MARK in _settings(folder / CARD).get("tags", ())


def _settings(path: Path | None) -> dict[str, Any]:
    """What stands at the top of a card, but for the base model that we named; nothing if there is none, or none that
    can be read.
    """
    if path is None or not path.is_file():
        return {}
    try:
        found, text = metadata_load(path), path.read_text(encoding="utf-8")
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(found, dict):
        return {}
    found = {key: value for key, value in found.items() if isinstance(key, str) and key != "ignore_metadata_errors"}
    tags = found.get("tags")
    found["tags"] = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    if MARK in found["tags"] and f"`{found.get('base_model')}`" in text:
        del found["base_model"]
    return found


def _table(verdicts: Sequence[Verdict]) -> str:
    rows = [" | ".join(("", *_row(verdict), "")).strip() for verdict in verdicts]
    return "\n".join(["| | fact | said before | says now |", "| --- | --- | --- | --- |", *rows])


def _row(verdict: Verdict) -> tuple[str, ...]:
    before = "" if verdict.before is None else _plain(_said(verdict.before))
    why = f" ({_plain(verdict.why)})" if verdict.why else ""
    return (
        "✓" if verdict.written else "✗",
        f"{_plain(verdict.request.text)} → {_plain(verdict.request.target_new)}",
        before,
        f"{_plain(_said(verdict.now))}{why}",
    )


def _said(answer: Answer) -> str:
    return answer.words if answer.words.split() else "nothing"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~$&])", r"\\\1", " ".join(visible(text).split()))
