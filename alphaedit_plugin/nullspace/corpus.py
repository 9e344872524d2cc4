"""Where text comes from: files, folders or data sets."""

from __future__ import annotations

import itertools
import json
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import CorpusError
from ..model.sampling import SEED

log = logging.getLogger(__name__)

WINDOW = 256
_CHARACTERS_PER_TOKEN = 8
_SUFFIXES = (".txt", ".md", ".jsonl", ".json")


def documents(source: str | Path, *, window: int = WINDOW, seed: int = SEED) -> Iterator[str]:
    """Texts of a corpus, in an order that depends only on `seed`.

    `source` is a text file (cut into pieces, so that a budget samples all of it), a JSONL file (one object with a
    "text" per line), a folder of these, or the name of a Hugging Face data set with a "text" column (`name` or
    `name:configuration`; its train split).

    Raises CorpusError, naming file and line, if the corpus or a line of it is missing, empty or malformed.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
        if not files:
            raise CorpusError(f"{path} holds no .txt, .md or .jsonl file")
        return _of_files(files, window, seed)
    if path.is_file():
        return _of_files([path], window, seed)
    if path.suffix.lower() in _SUFFIXES or str(source).startswith((".", "/", "~")):
        raise CorpusError(f"there is no corpus at {source}: give a text file, a folder, a .jsonl or a data set's name")
    return _of_data_set(str(source), seed)


def _of_files(files: Sequence[Path], window: int, seed: int) -> Iterator[str]:
    """Pieces (file, first byte, last byte) are shuffled and read only when their turn comes."""
    pieces: list[tuple[Path, int, int]] = []
    for file in files:
        try:
            if file.suffix.lower() in (".jsonl", ".json"):
                pieces += _lines(file)
            else:
                pieces += _stretches(file, window * _CHARACTERS_PER_TOKEN)
        except OSError as failure:
            raise CorpusError(f"cannot read {file}: {failure}") from failure
    if not pieces:
        raise CorpusError(f"there is no text in {files[0] if len(files) == 1 else files[0].parent}")
    random.Random(seed).shuffle(pieces)
    blank = True
    for file, start, end in pieces:
        with file.open("rb") as stream:
            stream.seek(start)
            raw = stream.read(end - start)
        json_lines = file.suffix.lower() in (".jsonl", ".json")
        text = _text_of(raw, file, start) if json_lines else _trimmed(raw, start, whole_end=end == file.stat().st_size)
        blank = blank and not text.strip()
        yield text
    if blank:
        raise CorpusError(f"there is no text in {files[0] if len(files) == 1 else files[0].parent}")


def _lines(file: Path) -> list[tuple[Path, int, int]]:
    spans, position = [], 0
    with file.open("rb") as stream:
        for line in stream:
            if line.strip():
                spans.append((file, position, position + len(line)))
            position += len(line)
    return spans


def _stretches(file: Path, size: int) -> list[tuple[Path, int, int]]:
    length = file.stat().st_size
    return [(file, start, min(start + size, length)) for start in range(0, length, size)]


def _text_of(raw: bytes, file: Path, start: int) -> str:
    try:
        record = json.loads(raw)
        text = record["text"]
        if not isinstance(text, str):
            raise TypeError(f"its text is a {type(text).__name__}")
        text.encode("utf-8")  # half a character, of which no tokenizer makes tokens
    except (ValueError, KeyError, TypeError, RecursionError) as failure:
        with file.open("rb") as stream:
            line = stream.read(start).count(b"\n") + 1
        raise CorpusError(
            f'{file}, line {line}: not a JSON object with a "text" ({failure!r}). Mend or remove the line'
        ) from failure
    return text


def _trimmed(raw: bytes, start: int, *, whole_end: bool) -> str:
    """A stretch without the half words at its ends."""
    text = raw.decode("utf-8", errors="ignore")
    if start:
        text = text.partition(" ")[2] or text
    return text if whole_end else text.rpartition(" ")[0] or text


def _of_data_set(name: str, seed: int) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError as failure:
        raise CorpusError(
            f"{name!r} is no file or folder; to use it as the name of a Hugging Face data set, install the extra: "
            "pip install 'alphaedit-plugin[evaluation]'"
        ) from failure
    path, _, configuration = name.partition(":")
    try:
        data = load_dataset(path, configuration or None, split="train").shuffle(seed=seed)
    except Exception as failure:  # hub, network and format errors share no type
        raise CorpusError(f"cannot load the data set {name!r}: {failure}") from failure
    if "text" not in data.column_names:
        raise CorpusError(f"the data set {name!r} has no column 'text', only {data.column_names}")
    return (record["text"] for record in data)


def windows(texts: Iterable[str], tokenizer: Any, budget: int, *, window: int = WINDOW) -> list[list[int]]:
    """Token sequences of at most `window` tokens each and `budget` tokens in all.

    Each text is cut into windows, and each window begins with the tokenizer's BOS if it has one. Texts are never
    joined, so that a token sees only what it would see in use. Raises CorpusError if there is no text at all; warns if
    there is less than the budget.
    """
    special = set(tokenizer.all_special_ids)
    chosen: list[list[int]] = []
    have = 0
    for text in texts:
        ids = tokenizer(text, verbose=False)["input_ids"] if text.strip() else []
        opening = list(itertools.takewhile(special.__contains__, ids))[: window - 1]
        step = window - len(opening)
        for start in range(len(opening), len(ids), step):
            piece = [*opening, *ids[start : start + step]][: budget - have]
            if piece:
                chosen.append(piece)
                have += len(piece)
        if have >= budget:
            break
    if not have:
        raise CorpusError("the corpus holds no text")
    if have < budget:
        log.warning("the corpus holds only %d of the %d tokens asked for", have, budget)
    return chosen
