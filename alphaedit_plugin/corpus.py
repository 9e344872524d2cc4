"""Where text comes from: files, folders, data sets, or the model itself."""

from __future__ import annotations

import itertools
import json
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .batches import Tokens
from .errors import CorpusError
from .modules import Decoder, eager_attention
from .precision import reduced_precision
from .trace import evaluating

log = logging.getLogger(__name__)

SEED = 0
WINDOW = 256
SELF_WRITTEN_WINDOW = 64
_CHARACTERS_PER_TOKEN = 8
_BLOCK = 256
_SUFFIXES = (".txt", ".md", ".jsonl", ".json")


def documents(source: str | Path, *, window: int = WINDOW, seed: int = SEED) -> Iterator[str]:
    """Texts of a corpus in an order that only `seed` decides.

    `source` is a text file (cut into pieces, so that a budget samples all of it), a JSONL file (one object a line,
    its "text"), a folder of these, or the name of a Hugging Face data set with a "text" column
    (`name` or `name:configuration`; its train split).

    Raises CorpusError, naming file and line, for what is missing, empty or malformed.
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
    except (ValueError, KeyError, TypeError) as failure:
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
    """Token sequences of at most `window` tokens until they hold `budget` tokens.

    A text is cut into windows, each behind the tokenizer's BOS if it has one, and never joined to another: what a
    token sees is what it would see in use.
    Raises CorpusError when there is no text at all; warns when there is less than the budget.
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


def self_written(
    model: nn.Module,
    tokenizer: Any,
    budget: int,
    *,
    window: int = SELF_WRITTEN_WINDOW,
    seed: int = SEED,
    batch_size: int = 256,
    progress: bool = False,
) -> list[list[int]]:
    """Windows of text that the model itself writes: no corpus, no download.

    Every window begins with a random word of the vocabulary and goes on by sampling from the model's full
    distribution, as in data-free quantisation (Liu et al. 2023, LLM-QAT, 2305.17888). The same seed gives the
    same text on the same machine.
    """
    starts = openings(tokenizer, -(-budget // window), seed)
    written: list[list[int]] = []
    with (
        reduced_precision(),
        tqdm(total=budget, desc="self-written text", unit="token", unit_scale=True, disable=not progress) as bar,
    ):
        for first in range(0, len(starts), batch_size):
            written += sample(
                model,
                starts[first : first + batch_size],
                window,
                seed=seed + first,
                banned=unsayable(model, tokenizer),
                on_step=bar.update,
            )
    return written


def openings(tokenizer: Any, count: int, seed: int = SEED) -> list[list[int]]:
    """Random words to begin texts with, behind the tokenizer's BOS if it has one."""
    vocabulary = _words(tokenizer)
    special = set(tokenizer.all_special_ids)
    bos = list(itertools.takewhile(special.__contains__, tokenizer("a")["input_ids"]))
    chooser = random.Random(seed)
    return [[*bos, chooser.choice(vocabulary)] for _ in range(count)]


def unsayable(model: nn.Module, tokenizer: Any) -> list[int]:
    """Ids that no text should hold: special tokens, and those that pad the model's vocabulary."""
    padded = Decoder(model).head.weight.shape[0]
    return sorted({*tokenizer.all_special_ids, *range(len(tokenizer), padded)})


@torch.no_grad()
def sample(
    model: nn.Module,
    starts: Sequence[Tokens],
    length: int,
    *,
    seed: int,
    banned: Sequence[int] = (),
    top_k: int | None = None,
    on_step: Callable[[int], Any] = lambda tokens: None,
) -> list[list[int]]:
    """Continue `starts`, all equally long, to `length` tokens by sampling at temperature 1 (from the `top_k` best).

    `banned` tokens (the end of text among them) are never sampled. The caller's random state is left alone.
    """
    device = Decoder(model).device
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(starts)
    cache, step = None, ids
    on_step(ids.numel())
    with evaluating(model), eager_attention(model):
        while ids.shape[1] < length:
            output = model(input_ids=step.to(device), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits = output.logits[:, -1].float().cpu()
            logits[:, list(banned)] = -torch.inf
            if top_k is not None:
                logits[logits < logits.topk(top_k).values[:, -1:]] = -torch.inf
            step = _draw(logits, generator)
            ids = torch.cat([ids, step], 1)
            on_step(len(starts))
    return ids.tolist()


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One id a row, n × 1, with the probabilities of `logits` (n × vocabulary, overwritten).

    Inverse-transform sampling in two stages, a block of the vocabulary and then a word in it: several times faster
    than torch.multinomial.
    """
    rows, size = logits.shape
    weights = logits.sub_(logits.max(-1, keepdim=True).values).exp_()
    weights = torch.nn.functional.pad(weights, (0, -size % _BLOCK)).view(rows, -1, _BLOCK)
    drawn = torch.rand(2, rows, 1, generator=generator, dtype=torch.float64)
    block = _invert(weights.sum(-1).double(), drawn[0])
    word = _invert(weights[torch.arange(rows), block[:, 0]].double(), drawn[1])
    return block * _BLOCK + word


def _invert(weights: Tensor, drawn: Tensor) -> Tensor:
    """The first position at which the cumulated `weights` exceed the share `drawn` of their sum."""
    cumulative = weights.cumsum(-1)
    position = torch.searchsorted(cumulative, drawn * cumulative[:, -1:], right=True)
    last_possible = weights.shape[-1] - 1 - weights.flip(-1).ne(0).to(torch.uint8).argmax(-1, keepdim=True)
    return torch.minimum(position, last_possible)


def _words(tokenizer: Any) -> list[int]:
    """Tokens that begin a word of at least three letters, in any script."""
    special = set(getattr(tokenizer, "all_special_ids", []))
    words = [
        token
        for token in range(len(tokenizer))
        if token not in special and (text := tokenizer.decode([token])).strip().isalpha() and len(text.strip()) > 2
    ]
    return words or [token for token in range(len(tokenizer)) if token not in special]
