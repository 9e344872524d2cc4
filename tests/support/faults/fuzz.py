"""Records and files that nobody meant: wrong types, hostile text, nested, endless."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from alphaedit_plugin import AlphaEditError, Hyperparameters, Session, Variant, load_facts
from alphaedit_plugin.editors.hyperparameters import parse_criterion
from alphaedit_plugin.editors.requests import parse_requests
from support.scoring import RECORD
from support.weights import everything

from . import bench
from .kind import Kind

TEXTS = (
    "", " ", "{}", "{} {}", "{", "{0}", "%s", "\x00", "a\x00b", "\x1b[2J\x1b]0;x\x07", "\ud800", "a\udfffb",
    "\u202eabc", "عاصمة فرنسا", "🗼👩‍🔬", "e\u0301" * 50, "\ufeff", "\r\n\u2028", "x" * 10_000, "<s></s>",
    "../../x", "'; --", "NaN", "null", "1e400", "The capital of {} is", "France", "Rome", " Rome ", "\u00a0",
    "\u200b",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2**63, 10**400, -(10**30), 0.0, -0.0, float("nan"), float("inf"), 1e-320, True, False, None)
YAML = (
    "layers: !!int x", "layers: !!float nan.", "layers: !!timestamp 99", "&a [*a]", "a: &a\n  b: *a",
    "layers: [" * 2000, "{" * 2000, "layers: !!python/object/apply:os.system ['true']", "\x00",
    "layers: [4]\nlayers: [5]", "? [a]\n: b", "- 1", "layers: 1e400", "layers: 0x" + "f" * 500,
    "%YAML 9.9\n---\na: b", "\ud800", "layers: !!binary x", "!!set {a}", "layers: !!omap 3", "v_lr: .nan",
    "v_lr: 1_0", "layers: 2020-99-99", "<<: 3", "null_space: {threshold: [1]}",
)  # fmt: skip


def value(chance: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can hold, and more."""
    kind = chance.randrange(8 if depth < 4 else 5)
    if kind < 3:
        return chance.choice(TEXTS)
    if kind < 5:
        return chance.choice(NUMBERS)
    if kind == 5:
        return [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    if kind == 6:
        return {chance.choice(TEXTS): value(chance, depth + 1) for _ in range(chance.randrange(4))}
    deep: Any = "x"
    for _ in range(chance.choice((3, 100, 200))):  # what JSON can be decoded into
        deep = [deep]
    return deep


def record(chance: random.Random, depth: int = 0) -> Any:
    """A valid record with some of its fields replaced, missing or added; sometimes no record at all."""
    if chance.random() < 0.1:
        return value(chance)
    found = json.loads(json.dumps(chance.choice((RECORD, bench.FACTS[0], bench.FACTS[1]))))
    for _ in range(chance.randrange(4)):
        place = found["requested_rewrite"] if found.get("requested_rewrite") and chance.random() < 0.6 else found
        key = chance.choice(sorted(place, key=str))
        way = chance.randrange(4)
        if way == 0:
            del place[key]
            if not place:
                break
        elif way == 1:
            place[chance.choice(TEXTS)] = value(chance)
        elif way == 2 and isinstance(place[key], str):
            cut = chance.randrange(len(place[key]) + 1)
            place[key] = place[key][:cut] + chance.choice(TEXTS) + place[key][cut:]
        else:
            place[key] = value(chance)
        if not isinstance(found.get("requested_rewrite", {}), dict):
            break
    return found


class Fuzz(Kind):
    name = "fuzz"
    promise = "a record or file that cannot be used is an error of ours, and the model is untouched"
    full = 10_000

    def attempt(self, seed: int, place: Path) -> int:
        chance = random.Random(seed)
        name, sink = chance.choices(list(SINKS.items()), list(WEIGHTS.values()))[0]
        try:
            sink(self, chance, place)
        except AlphaEditError:
            return 1
        except AssertionError:
            raise
        except Exception as failure:
            raise AssertionError(f"{name}: {type(failure).__name__}: {str(failure)[:120]}") from failure
        return 1

    @functools.cached_property
    def session(self) -> tuple[Session, dict]:
        session = bench.new_session()
        return session, everything(session.model)


def requests(_kind: Fuzz, chance: random.Random, _place: Path) -> None:
    parse_requests([record(chance) for _ in range(chance.choice((0, 1, 1, 2)))])


def facts(_kind: Fuzz, chance: random.Random, place: Path) -> None:
    path = place / chance.choice(("facts.json", "facts.jsonl"))
    records = [record(chance) for _ in range(chance.choice((0, 1, 2)))]
    text = written(records) if path.suffix == ".json" else "\n".join(map(written, records))
    if chance.random() < 0.1:
        text = chance.choice(("[" * 100_000, '{"a":' * 50_000, "", "[", "\ufeff[]", "NaN", text[: len(text) // 2]))
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    load_facts(path)


def written(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (RecursionError, ValueError):
        return "[" * 5000 + "]" * 5000


def hyperparameters(_kind: Fuzz, chance: random.Random, place: Path) -> None:
    path = place / "hparams.yaml"
    base: dict[str, Any] = {"layers": [1, 2], "v_lr": 0.1, "clamp_norm_factor": 0.75, "null_space": {"threshold": 0.02}}
    text = chance.choice(YAML)
    if chance.random() < 0.7:
        for _ in range(chance.randrange(1, 3)):
            base[chance.choice([*base, chance.choice(TEXTS)])] = value(chance)
        try:
            text = yaml.safe_dump(base, allow_unicode=True)
        except (RecursionError, ValueError, UnicodeError):
            text = written(base)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    Hyperparameters.from_yaml(path)


def criterion(_kind: Fuzz, chance: random.Random, _place: Path) -> None:
    keys = ("threshold", "energy", "nullity", chance.choice(TEXTS))
    given = {chance.choice(keys): value(chance)} if chance.random() < 0.7 else value(chance)
    parse_criterion(given, "null_space")


def names(_kind: Fuzz, chance: random.Random, _place: Path) -> None:
    parts = ("alphaedit", "memit", "+P", "+", "@", "@layers=1", "@v_lr=", "=", ",", *TEXTS)
    Variant.parse("".join(chance.choice(parts) for _ in range(chance.randrange(5))))


def edits(kind: Fuzz, chance: random.Random, _place: Path) -> None:
    """Where the records can be edited, they are, and taken back."""
    session, start = kind.session
    try:
        session.edit([record(chance)], on_failure=chance.choice(("report", "ignore", "raise")))
    except BaseException:
        assert not session.facts, "refused, but in the history"
        raise
    else:
        session.undo()
    finally:
        if not bench.same(everything(session.model), start):
            del kind.session
            raise AssertionError("the model was changed")


SINKS: dict[str, Callable[[Fuzz, random.Random, Path], None]] = {
    "requests": requests,
    "facts": facts,
    "hyperparameters": hyperparameters,
    "criterion": criterion,
    "names": names,
    "edit": edits,
}
WEIGHTS = {"requests": 44, "facts": 29, "hyperparameters": 5, "criterion": 9, "names": 10, "edit": 3}
