"""A judge of answers on this machine: as much of OpenAI's chat completions as asking one needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.servers import served

Says = Callable[[str], str]
"""From a question, as the user's turn, to what the judge says."""


@dataclass
class FakeJudge:
    """`asked` holds the body of each request, and `keys` its Authorization, in the order in which they came."""

    says: Says = lambda question: "correct"
    status: int = 200
    body: bytes | None = None
    """Sent in the place of a completion."""
    location: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    address: str = ""

    @property
    def questions(self) -> list[str]:
        return [of["messages"][-1]["content"] for of in self.asked]


@contextmanager
def judging(says: Says = lambda question: "correct") -> Iterator[FakeJudge]:
    """The judge, while the block runs."""
    judge = FakeJudge(says)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.asked.append(asked)
            judge.keys.append(self.headers["Authorization"])
            said = judge.says(asked["messages"][-1]["content"])
            message = {"choices": [{"message": {"role": "assistant", "content": said}}]}
            body = json.dumps(message).encode() if judge.body is None else judge.body
            self.send_response(judge.status)
            self.send_header("Content-Length", str(len(body)))
            if judge.location:
                self.send_header("Location", judge.location)
            self.end_headers()
            self.wfile.write(body)

    with served(Handler) as address:
        judge.address = f"{address}/v1"
        yield judge
