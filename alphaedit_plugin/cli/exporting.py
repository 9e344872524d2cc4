"""What `alphaedit edit` and `undo` leave in their folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from .console import console

if TYPE_CHECKING:
    from ..session.lora import Adapter
    from ..session.session import Session

_FEW = 10
"""Facts that an adapter's rank has lost are named, up to so many."""

SESSION, PATCH, LORA, MODEL = "session", "patch.safetensors", "lora", "model"


def export(
    session: Session, out: Path, *, lora: bool = False, whole: bool = False, rank: int | None = None
) -> Adapter | None:
    """Finish the sequence, write the files that people use, and say what they are. Returns the adapter, if any.

    What is there already is written anew too; an adapter keeps the rank that was chosen for it, and the base model's
    name on the Hub.
    """
    from ..model.origin import Origin
    from ..session.card import CARD
    from ..session.lora import chosen_rank, hub_base

    session.finish()
    lora, whole = lora or (out / LORA).exists(), whole or (out / MODEL).exists()
    session.to_patch(out / PATCH)
    written = {PATCH: "the edit, for `alphaedit apply` and `--revert`", SESSION: "to go on, or `alphaedit undo`"}
    adapter = None
    if lora and session.facts:
        base = None if Origin.of(session.model).on_hub else hub_base(out / LORA)
        adapter = session.to_lora(out / LORA, rank=rank or chosen_rank(out / LORA), base_model=base)
        written[LORA] = _in_words(adapter)
    elif lora:
        shutil.rmtree(out / LORA, ignore_errors=True)
    if whole:
        session.to_model(out / MODEL)
        written[MODEL] = "ordinary model folder"
    console.print(session.report())
    for name, meaning in written.items():
        console.print(f"{escape(str(out / name))}: {escape(meaning)}")
    lost = adapter.lost if adapter is not None else []
    for verdict in lost[:_FEW]:
        now = f"{verdict.request.text} → {verdict.request.target_new}: {' '.join(verdict.now.words.split())!r}"
        console.print(f"[red]✗[/red] lost by this rank: {escape(now)}")
    if len(lost) > _FEW:
        console.print(f"… and {len(lost) - _FEW} more, in {escape(str(out / LORA / CARD))}")
    return adapter


def _in_words(adapter: Adapter) -> str:
    from ..session.card import held

    verdicts = adapter.verdicts
    said = len(verdicts) - len(verdicts.failed)
    return f"PEFT adapter, rank {adapter.rank}, {held(adapter)}; with it {said} of {len(verdicts)} facts are said"
