"""The HTML report: whole, self-contained, inert, and the same every time."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdemo.judge.result import Cell, Cost, Lengths, Limit, LimitLine, Matrix, Point, Ratio
from kvdemo.judge.sample import Sample, Sources
from kvdemo.judge.verdict import Verdict
from kvdemo.report import look, markup, page, svg, tables
from runs import CALM, CONDITIONS, PROMPT, result, run, sample, samples, save

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;<!--"
SECTIONS: dict[str, Any] = {
    "lengths": Lengths(
        tuple(Point(n, n / 2.0, 200.0 + n / 50, None if n == 1000 else n / 90) for n in (1000, 500, 16000)), 620
    ),
    "matrix": Matrix(
        ("a", "b"),
        (
            Cell("a", "b", 1, Verdict.SHARED, Verdict.SHARED, "", 896, 92.4, 5.2),
            Cell("b", "a", 1, Verdict.MISS, Verdict.SHARED, "", 0, None, None),
        ),
    ),
    "costs": {
        "lookup_tax": Cost(
            n=6, median=0.02, min=0.01, max=0.03, low=0.01, high=0.03, unit="of cold", text="asking in vain"
        ),
        "decode_tax": Cost(n=2, median=1.31, min=1.2, max=1.4, unit="x", text="ITL"),
    },
    "limit": Limit("memory", "Reuse is 62 % of what it can be.", 0.62, (LimitLine("floor", 296.0, "ms"),)),
}


class Page(HTMLParser):
    """What a browser would find: elements, links, text by element; unbalanced tags are an error."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """An element ends."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Text."""
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)

    def said(self) -> str:
        """All text that is read."""
        return " ".join(
            piece for tag, pieces in self.text.items() if tag not in ("script", "style") for piece in pieces
        )

    def count(self, tag: str) -> int:
        """How many such elements."""
        return sum(name == tag for name, _ in self.tags)


def of(made: list[Sample] | None = None, **more: Any) -> Page:
    """The page of a run; ``more`` replaces fields of its result."""
    made = samples() if made is None else made
    return Page(page.render(replace(result(CONDITIONS, made), **more), made))


def test_the_headline_is_the_finding() -> None:
    """The ratio stands above all, in words, with its interval and whether the answer is the same."""
    shown = of()
    assert shown.text["h1"] == ["20x faster (TTFT)"]
    assert (
        "b answers 20x faster (TTFT) than a plain engine about what only a has read (range of 3 trials 20x to 20x)."
        in shown.said()
    )
    assert "Same answer? " in shown.said()


def test_names_in_the_sentence_do_not_break() -> None:
    """Words with hyphens stay whole, the others may stand on either line; the sentence is the same."""
    made = result(CONDITIONS, samples())
    named = page.render(replace(made, conditions=replace(made.conditions, reader="lmcache-b")), [])
    assert '<span class="name">lmcache-b</span> answers 20x faster (TTFT) than a plain engine' in named


@pytest.mark.parametrize(
    ("factor", "trials", "headline", "said"),
    [
        (40.0, 3, "2.0x slower (TTFT)", "b answers 2.0x slower (TTFT) than a plain engine"),
        (1.0, 2, "20x faster (TTFT)", "range of 2 trials"),
        (1.0, 1, "20x faster (TTFT) in 1 trial", "1 trial: its noise is unknown"),
    ],
)
def test_the_headline_does_not_flatter(factor: float, trials: int, headline: str, said: str) -> None:
    """Slower is called later, and few trials are called few."""
    shown = of(samples(trials, reuse=factor))
    assert shown.text["h1"] == [headline]
    assert said in shown.said()


def test_a_difference_within_noise_is_none() -> None:
    """An interval around 1 is no difference, whatever the median."""
    assert of(speedup=Ratio(6, 1.1, 0.9, 1.2, 0.9, 1.2)).text["h1"] == ["No difference within noise"]


def test_failures_are_the_headline() -> None:
    """Wrong answers and missing proof come before any ratio."""
    wrong = [replace(s, token_ids=(9, 9)) if s.arm == "reuse" else s for s in samples()]
    assert of(wrong).text["h1"] == ["Wrong answer"]
    missed = [replace(s, cached_tokens=0, sources=Sources(PROMPT, 0, 0)) if s.arm == "reuse" else s for s in samples()]
    shown = of(missed)
    assert shown.text["h1"] == ["Nothing proved"]
    assert "Nothing is proved: the reuse of b is MISS." in shown.said()
    assert "b reuse: MISS" in shown.said()
    assert "Hollow dots" in shown.said()


def test_every_sample_is_a_dot() -> None:
    """Each request with a time is one dot; a failed one is none, and counts in its row."""
    made = [*samples(), sample("reuse", 4, error="HTTP 500", ttft=None)]
    shown = of(made)
    assert sum("dot" in (attributes.get("class") or "") for _, attributes in shown.tags) == 12
    assert "(3 SHARED, 1 FAILED)" in shown.said() or "(1 FAILED, 3 SHARED)" in shown.said()


def test_sections_only_where_there_is_something() -> None:
    """Lengths, matrix, costs and limit appear with their data and not without."""
    names = ["By length of the prompt", "From every writer to every reader", "What it costs", "The limit"]
    full = of(**SECTIONS)
    assert set(names) <= set(full.text["h2"])
    for words in ("break-even: 620 tokens", "5.2x", "MISS", "2.00 % of cold", "range of 2 trials", "296 ms", "62 %"):
        assert words in full.said()
    bare = of(costs={}, limit=None, matrix=Matrix((), ()), lengths=Lengths((), None))
    assert not set(names) & set(bare.text["h2"])


junk = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(10**6), 10**6) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def test_everything_foreign_is_text() -> None:
    """Names, questions, answers, errors and flags of engines and files never become markup or script."""
    made = [replace(s, engine=HOSTILE if s.engine == "b" else s.engine, text=HOSTILE, note=HOSTILE) for s in samples()]
    made.append(sample("cold", 4, error=HOSTILE, ttft=None))
    conditions = {
        **CONDITIONS,
        "reader": HOSTILE,
        "question": HOSTILE,
        "model_id": HOSTILE,
        "device": HOSTILE,
        "flags": {HOSTILE: [HOSTILE]},
        HOSTILE: HOSTILE,
        "run_id": HOSTILE,
    }
    cell = Cell(HOSTILE, HOSTILE, 1, Verdict.SHARED, Verdict.SHARED, HOSTILE, 0, 1.0, 2.0)
    foreign = replace(
        result(conditions, made),
        matrix=Matrix((HOSTILE,), (cell,), text=HOSTILE),
        costs={HOSTILE: Cost(n=1, median=1.0, unit=HOSTILE, text=HOSTILE)},
        limit=Limit("memory", HOSTILE, 1.0, (LimitLine(HOSTILE, 1.0, HOSTILE),)),
    )
    shown = Page(page.render(foreign, made))
    assert shown.count("img") == 0
    assert shown.count("script") == 2
    assert all(not name.startswith("on") for _, attributes in shown.tags for name in attributes)
    assert HOSTILE in shown.said()
    assert re.fullmatch(r"[A-Za-z0-9._-]+", next(a["download"] or "" for t, a in shown.tags if t == "a"))


@CALM
@given(st.text(max_size=20))
def test_text_stays_text(value: str) -> None:
    """No text opens an element, ends an attribute, or cannot be written as UTF-8."""
    made = markup.tag("p", value, title=value)
    assert made.count("<") == 2
    assert made.count('"') == 2
    made.encode()


@CALM
@given(junk)
def test_embedded_json_is_json_and_inert(value: Any) -> None:
    """What is embedded parses as strict JSON and holds no character that could end its element."""
    held = markup.data(value)
    assert not set(held) & set("<>&")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(held, parse_constant=refuse)


def test_the_raw_data_is_inside() -> None:
    """The page carries the document and every sample, NaN as null."""
    made = [*samples(), sample("cold", 4, logprobs=(math.nan,))]
    shown = of(made)
    held = json.loads(next(piece for piece in shown.text["script"] if piece.startswith("{")))
    assert len(held["samples"]) == len(made)
    assert held["samples"][-1]["logprobs"] == [None]
    assert held["result"]["run_id"] == "abcdef"


def test_nothing_is_fetched() -> None:
    """No element names anything outside the page; the policy forbids it and allows exactly the page's own script."""
    source = page.render(result(), samples())
    shown = Page(source)
    assert not re.search(r"https?:|url\(|@import|<link|src=", source)
    policy = next(a["content"] or "" for _, a in shown.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    script = next(piece for piece in shown.text["script"] if not piece.startswith("{"))
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


@CALM
@given(st.lists(st.floats(1e-3, 1e7), min_size=1, max_size=6))
def test_scales_hold_their_values(values: list[float]) -> None:
    """Every value lies within the plot; ticks are within the scale, ascending, and few."""
    scale = svg.Scale.over(values)
    assert all(0 <= scale.at(value) <= 1 for value in values)
    ticks = scale.ticks()
    assert len(ticks) <= 7
    assert ticks == sorted(ticks)
    assert all(-1e-9 <= scale.at(tick) <= 1 + 1e-9 for tick in ticks)


def test_the_command_writes_the_report(tmp_path: Path) -> None:
    """`report` prints the table and writes the page beside the samples, or where it is told to."""
    path = save(tmp_path, "run", samples())
    done = run("report", path)
    assert done.returncode == 0, done.stderr
    assert "Time to First Token" in done.stdout
    assert Page((tmp_path / "run.html").read_text()).text["h1"] == ["20x faster (TTFT)"]
    assert run("report", path, "--html", tmp_path / "none" / "x.html").returncode == 2
    refused = run("report", path, "--html", path)
    assert refused.returncode == 2
    assert path.read_text().count("\n") == 14


HUES = {"cold", "store", "reuse", "again", "bad", "warn"}
PHASES = {"client", "queue", "lookup", "prefill"}


def test_a_colour_has_one_meaning() -> None:
    """Phases of a request have colours of their own: none of them says where tokens came from, or that all is well."""
    for scheme in (
        look.STYLE.split("@media", 1)[0],
        look.STYLE.split("prefers-color-scheme: dark", 1)[1].split("* {")[0],
    ):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
        assert len({colours[name] for name in PHASES}) == len(PHASES)
        assert not {colours[name] for name in PHASES} & {colours[name] for name in HUES}
    assert not set(tables.PARTS.values()) & set(tables.STYLES.values())
