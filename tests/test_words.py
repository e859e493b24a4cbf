"""Words are made once: every medium is held against ``kvdemo.words``, for every verdict."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kvdemo import units
from kvdemo.judge.result import Result, Waterfall
from kvdemo.judge.sample import Sample, Sources
from kvdemo.judge.verdict import SUPPORTS_SPEEDUP, Verdict, judge
from kvdemo.report import look, page, tables
from kvdemo.ui import look as look_of_page
from kvdemo.words import findings, sections
from kvdemo.words.table import COLUMNS
from kvdemo.words.tones import DEEDS, SOURCES, VERDICTS, Tone
from runs import CALM, CONDITIONS, HIT, PROMPT, result, sample, samples

REUSE: dict[Verdict, Sample] = {
    Verdict.COLD: sample(expected=0, cached_tokens=0, sources=Sources(PROMPT, 0, 0)),
    Verdict.SHARED: sample(),
    Verdict.LOCAL: sample(sources=Sources(PROMPT - HIT, HIT, 0)),
    Verdict.PARTIAL: sample(cached_tokens=128, sources=Sources(PROMPT - 128, 0, 128)),
    Verdict.MISS: sample(cached_tokens=0, sources=Sources(PROMPT, 0, 0)),
    Verdict.UNPROVEN: sample(sources=None),
    Verdict.FAILED: sample(error="HTTP 503: not now"),
}
"""A request of the reader that has this verdict."""


def terminal(one: Result) -> str:
    """The screen, verbose."""
    console = Console(width=300, color_system=None, record=True, file=io.StringIO())
    console.print(tables.result(one, verbose=True))
    return console.export_text()


def text(source: str) -> str:
    """What is read of HTML."""
    return html.unescape(re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", " ", source, flags=re.DOTALL))


MEDIA: dict[str, Callable[[Result], str]] = {
    "terminal": terminal,
    "report": lambda one: text(page.render(one, ())),
}


def flat(words: str) -> str:
    """On one line, without no-break spaces and line ends."""
    return " ".join(words.split())


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("verdict", Verdict)
def test_every_medium_sets_the_same_words(verdict: Verdict, medium: str) -> None:
    """Headings, cells, the finding, the answer and every complaint stand in each medium as words make them."""
    made = [s for s in samples() if s.arm != "reuse"]
    one = result(CONDITIONS, [*made, REUSE[verdict]])
    assert one.row("reuse")
    said = flat(MEDIA[medium](one))
    wanted = [column.heading for column in COLUMNS]
    wanted += [piece.text for row in one.rows for column in COLUMNS for piece in column.cell(one, row)]
    wanted += [findings.headline(one).sentence, f"Same answer? {findings.answer(one).text}", *findings.complaints(one)]
    wanted += [*findings.notes(one), *findings.facts(one)]
    squeezed = said.replace(" ", "")
    assert [words for words in wanted if words.replace(" ", "").replace("\n", "") not in squeezed] == []


@pytest.mark.parametrize("verdict", Verdict)
def test_a_verdict_has_a_style_in_every_medium(verdict: Verdict) -> None:
    """A new one without a tone, or a tone that some medium cannot show, fails here."""
    assert judge(REUSE[verdict]).verdict is verdict
    tone = VERDICTS[verdict]
    assert tone in tables.STYLES
    assert re.search(rf"\.{tone}\b", look.STYLE)
    assert f".verdict.tone-{tone} " in look_of_page.STYLE


@pytest.mark.parametrize("tone", Tone)
def test_a_tone_has_a_style_in_every_medium(tone: Tone) -> None:
    """Terminal and report know every way in which a piece of text can be meant."""
    assert tone in tables.STYLES
    assert re.search(rf"\.{tone}\b", look.STYLE)


def test_what_proves_a_source_has_words_for_it() -> None:
    """Exactly the verdicts that support a speed-up of some arm name a source and a deed."""
    proved = {verdict for verdicts in SUPPORTS_SPEEDUP.values() for verdict in verdicts}
    assert {verdict for verdict in Verdict if VERDICTS[verdict] in SOURCES} == proved
    assert SOURCES.keys() == DEEDS.keys()


def test_every_part_of_the_waterfall_has_words_and_a_colour() -> None:
    """A part that the judge adds is drawn by every medium, or fails here."""
    assert [field.name for field in fields(Waterfall)] == list(sections.PARTS)
    styles = [style for style, _ in sections.PARTS.values()]
    assert set(styles) == set(tables.PARTS) == set(tables.SHADES)
    assert len(set(tables.SHADES.values())) == len(styles), "a file has no colours"
    assert all(re.search(rf"\.{style}\b", look.STYLE) for style in styles)


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (None, "-"),
        (0.0, "0 ms"),
        (0.0123, "0.0123 ms"),
        (3.6, "3.60 ms"),
        (51.94, "51.9 ms"),
        (264.4, "264 ms"),
        (999.4, "999 ms"),
        (999.6, "1.00 s"),
        (12_700, "12.7 s"),
        (59_960, "1 min"),
        (291_072, "4 min 51 s"),
        (3_600_000, "1 h"),
        (4_860_000, "1 h 21 min"),
    ],
)
def test_times_are_for_people(milliseconds: float | None, words: str) -> None:
    """Three significant digits up to a minute, then minutes and seconds."""
    assert units.duration(milliseconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (310.2, "310x"),
        (20.6, "21x"),
        (12.83, "12.8x"),
        (4.28, "4.3x"),
        (1.02, "1.02x"),
        (0.848, "0.85x"),
        (0.0123, "0.012x"),
        (1234.0, "1,234x"),
        (1.2e7, "1.2e+07x"),
    ],
)
def test_ratios_are_for_people(value: float, words: str) -> None:
    """No exponent for what people can read, and no more digits than are meant."""
    assert units.ratio(value) == words


@CALM
@given(st.floats(1e-6, 1e12))
def test_any_time_can_be_read(milliseconds: float) -> None:
    """No time of a run is printed with an exponent, or without a unit."""
    assert re.fullmatch(r"[\d.,]+ (ms|s|min|h)( \d+ (s|min))?", units.duration(milliseconds))


def test_a_column_is_one_declaration() -> None:
    """Terminal and report have exactly the columns that words declare, in that order."""
    grid = tables.latency(result())
    assert [column.header for column in grid.columns] == [column.heading for column in COLUMNS]
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", page.render(result(), ()).partition("Time to first token</h2>")[2])
    assert heads[: len(COLUMNS)] == [column.heading for column in COLUMNS]


def test_the_short_screen_is_table_finding_and_answer() -> None:
    """Without ``verbose``: the table, one sentence, whether the answer is the same; the rest is in the report."""
    one = result({**CONDITIONS, "memory_bandwidth": 1e9}, samples())
    console = Console(width=200, color_system=None, record=True, file=io.StringIO())
    console.print(tables.result(one))
    lines = [line for line in console.export_text().splitlines() if line.strip()]
    assert len(lines) == 1 + 1 + len(one.rows) + 2
    assert lines[-2].startswith("b answers 20x faster (TTFT)")
    assert lines[-1].startswith("Same answer? Yes")
    assert one.limit
    assert one.limit.text in flat(terminal(one))
