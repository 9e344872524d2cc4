"""What to edit: validated requests, and where the subject and the target are among the tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RequestError
from ..storage.records import check_whole, mapping, read_records
from .border import border, without_usual_space
from .chat import Chat
from .reminder import Reminder


@dataclass(frozen=True)
class Request:
    """One fact to write: after `prompt`, whose single "{}" stands for the subject, comes `target_new`.

    `text + completion` is what was written, to the byte, but for whitespace around the subject and after the target.
    The usual space between two words (`border`) is stored in neither; any other whitespace stays where it was written.
    """

    prompt: str
    subject: str
    target_new: str
    case_id: int | str | None = field(default=None, compare=False)

    @property
    def text(self) -> str:
        return self.prompt.replace("{}", self.subject, 1)

    @property
    def completion(self) -> str:
        """What the model is to say after `text`: the object, and what belongs before it there."""
        return border(self.text, self.target_new) + self.target_new

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
            name = _named(name, case_id)
        rewrite = record.get("requested_rewrite", record)
        if not isinstance(rewrite, Mapping):
            raise RequestError(f"{name}: requested_rewrite must be a mapping")
        prompt = _text(rewrite, "prompt", name)
        subject = _text(rewrite, "subject", name).strip()
        target = _text(rewrite, "target_new", name).rstrip()
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
        return cls.written(prompt, subject, target, case_id)

    @classmethod
    def written(cls, prompt: str, subject: str, target: str, case_id: int | str | None = None) -> Request:
        """From the parts as they were written; the usual space is left out."""
        text = prompt.replace("{}", subject, 1)
        bare, word = without_usual_space(text, target)
        return cls(prompt[: len(prompt) + len(bare) - len(text)], subject, word, case_id)


def parse_requests(records: Sequence[Mapping[str, Any] | Request]) -> list[Request]:
    """All requests. Raises RequestError for a malformed record, for two that contradict each other, or for none."""
    if isinstance(records, Mapping | str) or not isinstance(records, Sequence):
        raise RequestError(f"requests must be a list of records, not a {type(records).__name__}")
    if not records:
        raise RequestError("there are no requests: give at least one")
    return _consistent((f"request {index}", record) for index, record in enumerate(records))


def load_requests(
    path: str | Path | None, batch: int | None = None, more: Sequence[tuple[str, Mapping[str, Any]]] = ()
) -> list[Request]:
    """Requests of a file (JSON, JSONL, CSV, TSV or YAML), and then of `more`, records with names.

    Raises RequestError naming file and record.

    If so many are written at a time, `batch`, a later batch may correct an earlier one; otherwise no two may contradict
    each other.
    """
    named = [*(() if path is None else read_records(Path(path), "facts")), *more]
    return _consistent(((name, mapping(record, name)) for name, record in named), batch)


def _consistent(named: Iterable[tuple[str, Mapping[str, Any] | Request]], batch: int | None = None) -> list[Request]:
    parsed = [(name, Request.parse(record, name)) for name, record in named]
    for start in range(0, len(parsed), batch or max(1, len(parsed))):
        check_consistent(parsed[start : start + batch] if batch else parsed)
    return [request for _, request in parsed]


def check_consistent(named: Iterable[tuple[str, Request]]) -> None:
    """Raises RequestError, naming both, if two of these requests want different objects after the same text."""
    seen: dict[str, tuple[str, Request]] = {}
    for name, request in named:
        first, earlier = seen.setdefault(request.text, (name, request))
        if earlier.target_new != request.target_new:
            raise RequestError(
                f"{_named(first, earlier.case_id)} and {_named(name, request.case_id)} contradict each other: after "
                f"{request.text!r} comes {earlier.target_new!r} in one and {request.target_new!r} in the other. Keep "
                "one of them, or write them one after the other"
            )


def _named(name: str, case_id: int | str | None) -> str:
    return name if case_id is None else f"{name} (case_id {case_id})"


def _text(record: Mapping[str, Any], key: str, name: str) -> str:
    """A text that is not blank; CounterFact writes targets as {"str": …}."""
    value = record.get(key)
    if isinstance(value, Mapping):
        value = value.get("str")
    if value is None:
        raise RequestError(f"{name} has no {key!r}, only {', '.join(map(str, record)) or 'nothing'}")
    if not isinstance(value, str):
        raise RequestError(f"{name}: {key} must be text in quotes, not {value!r}")
    if not value.strip():
        raise RequestError(f"{name}: {key} is empty")
    check_whole(value, name)
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
    """Tokenise `template` with the subject in its "{}", followed by what belongs there (`border`) and by `target`.

    The whole string is tokenised at once, as the model will see it, and positions come from character offsets. So the
    tokenizer may add a BOS, merge the space into the word, split one character into several tokens, or join the
    subject's end to the next characters (then that token is the subject's last). Two rules for the border:

    - A token that holds whitespace of the prompt's end and begins the target is the target's.
    - If no whitespace parts the two, the prompt's tokens are those that it has when the model is asked it alone, and
      the target's are those that follow them.

    Of a `Chat`, the prompt is the turn of a user, and the target follows where the template ends; a `Reminder`'s words
    are part of the prompt. Raises RequestError if the subject or the target has no token of its own, or if they share
    one.
    """
    before, _, after = template.partition("{}")
    if isinstance(tokenizer, Reminder):
        before = tokenizer.told(before + subject + after) + before
        tokenizer = tokenizer.tokenizer
    prompt, place, completion = _as_asked(tokenizer, before + subject + after, target)
    ids, spans, first_of_target = _split(tokenizer, prompt, completion)
    begin, end = place + len(before), place + len(before) + len(subject.rstrip())
    covering = [i for i, (start, stop) in enumerate(spans[:first_of_target]) if start < end and stop > begin]
    if target and first_of_target == len(ids):
        raise RequestError(f"the target {target!r} has no token of its own after {prompt!r}")
    if target and spans[first_of_target][0] < end:
        raise RequestError(f"subject and target share a token in {prompt + completion!r}")
    if not covering:
        raise RequestError(f"the subject {subject!r} has no token of its own in {prompt!r}")
    return Encoded(ids[:first_of_target], covering[-1], ids[first_of_target:], covering[0])


def _as_asked(tokenizer: Any, prompt: str, target: str) -> tuple[str, int, str]:
    """(the text before the answer, the position of the prompt in it, what follows)."""
    if isinstance(tokenizer, Chat):
        return *tokenizer.template.around(prompt), target
    return prompt, 0, border(prompt, target) + target


def _split(tokenizer: Any, prompt: str, completion: str) -> tuple[list[int], list[tuple[int, int]], int]:
    """(ids, character spans, number of tokens of the prompt) of the two together; see `encode` for the border."""
    ids, spans = _tokens(tokenizer, prompt + completion)
    first = next((i for i, (_, stop) in enumerate(spans) if stop > len(prompt)), len(ids))
    if not completion or (not isinstance(tokenizer, Chat) and (prompt[-1:].isspace() or completion[:1].isspace())):
        return ids, spans, first
    alone, their_spans = _tokens(tokenizer, prompt)
    if ids[: len(alone)] == alone:
        return ids, spans, len(alone)
    for following in _apart(tokenizer, completion):
        if _said(tokenizer, [*alone, *following]) == _said(tokenizer, ids):
            end = (len(prompt), len(prompt) + len(completion))
            return [*alone, *following], [*their_spans, *[end] * len(following)], len(alone)
    if first < len(ids) and spans[first][0] < len(prompt):
        raise RequestError(
            f"the tokenizer joins the end of {prompt!r} and the beginning of {completion!r} in one token: end the "
            "prompt, or begin the target, at another place"
        )
    return ids, spans, first


def _apart(tokenizer: Any, text: str) -> Iterator[list[int]]:
    """Ids of a text that begins in the middle: by itself and, if a space would be put before it, behind a newline."""
    for lead in ("", "\n"):
        ids, before = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (lead + text, lead))
        if ids[: len(before)] == before:
            yield ids[len(before) :]


def _said(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _tokens(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """(ids, character spans), without special tokens at the end; those at the beginning have the span (0, 0).

    Of a chat, the template writes all special tokens into the text, and there they are text.
    """
    chat = isinstance(tokenizer, Chat)
    options = {"add_special_tokens": not chat, "return_special_tokens_mask": True}
    if getattr(tokenizer, "is_fast", False):
        encoding = tokenizer(text, return_offsets_mapping=True, **options)
        ids, spans = list(encoding["input_ids"]), [tuple(span) for span in encoding["offset_mapping"]]
        special = encoding["special_tokens_mask"]
    else:
        encoding = tokenizer(text, **options)
        ids = list(encoding["input_ids"])
        marked, known = encoding["special_tokens_mask"], set(tokenizer.all_special_ids)
        special = [int(not chat and (mark or token in known)) for mark, token in zip(marked, ids, strict=True)]
        spans = _spans_by_decoding(tokenizer, ids, special, text)
    if chat:
        return ids, spans
    while ids and special[len(ids) - 1]:
        ids.pop()
    return ids, [(0, 0) if special[i] else spans[i] for i in range(len(ids))]


def _spans_by_decoding(tokenizer: Any, ids: list[int], special: list[int], text: str) -> list[tuple[int, int]]:
    """Spans for a tokenizer without character offsets: where the decoded text ends after each token.

    An incomplete character decodes to U+FFFD and does not count. In a chat, decoding may put spaces around special
    tokens, so that only the characters between spaces count.
    """
    ends = []
    places = [place for place, character in enumerate(text, start=1) if not character.isspace()]
    for count in range(1, len(ids) + 1):
        known = [token for token, is_special in zip(ids[:count], special[:count], strict=True) if not is_special]
        decoded = tokenizer.decode(known, clean_up_tokenization_spaces=False).rstrip("\ufffd")
        if isinstance(tokenizer, Chat):
            read = len("".join(decoded.split()))
            ends.append(places[min(read, len(places)) - 1] if read else 0)
        else:
            ends.append(len(decoded))
    return list(zip([0, *ends[:-1]], ends, strict=True))
