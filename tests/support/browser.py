"""Headless Chromium, driven over its own pipe: no package is needed, only Debian's chromium."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CHROMIUM = Path("/usr/bin/chromium")


class Browser:
    """One page. `problems` are console errors, exceptions and failed loads; `fetched` is what the page asked for."""

    def __init__(self, profile: Path, *, limit: float = 120) -> None:
        self.limit, self.problems, self.fetched = limit, [], []
        self._number, self._left = 0, b""
        their_in, self._out = os.pipe()
        self._in, their_out = os.pipe()
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{their_in} 4>&{their_out}', "bash", *map(str, command)],
            pass_fds=(their_in, their_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_in)
        os.close(their_out)
        self._session: str | None = None
        target = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda heard: heard.get("id") == self._number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, path: Path) -> None:
        self("Page.navigate", url=path.resolve().as_uri())
        self._until(lambda heard: heard.get("method") == "Page.loadEventFired")

    def evaluate(self, script: str) -> Any:
        found = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def size(self, width: int, height: int) -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def media(self, *, media: str = "", scheme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self("Emulation.setEmulatedMedia", media=media, features=features)

    def screenshot(self, path: Path) -> None:
        """The whole page."""
        image = self("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(image))

    def pdf(self, path: Path) -> None:
        path.write_bytes(
            base64.b64decode(self("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def _until(self, is_it: Any) -> dict[str, Any]:
        end = time.monotonic() + self.limit
        while True:
            while b"\0" in self._left:
                line, self._left = self._left.split(b"\0", 1)
                heard = json.loads(line)
                self._note(heard)
                if is_it(heard):
                    return heard
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"Chromium said nothing for {self.limit} s"
            self._left += os.read(self._in, 1 << 20)

    def _note(self, heard: dict[str, Any]) -> None:
        method, of = heard.get("method"), heard.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(of["exceptionDetails"])
        elif method == "Runtime.consoleAPICalled" and of["type"] in ("error", "warning", "assert"):
            self.problems.append(of["args"])
        elif method == "Log.entryAdded" and of["entry"]["level"] in ("error", "warning"):
            self.problems.append(of["entry"])
        elif method == "Network.requestWillBeSent":
            self.fetched.append(of["request"]["url"])


def shoot(page: Path, folder: Path) -> None:
    """The page as light.png and dark.png on a desk, phone.png (390 wide) and print.pdf."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(Path(profile))
        try:
            browser.size(1280, 900)
            browser.open(page)
            for scheme in ("light", "dark"):
                browser.media(scheme=scheme)
                browser.screenshot(folder / f"{scheme}.png")
            browser.media()
            browser.size(390, 844)
            browser.screenshot(folder / "phone.png")
            browser.pdf(folder / "print.pdf")
        finally:
            browser.close()


if __name__ == "__main__":
    shoot(Path(sys.argv[1]), Path(sys.argv[2]))
