"""A real browser before the page: headless Chromium, and words for what it shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect, sync_playwright

from guarding import free_port

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), ""
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 45.0
WINDOW: ViewportSize = {"width": 1440, "height": 900}
expect.set_options(timeout=PATIENCE * 1000)
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (scripts/setup --dev says how to get it)")


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium, started."""
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield one
        finally:
            one.close()


@contextmanager
def page_of(start: Callable[..., subprocess.Popen[str]]) -> Iterator[str]:
    """``kvdemo ui``, started with ``start`` and ended as Ctrl-C does; its URL."""
    process = start("ui", "--port", str(free_port()))
    assert process.stdout
    found = re.match(r"Open (http://\S+)", process.stdout.readline())
    try:
        if found:
            yield found[1]
    finally:
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert found, err
    assert process.returncode == 0, (process.returncode, out, err)
    assert "Traceback" not in err + out, err + out


class Tab:
    """One tab of one browser, with the page in it. Whatever the page asks of another host is an error."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        # Tabs share one profile, so that its cache is warm, unless one must differ.
        contexts = [] if options else browser.contexts[:1]
        self.context = contexts[0] if contexts else browser.new_context(**{"viewport": WINDOW, **options})
        self.context.set_default_timeout(PATIENCE * 1000)
        self.page: Page = self.context.new_page()
        self.url, self.strangers, self.errors = url, list[str](), list[str]()
        self.page.on("request", lambda request: self._heard(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.locator("#ask").wait_for()

    def _heard(self, url: str) -> None:
        if not url.startswith((self.url, "data:", "blob:", "about:", self.url.replace("http", "ws", 1))):
            self.strangers.append(url)

    def close(self) -> None:
        """Leave; nothing must have gone wrong."""
        self.page.close()
        assert (self.strangers, self.errors) == ([], [])

    def choose(self, *engines: str) -> None:
        """Press the chips of these engines, and no other."""
        for chip in self.page.locator(".chip").all():
            name = chip.get_attribute("data-engine") or ""
            wanted = "true" if name in engines else "false"
            if chip.get_attribute("aria-pressed") != wanted:
                chip.click()
            expect(chip).to_have_attribute("aria-pressed", wanted)

    def ask(self, question: str, *engines: str) -> Locator:
        """Type a question, press Enter; its turn."""
        if engines:
            self.choose(*engines)
        line = self.page.get_by_label("Question")
        line.fill(question)
        with self._new_turn():
            line.press("Enter")
        return self.turn

    def demonstrate(self, patience: float = PATIENCE) -> dict[str, str]:
        """One press; the verdicts."""
        with self._new_turn():
            self.page.locator("#demo").click()
        return self.verdicts(patience)

    @contextmanager
    def _new_turn(self) -> Iterator[None]:
        before = self.page.locator(".turn").count()
        yield
        expect(self.page.locator(".turn")).to_have_count(before + 1)

    @property
    def turn(self) -> Locator:
        """The newest turn."""
        return self.page.locator(".turn").first

    def verdicts(self, patience: float = PATIENCE) -> dict[str, str]:
        """Of each engine of the newest turn, once all are there."""
        lanes = self.turn.locator(".lane")
        found = {}
        for lane in lanes.all():
            expect(lane.locator(".verdict")).to_have_text(re.compile("[A-Z]+"), timeout=patience * 1000)
            found[lane.get_attribute("data-lane") or ""] = lane.locator(".verdict").inner_text()
        return found

    def lane(self, engine: str) -> Locator:
        """An engine's part of the newest turn."""
        return self.turn.locator(f".lane[data-lane='{engine}']")

    def sources(self, engine: str) -> dict[str, float]:
        """How much of the engine's bar each source takes."""
        script = "bar => [...bar.children].map(part => [part.classList[0], part.offsetWidth / bar.offsetWidth])"
        return dict(self.lane(engine).locator(".source").evaluate(script))

    def ttft(self, engine: str) -> float:
        """The time that its clock shows, in seconds."""
        return float(self.turn.locator(f".clock[data-engine='{engine}'] span").inner_text())

    def health(self, service: str) -> Locator:
        """A service's sign of life."""
        return self.page.locator(".pill", has_text=service).first

    def height(self) -> int:
        """Of the newest turn, in pixels."""
        box = self.turn.bounding_box()
        assert box
        return round(box["height"])

    def upload(self, name: str, data: bytes) -> None:
        """Choose this file in the dialog."""
        if not self.dialog.is_visible():
            self.page.locator("#another").click()
        # No person is faster than the dialog opens; what closes it while it still opens may lose.
        expect(self.dialog).to_be_visible()
        expect(self.page.locator(".q-dialog [class*=-enter-active], .q-dialog[class*=-enter-active]")).to_have_count(0)
        self.page.locator(".q-uploader input[type=file]").set_input_files(
            {"name": name, "mimeType": "text/plain", "buffer": data}
        )

    @property
    def dialog(self) -> Locator:
        """The dialog for another document."""
        return self.page.get_by_label("Another document")

    @property
    def message(self) -> Locator:
        """What the dialog says."""
        return self.page.locator(".message")


def words(count: int, name: str = "word") -> str:
    """A document of so many words."""
    return " ".join(f"{name}{number}" for number in range(count))
