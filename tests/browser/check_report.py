"""Opens a report in headless Chromium and checks what a reader would see: `check_report.py REPORT OUT`.

At phone and desktop width, in light and dark mode: no message on the console, no network request, nothing wider
than the window, every figure drawn. Screenshots go to OUT. Speaks the DevTools protocol over a pipe, so it needs
nothing but Chromium and the standard library.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WIDTHS = {"phone": 390, "desktop": 1280}
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)

LOOK = """(() => {
  for (const details of document.querySelectorAll('details')) details.open = true;
  const page = document.documentElement;
  const shown = e => !e.closest('[hidden]') && getComputedStyle(e).display !== 'none';
  const figures = [...document.querySelectorAll('figure svg, figure img, main > svg, section > svg')]
    .filter(e => !e.parentElement.closest('svg'));
  const size = e => e.getBoundingClientRect();
  const wide = [...document.querySelectorAll('body *')]
    .filter(e => size(e).right > innerWidth + 1 && !e.closest('svg svg, svg *'))
    .map(e => e.tagName.toLowerCase() + '.' + e.className).slice(0, 5);
  const paint = [document.body, page].map(e => getComputedStyle(e).backgroundColor)
    .find(c => c !== 'rgba(0, 0, 0, 0)');
  return {
    title: document.title, text: document.body.innerText.length,
    overflow: page.scrollWidth - innerWidth, wide,
    figures: figures.length,
    blank: figures.filter(e => !shown(e) || size(e).width < 50 || size(e).height < 50).length,
    background: paint || 'none', ink: getComputedStyle(document.body).color,
  };
})()"""


class Browser:
    """A Chromium with one page, spoken to over file descriptors 3 and 4."""

    def __init__(self, home: str) -> None:
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        program = shutil.which("chromium") or shutil.which("chromium-browser") or "google-chrome"
        command = [program, *FLAGS, f"--user-data-dir={home}", "--remote-debugging-pipe", "about:blank"]
        moved = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", moved, "browser", *command], pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._number, self._session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; events that arrive meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def until(self, method: str) -> None:
        """Waits for an event."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._from, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium ended without an answer")
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def close(self) -> None:
        """Ends Chromium."""
        self._session = None
        self.ask("Browser.close")
        self._process.wait(timeout=20)


def complaints(events: list[dict[str, Any]], address: str) -> list[str]:
    """What the console said, and every request for anything but the page itself."""
    found = []
    for event in events:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            found.append(f"exception: {parameters['exceptionDetails'].get('text')}")
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            found.append(f"console: {parameters['args']}")
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            found.append(f"log: {parameters['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if url != address and not url.startswith(("data:", "blob:")):
                found.append(f"request: {url[:120]}")
    return found


def visit(browser: Browser, address: str, width: int, dark: bool, picture: Path) -> tuple[dict[str, Any], list[str]]:
    """Loads the page, takes a picture of all of it, and returns what it looks like and what is wrong."""
    browser.events.clear()
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.ask("Emulation.setEmulatedMedia", features=scheme)
    browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600)
    browser.ask("Page.navigate", url=address)
    browser.until("Page.loadEventFired")
    time.sleep(0.3)  # lets late scripts and requests show themselves
    size = browser.ask("Page.getLayoutMetrics")["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": width, "height": min(size["height"], 12000), "scale": 1}
    shot = browser.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    picture.write_bytes(base64.b64decode(shot["data"]))
    look = browser.ask("Runtime.evaluate", expression=LOOK, returnByValue=True)["result"]["value"]
    wrong = complaints(browser.events, address)
    if look["overflow"] > 0:
        wrong.append(f"{look['overflow']} px wider than the window: {', '.join(look['wide'])}")
    if look["figures"] == 0 or look["blank"]:
        wrong.append(f"{look['blank']} of {look['figures']} figures are not drawn")
    if look["text"] < 200 or not look["title"]:
        wrong.append("the page has no title or next to no text")
    return look, wrong


def main(report: Path, out: Path) -> int:
    """Visits the report four times; 0 if nothing is wrong."""
    out.mkdir(parents=True, exist_ok=True)
    address, failed, grounds = report.resolve().as_uri(), 0, {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        browser = Browser(home)
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.ask(f"{domain}.enable")
        for kind, width in WIDTHS.items():
            for dark in (False, True):
                name = f"{kind}-{'dark' if dark else 'light'}"
                look, wrong = visit(browser, address, width, dark, out / f"report-{name}.png")
                grounds[kind, dark] = look["background"], look["ink"]
                if dark and grounds[kind, True] == grounds[kind, False]:
                    wrong.append("dark mode changes nothing")
                failed += bool(wrong)
                print(f"{name} ({width} px): {look['figures']} figures, background {look['background']}")
                for line in wrong:
                    print(f"  wrong: {line}")
        browser.close()
    print(f"{4 - failed} of 4 views are as they should be; pictures in {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
