"""Damaged files: a bit flipped, cut short, a piece twice, nothing left, or another valid file of the same kind."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from alphaedit_plugin import AlphaEditError, Hyperparameters, NullSpaces, apply_patch, load_facts
from alphaedit_plugin.comparison.run_folder import read_run
from alphaedit_plugin.evaluation.fact_scores import FactScores
from alphaedit_plugin.evaluation.measure import Estimate, Measured
from alphaedit_plugin.storage.store import Store
from support.comparing import compared, facts_of, timeless
from support.scoring import RECORD
from support.tiny import tiny
from support.tokenizer import VOCABULARY
from support.weights import everything

from . import bench
from .kind import Kind


def damage(content: bytes, chance: random.Random, other: bytes | None) -> bytes:
    """The content with one fault; `other` is that of another valid file."""
    ways = ["bit"] * 6 + ["cut", "cut", "twice", "empty"] + ["other"] * (other is not None)
    way, place = chance.choice(ways), chance.randrange(max(1, len(content)))
    if way == "bit" and content:
        changed = bytearray(content)
        changed[place] ^= 1 << chance.randrange(8)
        return bytes(changed)
    if way == "cut":
        return content[:place]
    if way == "twice":
        return content[:place] + content[place : place + chance.randrange(1, 200)] + content[place:]
    return other if way == "other" and other is not None else b""


class Flips(Kind):
    """A kind of file. A valid folder (or file) of it is made once; each attempt damages a copy and reads it."""

    full = 1000
    promise = "a damaged file is an error of ours that names it, or reads as the undamaged one"
    file: ClassVar[str]
    """Which files are damaged: a pattern below the folder."""
    swapped = True
    """Whether another valid file in its place is a fault that must be noticed."""

    @abstractmethod
    def make(self, folder: Path, number: int) -> None:
        """A valid folder; number 0 is the one that is damaged, 1 gives the other files."""

    @abstractmethod
    def read(self, folder: Path) -> Any:
        """What the folder says; may raise an AlphaEditError."""

    def right(self, found: Any, expected: Any) -> bool:
        return found == expected

    @functools.cached_property
    def masters(self) -> tuple[Path, Path]:
        found = self.shared / "0", self.shared / "1"
        for number, folder in enumerate(found):
            folder.mkdir()
            self.make(folder, number)
        return found

    @functools.cached_property
    def expected(self) -> Any:
        copied = self.shared / "read"
        shutil.copytree(self.masters[0], copied)
        return self.read(copied)

    def attempt(self, seed: int, place: Path) -> int:
        chance = random.Random(seed)
        master, another = self.masters
        expected = self.expected
        folder = place / "damaged"
        shutil.copytree(master, folder)
        file = chance.choice(sorted(folder.rglob(self.file)))
        within = file.relative_to(folder)
        other = (another / within) if self.swapped and (another / within).exists() else None
        content = file.read_bytes()
        file.write_bytes(damage(content, chance, other.read_bytes() if other else None))
        try:
            found = self.read(folder)
        except AlphaEditError as failure:
            said = str(failure)
        else:
            assert self.right(found, expected), f"{within}: silently another result"
            return 1
        named = (str(file), file.name, str(file.parent), str(folder / "session"))
        assert any(name in said for name in named), f"the error does not name {within}: {said}"
        return 1


# --------------------------------------------------------------------------------------------- a session's files


class OfSession(Flips):
    """The session, and the same session after one more edit: some damage shows only then."""

    def make(self, folder: Path, number: int) -> None:
        session = bench.new_session(method="memit+P", nullity=15 - number)
        first = 3 * number
        bench.edit(session, *bench.FACTS[first : first + 3])
        session.save(folder / "session")
        if number:  # another tokenizer, as another model's session would have
            bench.tokenizer_of(False).save_pretrained(folder / "session" / "tokenizer")

    def read(self, folder: Path) -> Any:
        session = bench.resume(folder / "session")
        try:
            stood = (bench.cases(session), [vars(fact) for fact in session.facts], everything(session.model))
            try:
                bench.edit(session, bench.FACTS[9])
            except AlphaEditError as failure:
                raise AssertionError(f"it resumed, but cannot go on: {failure}") from failure
            return *stood, everything(session.model), session.hyperparameters, str(session.variant)
        finally:
            bench.close(session)

    def right(self, found: Any, expected: Any) -> bool:
        tensors = all(bench.same(found[place], expected[place]) for place in (2, 3))
        return tensors and found[:2] + found[4:] == expected[:2] + expected[4:]


class Manifests(OfSession):
    name, file = "flips/session.json", "session.json"


class Batches(OfSession):
    name, file = "flips/batches", "00000?.safetensors"


class SavedSpaces(OfSession):
    name, file = "flips/null spaces", "null_spaces.safetensors"


class SavedCovariances(OfSession):
    name, file = "flips/covariances", "covariances.safetensors"


class SavedTokenizers(OfSession):
    name, file = "flips/tokenizer", "tokenizer*.json"


# --------------------------------------------------------------------------------------------- files of their own


class Patches(Flips):
    name, file, swapped = "flips/patch", "patch.safetensors", False

    def make(self, folder: Path, number: int) -> None:
        session = bench.new_session()
        bench.edit(session, bench.FACTS[number])
        session.to_patch(folder / "patch.safetensors")

    def read(self, folder: Path) -> Any:
        model = bench.new_model()
        before = everything(model)
        try:
            apply_patch(model, folder / "patch.safetensors")
        except BaseException:
            assert bench.same(everything(model), before), "the patch was refused, but the model was changed"
            raise
        return everything(model)

    def right(self, found: Any, expected: Any) -> bool:
        return bench.same(found, expected)


class SpacesFiles(Flips):
    name, file, swapped = "flips/prepared null spaces", "spaces.safetensors", False

    def make(self, folder: Path, number: int) -> None:
        bench.spaces_of(15 - number).save(folder / "spaces.safetensors")

    def read(self, folder: Path) -> Any:
        spaces = NullSpaces.load(folder / "spaces.safetensors")
        return {layer: (space.side, space.factor.tolist()) for layer, space in spaces.items()}, dict(spaces.provenance)


class CacheEntries(Flips):
    name, file = "flips/cache", "*.safetensors"
    promise = "a damaged entry of the cache counts as absent, whatever lies in its place"
    recipe: ClassVar[Mapping[str, Any]] = {"model": "tiny", "number": 0}

    def make(self, folder: Path, number: int) -> None:
        store = Store(folder)
        store.put("covariance", {**self.recipe, "number": number}, {"total": torch.arange(50.0) + number})
        if number:  # where the other's would lie
            os.replace(
                store.path("covariance", {**self.recipe, "number": number}), store.path("covariance", self.recipe)
            )

    def read(self, folder: Path) -> Any:
        made = []

        def make(_missing: list[int]) -> dict[int, dict[str, torch.Tensor]]:
            made.append(1)
            return {0: {"total": torch.arange(50.0)}}

        return Store(folder).get_or_make("covariance", {0: self.recipe}, make)[0]["total"].tolist()


class ForHumans(Flips):
    """Another content may be valid too: what counts is that no other error comes out."""

    swapped = False
    promise = "a damaged file is an error of ours, or a valid file"

    def right(self, found: Any, expected: Any) -> bool:
        return type(found) is type(expected)


class HparamsFiles(ForHumans):
    name, file = "flips/hparams.yaml", "hparams.yaml"

    def make(self, folder: Path, number: int) -> None:
        text = "layers: [4, 5, 6]\nv_lr: 0.1\nclamp_norm_factor: 0.75\nmom2_update_weight: 15000\nL2: 10\n"
        text += 'rewrite_module_tmp: "model.layers.{}.mlp.down_proj"\nnull_space:\n  threshold: 2e-2\n'
        (folder / "hparams.yaml").write_text(text, encoding="utf-8")

    def read(self, folder: Path) -> Any:
        return Hyperparameters.from_yaml(folder / "hparams.yaml")


class FactsFiles(ForHumans):
    name, file = "flips/facts.json", "facts.json"

    def make(self, folder: Path, number: int) -> None:
        (folder / "facts.json").write_text(json.dumps([RECORD] * 2, ensure_ascii=False), encoding="utf-8")

    def read(self, folder: Path) -> Any:
        return load_facts(folder / "facts.json")


# --------------------------------------------------------------------------------------------- a run's files


class Taste:
    """A measure that also has tensors."""

    name = "taste"

    def identity(self) -> Mapping[str, Any]:
        return {"tastes": 1}

    def __call__(self, model: Any, tokenizer: Any, facts: Any, before: Any, *, progress: bool = False) -> Measured:
        weight = model.model.layers[1].mlp.down_proj.weight.detach()
        return Measured({"perplexity": Estimate(float(weight.double().abs().sum()))}, [], {"row": weight[0].clone()})


def run_of(folder: Path | None, number: int = 0, **options: Any) -> Any:
    """A comparison of two methods; with another `number`, of other facts."""
    model = tiny("llama", vocab_size=VOCABULARY)
    facts = facts_of(4)[:2] if number == 0 else facts_of(4)[2:]
    methods = ["memit", "rect"]
    return compared(
        model,
        bench.tokenizer_of(),
        methods,
        facts=facts,
        measures=[FactScores(), Taste()],
        every=1,
        batch_size=1,
        folder=folder,
        **options,
    )


def rows_of(comparison: Any, *, timed: bool = False) -> dict[tuple[str, int], str]:
    """Everything that was found, by row; as text, so that nan is nan."""
    found = {}
    for row in comparison.rows:
        row = row if timed else timeless(row)
        measured = {
            name: (each.estimates, each.records, {key: tensor.tolist() for key, tensor in each.tensors.items()})
            for name, each in row.measured.items()
        }
        found[row.variant, row.edits] = repr((measured, row.seconds, row.drift, row.leakage))
    return found


class OfRun(Flips):
    promise = "a damaged file of a run is named, or its measurement is missing; never is it believed"

    def make(self, folder: Path, number: int) -> None:
        run_of(folder / "run" / "cell", number)

    def read(self, folder: Path) -> Any:
        (comparison,) = read_run(folder / "run")
        rows = {}
        for row in comparison.rows:
            for name, each in row.measured.items():
                tensors = {key: tensor.tolist() for key, tensor in each.tensors.items()}
                rows[row.variant, row.edits, name] = repr((each.estimates, each.records, tensors))
            rows[row.variant, row.edits, "weights"] = repr((row.seconds, row.drift, row.leakage))
        settings = {key: value for key, value in comparison.settings.items() if key != "order"}
        return rows, repr(settings)

    def right(self, found: Any, expected: Any) -> bool:
        return found[1] == expected[1] and found[0].items() <= expected[0].items()


class RunWeights(OfRun):
    name, file = "flips/weights.json", "weights.json"


class RunMeasures(OfRun):
    name, file = "flips/MEASURE.json", "facts.json"


class RunRecords(OfRun):
    name, file = "flips/MEASURE.jsonl", "facts.jsonl"


class RunTensors(OfRun):
    name, file = "flips/MEASURE.safetensors", "taste.safetensors"


class RunSettings(OfRun):
    name, file = "flips/settings.json", "settings.json"
    swapped = False  # it says itself which run it is


class RunAgain(OfRun):
    name, file, full = "flips/run again", "*.json*", 60
    promise = "a comparison that finds a damaged file in its folder measures again, with the right result"

    def read(self, folder: Path) -> Any:
        return rows_of(run_of(folder / "run" / "cell"))

    def right(self, found: Any, expected: Any) -> bool:
        return found == expected


FLIPS: tuple[type[Flips], ...] = (
    Manifests,
    Batches,
    SavedSpaces,
    SavedCovariances,
    SavedTokenizers,
    Patches,
    SpacesFiles,
    CacheEntries,
    HparamsFiles,
    FactsFiles,
    RunSettings,
    RunWeights,
    RunMeasures,
    RunRecords,
    RunTensors,
    RunAgain,
)
