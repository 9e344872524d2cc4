"""What `alphaedit edit` and `undo` leave in their folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from .console import console

if TYPE_CHECKING:
    from ..session.session import Session

SESSION, PATCH, LORA, MODEL = "session", "patch.safetensors", "lora", "model"


def export(session: Session, out: Path, *, lora: bool = False, whole: bool = False) -> None:
    """Finish the sequence, write the files that people use, and say what they are."""
    from ..model.loading import save_model

    session.finish()
    lora, whole = lora or (out / LORA).exists(), whole or (out / MODEL).exists()  # what is there already is updated too
    session.to_patch(out / PATCH)
    written = {PATCH: "the edit, for `alphaedit apply` and `--revert`", SESSION: "to go on, or `alphaedit undo`"}
    if lora and session.facts:
        ranks = session.to_lora(out / LORA)
        written[LORA] = f"PEFT adapter, rank {max(ranks.values())}"
    elif lora:
        shutil.rmtree(out / LORA, ignore_errors=True)
    if whole:
        save_model(session.model, session.tokenizer, out / MODEL)
        written[MODEL] = "ordinary model folder"
    console.print(session.report())
    for name, meaning in written.items():
        console.print(f"{escape(str(out / name))}: {escape(meaning)}")
