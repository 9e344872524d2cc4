"""Files of data, written as people write them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path


def write_documents(path: Path, texts: Iterable[str]) -> Path:
    """A corpus: a line of JSON per text."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def write_records(path: Path, records: Iterable[object]) -> Path:
    """A list in JSON, or a line per record where the name ends in .jsonl."""
    records = list(records)
    lines = "\n".join(map(json.dumps, records)) if path.suffix == ".jsonl" else json.dumps(records)
    path.write_text(lines, encoding="utf-8")
    return path
