"""``kvdemo ui`` as people see it: headless Chromium before the page, fake engines behind it."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from browsing import CHROMIUM, FLAGS, PATIENCE, Tab, browser, needs_browser, page_of, words
from conftest import Lab
from guarding import until
from kvdemo.host import health, survey
from kvdemo.host.procfs import alive
from kvdemo.judge import record
from kvdemo.words import top

pytestmark = needs_browser

ENGINES: dict[str, dict[str, Any]] = {"plain": {}, "other": {}, "a": {"cache": "shared"}, "b": {"cache": "shared"}}
WORDS = 2000
SLOW = 250
"""Microseconds for a token: half a second to read the document."""
WHOLE = "one => one.scrollWidth <= one.clientWidth && one.scrollHeight <= one.clientHeight + 1"
"""Nothing of its text is hidden."""
SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "a" * 24,
}


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
            until(lambda: health.request(fleet.url, "/")[0])
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


def test_the_strip_shows_what_the_engines_do(fleet: Fleet, tab: Tab) -> None:
    """What `kvdemo top` says: closed one line of the fleet, opened one a service; an engine that ended is told."""
    live = tab.page.locator("#live")
    row = live.locator("tr[data-service=other]")
    expect(live.locator("summary")).to_contain_text("rates over")
    expect(row).to_be_hidden()
    live.locator("summary").click()
    headings = [gauge.heading for gauge in top.ENGINE_GAUGES]
    assert live.locator("table").first.locator("th").all_inner_texts() == ["ENGINE", "", *headings]
    spec = fleet.plan.service("other")
    body = {"model": spec.model, "prompt": words(123, "strip"), "max_tokens": 1}
    assert health.request(spec.url, "/v1/completions", timeout=30, body=body)[0] == 200
    expect(live.locator(".prompts")).to_contain_text("other: 123 tokens = 123 computed, TTFT ")
    expect(row.locator(".flow")).to_have_attribute("title", re.compile(r"[\d.]+ computed tokens a second"))
    assert row.locator(".flow .computed").bounding_box() != row.locator(".flow .shared").bounding_box()
    expect(row.locator("td").nth(2 + headings.index("N"))).to_have_text("1")
    expect(live.locator("tr[data-service=shared] td").nth(2)).not_to_be_empty()
    fleet.hurt = True
    fleet.lab.run("stop", "other", "-p", fleet.lab.name)
    expect(live.locator(".prompts")).to_contain_text("other: does not answer")
    expect(row.locator("td").nth(2)).to_be_empty()
    expect(row.locator(".flow")).to_be_hidden()
    fleet.lab.run("start", "other", "-p", fleet.lab.name)
    expect(live.locator(".prompts")).to_contain_text("other: was restarted")


def test_the_strip_stands_still_while_a_request_is_timed(fleet: Fleet, tab: Tab) -> None:
    """It says so, and goes on after the first token: the request is among the last prompts then."""
    fleet.fault("plain", TOKEN_US=8 * SLOW, DECODE_MS=5)
    tab.page.locator("#live summary").click()
    tab.ask("Who steered?", "plain")
    expect(tab.page.locator("#live summary")).to_contain_text("paused until the first token has come")
    assert tab.verdicts() == {"plain": "COLD"}
    expect(tab.page.locator("#live summary")).to_contain_text("rates over")
    expect(tab.page.locator("#live .prompts")).to_contain_text(re.compile(r"plain: [\d,]+ tokens"))


def test_the_strip_tells_the_prompts_of_a_demonstration_apart(tab: Tab) -> None:
    """However fast they follow each other: what B loads is told from what A computes."""
    assert tab.demonstrate() == {"a": "COLD", "other": "COLD", "b": "SHARED"}
    prompts = tab.page.locator("#live .prompts")
    expect(prompts).to_contain_text(re.compile(r"b: [\d,]+ tokens = [\d,]+ computed \+ [\d,]+ shared"))
    expect(prompts).to_contain_text(re.compile(r"a: ([\d,]+) tokens = \1 computed"))
    expect(prompts).to_contain_text(re.compile(r"other: ([\d,]+) tokens = \1 computed"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_strip_fits_a_phone(opened: Open, scheme: str) -> None:
    """Opened, its tables scroll; the page does not, and the names stay where they are."""
    tab = opened(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    live = tab.page.locator("#live")
    live.locator("summary").click()
    name = live.locator("tr[data-service=plain] td").first
    expect(name).to_be_visible()
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    before = name.bounding_box()
    live.locator(".scroll").first.evaluate("one => one.scrollLeft = 200")
    assert live.locator(".scroll").first.evaluate("one => one.scrollLeft") > 50
    assert name.bounding_box() == before


def test_one_engine_answers_as_a_stream(fleet: Fleet, tab: Tab) -> None:
    """Enter sends; the clock runs, stops at the first token, the answer grows below it; nothing moves until it ends.

    Then a long answer opens, so that all of it is read without scrolling.
    """
    fleet.fault("plain", TOKEN_US=4 * SLOW, DECODE_MS=150)
    turn = tab.ask("Who steered?", "plain")
    expect(turn.locator(".fill")).to_have_attribute("data-phase", "sent")
    height = tab.height()
    expect(turn.locator(".answer")).to_have_text(re.compile(r"w\d+"))
    first = turn.locator(".answer").inner_text()
    assert tab.height() == height
    assert tab.verdicts() == {"plain": "COLD"}
    assert len(turn.locator(".answer").inner_text()) > len(first)
    assert turn.locator(".answer").evaluate("one => one.scrollHeight <= one.clientHeight + 1")
    assert tab.height() >= height
    assert 0.4 < tab.ttft("plain") < 5
    assert tab.sources("plain") == {"computed": 1, "local": 0, "shared": 0}
    fleet.fault("plain", TOKEN_US=SLOW, DECODE_MS=5)
    tab.ask("Who steered?")
    assert tab.verdicts() == {"plain": "LOCAL"}


def test_the_demonstration(tab: Tab) -> None:
    """One press: one engine reads, then the one that shares beats the plain one, and the bar says why."""
    tab.page.locator("#demo").click()
    tab.turn.wait_for()
    assert tab.verdicts() == {"a": "COLD", "other": "COLD", "b": "SHARED"}
    expect(tab.turn.locator(".finding b")).to_have_text(re.compile("x$"))
    assert tab.sources("b")["shared"] > 0.95
    assert tab.sources("other")["computed"] == 1
    assert tab.ttft("b") < tab.ttft("other") / 3
    finding = tab.turn.locator(".finding")
    expect(finding).to_contain_text("b had 1,984 tokens from the shared cache, other computed them")
    expect(finding).to_contain_text("All gave the same tokens")
    assert float(finding.locator("b").inner_text().removesuffix("x")) > 3
    assert tab.page.locator(".known .shared").all_inner_texts() == ["shared"]
    assert tab.page.locator(".known .local").all_inner_texts() == ["other", "a", "b"]


def test_the_empty_page_tells_the_story(tab: Tab) -> None:
    """Three steps in the order in which they will be asked, with the time that they should take here."""
    steps = tab.page.locator(".story li")
    expect(steps).to_have_count(3)
    assert [step.locator("b").inner_text() for step in steps.all()] == ["a", "other", "b"]
    expect(steps.nth(1)).to_contain_text(re.compile(r"about \d+ s here"))
    expect(tab.page.locator(".empty")).to_contain_text("at the pace of the warm-up")
    tab.demonstrate()
    expect(tab.page.locator(".empty")).to_be_hidden()
    expect(tab.turn).to_contain_text("first a, then other, then b")


def test_a_race_on_one_processor_is_no_measurement(fleet: Fleet, tab: Tab) -> None:
    """Engines that run at the same time on the same hardware are named, and the factor is not told as sharing's.

    So the page asks them in turn unless it is told not to. Where all of them compute, times are no measurement either.
    """
    expect(tab.page.get_by_role("button", name="one after another")).to_have_attribute("aria-pressed", "true")
    tab.page.get_by_role("button", name="at the same time").click()
    tab.demonstrate()
    expect(tab.turn.locator(".finding b")).to_have_class("shared")
    expect(tab.turn.get_by_text("No measurement")).to_be_hidden()
    tab.page.locator("#cold").click()
    tab.ask("Who steered?", "a")
    tab.verdicts()
    # Else b, which loads in 30 ms, may have answered before the other has begun.
    fleet.fault("b", TOKEN_US=SLOW, DECODE_MS=5, DELAY_S=0.4)
    fleet.fault("other", TOKEN_US=4 * SLOW, DECODE_MS=5)
    tab.ask("How low?", "other", "b")
    assert tab.verdicts() == {"other": "COLD", "b": "SHARED"}
    expect(tab.turn.get_by_text("No measurement: b, other ran at the same time")).to_be_visible()
    expect(tab.turn.locator(".finding b")).not_to_have_class("shared")
    tab.page.locator("#cold").click()
    tab.ask("How low?", "other", "plain")
    assert tab.verdicts() == {"plain": "COLD", "other": "COLD"}
    expect(tab.turn.get_by_text("No measurement: other, plain ran at the same time")).to_be_visible()


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


def test_a_long_text_is_pasted_whole(tab: Tab) -> None:
    """Nothing is cut: what is too long for the engines is refused in the same words as a file."""
    tab.page.locator("#another").click()
    tab.page.evaluate("text => { document.getElementById('pasted').value = text }", "word " * 600_000)
    tab.page.locator("#use").click()
    expect(tab.message).to_contain_text("pasted text: is too long: 3,000,000 characters")


def test_the_whole_question_is_seen(opened: Open) -> None:
    """However long it is; the suggested ones too."""
    for width in (390, 1280):
        tab = opened(viewport={"width": width, "height": 800})
        tab.page.get_by_label("Question").fill("Which number is cut upside down on a stone in the fourth course? " * 3)
        for narrower in (width, width - 60, width):  # ten per cent less: the text has other lines then
            tab.page.set_viewport_size({"width": narrower, "height": 800})
            for place in (tab.page.get_by_label("Question"), *tab.page.locator(".hint").all()):
                assert place.evaluate(WHOLE)


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
    expect(tab.page.get_by_text("Not ready: b (exited).")).to_contain_text(f"kvdemo ps -p {fleet.lab.name}")
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
    rows = one.page.locator("section[aria-label=History] tbody tr").count()
    two.ask("Who steered?", "plain")
    two.verdicts()
    expect(one.page.locator("section[aria-label=History] tbody tr")).to_have_count(rows + 1)


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
    expect(tab.page.locator("section[aria-label=History] tbody tr").first).to_contain_text(re.compile("SHARED|COLD"))
    expect(tab.page.locator(".chart svg")).to_contain_text("other")
    with tab.page.expect_download() as download:
        tab.page.get_by_text("Download as JSONL").click()
    target = tmp_path / download.value.suggested_filename
    download.value.save_as(target)
    held = record.read(target)
    assert (held.conditions.baseline, held.conditions.writer, held.conditions.reader) == ("other", "a", "b")
    assert [sample.arm for sample in held.samples[-3:]].count("store") == 1
    assert tab.page.locator("section[aria-label=History] tbody tr").count() == len(held.samples)
    assert fleet.lab.run("report", target).returncode == 0


def test_bench_from_the_page(fleet: Fleet, tab: Tab, opened: Open) -> None:
    """The terminal's bench about the typed question: progress, report in place; questions wait."""
    expect(tab.page.get_by_text("are being warmed up")).to_be_hidden()
    tab.page.get_by_label("Question", exact=True).fill("-- Which ship was it?")
    tab.page.locator("#tab-bench").click()
    tab.page.locator("#bench-start").click()
    expect(tab.page.locator("#bench-start")).to_be_disabled()
    tab.page.locator("#tab-ask").click()
    expect(tab.page.locator("#ask")).to_be_disabled()
    tab.page.locator("#tab-bench").click()
    panel = tab.page.get_by_label("Bench", exact=True)
    expect(panel.locator(".note")).to_have_text("It ended with exit code 0.", timeout=PATIENCE * 2000)
    expect(panel.frame_locator("iframe.report").locator("h1")).to_contain_text(re.compile(r"\(TTFT\)|noise"))
    (saved,) = (fleet.lab.path / "results").glob("*.json")
    assert json.loads(saved.read_text())["question"] == "-- Which ship was it?"
    tab.page.locator("#tab-ask").click()
    expect(tab.page.locator("#ask")).to_be_enabled()
    # Playwright's own choice of colours would hold inside the frame too, whatever the page says: none here.
    follows_the_toggle(opened(color_scheme="null"))


def test_load_from_the_page(fleet: Fleet, tab: Tab) -> None:
    """The terminal's load: its sentence and its curves in place, a wrong field in its own words; one run at a time."""
    expect(tab.page.get_by_text("are being warmed up")).to_be_hidden()
    tab.page.locator("#tab-bench").click()
    tab.page.get_by_label("First token within").fill("soon")
    tab.page.locator("#load-start").click()
    expect(tab.page.get_by_text("--slo-ttft: 'soon' is no time")).to_be_visible(timeout=PATIENCE * 1000)
    for field, value in {"First token within": "5s", "Requests a second": "4", "Each rate for": "2s"}.items():
        tab.page.get_by_label(field).fill(value)
    tab.page.get_by_label("Documents").fill("2")
    tab.page.locator("#load-start").click()
    expect(tab.page.locator("#bench-start")).to_be_disabled()
    panel = tab.page.get_by_label("Load", exact=True)
    expect(panel.locator(".note")).to_contain_text("Now: ")
    assert not panel.locator(".bar").is_visible(), "it does not tell how far it is"
    report = panel.frame_locator("iframe.report")
    expect(report.get_by_text("every rate that was tried kept the limit").first).to_be_visible(timeout=PATIENCE * 2000)
    expect(report.get_by_role("img", name="curves")).to_be_visible()
    (saved,) = (fleet.lab.path / "results").glob("*-load-*.json")
    assert {point["rate"] for point in json.loads(saved.read_text())["points"]} == {4.0}


def follows_the_toggle(tab: Tab) -> None:
    """The report is dark exactly when the page is: not when the system is."""
    tab.page.locator("#tab-bench").click()
    report = tab.page.frame_locator("iframe.report >> nth=0").locator("body")
    for colours in [("rgb(20, 23, 27)", "dark"), ("rgb(255, 255, 255)", "light")] * 2:
        tab.page.locator("#shade").click()
        expect(tab.page.locator(f"body.body--{colours[1]}")).to_have_count(1)
        expect(report).to_have_css("background-color", colours[0])


BROKEN = """() => {
    const broken = [];
    for (const one of document.querySelectorAll(".pill, .chip, .hint, .name, .head, .key, .story li, .plain")) {
        const walker = document.createTreeWalker(one, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
            for (const word of walker.currentNode.data.matchAll(/[^\\s-]+/g)) {
                const range = document.createRange();
                range.setStart(walker.currentNode, word.index);
                range.setEnd(walker.currentNode, word.index + word[0].length);
                const lines = new Set([...range.getClientRects()].map((rect) => Math.round(rect.top)));
                if (lines.size > 1) broken.push(word[0]);
            }
        }
    }
    return broken;
}"""
"""Words that stand in two lines."""

LAYOUT = "lanes => new Set([...lanes.children].map((lane) => Math.round(lane.getBoundingClientRect().left))).size"
"""Columns of the answers."""


@pytest.mark.parametrize(("width", "columns"), [(390, 1), (1280, 2), (1920, 4)])
def test_answers_stand_in_a_grid(opened: Open, width: int, columns: int) -> None:
    """Four answers: one column, two by two, or four columns; no word is broken, no name cut."""
    tab = opened(viewport={"width": width, "height": 800})
    tab.ask("Who steered?", "plain", "other", "a", "b")
    tab.verdicts()
    assert tab.turn.locator(".lanes").evaluate(LAYOUT) == columns
    assert tab.page.evaluate(BROKEN) == []


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_nothing_is_wider_than_the_window(opened: Open, width: int) -> None:
    """Phone to projector, in the dark too; the race is in sight once it runs; and the toggle turns it light."""
    tab = opened(viewport={"width": width, "height": 800}, color_scheme="dark")
    tab.demonstrate()
    expect(tab.turn.locator(".race")).to_be_in_viewport()
    for name in ("ask", "history", "bench"):
        tab.page.locator(f"#tab-{name}").click()
        assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    dark = tab.page.locator("body.body--dark")
    expect(dark).to_have_count(1)
    tab.page.locator("#shade").click()
    expect(dark).to_have_count(0)


def test_the_keyboard_is_enough(tab: Tab) -> None:
    """Tab reaches the strip, which Enter opens and closes, and the chips, of which space presses one; focus is seen."""
    tab.page.locator("#shade").focus()
    tab.page.keyboard.press("Tab")
    for opened in (True, False):
        tab.page.keyboard.press("Enter")
        assert tab.page.locator("#live").evaluate("one => one.open") is opened
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Question"
    focused = "document.activeElement.dataset.engine"
    tab.page.locator(".hint").last.focus()
    tab.page.keyboard.press("Tab")
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


def test_ctrl_c_ends_it_whatever_an_engine_does(fleet: Fleet, tab: Tab) -> None:
    """With a tab open and an answer that never comes: it hangs up and ends."""
    expect(tab.page.get_by_text("are being warmed up")).to_be_hidden()
    tab.ask("Who?", "plain")  # it has read enough then: the other page need not warm it up
    tab.verdicts()
    fleet.fault("plain", DELAY_S=60)
    with page_of(lambda *words: fleet.lab.start(*words, "-p", fleet.lab.name)) as url:
        other = Tab(fleet.chromium, url)
        expect(other.ask("Who?", "plain").locator(".fill")).to_have_attribute("data-phase", "sent")
        began = time.monotonic()
    assert time.monotonic() - began < 30
    other.page.close()


def test_the_page_answers_soon(fleet: Fleet) -> None:
    """The command says where, and the page is there; a taken port is told in words."""
    port = fleet.url.rpartition(":")[2]
    done = fleet.lab.run("ui", "-p", fleet.lab.name, "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot be listened on" in done.stderr
    assert health.request(fleet.url, "/")[0] == 200


def asked(url: str, path: str, **headers: str) -> tuple[int, str]:
    """What the page answers to a request with these headers."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/", "/history.jsonl", "/bench/0", "/nothing", SOCKET])
@pytest.mark.parametrize("host", ["foreign.example:{}", "127.0.0.1.foreign.example", "0.0.0.0:{}", ""])
def test_it_answers_to_its_own_names_only(fleet: Fleet, path: str, host: str) -> None:
    """Whatever is asked for under another name: plain text that says what to do, and nothing of the fleet."""
    upgrade = UPGRADE if path == SOCKET else {}
    status, said = asked(fleet.url, path, Host=host.format(fleet.url.rpartition(":")[2]), **upgrade)
    assert (status, fleet.lab.name in said) == (400, False)
    assert said.startswith("This page answers to localhost, 127.0.0.1, [::1] only")
    assert f"Open {fleet.url}, or" in said


def test_its_socket_is_for_itself_only(fleet: Fleet) -> None:
    """Under each of its names, from a page of that name; programs other than browsers say no origin."""
    from kvdemo.ui.hosts import LOOPBACK

    port = fleet.url.rpartition(":")[2]
    for name in LOOPBACK:
        host = f"{name}:{port}"
        assert asked(fleet.url, "/", Host=host)[0] == 200
        assert asked(fleet.url, SOCKET, Host=host, Origin=f"http://{host}", **UPGRADE)[0] == 101
    assert asked(fleet.url, SOCKET, **UPGRADE)[0] == 101
    for origin in ("http://foreign.example", "null", f"https://127.0.0.1:{port}", "http://127.0.0.1:9"):
        assert asked(fleet.url, SOCKET, Origin=origin, **UPGRADE)[0] == 403
        assert asked(fleet.url, SOCKET.replace("websocket", "polling"), Origin=origin)[0] == 400


def test_a_website_cannot_use_the_page(fleet: Fleet) -> None:
    """A browser that takes a foreign name for this machine, and a script there that opens a socket to the page."""
    host, _, port = fleet.url.removeprefix("http://").rpartition(":")
    rebound = [*FLAGS, f"--host-resolver-rules=MAP foreign.example {host}"]
    script = """url => new Promise(done => {
        const socket = new WebSocket(url);
        socket.onopen = () => done("open");
        socket.onerror = () => done("refused");
    })"""
    with fleet.chromium.browser_type.launch(executable_path=CHROMIUM, args=rebound) as chromium:
        page = chromium.new_context().new_page()
        page.goto(f"http://foreign.example:{port}/")
        expect(page.locator("body")).to_contain_text("This page answers to")
        assert page.evaluate(script, f"ws://{host}:{port}{SOCKET}") == "refused"
        own = Tab(chromium, fleet.url)
        assert own.page.evaluate(script, f"ws://{host}:{port}{SOCKET}") == "open"
        own.close()


def test_shown_to_others_it_answers_to_every_name(fleet: Fleet) -> None:
    """On all addresses nobody knows here what others call it; the socket is still for its own page."""
    with page_of(lambda *words: fleet.lab.start(*words, "-p", fleet.lab.name, "--host", "0.0.0.0")) as url:  # noqa: S104
        until(lambda: health.request(url, "/")[0])
        host = f"fleet.example:{url.rpartition(':')[2]}"
        assert asked(url, "/", Host=host)[0] == 200
        assert asked(url, SOCKET, Host=host, Origin=f"http://{host}", **UPGRADE)[0] == 101
        assert asked(url, SOCKET, Host=host, Origin="http://foreign.example", **UPGRADE)[0] == 403


def test_names_by_address() -> None:
    """Bound to one address or name of this machine, it answers to that one and to the machine's own name, too."""
    from kvdemo.ui.hosts import LOOPBACK, names

    assert names("127.0.0.1") == names("::1") == names("localhost") == LOOPBACK
    assert names("127.0.0.2") == (*LOOPBACK, "127.0.0.2")
    for host, own in (("192.0.2.7", "192.0.2.7"), ("2001:DB8:0::7", "[2001:db8::7]"), ("GPU.lan", "gpu.lan")):
        assert names(host) == (*LOOPBACK, own, socket.gethostname().lower())
    assert names("0.0.0.0") == names("::") == names("") == ("*",)  # noqa: S104


def test_without_a_fleet_or_the_library(lab: Lab) -> None:
    """Exit 7 when nothing is up; without NiceGUI the message says how to install it."""
    done = lab.run("ui")
    assert done.returncode == 7
    assert "kvdemo up PROFILE" in done.stderr
    code = "import sys; sys.modules['nicegui'] = None; from kvdemo.cli import app; app(['ui'])"
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=lab.environ)
    assert bare.returncode == 2
    assert "pip install 'kvdemo[ui]'" in bare.stderr


def test_without_a_document_the_handbook_is_cut_to_the_machine(shared: Fleet, lab: Lab) -> None:
    """The page is there before the engines are warm; then as much of the handbook as they read cold in ten seconds."""
    engines = {name: {"cache": "shared", "env": {"FAKE_TOKEN_US": "1000"}} for name in ("a", "b")}
    lab.up(lab.profile(engines, {"shared": {"l1": "1GiB", "chunk_size": 64}}))
    with page_of(lambda *words: lab.start(*words, "-p", lab.name)) as url:
        tab = Tab(shared.chromium, url)
        assert "No document yet" in tab.page.locator(".paper h2").inner_text()
        expect(tab.page.locator(".paper h2")).to_have_text("handbook.txt")
        tokens = int(tab.page.locator(".paper .facts b").last.inner_text().replace(",", ""))
        assert 5_000 < tokens < 11_000  # it is cut between lines
        tab.close()
