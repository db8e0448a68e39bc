"""A headless browser for tests, driven through its DevTools protocol with what is installed anyway.

Belongs here: starting the browser, opening a page, asking it questions. Does not belong here: what a page of ours
should show.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def program() -> str | None:
    """The browser of this machine, if it has one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._last_id = 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the DevTools protocol and its result."""
        self._last_id += 1
        self._connection.send(json.dumps({"id": self._last_id, "method": method, "params": params}))
        while True:
            answer = json.loads(self._connection.recv(timeout=60))
            if answer.get("id") == self._last_id:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, url: str) -> None:
        """Go to a page; what it shows comes later: see `wait_for`."""
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self) -> str:
        """Everything a person can read in the page."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def wait_for(self, *words: str, seconds: float = 60) -> str:
        """The page's text, once it holds all the words.

        Raises:
            AssertionError: it did not within the time; the message shows what it held instead.
        """
        deadline = time.monotonic() + seconds
        while True:
            text = self.text()
            missing = [word for word in words if word not in text]
            if not missing:
                return text
            if time.monotonic() > deadline:
                shown = "\n".join(line for line in text.splitlines() if line.strip())
                raise AssertionError(f"the page does not show {missing}; it shows:\n{shown[:3000]}")
            time.sleep(0.3)

    def click(self, selector: str) -> None:
        """Click the middle of the first element a CSS selector finds, as a mouse does."""
        self._click_at(f"document.querySelector({json.dumps(selector)})", selector)

    def click_text(self, text: str, then: str = "", tries: int = 5) -> None:
        """Click the first button whose whole text is `text`, again if the page does not show `then` after it."""
        for left in reversed(range(tries)):
            self._click_at(
                "[...document.querySelectorAll('button')]"
                f".find(found => found.innerText.trim() === {json.dumps(text)})",
                f"button with the text {text}",
            )
            try:
                self.wait_for(then, seconds=5 if left else 30)
                return
            except AssertionError:
                if not left:
                    raise

    def _click_at(self, expression: str, what: str) -> None:
        deadline = time.monotonic() + 30
        box = before = None
        # A dialogue slides in: what has not come to rest is not there when the click arrives.
        while not (box and box == before) and time.monotonic() < deadline:
            before = box
            box = self.evaluate(
                f"(() => {{ const found = {expression}; if (!found || found.disabled) return null;"
                " found.scrollIntoView({block: 'center'}); const box = found.getBoundingClientRect();"
                " return box.width ? {x: box.x + box.width / 2, y: box.y + box.height / 2} : null; })()"
            )
            time.sleep(0.2)
        assert box, f"the page has no {what} that can be clicked; it shows:\n{self.text()[:3000]}"
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    def screenshot(self, path: Path) -> None:
        """What the page looks like, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def open_page(folder: Path, *, width: int = 1400, height: int = 900) -> Iterator[Page]:
    """A browser with one tab, ended afterwards.

    Args:
        folder: for its profile; must exist.
        width: of the window, in pixels.
        height: of the window, in pixels.
    """
    browser = program()
    assert browser, "no browser"
    profile = folder / "profile"
    process = subprocess.Popen(
        [browser, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        port = _debugging_port(profile / "DevToolsActivePort", process)
        tabs = httpx.get(f"http://127.0.0.1:{port}/json/list", timeout=30).json()
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        with connect(address, max_size=None) as connection:
            page = Page(connection)
            page.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=1,
                mobile=False,
            )
            yield page
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def _debugging_port(file: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the browser ended with status {process.returncode}"
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.1)
    raise AssertionError("the browser opened no debugging port within 60 s")
