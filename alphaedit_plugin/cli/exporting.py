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
    from ..session.session import Session

SESSION, PATCH, LORA, MODEL, GGUF = "session", "patch.safetensors", "lora", "model", "gguf.json"


@dataclass(frozen=True)
class Gguf:
    """A GGUF file to write, and the type of its edited tensors; None: whatever keeps the facts."""

    path: Path
    kind: str | None = None


def export(
    session: Session, out: Path, *, lora: bool = False, whole: bool = False, gguf: Gguf | None = None
) -> Sequence[Request]:
    """Finish the sequence, write the files that people use, and say what they are.

    What was written before is written again, also a GGUF file that is still where it was. Returns the facts that were
    lost in it.
    """
    from ..model.loading import save_model
    from ..report.tables import session_table

    session.finish()
    lora, whole = lora or (out / LORA).exists(), whole or (out / MODEL).exists()  # what is there already is updated too
    session.to_patch(out / PATCH)
    written = {str(out / PATCH): "the edit, for `alphaedit apply` and `--revert`"}
    written[str(out / SESSION)] = "to go on, or `alphaedit undo`"
    if lora and session.facts:
        ranks = session.to_lora(out / LORA)
        written[str(out / LORA)] = f"PEFT adapter, rank {max(ranks.values())}"
    elif lora:
        shutil.rmtree(out / LORA, ignore_errors=True)
    if whole:
        save_model(session.model, session.tokenizer, out / MODEL)
        written[str(out / MODEL)] = "ordinary model folder"
    lost: Sequence[Request] = ()
    if (gguf := gguf or _remembered(out)) is not None:
        exported = session.to_gguf(gguf.path, kind=gguf.kind)
        _remember(out, gguf)
        written[str(gguf.path)] = _described(exported)
        lost = exported.lost
    console.print(session_table(session.report()))
    for place, meaning in written.items():
        console.print(f"{escape(place)}: {escape(meaning)}")
    for request in lost:
        console.print(f"[red]lost in the GGUF file:[/red] {escape(request.text)} → {escape(request.target_new)}")
    return lost


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


def _described(exported: Exported) -> str:
    if not exported.kinds:
        return "GGUF, as the unedited one"
    kinds = ", ".join(sorted(set(exported.kinds.values())))
    return (
        f"GGUF for llama.cpp and Ollama, {len(exported.kinds)} tensors replaced ({kinds}, relative error at most "
        f"{max(exported.errors.values()):.1e})"
    )
