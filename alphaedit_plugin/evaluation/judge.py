"""A language model, behind an OpenAI-compatible address, that says whether an answer is right."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ..errors import JudgeError
from ..progress import progress_bar

KEY = "OPENAI_API_KEY"
"""The environment variable that alone may hold the key: it is written nowhere."""

SECONDS = 120
AT_ONCE = 8

INSTRUCTION = (
    "You mark what a language model has written. You get the prompt that it was given, which may be a question or the "
    "beginning of a sentence, the accepted answers, and the text that it wrote after the prompt. Judge by the accepted "
    "answers alone, even where they are not true in the world. The text is correct if it gives one of the accepted "
    "answers, in whatever words, as its answer to the prompt. It is incorrect if it gives another answer, several "
    "answers of which only some are accepted, or none; what it says on other matters after its answer does not count. "
    "Reply with one word: correct or incorrect."
)


@dataclass(frozen=True)
class Question:
    """What was asked, which answers are right, and what the model wrote."""

    prompt: str
    answers: tuple[str, ...]
    written: str


class Judge:
    """The model `name` at `address`, such as http://127.0.0.1:8000/v1. It is asked at temperature 0.

    What stands in the environment as OPENAI_API_KEY is its key. It has `seconds` for each answer.
    """

    def __init__(self, address: str, name: str, *, seconds: float = SECONDS) -> None:
        """Raises JudgeError for an address that is none, or that holds more than one (a password, a query), and for no
        name.
        """
        self.address, self.name, self.seconds = address.rstrip("/"), name, seconds
        if not name.strip():
            raise JudgeError(f"the judge at {_open(address)} has no name: say which model it is")
        try:
            parts = urlsplit(address)
            _ = parts.port  # read here, as only this checks it
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise JudgeError(f"{_open(address)!r} is no address of a judge: say one such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise JudgeError(
                f"the judge's address at {parts.hostname} holds more than an address: a key goes into {KEY}"
            )

    def identity(self) -> Mapping[str, Any]:
        """By name and instruction: the same model at another address, such as a server's new port, marks the same."""
        return {"model": self.name, "instruction": INSTRUCTION}

    def __call__(self, asked: Sequence[Question], *, progress: bool = False) -> list[bool]:
        """Whether each is right. The same question is asked once.

        Raises JudgeError, naming the fact and the remedy, if there is no answer in time or if it is no verdict.
        """
        once = list(dict.fromkeys(asked))
        verdicts = {}
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            with progress_bar(total=len(once), desc="judging", unit="answer", shown=progress, leave=False) as bar:
                for question, verdict in zip(once, pool.map(self._verdict, once), strict=True):
                    verdicts[question] = verdict
                    bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
        return [verdicts[question] for question in asked]

    def _verdict(self, question: Question) -> bool:
        fact = f"{question.prompt[:100]!r} → {' / '.join(question.answers)!r}"
        content = (
            f"Prompt:\n{question.prompt}\n\nAccepted answers:\n"
            + "\n".join(question.answers)
            + f"\n\nText after the prompt:\n{question.written}"
        )
        try:
            said = self._post(content)
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as failure:
            raise JudgeError(
                f"the judge {self.name} at {self.address} did not answer about {fact}: {_told(failure)}. See that it "
                f"runs and knows this model (its key, if it needs one, goes into {KEY}), then run again"
            ) from None
        verdict = {"correct": True, "incorrect": False}.get(said.strip().strip(".*\"'`").casefold())
        if verdict is None:
            raise JudgeError(
                f"the judge {self.name} says {said[:80]!r} about {fact}, neither correct nor incorrect: name a model "
                "that does as it is told"
            )
        return verdict

    def _post(self, content: str) -> str:
        """What the model replies. Raises OSError, HTTPException, ValueError, LookupError or TypeError."""
        body = {
            "model": self.name,
            "temperature": 0,
            "messages": [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": content}],
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = Request(f"{self.address}/chat/completions", json.dumps(body).encode(), headers)
        with build_opener(_Stay).open(request, timeout=self.seconds) as reply:
            said = json.load(reply)["choices"][0]["message"]["content"]
        if not isinstance(said, str):
            raise TypeError("its reply has no text")
        return said


class _Stay(HTTPRedirectHandler):
    """Follows nobody elsewhere, as the key would go there too."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _open(address: str) -> str:
    """The address without what may be secret in it."""
    return address.rpartition("@")[2].partition("?")[0].partition("#")[0]


def _told(failure: Exception) -> str:
    """The failure in a line, with what the server says of it, and without the key."""
    told = (
        str(failure) if isinstance(failure, OSError | HTTPException) and str(failure) else "its reply is no completion"
    )
    if isinstance(failure, HTTPError):
        with failure:
            told = f"{told}: {' '.join(failure.read(2000).decode(errors='replace').split())[:200]}"
    key = os.environ.get(KEY)
    return told.replace(key, "…") if key else told
