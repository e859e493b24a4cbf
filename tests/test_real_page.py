"""``kvdemo ui`` before the real fleet: asked, raced, made cold again, given documents, measured from, and hurt."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from browsing import Tab, browser, needs_browser, page_of
from kvdemo.judge import record
from real_fleet import HANDBOOK, NOTICE, START, Real, needs_engines

pytestmark = [*needs_engines, needs_browser]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for the tests of the page."""
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def url(real: Real) -> Iterator[str]:
    """The page of the fleet."""
    if real.run("ps").returncode:
        real.up()
    with page_of(lambda *words: real.start(*words, "--result-dir", "page")) as found:
        yield found


@pytest.fixture
def tab(ready: Real, chromium: Browser, url: str) -> Iterator[Tab]:
    """The page, open, with a short document."""
    one = Tab(chromium, url)
    give(one, ready, "short.txt")
    yield one
    one.close()


def give(tab: Tab, fleet: Real, name: str) -> None:
    """Upload one of the fleet's documents."""
    tab.upload(name, (fleet.path / name).read_bytes())
    expect(tab.page.locator(".paper h2")).to_have_text(name)
    expect(tab.dialog).to_be_hidden()


def test_the_page_shows_the_race(ready: Real, tab: Tab) -> None:
    """Of a document that only A has read, B answers several times faster than plain B, and its bar says why.

    So does the strip, by the engines' counters alone.
    """
    give(tab, ready, "context.txt")
    assert tab.demonstrate(NOTICE * 11) == {"lmcache-a": "COLD", "vllm-b": "COLD", "lmcache-b": "SHARED"}
    assert tab.ttft("vllm-b") > 3 * tab.ttft("lmcache-b")
    assert tab.sources("lmcache-b")["shared"] > 0.9
    assert tab.sources("vllm-b")["computed"] == 1
    expect(tab.turn.locator(".finding")).to_contain_text("faster (TTFT): lmcache-b had")
    loaded = re.compile(r"lmcache-b: [\d,]+ tokens = [\d,]+ computed \+ [\d,]+ shared")
    expect(tab.page.locator("#live .prompts")).to_contain_text(loaded)


def test_cold_again(tab: Tab) -> None:
    """What the engine has of its own is of no use under a new salt."""
    for verdict in ("COLD", "LOCAL"):
        tab.ask("Who?", "lmcache-b")
        assert tab.verdicts() == {"lmcache-b": verdict}
    tab.page.locator("#cold").click()
    tab.ask("Who?", "lmcache-b")
    assert tab.verdicts() == {"lmcache-b": "COLD"}


def test_an_unfit_document_is_refused(tab: Tab) -> None:
    """Empty, binary, longer than the engines' window: said in the dialog, and the document stays."""
    long = HANDBOOK.read_bytes() * 2
    for data, said in ((b"", "is empty"), (b"a\0b" * 99, "is binary"), (long, "the engines read at most 40,960")):
        tab.upload("unfit.txt", data)
        expect(tab.message).to_contain_text(re.compile(f"unfit.txt: .*{said}", re.DOTALL))
    expect(tab.page.locator(".paper h2")).to_have_text("short.txt")


def test_two_browsers_at_once(ready: Real, chromium: Browser, url: str, tab: Tab) -> None:
    """Both ask the same engines at the same time; each document is cold to all but who uploaded it."""
    other = Tab(chromium, url, locale="de-DE")
    try:
        give(other, ready, "short.txt")
        for one in (tab, other):
            one.ask("Who?", "vllm-a", "lmcache-a")
        for one in (tab, other):
            assert one.verdicts() == {"vllm-a": "COLD", "lmcache-a": "COLD"}
    finally:
        other.close()


def test_bench_from_the_page(ready: Real, tab: Tab) -> None:
    """The tab's document is measured; the report stands in the page, the files where the command puts them."""
    tab.page.locator("#tab-bench").click()
    expect(tab.page.get_by_text("short.txt (").first).to_be_visible()
    tab.page.get_by_label("Trials").fill("1")
    tab.page.locator("#bench-start").click()
    expect(tab.page.get_by_text("It ended with exit code 0.")).to_be_visible(timeout=START * 1000)
    # One trial of a short document beside a browser: whether its effect exceeds the noise is not for a test to say.
    expect(tab.page.frame_locator("iframe.report >> nth=0").locator("h1")).to_contain_text(
        re.compile(r"faster \(TTFT\)|noise")
    )
    (saved,) = (ready.path / "page").glob("*.jsonl")
    assert record.read(saved).conditions.everything["context"] == "short.txt"


def test_a_core_killed_mid_answer(ready: Real, chromium: Browser, url: str) -> None:
    """The lane says so, the engine's light goes out, the others go on; the profile's document is long enough for that.

    The engine stays dead: the next test finds it so, and mends it.
    """
    tab = Tab(chromium, url)
    turn = tab.ask("Who?", "vllm-a")
    expect(turn.locator(".fill")).to_have_attribute("data-phase", "sent")
    os.kill(ready.core("vllm-a"), signal.SIGKILL)
    assert tab.verdicts() == {"vllm-a": "FAILED"}
    expect(tab.page.locator(".pill[data-health=dead]")).to_contain_text("vllm-a")
    give(tab, ready, "short.txt")
    tab.ask("Who?", "lmcache-b")
    assert tab.verdicts() == {"lmcache-b": "COLD"}
    tab.close()
