"""What `alphaedit edit` and `undo` leave in their folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from ..errors import SessionError
from .console import console

if TYPE_CHECKING:
    from ..editors.requests import Request
    from ..session.gguf import Exported
    from ..session.lora import Adapter
    from ..session.session import Session

_FEW = 10
"""Facts that an adapter's rank has lost are named, up to so many."""

FAILED = 3
"""The exit code if a fact is not said in the end."""

SESSION, PATCH, LORA, MODEL, GGUF = "session", "patch.safetensors", "lora", "model", "gguf.json"


@dataclass(frozen=True)
class Gguf:
    """A GGUF file to write, and the type of its edited tensors; None: whatever keeps the facts."""

    path: Path
    kind: str | None = None


def export(
    session: Session,
    out: Path,
    *,
    lora: bool = False,
    whole: bool = False,
    rank: int | None = None,
    gguf: Gguf | None = None,
) -> Sequence[Request]:
    """Finish the sequence, write the files that people use, and say what they are. Returns the facts that an adapter's
    rank or a GGUF file's type has lost.

    What is there already is written anew too, a GGUF file if it is still where it was; an adapter keeps the rank that
    was chosen for it, and the base model's name on the Hub.
    """
    from ..model.origin import Origin
    from ..session.lora import chosen_rank, hub_base

    session.finish()
    lora, whole = lora or (out / LORA).exists(), whole or (out / MODEL).exists()
    session.to_patch(out / PATCH)
    written = {out / PATCH: "the edit, for `alphaedit apply` and `--revert`"}
    written[out / SESSION] = "to go on, or `alphaedit undo`"
    adapter, exported = None, None
    if lora and session.facts:
        base = None if Origin.of(session.model).on_hub else hub_base(out / LORA)
        adapter = session.to_lora(out / LORA, rank=rank or chosen_rank(out / LORA), base_model=base)
        written[out / LORA] = _adapter_in_words(adapter)
    elif lora:
        shutil.rmtree(out / LORA, ignore_errors=True)
    if whole:
        session.to_model(out / MODEL)
        written[out / MODEL] = "ordinary model folder"
    if (gguf := gguf or _remembered(out)) is not None:
        exported = session.to_gguf(gguf.path, kind=gguf.kind)
        _remember(out, gguf)
        written[gguf.path] = _gguf_in_words(exported)
    console.print(session.report())
    for place, meaning in written.items():
        console.print(f"{escape(str(place))}: {escape(meaning)}")
    return [*_lost_by_rank(adapter, out), *_lost_by_type(exported)]


def _lost_by_rank(adapter: Adapter | None, out: Path) -> list[Request]:
    from ..session.card import CARD

    lost = adapter.lost if adapter is not None else []
    for verdict in lost[:_FEW]:
        now = f"{verdict.request.text} → {verdict.request.target_new}: {' '.join(verdict.now.words.split())!r}"
        console.print(f"[red]✗[/red] lost by this rank: {escape(now)}")
    if len(lost) > _FEW:
        console.print(f"… and {len(lost) - _FEW} more, in {escape(str(out / LORA / CARD))}")
    return [verdict.request for verdict in lost]


def _lost_by_type(exported: Exported | None) -> Sequence[Request]:
    lost = exported.lost if exported is not None else ()
    for request in lost:
        console.print(f"[red]✗[/red] lost in the GGUF file: {escape(request.text)} → {escape(request.target_new)}")
    return lost


def _adapter_in_words(adapter: Adapter) -> str:
    from ..session.card import held

    verdicts = adapter.verdicts
    said = len(verdicts) - len(verdicts.failed)
    return f"PEFT adapter, rank {adapter.rank}, {held(adapter)}; with it {said} of {len(verdicts)} facts are said"


def _gguf_in_words(exported: Exported) -> str:
    if not exported.kinds:
        return "GGUF, as the unedited one"
    kinds = ", ".join(sorted(set(exported.kinds.values())))
    return (
        f"GGUF for llama.cpp and Ollama, {len(exported.kinds)} tensors replaced ({kinds}, relative error at most "
        f"{max(exported.errors.values()):.1e})"
    )


def _remembered(out: Path) -> Gguf | None:
    """The GGUF file that was written last, if it is still there."""
    from ..storage.json_file import read_json
    from ..storage.shape import check_shape

    if not (out / GGUF).exists():
        return None
    values = read_json(out / GGUF, SessionError)
    check_shape(values, {"path": str, "kind": (str, None)}, str(out / GGUF), SessionError)
    found = Gguf(Path(values["path"]), values["kind"])
    return found if found.path.is_file() else None


def _remember(out: Path, gguf: Gguf) -> None:
    from ..storage.json_file import write_json

    write_json(out / GGUF, {"path": str(gguf.path), "kind": gguf.kind}, SessionError)
