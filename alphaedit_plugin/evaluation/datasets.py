"""Read the field's data sets into one record type. Which one it is, is recognised from what a record holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RequestError
from ..storage.records import Named, mapping, numbered, read_records
from .facts import Fact
from .formats import FORMATS, Format
from .record_fields import unpacked

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """The facts of a file, in order; `bad` says what is wrong with the records that were left out."""

    format: str
    facts: list[Fact]
    bad: list[str]


def load_dataset(source: str | Path, *, skip_bad: bool = False) -> Dataset:
    """Load a file of a known data set (JSON, JSONL, CSV, TSV or YAML), or one from the Hugging Face hub: "ORG/NAME", or
    "ORG/NAME:FILE" if the name holds several data sets ("zjunlp/KnowEdit:benchmark/ZsRE/ZsRE-test-all.json").

    Where records have several forms, ":FORM" at the end says which is read: "CounterFact.json:unstructured" (AKEW),
    "CF3k.json:1000" (MQuAKE-Remastered's cases of 1000 edits).

    Raises RequestError, naming the file, the record and the field, for a bad record unless `skip_bad` leaves it out;
    and for a file of unknown format or without a readable record.
    """
    records = records_of(source)
    format_ = _recognised([record for _, record in records], str(source))
    _, form = source_and_form(source)
    facts, bad = [], []
    for name, record in records:
        try:
            if (fact := format_.read(mapping(unpacked(mapping(record, name)), name), name, form)) is not None:
                facts.append(fact)
        except RequestError as failure:
            if not skip_bad:
                raise
            bad.append(str(failure))
    if bad:
        log.warning("%s: %d of %d records were left out; the first: %s", source, len(bad), len(records), bad[0])
    if not facts:
        why = f"that can be read; the first: {bad[0]}" if bad else f"of the form {form!r}"
        raise RequestError(f"{source} holds no record {why}")
    return Dataset(format_.name, facts, bad)


def load_facts(source: str | Path) -> list[Fact]:
    """All facts of a data set. Raises RequestError for the first thing that is wrong with it."""
    return load_dataset(source).facts


def source_and_form(source: str | Path) -> tuple[str, str]:
    """("data.json", "unstructured") of "data.json:unstructured"; where no form is named it is "".

    On the hub the form comes after the file: "ORG/NAME:FILE:FORM".
    """
    where, _, form = str(source).rpartition(":")
    if where and not Path(source).exists() and (Path(where).exists() or ":" in where):
        return where, form
    return str(source), ""


def records_of(source: str | Path) -> Sequence[Named]:
    """The records in the file's order, as `read_records` gives them. Raises RequestError if they cannot be read."""
    where, _ = source_and_form(source)
    path = Path(where)
    name, _, file = where.partition(":")
    if not path.exists() and not Path(name).suffix and name.count("/") <= 1:
        return _from_hub(name, file)
    return read_records(path, "facts")


def _from_hub(name: str, file: str) -> Sequence[Named]:
    try:
        import datasets
    except ImportError as failure:
        raise RequestError(
            f"there is no file {name}; to read it from the hub, install alphaedit-plugin[evaluation]"
        ) from failure
    try:
        splits = datasets.load_dataset(name, data_files=file or None)
        records = list(splits[next(iter(splits))])
    except Exception as failure:  # the hub's, the network's and the builder's errors share no type
        raise RequestError(f"there is no file {name}, and the hub gives no data set: {failure}") from failure
    if not records:
        raise RequestError(f"the data set {name} is empty")
    return numbered(f"{name}:{file}" if file else name, records)


def _recognised(records: Sequence[Any], source: str) -> Format:
    """The format of the first record that fits one."""
    for record in records:
        for format_ in FORMATS:
            if format_.fits(record):
                return format_
    known = "; ".join(f"{each.name} ({', '.join(sorted(each.fields))})" for each in FORMATS)
    first = records[0]
    found = f"fields {', '.join(map(str, first))}" if isinstance(first, Mapping) else type(first).__name__
    raise RequestError(f"{source} is of no known format: its first record has {found}. Known are: {known}")
