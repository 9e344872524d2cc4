"""What `alphaedit push` and `alphaedit edit --push` do."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from ..errors import HubError
from .console import console
from .exporting import LORA, MODEL


def check(repository: str, model: str, out: Path, *, lora: bool) -> None:
    """Raises HubError if what `alphaedit edit` is about to write could not be published there."""
    from ..model.origin import Origin
    from ..session.card import MARK
    from ..session.lora import hub_base
    from ..storage.hub import Repository

    if lora and not Origin.named(model).on_hub and hub_base(out / LORA) is None:
        raise HubError(
            f"an adapter of {model} serves nobody who does not have that: edit first, write the model's name on the "
            f"Hub into {out / LORA / 'adapter_config.json'}, and then `alphaedit push`; or publish the model, without "
            "--lora"
        )
    Repository(repository, MARK).check()


def publish(folder: Path, repository: str, *, public: bool) -> None:
    """Publish the one model or adapter that is in a folder, or is the folder, and say where it is.

    Raises HubError if there is none, or more than one, or if others could not load it.
    """
    from ..session.card import MARK
    from ..storage.hub import Repository

    chosen = _chosen(folder)
    with console.status(f"publishing {escape(str(chosen))}"):
        address, private = Repository(repository, MARK).publish(chosen, private=not public)
    who = "privately" if private else "for everybody"
    console.print(f"{escape(str(chosen))} is published, {who}: {escape(address)}")


def _chosen(folder: Path) -> Path:
    """The folder that holds a model or an adapter of ours."""
    from ..session.card import CARD, is_ours
    from ..session.lora import CONFIG, hub_base

    found = [each for each in (folder, folder / MODEL, folder / LORA) if is_ours(each)]
    if not found:
        raise HubError(
            f"{folder} holds no model and no adapter that `alphaedit edit` wrote: there is no {CARD} of ours"
        )
    if len(found) > 1:
        raise HubError(f"{folder} holds several: name {' or '.join(map(str, found))}")
    config = found[0] / CONFIG
    if config.is_file() and hub_base(found[0]) is None:
        raise HubError(
            f"{config} names a base model that others do not have: write its name on the Hub there, and as "
            f"`base_model:` at the top of {found[0] / CARD}"
        )
    return found[0]
