"""What the model says without the edits and with them, side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from torch import nn

from ..editors.border import UNSPACED
from ..editors.generation import write
from ..editors.requests import Request, encode
from ..editors.verdict import answers
from ..errors import RequestError
from ..model.continuation import positions
from ..model.decoder import Decoder
from ..shown import Shown, one_line, percent
from ..storage.records import check_whole

TOKENS = 20
"""How much is written after a prompt, unless somebody says otherwise."""


@dataclass(frozen=True)
class Chance:
    """How probable a fact's object is after a prompt, the whole of it, without the edits and with them.

    An object that is not `new` is the old one: what the unedited model says where the fact was taught.
    """

    object: str
    new: bool
    before: float
    after: float


@dataclass(frozen=True, repr=False)
class Reply(Shown):
    """What is written after `prompt`, without the edits and with them; `chances` are those of the facts it is about."""

    prompt: str
    before: str
    after: str
    chances: tuple[Chance, ...] = ()

    def __rich__(self) -> RenderableType:
        return Replies([self]).__rich__()


class Replies(Shown, list[Reply]):
    """One reply per prompt, in order."""

    def __rich__(self) -> RenderableType:
        """A row per prompt, and below it one for each object of a fact that it is about."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("prompt", "before the edits", "after the edits"):
            table.add_column(title, overflow="fold")
        for number, reply in enumerate(self, start=1):
            rows = [tuple(escape(one_line(text)) for text in (reply.prompt, reply.before, reply.after))]
            for chance in reply.chances:
                which = "new" if chance.new else "old"
                named = f"  [dim]{which} object:[/dim] {escape(one_line(chance.object))}"
                rows.append((named, percent(chance.before), percent(chance.after)))
            for place, cells in enumerate(rows, start=1):
                table.add_row(*cells, end_section=place == len(rows) and number < len(self) and len(rows) > 1)
        return table


def ask(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    facts: Sequence[Request],
    unedited: Callable[[], AbstractContextManager[Any]],
    *,
    taught_with: Any,
    tokens: int = TOKENS,
    progress: bool = False,
) -> Replies:
    """The model's replies as it is, and inside `unedited()`, which takes the edits out of it for as long as it lasts.

    `facts` are those in force. `taught_with` is the tokenizer they were taught with, which differs from `tokenizer` if
    only one of the two asks in a chat. Raises RequestError for a prompt that is empty or too long, or for `tokens` that
    are none.
    """
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise RequestError(f"tokens must be a number from 1 up, not {tokens!r}")
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise RequestError(f"prompt {number} is {prompt!r}: write what the model is to go on from")
        check_whole(prompt, f"prompt {number}")
    concerned = [about(prompt, facts) for prompt in prompts]
    room = positions(Decoder.of(model).model)

    def fits(prompt: str, word: str) -> bool:
        one = encode(tokenizer, "{}", prompt, word)
        return len(one.ids) + len(one.target) - 1 <= room

    with unedited():
        taught = list(dict.fromkeys(fact for each in concerned for fact in each))
        said = {fact: answer.words for fact, answer in zip(taught, answers(model, taught_with, taught), strict=True)}
        questions = [
            {word: new for word, new in _objects(each, said).items() if fits(prompt, word)}
            for prompt, each in zip(prompts, concerned, strict=True)
        ]
        asked = [
            Request("{}", prompt, word)  # the whole prompt takes the subject's place: only its end matters
            for prompt, words in zip(prompts, questions, strict=True)
            for word in words
        ]

        def heard() -> tuple[list[str], list[float]]:
            texts = write(model, tokenizer, prompts, tokens, progress=progress)
            return texts, [answer.probability for answer in answers(model, tokenizer, asked)]

        texts_before, before = heard()
    texts_after, after = heard()
    odds = iter(zip(before, after, strict=True))
    return Replies(
        Reply(prompt, then, now, tuple(Chance(word, new, *next(odds)) for word, new in words.items()))
        for prompt, words, then, now in zip(prompts, questions, texts_before, texts_after, strict=True)
    )


def about(prompt: str, facts: Sequence[Request]) -> list[Request]:
    """The facts that a prompt is about: those whose text it holds or, if there are none, those whose subject it holds.

    Within a text that has spaces a subject counts only as whole words: "Al" is not in "Also".
    """
    return [fact for fact in facts if fact.text.strip() in prompt] or [
        fact for fact in facts if _whole(fact.subject).search(prompt)
    ]


def _whole(words: str) -> re.Pattern[str]:
    begin, end = (
        "" if UNSPACED.match(edge) else mark for edge, mark in ((words[0], r"(?<!\w)"), (words[-1], r"(?!\w)"))
    )
    return re.compile(f"{begin}{re.escape(words)}{end}")


def _objects(facts: Sequence[Request], said: dict[Request, str]) -> dict[str, bool]:
    """object → whether it is a new one, for each of the facts: its old object, if there is one, and its new one."""
    found: dict[str, bool] = {}
    for fact in facts:
        if said[fact] and said[fact] != fact.target_new.strip():
            found.setdefault(said[fact], False)
        found[fact.target_new] = True
    return found
