"""``kvdemo ui`` as people see it: headless Chromium before the page, fake engines behind it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from browsing import PATIENCE, Tab, browser, needs_browser, page_of, words
from conftest import Lab
from kvdemo import health, record, survey
from kvdemo.procfs import alive

pytestmark = needs_browser

ENGINES: dict[str, dict[str, Any]] = {"plain": {}, "other": {}, "a": {"cache": "shared"}, "b": {"cache": "shared"}}
WORDS = 2000
SLOW = 250
"""Microseconds for a token: half a second to read the document."""


class Fleet:
    """Four engines, the page of them, and a browser."""

    def __init__(self, lab: Lab, chromium: Browser) -> None:
        self.lab, self.chromium = lab, chromium
        (lab.path / "context.txt").write_text(words(WORDS))
        self.profile = lab.profile(
            ENGINES,
            {"shared": {"l1": "16MiB", "chunk_size": 64}},
            bench={"context": "context.txt", "questions": ["Who steered?", "How low?"], "trials": 1},
        )
        self.url = ""
        self.hurt = True

    def mend(self) -> None:
        """Start what has died, take all faults back."""
        if not self.hurt:
            return
        lives = [alive(record.leader) for record in self.lab.project().records().values()]
        if not (lives and all(lives)):
            self.lab.up(self.profile)
        plan = survey.saved_plan(self.lab.project())
        assert plan is not None
        self.plan = plan
        for engine in ENGINES:
            self.fault(engine, TOKEN_US=SLOW, DECODE_MS=5)
        self.hurt = False

    def fault(self, engine: str, **faults: object) -> None:
        """Give an engine these faults and no other."""
        self.hurt = True
        body = {f"FAKE_{name}": str(value) for name, value in faults.items()}
        assert health.request(self.plan.service(engine).url, "/fake", body=body)[0] == 200


@pytest.fixture(scope="module")
def shared(shared_lab: Lab) -> Iterator[Fleet]:
    """The fleet of this file."""
    with browser() as chromium:
        fleet = Fleet(shared_lab, chromium)
        fleet.mend()
        with page_of(lambda *words: shared_lab.start(*words, "-p", shared_lab.name)) as fleet.url:
            yield fleet
    shared_lab.down()


@pytest.fixture
def fleet(shared: Fleet) -> Fleet:
    """Without faults."""
    shared.mend()
    return shared


Open = Callable[..., Tab]


@pytest.fixture
def opened(fleet: Fleet) -> Iterator[Open]:
    """Opens tabs, each with a profile of its own."""
    tabs: list[Tab] = []

    def open_(**options: Any) -> Tab:
        tabs.append(Tab(fleet.chromium, fleet.url, **options))
        return tabs[-1]

    yield open_
    for tab in tabs:
        tab.close()


@pytest.fixture
def tab(opened: Open) -> Tab:
    """One tab."""
    return opened()


def test_one_engine_answers_as_a_stream(fleet: Fleet, tab: Tab) -> None:
    """Enter sends; the clock runs, stops at the first token, and the answer grows below it; nothing moves."""
    fleet.fault("plain", TOKEN_US=4 * SLOW, DECODE_MS=30)
    turn = tab.ask("Who steered?", "plain")
    expect(turn.locator(".fill")).to_have_attribute("data-phase", "sent")
    height = tab.height()
    expect(turn.locator(".answer")).to_have_text(re.compile(r"w\d+"))
    first = turn.locator(".answer").inner_text()
    assert tab.height() == height
    assert tab.verdicts() == {"plain": "COLD"}
    assert len(turn.locator(".answer").inner_text()) > len(first)
    assert tab.height() == height
    assert 0.4 < tab.ttft("plain") < 5
    assert tab.sources("plain") == {"computed": 1, "local": 0, "shared": 0}
    tab.ask("Who steered?")
    assert tab.verdicts() == {"plain": "LOCAL"}


def test_the_demonstration(tab: Tab) -> None:
    """One press: one engine reads, then the one that shares beats the plain one, and the bar says why."""
    tab.page.locator("#demo").click()
    tab.turn.wait_for()
    height = tab.height()
    assert tab.verdicts() == {"a": "COLD", "other": "COLD", "b": "SHARED"}
    expect(tab.turn.locator(".finding b")).to_have_text(re.compile("x$"))
    assert tab.height() == height
    assert tab.sources("b")["shared"] > 0.95
    assert tab.sources("other")["computed"] == 1
    assert tab.ttft("b") < tab.ttft("other") / 3
    finding = tab.turn.locator(".finding")
    expect(finding).to_contain_text("b had 1,984 tokens from the shared cache, other computed them")
    expect(finding).to_contain_text("All gave the same tokens")
    assert float(finding.locator("b").inner_text().removesuffix("x")) > 3
    assert tab.page.locator(".known .has").all_inner_texts() == ["shared", "other", "a", "b"]


def test_cold_again(tab: Tab) -> None:
    """Under a new salt nobody knows the document."""
    tab.ask("Who steered?", "b")
    tab.verdicts()
    tab.ask("How low?")
    assert tab.verdicts() == {"b": "LOCAL"}
    tab.page.locator("#cold").click()
    expect(tab.page.locator(".known")).to_have_text("Cold: no cache has its KV")
    tab.ask("Who steered?")
    assert tab.verdicts() == {"b": "COLD"}


def test_one_after_another_and_follow_up(tab: Tab) -> None:
    """In turns the second engine already shares; a follow-up carries the conversation."""
    tab.page.get_by_text("one after another").click()
    tab.ask("Who steered?", "a", "b")
    assert tab.verdicts() == {"a": "COLD", "b": "SHARED"}
    tab.page.get_by_text("follow up").click()
    tab.ask("And how old was she?", "a")
    assert tab.verdicts() == {"a": "LOCAL"}
    expect(tab.turn).to_contain_text("after 1 earlier turn")


def test_an_unfit_document_is_refused(tab: Tab) -> None:
    """The dialog says what is wrong; the document stays."""
    unfit = {
        "nothing.txt": (b"", "is empty"),
        "blank.txt": (b" \n\t", "is empty"),
        "picture.png": (b"\x89PNG\0\0", "is binary.\ngive a plain text file"),
        "latin.txt": (b"one\ncaf\xe9", "2: is not UTF-8"),
        "long.txt": (words(66000).encode(), "is too long: 66,000 tokens; the engines read at most 65,536"),
        "huge.txt": (b"word " * 600_000, "is too long: 3,000,000 characters"),
    }
    for name, (data, said) in unfit.items():
        tab.upload(name, data)
        expect(tab.message).to_contain_text(re.compile(f"{name}:.*{re.escape(said)}", re.DOTALL))
    expect(tab.page.locator(".paper h2")).to_have_text("context.txt")


def test_another_document(tab: Tab) -> None:
    """From a file, then pasted; markup in it, in its name and in the question is text."""
    evil = "<img src=x onerror=alert(1)> {{7*7}} "
    tab.upload("<b>mine.txt", (evil + words(600, "mine")).encode())
    expect(tab.page.locator(".paper h2")).to_have_text("<b>mine.txt")
    expect(tab.page.locator(".paper .text")).to_contain_text(evil.strip())
    expect(tab.page.locator(".facts")).to_contain_text("604 words")
    tab.ask("<script>alert(2)</script>", "plain")
    assert tab.verdicts() == {"plain": "COLD"}
    expect(tab.turn.locator(".question")).to_have_text("<script>alert(2)</script>")
    tab.page.locator("#another").click()
    tab.page.get_by_label("Pasted text").fill(words(700, "pasted"))
    tab.page.locator("#use").click()
    expect(tab.page.locator(".paper h2")).to_have_text("pasted text")
    tab.ask("Who?", "plain")
    assert tab.verdicts() == {"plain": "COLD"}
    assert tab.page.locator("img").count() == 0


def test_an_answer_is_text(fleet: Fleet, tab: Tab) -> None:
    """Whatever an engine sends."""
    fleet.fault("plain", TEXT="<img src=x onerror=alert(1)><b>bold</b>")
    tab.ask("Who?", "plain")
    assert tab.verdicts() == {"plain": "COLD"}
    expect(tab.turn.locator(".answer")).to_contain_text("<img src=x onerror=alert(1)><b>bold</b>")
    assert tab.turn.locator("img, .answer b").count() == 0


def test_an_engine_that_dies_mid_answer(fleet: Fleet, tab: Tab) -> None:
    """Its lane says so and keeps what had come, its light goes out, the others go on; once it is back it answers."""
    fleet.fault("b", DIE_AFTER=5, DECODE_MS=30)
    tab.ask("Who steered?", "plain", "b")
    assert tab.verdicts() == {"plain": "COLD", "b": "FAILED"}
    expect(tab.lane("b").locator(".why")).to_contain_text("after token 5")
    expect(tab.lane("b").locator(".answer")).to_have_text(re.compile(r"^ *(w\d+ ?){5}$"))
    expect(tab.turn.locator(".finding")).to_contain_text("b failed")
    expect(tab.health("b: exited")).to_have_attribute("data-health", "dead")
    tab.ask("And now?", "plain")
    assert tab.verdicts() == {"plain": "LOCAL"}
    fleet.mend()
    expect(tab.page.locator("[data-health=ready]")).to_have_count(5)
    tab.ask("And now?", "b")
    assert set(tab.verdicts().values()) <= {"SHARED", "COLD", "PARTIAL"}


def test_a_dead_engine_refuses_at_once(fleet: Fleet, tab: Tab) -> None:
    """Nothing waits for one that is not there; an error of an engine is shown in its words."""
    fleet.fault("plain", STATUS=503)
    tab.ask("Who?", "plain")
    assert tab.verdicts() == {"plain": "FAILED"}
    expect(tab.lane("plain").locator(".why")).to_contain_text("HTTP 503: not now")


def test_two_browsers_at_once(opened: Open) -> None:
    """Each has a document that only it has made warm, and a conversation of its own; engines serve them in turn."""
    one, two = opened(), opened(locale="de-DE")
    one.ask("Who steered?", "plain", "a")
    two.ask("How low?", "plain", "a")
    assert one.verdicts() == two.verdicts() == {"plain": "COLD", "a": "COLD"}
    assert one.page.locator(".turn").count() == two.page.locator(".turn").count() == 1
    one.page.locator("#tab-history").click()
    expect(one.page.locator("#tab-history")).to_have_attribute("aria-selected", "true")
    rows = one.page.locator("tbody tr").count()
    two.ask("Who steered?", "plain")
    two.verdicts()
    expect(one.page.locator("tbody tr")).to_have_count(rows + 1)


def test_a_reload_keeps_the_conversation(tab: Tab) -> None:
    """F5 in the middle of an answer: everything is there again, and goes on."""
    tab.ask("Who steered?", "plain")
    tab.page.reload()
    tab.page.locator("#ask").wait_for()
    assert tab.verdicts() == {"plain": "COLD"}
    expect(tab.turn.locator(".question")).to_have_text("Who steered?")


def test_history_is_a_run(fleet: Fleet, tab: Tab, tmp_path: Path) -> None:
    """A chart, a table, and a file that `kvdemo report` judges like a run of bench."""
    tab.demonstrate()
    tab.page.locator("#tab-history").click()
    expect(tab.page.locator("tbody tr").first).to_contain_text(re.compile("SHARED|COLD"))
    expect(tab.page.locator(".chart svg")).to_contain_text("other")
    with tab.page.expect_download() as download:
        tab.page.get_by_text("Download as JSONL").click()
    target = tmp_path / download.value.suggested_filename
    download.value.save_as(target)
    conditions, samples = record.read(target)
    assert (conditions["baseline"], conditions["writer"], conditions["reader"]) == ("other", "a", "b")
    assert [sample.arm for sample in samples[-3:]].count("store") == 1
    assert tab.page.locator("tbody tr").count() == len(samples)
    assert fleet.lab.run("report", target).returncode == 0


def test_bench_from_the_page(fleet: Fleet, tab: Tab) -> None:
    """The terminal's bench: progress, table and report in place; questions wait meanwhile."""
    tab.page.locator("#tab-bench").click()
    tab.page.locator("#bench-start").click()
    expect(tab.page.locator("#bench-start")).to_be_disabled()
    tab.page.locator("#tab-ask").click()
    expect(tab.page.locator("#ask")).to_be_disabled()
    tab.page.locator("#tab-bench").click()
    expect(tab.page.locator("div.out")).to_contain_text("b answers", timeout=PATIENCE * 2000)
    expect(tab.page.get_by_text("ended with exit code 0")).to_be_visible()
    expect(tab.page.frame_locator("iframe.report").locator("h1")).to_contain_text("sooner")
    assert list((fleet.lab.path / "results").glob("*.jsonl"))
    tab.page.locator("#tab-ask").click()
    expect(tab.page.locator("#ask")).to_be_enabled()


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_nothing_is_wider_than_the_window(opened: Open, width: int) -> None:
    """Phone to projector, in the dark too; and the toggle turns it light."""
    tab = opened(viewport={"width": width, "height": 800}, color_scheme="dark")
    tab.demonstrate()
    for name in ("ask", "history", "bench"):
        tab.page.locator(f"#tab-{name}").click()
        assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    dark = tab.page.locator("body.body--dark")
    expect(dark).to_have_count(1)
    tab.page.locator("#shade").click()
    expect(dark).to_have_count(0)


def test_the_keyboard_is_enough(tab: Tab) -> None:
    """Tab reaches the chips, space presses one; the focus is seen."""
    tab.page.locator("#shade").focus()
    tab.page.keyboard.press("Tab")
    focused = "document.activeElement.dataset.engine"
    assert tab.page.evaluate(focused) == "plain"
    assert tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.page.keyboard.press("Space")
    expect(tab.page.locator(".chip[data-engine=plain]")).to_have_attribute("aria-pressed", "false")


def test_a_fleet_that_goes_away(fleet: Fleet, tab: Tab, opened: Open) -> None:
    """`down` while the page is open: it says so and what to do; after `up` it goes on by itself."""
    fleet.hurt = True
    fleet.lab.down()
    expect(tab.page.get_by_role("alert").first).to_contain_text("is not up")
    late = opened()
    expect(late.page.locator(".banner")).to_contain_text("is not up")
    fleet.mend()
    expect(tab.page.locator("[data-health=ready]")).to_have_count(5)
    tab.ask("Who?", "plain")
    assert tab.verdicts() == {"plain": "COLD"}


def test_ctrl_c_ends_it_whatever_an_engine_does(fleet: Fleet) -> None:
    """With a tab open and an answer that never comes: it hangs up and ends."""
    fleet.fault("plain", DELAY_S=60)
    with page_of(lambda *words: fleet.lab.start(*words, "-p", fleet.lab.name)) as url:
        tab = Tab(fleet.chromium, url)
        expect(tab.ask("Who?", "plain").locator(".fill")).to_have_attribute("data-phase", "sent")
        began = time.monotonic()
    assert time.monotonic() - began < 30
    tab.page.close()


def test_the_page_answers_soon(fleet: Fleet) -> None:
    """The command says where, and the page is there; a taken port is told in words."""
    port = fleet.url.rpartition(":")[2]
    done = fleet.lab.run("ui", "-p", fleet.lab.name, "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot be listened on" in done.stderr
    assert health.request(fleet.url, "/")[0] == 200


def test_without_a_fleet_or_the_library(lab: Lab) -> None:
    """Exit 7 when nothing is up; without NiceGUI the message says how to install it."""
    done = lab.run("ui")
    assert done.returncode == 7
    assert "kvdemo up PROFILE" in done.stderr
    code = "import sys; sys.modules['nicegui'] = None; from kvdemo.cli import app; app(['ui'])"
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=lab.environ)
    assert bare.returncode == 2
    assert "pip install 'kvdemo[ui]'" in bare.stderr
