"""A disk that is full: no file may grow beyond a random size (RLIMIT_FSIZE, as for a quota)."""

from __future__ import annotations

import functools
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from alphaedit_plugin import AlphaEditError, write_report
from alphaedit_plugin.model.loading import save_model
from alphaedit_plugin.report.export import export
from alphaedit_plugin.storage.store import Store
from support.comparisons import comparison
from support.weights import everything

from . import bench
from .flips import run_of
from .kind import Kind


@dataclass
class Writing:
    """A call that writes into a folder, the size of what it writes, and the model that it must leave as it was."""

    call: Callable[[], object]
    size: int
    model: nn.Module | None = None


class Fullness(Kind):
    name = "full disk"
    promise = "where nothing can be written there is an error of ours; model and files are as before, without litter"
    full = 300

    def attempt(self, seed: int, place: Path) -> int:
        ended, said = bench.Child(functools.partial(self._fill, seed, place)).join()
        assert ended, said
        return 1

    def _fill(self, seed: int, place: Path) -> None:
        chance = random.Random(seed)
        names = list(WRITINGS)
        name = names[seed % len(names)]
        folder = place / "folder"
        writing = WRITINGS[name](self, folder)
        model = None if writing.model is None else everything(writing.model)
        before = bench.content(folder)
        limit = int(writing.size ** chance.random())
        failure: BaseException | None = None
        with no_larger_than(limit):
            try:
                writing.call()
            except BaseException as raised:
                failure = raised
        if failure is None:
            return  # everything was small enough
        said = f"{name}, at most {limit} bytes: {type(failure).__name__}: {failure}"
        assert isinstance(failure, AlphaEditError), said
        if writing.model is not None:
            assert bench.same(everything(writing.model), model), f"{said}; the model was changed"
        now = bench.content(folder)
        changed = [file for file in before if now.get(file) != before[file]]
        assert not changed, f"{said}; these files are no longer as they were: {changed}"
        assert not bench.litter(place), f"{said}; litter: {bench.litter(place)}"
        if name in ("first autosave", "save"):
            assert not (folder / "session.json").exists(), f"{said}; but there is a session"


@contextmanager
def no_larger_than(limit: int) -> Iterator[None]:
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


# ------------------------------------------------------------------------------------------------- the calls

WRITINGS: dict[str, Callable[[Fullness, Path], Writing]] = {}


def writing(name: str) -> Callable[[Callable], Callable]:
    def registered(make: Callable) -> Callable:
        WRITINGS[name] = make
        return make

    return registered


@writing("first autosave")
def first_autosave(_kind: Fullness, folder: Path) -> Writing:
    session = bench.new_session(autosave=folder)
    return Writing(lambda: bench.edit(session, bench.FACTS[0]), 40_000, session.model)


@writing("later autosave")
def later_autosave(_kind: Fullness, folder: Path) -> Writing:
    session = bench.new_session(autosave=folder)
    bench.edit(session, bench.FACTS[0])
    return Writing(lambda: bench.edit(session, bench.FACTS[1]), 5_000, session.model)


@writing("save")
def save(_kind: Fullness, folder: Path) -> Writing:
    session = edited()
    return Writing(lambda: session.save(folder), 40_000, session.model)


@writing("patch")
def patch(_kind: Fullness, folder: Path) -> Writing:
    session = edited()
    return Writing(lambda: session.to_patch(folder / "patch.safetensors"), 5_000, session.model)


@writing("patch over another")
def patch_again(_kind: Fullness, folder: Path) -> Writing:
    session = edited()
    session.to_patch(folder / "patch.safetensors")
    bench.edit(session, bench.FACTS[1])
    return Writing(lambda: session.to_patch(folder / "patch.safetensors"), 5_000, session.model)


@writing("lora")
def lora(_kind: Fullness, folder: Path) -> Writing:
    session = edited()
    return Writing(lambda: session.to_lora(folder), 2_000, session.model)


@writing("model folder")
def model_folder(_kind: Fullness, folder: Path) -> Writing:
    session = edited()
    return Writing(lambda: save_model(session.model, session.tokenizer, folder / "model"), 100_000, session.model)


@writing("model folder over another")
def model_folder_again(_kind: Fullness, folder: Path) -> Writing:
    session = edited()
    save_model(session.model, session.tokenizer, folder / "model")
    return Writing(lambda: save_model(session.model, session.tokenizer, folder / "model"), 100_000, session.model)


@writing("null spaces")
def null_spaces(_kind: Fullness, folder: Path) -> Writing:
    return Writing(lambda: bench.spaces_of().save(folder / "spaces.safetensors"), 5_000)


@writing("cache")
def cache(_kind: Fullness, folder: Path) -> Writing:
    def make(_missing: list[int]) -> dict[int, dict[str, torch.Tensor]]:
        return {0: {"total": torch.arange(500.0)}}

    return Writing(lambda: Store(folder).get_or_make("covariance", {0: {"a": 1}}, make), 3_000)


@writing("compare")
def compare(_kind: Fullness, folder: Path) -> Writing:
    return Writing(lambda: run_of(folder), 10_000)


@writing("tables")
def tables(_kind: Fullness, folder: Path) -> Writing:
    folder.mkdir()
    made = [comparison(["memit", "alphaedit"], [100], ["facts"])]
    return Writing(lambda: export(made, folder), 20_000)


@writing("report")
def report(_kind: Fullness, folder: Path) -> Writing:
    folder.mkdir()
    made = [comparison(["memit", "alphaedit"], [100], ["facts"])]
    return Writing(lambda: write_report(made, folder), 200_000)


def edited() -> bench.Session:
    session = bench.new_session()
    bench.edit(session, bench.FACTS[0])
    return session
