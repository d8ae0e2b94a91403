"""A headless Chromium for tests, driven over the DevTools protocol through a pipe: no driver, no download, no further package; and the
command whose page it opens."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
)
PATIENCE = float(os.environ.get("VESALIUS_TEST_PATIENCE", 30))  # seconds that a page is given to become what it should be
_SAID = "[...document.querySelectorAll('[role=alert], [role=status]')].map(e => e.textContent).filter(Boolean).join(' | ')"
_BUTTONS = {"left": 1, "right": 2, "middle": 4}


def chromium() -> str | None:
    """The browser's program, if there is one."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def annotating(*what: Path, project: Path, token: str = "") -> Iterator[str]:
    """``vesalius annotate`` as a process of its own, and the link that it prints; ``token``: the one it is told, else its own."""
    command = [Path(sys.executable).with_name("vesalius"), "annotate", *what, "--port", "0", "--project", project]
    env = {k: v for k, v in os.environ.items() if k != "VESALIUS_TOKEN"} | ({"VESALIUS_TOKEN": token} if token else {})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield re.search(r"Open (http\S+)", process.stdout.readline())[1]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


class Browser:
    """One tab. ``with Browser() as page: page.go(url); page.until("document.title")``."""

    def __init__(self, size: tuple[int, int] = (1440, 900), downloads: Path | None = None):
        self.size, self.downloads = size, downloads
        self.numbers, self.answers, self.errors = itertools.count(1), {}, []
        self.arrived, self.closed, self.session = threading.Condition(), False, None

    def __enter__(self) -> Browser:
        self.folder = tempfile.mkdtemp(prefix="chromium-")
        to_browser, from_browser = os.pipe(), os.pipe()
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        inner = f'exec 3<&{to_browser[0]} 4>&{from_browser[1]}; exec "$0" "$@"'  # the protocol's pipe is on 3 and 4
        command = ["bash", "-c", inner, chromium(), *_FLAGS, *root, f"--user-data-dir={self.folder}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, pass_fds=(to_browser[0], from_browser[1]), **quiet)
        os.close(to_browser[0])
        os.close(from_browser[1])
        self.out, self.into = os.fdopen(to_browser[1], "wb", 0), os.fdopen(from_browser[0], "rb", 0)
        threading.Thread(target=self._listen, daemon=True).start()
        if self.downloads is not None:
            self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        width, height = self.size
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.out.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------------------------- protocol
    def _listen(self) -> None:
        rest = b""
        while chunk := self.into.read(1 << 16):
            *messages, rest = (rest + chunk).split(b"\0")
            for message in map(json.loads, messages):
                with self.arrived:
                    self._take(message)
                    self.arrived.notify_all()
        with self.arrived:
            self.closed = True
            self.arrived.notify_all()

    def _take(self, message: dict) -> None:
        what, told = message.get("method"), message.get("params", {})
        if "id" in message:
            self.answers[message["id"]] = message
        elif what == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif what == "Page.javascriptDialogOpening":  # 'Leave this page?'
            self._write("Page.handleJavaScriptDialog", {"accept": True})
        elif what == "Log.entryAdded" and told["entry"]["source"] == "security":
            self.errors.append(told["entry"]["text"])

    def _write(self, method: str, params: dict) -> int:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        self.out.write(json.dumps(message).encode() + b"\0")
        return number

    def send(self, method: str, seconds: float = 60, **params: Any) -> dict:
        """A command of the protocol, and its answer. Raises RuntimeError for one that fails."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params} | (
            {"sessionId": self.session} if getattr(self, "session", None) else {}
        )
        self.out.write(json.dumps(message).encode() + b"\0")
        with self.arrived:
            if not self.arrived.wait_for(lambda: number in self.answers or self.closed, seconds) or number not in self.answers:
                raise RuntimeError(f"the browser does not answer {method}")
            answer = self.answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    # ----------------------------------------------------------------------------------------------------------------------- the page
    def go(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def reload(self) -> None:
        self.value("window.leaving = true")
        self.send("Page.reload")
        self.until("!window.leaving")  # the old page answers for a while

    def value(self, expression: str) -> Any:
        """What an expression is in the page, promises awaited. Raises RuntimeError for one that throws."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = PATIENCE) -> Any:
        """The expression's value once it is true (true where it is an element). Raises AssertionError where it does not become so."""
        end, last = time.monotonic() + seconds, None
        while time.monotonic() < end:
            try:
                last = self.value(f"Promise.resolve({expression}).then(v => v instanceof Node || v)")
                if last:
                    return last
            except RuntimeError as error:  # a page that is on its way
                last = error
            time.sleep(0.05)
        raise AssertionError(f"{expression!r} stayed {last!r}; the page says {self.value(_SAID)!r}; its errors: {self.errors}")

    def centre(self, selector: str) -> tuple[float, float]:
        """The middle of an element, in pixels of the window."""
        box = self.value(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def click(self, selector: str) -> None:
        """On the middle of an element, which is scrolled to first, when the page has drawn what it had to."""
        self.until(f"document.querySelector({json.dumps(selector)})")
        self.value("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        self.value(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'nearest'}})")
        self.drag([self.centre(selector)])

    def drag(self, points: Sequence[tuple[float, float]], button: str = "left") -> None:
        """Press at the first point, move through the others, let go at the last (pixels of the window)."""
        mouse = lambda kind, at, **more: self.send("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], **more)  # noqa: E731
        mouse("mouseMoved", points[0])
        mouse("mousePressed", points[0], button=button, buttons=_BUTTONS[button], clickCount=1)
        for point in points[1:]:
            mouse("mouseMoved", point, button=button, buttons=_BUTTONS[button])
        mouse("mouseReleased", points[-1], button=button, clickCount=1)

    def key(self, key: str, *, code: str = "", ctrl: bool = False, shift: bool = False) -> None:
        single = len(key) == 1
        named = {"key": key, "code": code or (f"Key{key.upper()}" if single and key.isalpha() else key), "modifiers": 2 * ctrl + 8 * shift}
        named["windowsVirtualKeyCode"] = ord(key.upper()) if single else {"Enter": 13, "Escape": 27}.get(key, 0)
        self.send("Input.dispatchKeyEvent", type="rawKeyDown", **named)
        self.send("Input.dispatchKeyEvent", type="keyUp", **named)

    def choose(self, selector: str, value: str) -> None:
        """An option of a list, or what a field for a colour or a number is to hold."""
        there = f"(e => e && (!e.options || [...e.options].some(o => o.value == {json.dumps(value)})))"
        self.until(f"{there}(document.querySelector({json.dumps(selector)}))")
        given = f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('change', {{bubbles: true}})) }})"
        self.value(f"{given}(document.querySelector({json.dumps(selector)}))")

    def upload(self, selector: str, file: Path) -> None:
        """A file for a field that takes one."""
        found = self.send("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")["result"]["objectId"]
        self.send("DOM.setFileInputFiles", objectId=found, files=[str(file)])

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def picture(self, path: Path | str) -> None:
        Path(path).write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


__all__ = ["Browser", "chromium"]
