"""Drives headless Chromium over a pair of pipes (DevTools protocol): no driver, no port, no packages."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-dev-shm-usage",
    "--no-default-browser-check", "--hide-scrollbars", "--remote-debugging-pipe", "--window-size=1400,1000",
)  # fmt: skip


def find_chromium() -> str | None:
    """The browser's path, if there is one (a real binary before the distribution's shell wrapper)."""
    for path in ("/usr/lib/chromium/chromium", *map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        if path and os.access(path, os.X_OK):
            return path
    return None


class Browser:
    """One browser with one page. All waits are bounded by `patience` seconds."""

    def __init__(self, binary: str, profile: Path, patience: float = 90.0) -> None:
        self.patience = patience
        self.events: list[dict[str, Any]] = []
        self._number, self._rest = 0, b""
        kept = _occupy_low_descriptors()
        down_read, self._down = os.pipe()
        self._up, up_write = os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (down_read, up_write)]

        def connect() -> None:
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=connect, pass_fds=(3, 4), start_new_session=True,
        )  # fmt: skip
        for fd in (down_read, up_write, *high, *kept):
            os.close(fd)
        self.session = ""
        pages = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        target = pages[0]["targetId"] if pages else self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One protocol command; its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._down, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + self.patience
        while True:
            reply = self._read(end)
            if reply.get("id") == self._number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                return dict(reply["result"])
            self.events.append(reply)

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._up], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the browser did not answer within {self.patience} s"
            data = os.read(self._up, 1 << 20)
            assert data, "the browser closed its pipe"
            self._rest += data
        line, self._rest = self._rest.split(b"\0", 1)
        return dict(json.loads(line))

    def open(self, url: str) -> None:
        """Load `url` and wait until the report says that it is ready."""
        self.call("Page.navigate", url=url)
        self.wait("document.documentElement.dataset.ready === 'true'")

    def js(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        got = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, f"{expression}: {got.get('exceptionDetails')}"
        return got["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until `expression` is true in the page."""
        end = time.monotonic() + self.patience
        while not self._holds(expression):
            assert time.monotonic() < end, f"never became true: {expression}"
            time.sleep(0.05)

    def _holds(self, expression: str) -> bool:
        """False too while a navigation is replacing the page (no element yet, context gone)."""
        try:
            return bool(self.js(f"Boolean({expression})"))
        except AssertionError:
            if self.process.poll() is not None:
                raise
            return False

    def key(self, name: str, code: int) -> None:
        """Press and release one key."""
        text = {"Enter": "\r", " ": " "}.get(name, "")
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            text = "" if kind == "keyUp" else text
            self.call("Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=code, text=text)

    def screenshot(self, path: Path) -> None:
        """PNG of the visible part."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def requests(self) -> list[str]:
        """Addresses requested so far."""
        self.js("1")
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Uncaught errors, policy violations and dialogs so far."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening")
        return [json.dumps(e["params"])[:300] for e in self.events if e.get("method") in kinds]

    def close(self) -> None:
        """End the browser and everything it started."""
        for fd in (self._down, self._up):
            with contextlib.suppress(OSError):
                os.close(fd)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def _occupy_low_descriptors() -> list[int]:
    """Open descriptors until 3 and 4 are taken: the child's dup2 must not hit a pipe of subprocess itself."""
    kept: list[int] = []
    while True:
        fd = os.open(os.devnull, os.O_RDONLY)
        if fd > 4:
            os.close(fd)
            return kept
        kept.append(fd)
