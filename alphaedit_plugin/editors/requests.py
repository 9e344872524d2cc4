"""What to edit: validated requests, and where the subject and the target are among the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RequestError
from ..storage.records import mapping, read_records


@dataclass(frozen=True)
class Request:
    """One fact to write: after `prompt`, whose single "{}" stands for the subject, comes `target_new`.

    Subject and target have no spaces at their ends, the prompt has none at its end: we add the space between prompt and
    target ourselves.
    """

    prompt: str
    subject: str
    target_new: str
    case_id: int | str | None = None

    @property
    def text(self) -> str:
        return self.prompt.replace("{}", self.subject, 1)

    @classmethod
    def parse(cls, record: Mapping[str, Any] | Request, name: str) -> Request:
        """From EasyEdit's flat record or from CounterFact's nested one ("requested_rewrite").

        The prompt holds "{}" once, or the subject once. Raises RequestError, naming the record, otherwise.
        """
        if isinstance(record, Request):
            record = vars(record)
        if not isinstance(record, Mapping):
            raise RequestError(f"{name} is a {type(record).__name__}, not a mapping with prompt, subject, target_new")
        case_id = record.get("case_id")
        if case_id is not None:
            if not isinstance(case_id, int | str):
                raise RequestError(f"{name}: case_id must be a number or text, not {case_id!r}")
            name = f"{name} (case_id {case_id})"
        rewrite = record.get("requested_rewrite", record)
        if not isinstance(rewrite, Mapping):
            raise RequestError(f"{name}: requested_rewrite must be a mapping")
        prompt = _text(rewrite, "prompt", name)
        subject = _text(rewrite, "subject", name).strip()
        target = _text(rewrite, "target_new", name).strip()
        if prompt.count("{}") > 1:
            raise RequestError(f"{name}: the prompt {prompt!r} holds '{{}}' more than once; keep the subject's")
        if "{}" not in prompt:
            times = prompt.count(subject)
            if times != 1:
                raise RequestError(
                    f"{name}: the subject {subject!r} stands {times} times in the prompt {prompt!r}, not once; write "
                    "'{}' where the subject goes"
                )
            prompt = prompt.replace(subject, "{}")
        return cls(prompt.rstrip(), subject, target, case_id)


def parse_requests(records: Sequence[Mapping[str, Any] | Request]) -> list[Request]:
    """All requests. Raises RequestError for the first malformed record, or if there is none."""
    if isinstance(records, Mapping | str) or not isinstance(records, Sequence):
        raise RequestError(f"requests must be a list of records, not a {type(records).__name__}")
    if not records:
        raise RequestError("there are no requests: give at least one")
    return [Request.parse(record, f"request {index}") for index, record in enumerate(records)]


def load_requests(path: str | Path) -> list[Request]:
    """Requests of a JSON file: a list, or one record per line. Raises RequestError naming file and record."""
    names = ((f"{path}, record {index}", record) for index, record in enumerate(read_records(Path(path), "facts")))
    return [Request.parse(mapping(record, name), name) for name, record in names]


def _text(record: Mapping[str, Any], key: str, name: str) -> str:
    """A text that is not blank; CounterFact writes targets as {"str": …}."""
    value = record.get(key)
    if isinstance(value, Mapping):
        value = value.get("str")
    if value is None:
        raise RequestError(f"{name} has no {key!r}")
    if not isinstance(value, str):
        raise RequestError(f"{name}: {key} must be text, not {value!r}")
    if not value.strip():
        raise RequestError(f"{name}: {key} is empty")
    return value


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text, and the positions of the subject's first and last tokens in it. `target` holds the ids that
    follow.
    """

    ids: list[int]
    subject_last: int
    target: list[int]
    subject_first: int = 0


def encode(tokenizer: Any, template: str, subject: str, target: str = "") -> Encoded:
    """Tokenise `template` with the subject in its "{}", followed by a space and `target` if there is one.

    The whole string is tokenised at once, as the model will see it, and positions come from character offsets. So the
    tokenizer may add a BOS, merge the space into the word, split one character into several tokens, or join the
    subject's end to the next characters (then that token is the subject's last).

    Raises RequestError if the subject or the target has no token of its own, or if they share one.
    """
    before, _, after = template.partition("{}")
    prompt = before + subject + after
    full = f"{prompt} {target}" if target else prompt
    ids, spans = _tokens(tokenizer, full)
    subject_end = len(before) + len(subject)
    covering = [i for i, (start, end) in enumerate(spans) if start < subject_end and end > len(before)]
    if not covering:
        raise RequestError(f"the subject {subject!r} has no token of its own in {prompt!r}")
    first_of_target = next((i for i, (_, end) in enumerate(spans) if end > len(prompt)), len(ids))
    if target and first_of_target == len(ids):
        raise RequestError(f"the target {target!r} has no token of its own after {prompt!r}")
    if target and first_of_target <= covering[-1]:
        raise RequestError(f"subject and target share a token in {full!r}")
    return Encoded(ids[:first_of_target], covering[-1], ids[first_of_target:], covering[0])


def _tokens(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """(ids, character spans), without special tokens at the end; those at the beginning have the span (0, 0)."""
    if getattr(tokenizer, "is_fast", False):
        encoding = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        ids, spans = list(encoding["input_ids"]), [tuple(span) for span in encoding["offset_mapping"]]
        special = encoding["special_tokens_mask"]
    else:
        encoding = tokenizer(text, return_special_tokens_mask=True)
        ids = list(encoding["input_ids"])
        marked, known = encoding["special_tokens_mask"], set(tokenizer.all_special_ids)
        special = [int(mark or token in known) for mark, token in zip(marked, ids, strict=True)]
        spans = _spans_by_decoding(tokenizer, ids, special)
    while ids and special[len(ids) - 1]:
        ids.pop()
    return ids, [(0, 0) if special[i] else spans[i] for i in range(len(ids))]


def _spans_by_decoding(tokenizer: Any, ids: list[int], special: list[int]) -> list[tuple[int, int]]:
    """Spans for a tokenizer without character offsets: where the decoded text ends after each token.

    An incomplete character decodes to U+FFFD and does not count.
    """
    ends = []
    for count in range(1, len(ids) + 1):
        known = [token for token, is_special in zip(ids[:count], special[:count], strict=True) if not is_special]
        decoded = tokenizer.decode(known, clean_up_tokenization_spaces=False)
        ends.append(len(decoded.rstrip("\ufffd")))
    return list(zip([0, *ends[:-1]], ends, strict=True))
