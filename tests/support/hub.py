"""A Hugging Face Hub of its own, on this machine: as much of its HTTP interface as publishing a folder needs."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import yaml

from support.servers import served

TOKEN = "hf_of_acme"


@dataclass
class FakeHub:
    """Repositories by name: path → content, and which are private. The token is that of the user acme, of labs too."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    refuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Begin of a path → (status, message) with which requests for it are refused."""
    address: str = ""

    def tags(self, name: str) -> list[str]:
        text = self.files[name].get("README.md", b"").decode()
        return (yaml.safe_load(text.split("---")[1]) or {}).get("tags", []) if text.startswith("---") else []

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "file":
                self.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del self.files[name][line["value"]["path"]]


@contextmanager
def serving() -> Iterator[FakeHub]:
    """The Hub, while the block runs."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, value: Any, status: int = 200, **headers: str) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            for name, content in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), content)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.handle_request(b"")

        def do_POST(self) -> None:
            self.handle_request(self.rfile.read(int(self.headers["Content-Length"])))

        def handle_request(self, body: bytes) -> None:
            path = self.path.partition("?")[0].removeprefix("/api/")
            for begin, (status, said) in hub.refuses.items():
                if path.startswith(begin):
                    return self.answer({"error": said}, status)
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return self.answer({"error": "Invalid credentials"}, 401)
            if path == "whoami-v2":
                return self.answer({"name": "acme", "type": "user", "orgs": [{"name": "labs"}]})
            if path == "validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if path == "repos/create":
                asked = json.loads(body)
                name = "/".join(filter(None, (asked.get("organization") or "acme", asked["name"])))
                hub.private.setdefault(name, asked.get("private") or asked.get("visibility") == "private")
                known = name in hub.files
                hub.files.setdefault(name, {".gitattributes": b""})
                return self.answer({"url": f"{hub.address}/{name}"}, 409 if known else 200)
            _, user, short, *rest = path.split("/")
            name = f"{user}/{short}"
            if name not in hub.files:
                return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            about = {
                "id": name,
                "sha": "0" * 40,
                "private": hub.private[name],
                "tags": hub.tags(name),
                "siblings": [{"rfilename": each} for each in hub.files[name]],
            }
            match rest:
                case [] | ["revision", *_]:
                    return self.answer(about)
                case ["tree", *_]:
                    tree = [
                        {"type": "file", "path": each, "oid": "0" * 40, "size": len(content)}
                        for each, content in hub.files[name].items()
                    ]
                    return self.answer(tree)
                case ["preupload", _]:
                    paths = [each["path"] for each in json.loads(body)["files"]]
                    modes = [{"path": each, "uploadMode": "regular", "shouldIgnore": False} for each in paths]
                    return self.answer({"files": modes})
                case ["commit", _]:
                    hub.commit(name, [json.loads(line) for line in body.splitlines()])
                    where = f"{hub.address}/{name}/commit/{'0' * 40}"
                    return self.answer({"commitUrl": where, "commitOid": "0" * 40, "success": True})
            return self.answer({"error": f"this Hub does not know {path}"}, 501)

    with served(Handler) as hub.address:
        yield hub
