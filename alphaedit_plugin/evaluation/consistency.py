"""How similar a model's text about a subject is to reference texts about its new object (Meng et al. 2022, §3.4).

Both become TF-IDF vectors over words (scikit-learn's `TfidfVectorizer`), and the similarity is their cosine: 0 if they
share no word, 1 if they use the same words equally often.
"""

from __future__ import annotations

import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CorpusError
from ..nullspace.corpus import documents
from ..storage.files import file_digest
from .facts import Fact
from .tfidf import vectorizer

DOCUMENTS, PASSAGES = 10_000, 50


class References(ABC):
    """Reference texts about new objects. The source is read when this is created; word weights are computed when first
    needed.

    Raises AlphaEditError if scikit-learn is not installed, CorpusError if the source is unreadable or malformed.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = source
        self._words = vectorizer("consistency")
        self._vectors: dict[Any, Any] = {}
        self._identity = self._digests()

    def identity(self) -> Mapping[str, Any]:
        """Everything that determines the cosines."""
        return self._identity

    @abstractmethod
    def _digests(self) -> Mapping[str, Any]:
        """Digests of the files that are read."""

    @abstractmethod
    def key(self, fact: Fact) -> Any:
        """The key by which a fact's reference texts are looked up."""

    @abstractmethod
    def _read(self, keys: set[Any]) -> dict[Any, list[str]]:
        """key → texts, for those `keys` that have texts. Also sets `_words`, which must not depend on `keys`."""

    def cosines(self, facts: Sequence[Fact], texts: Sequence[str]) -> list[float]:
        """The cosine of each fact's text with the fact's joined reference texts; nan if it has none."""
        keys = [self.key(fact) for fact in facts]
        if not self._vectors.keys() >= set(keys):
            found = self._read(set(keys))
            self._vectors = {
                key: self._words.transform([" ".join(found[key])]) if found.get(key) else None for key in set(keys)
            }
        return [
            float((self._words.transform([text]) @ self._vectors[key].T).sum())
            if self._vectors[key] is not None
            else nan
            for key, text in zip(keys, texts, strict=True)
        ]


class Snippets(References):
    """ROME's `attribute_snippets.json`: Wikipedia texts about other subjects that have the same new object (relation
    and id).

    Word weights come from ROME's `idf.npy` and `tfidf_vocab.json` if these lie beside the file. Otherwise they come
    from the number of the file's texts that hold each word, which is how ROME made its own.
    """

    def __init__(self, source: str | Path) -> None:
        super().__init__(source)
        self._entries = _entries(Path(source))
        self._given = self._given_words()

    def _digests(self) -> Mapping[str, Any]:
        beside = {file.name: file_digest(file, CorpusError) for file in self._weights if file.is_file()}
        return {"snippets": file_digest(Path(self.source), CorpusError), **(beside if len(beside) == 2 else {})}

    def key(self, fact: Fact) -> tuple[str, str]:
        return fact.relation, fact.target_id

    @property
    def _weights(self) -> tuple[Path, Path]:
        folder = Path(self.source).parent
        return folder / "idf.npy", folder / "tfidf_vocab.json"

    def _given_words(self) -> Any:
        """A vectorizer with the weights that lie beside the file, or None."""
        idf, vocabulary = self._weights
        if not (idf.is_file() and vocabulary.is_file()):
            return None
        try:
            words = vectorizer("consistency", vocabulary=json.loads(vocabulary.read_text(encoding="utf-8")))
            words.idf_ = np.load(idf, allow_pickle=False)
        except (OSError, ValueError, AttributeError, RecursionError) as failure:
            raise CorpusError(
                f"cannot read word weights from {idf} and {vocabulary}: {failure}. Delete both to make them anew"
            ) from failure
        return words

    def _read(self, keys: set[Any]) -> dict[Any, list[str]]:
        every = itertools.chain.from_iterable(texts for _, texts in self._entries)
        self._words = self._given or _fitted(every, self.source)
        found: dict[Any, list[str]] = {}
        for key, texts in self._entries:
            if key in keys:
                found.setdefault(key, []).extend(texts)
        return found


class Passages(References):
    """The paragraphs of a corpus (`corpus.documents`) that contain the new object exactly as written, as whole words.

    The first 50 for each object, from the first 10,000 documents in the corpus's shuffled order. A word's weight comes
    from the number of these documents' paragraphs that hold it.
    """

    def __init__(self, source: str | Path) -> None:
        super().__init__(source)
        texts = itertools.islice(documents(source), DOCUMENTS)
        self._paragraphs = [part.strip() for text in texts for part in text.split("\n") if part.strip()]

    def _digests(self) -> Mapping[str, Any]:
        path = Path(self.source).expanduser()
        if not path.exists():
            return {"corpus": str(self.source)}
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        return {"corpus": {str(file.relative_to(path)): file_digest(file, CorpusError) for file in files}}

    def key(self, fact: Fact) -> str:
        return fact.request.target_new

    def _read(self, keys: set[Any]) -> dict[Any, list[str]]:
        self._words = _fitted(self._paragraphs, self.source)
        found: dict[Any, list[str]] = {}
        for key in keys:
            whole = re.compile(rf"(?<!\w){re.escape(key)}(?!\w)")
            naming = (paragraph for paragraph in self._paragraphs if key in paragraph and whole.search(paragraph))
            found[key] = list(itertools.islice(naming, PASSAGES))
        return found


def _entries(path: Path) -> list[tuple[tuple[str, str], list[str]]]:
    """((relation, object), texts) of each record of ROME's file."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as failure:
        raise CorpusError(f"cannot read reference texts from {path}: {failure}") from failure
    if not isinstance(records, list) or not records:
        raise CorpusError(f"{path} holds no list of reference texts")
    entries = []
    for index, record in enumerate(records):
        try:
            texts = [sample["text"] for sample in record["samples"]]
            entries.append(((record["relation_id"], record["target_id"]), texts))
            " ".join(texts)  # a TypeError if these are not texts, as `hash` raises for a key that is none
            hash(entries[-1][0])
        except (KeyError, TypeError) as failure:
            raise CorpusError(
                f"{path}, record {index}: not relation_id, target_id and samples with a text ({failure!r})"
            ) from failure
    return entries


def references(source: str | Path) -> References:
    """Snippets for a JSON list, Passages for everything else."""
    path = Path(source).expanduser()
    if path.suffix.lower() == ".json" and path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            if file.read(1000).lstrip().startswith("["):
                return Snippets(path)
    return Passages(source)


def _fitted(texts: Iterable[str], source: str | Path) -> Any:
    try:
        return vectorizer("consistency").fit(texts)
    except ValueError as failure:
        raise CorpusError(f"there are no words in {source}: {failure}") from failure
