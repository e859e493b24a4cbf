"""The report: one self-contained HTML file of a run, for people who were not there.

``render`` is pure: the same document and samples give the same bytes. Nothing is fetched, whatever comes from engines
or files is text, and sections appear only where the document has them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvdemo.errors import UsageError
from kvdemo.judge import document
from kvdemo.judge.result import Result
from kvdemo.judge.sample import Sample
from kvdemo.report import figures, look
from kvdemo.report.figures import section
from kvdemo.report.markup import Markup, data, join, tag
from kvdemo.words import exchange, findings
from kvdemo.words.table import COLUMNS, note
from kvdemo.words.tones import Piece

LABELS = {
    "date": "Date",
    "model_id": "Model",
    "device": "Device",
    "prompt_tokens": "Prompt tokens",
    "expected_hit_tokens": "Of them reusable",
    "prompt_sha256": "Prompt, SHA-256 of its tokens",
    "context": "Document",
    "chunk_size": "Chunk size in tokens",
    "kv_bytes_per_token": "KV bytes per token",
    "max_tokens": "Answer in tokens",
    "num_trials": "Trials",
    "max_concurrency": "Requests at once",
    "backend": "Endpoint",
    "baseline": "Baseline",
    "writer": "Writer",
    "reader": "Reader",
    "seed": "Seed of the order",
    "completed": "Requests completed",
    "failed": "Requests failed",
    "project": "Project",
    "run_id": "Run",
    "kvdemo_version": "kvdemo",
}
ELSEWHERE = {"question", "store_tax", "flags", *document.RESULT_KEYS} - {"prompt_tokens", "completed", "failed"}
"""What has a place of its own on the page, or says nothing to people."""

SHORT = 24
"""Letters of a headline that stands in large type; one of several caches is longer."""


def save(path: Path, text: str) -> Path:
    """Write the page. Raises UsageError if it cannot be written, or if the name is that of results."""
    if path.suffix in (".json", ".jsonl"):
        raise UsageError(f"{path}: the report is HTML; that name is for results", "--html FILE.html")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "choose another with --html FILE") from None
    return path


def render(result: Result, samples: Sequence[Sample]) -> str:
    """The whole page of a result and the samples it was made from."""
    run = result.conditions
    conditions = document.to_json(result)
    main = tag(
        "main",
        _headline(result),
        figures.lengths(result),
        figures.matrix(result),
        _latency(result),
        figures.requests(result, samples),
        figures.waterfall(result),
        figures.costs(result),
        figures.limit(result),
        _answers(result, samples),
        _conditions(conditions),
        _raw(conditions, samples),
    )
    title = f"kvdemo: {run.model_id} on {run.device}"
    return look.page(title, run.kvdemo_version, main, tag("script", look.SCRIPT))


def _headline(result: Result) -> Markup:
    line, same = findings.headline(result), findings.answer(result)
    facts = [*findings.facts(result), result.conditions.date[:10]]
    return tag(
        "header",
        tag("p", "kvdemo · time to first token with a shared KV cache", class_="eyebrow"),
        tag("h1", line.hero, class_=f"{line.tone} long".strip() if len(line.hero) > SHORT else line.tone),
        tag("p", *map(_unbroken, re.split(r"(\s+)", line.sentence)), class_="lead"),
        tag("p", "Same answer? ", tag("span", same, class_=same.tone)) if result.rows else "",
        tag("p", " · ".join(fact for fact in facts if fact), class_="dim"),
    )


def _unbroken(word: str) -> Markup | str:
    """A word that does not break at its hyphens, as names of engines would."""
    return tag("span", word, class_="name") if "-" in word and len(word) < SHORT else word


def _latency(result: Result) -> Markup:
    """The table of arms, and what must be said with it."""
    if not result.rows:
        return Markup()
    head = tag("tr", *(tag("th", column.heading, class_="n" if column.numeric else None) for column in COLUMNS))
    rows = [
        tag(
            "tr",
            *(
                tag("td", *_pieces(column.cell(result, row)), class_="n" if column.numeric else None)
                for column in COLUMNS
            ),
            class_="key" if row.arm == "reuse" else None,
        )
        for row in result.rows
    ]
    complaints = [tag("p", line, class_="warn") for line in findings.complaints(result)]
    notes = tag("ul", *(tag("li", line) for line in findings.notes(result)), class_="dim notes")
    caption = f"Medians; each token's source is proved by the engine's own counters. {note(result)}".strip()
    return section(
        "Time to first token", caption, tag("div", tag("table", head, *rows), class_="wide"), notes, *complaints
    )


def _pieces(pieces: Sequence[Piece]) -> list[Markup]:
    return [tag("span", piece, class_=piece.tone) for piece in pieces]


def _answers(result: Result, samples: Sequence[Sample]) -> Markup:
    """What was asked, and what each arm first answered."""
    firsts = [(row, next((s.text for s in figures.samples_of(row, samples) if s.text), "")) for row in result.rows]
    answers = [
        join(tag("p", figures.arm_name(row), class_="dim"), tag("blockquote", text)) for row, text in firsts if text
    ]
    question = result.conditions.question
    if not answers or not question:
        return Markup()
    details = tag("details", tag("summary", "The answers, each arm's first"), *answers)
    caption = exchange.MEANINGLESS if result.conditions.random_weights else ""
    return section("Question and answers", caption, tag("blockquote", question), details)


def _conditions(conditions: Mapping[str, Any]) -> Markup:
    flat = {key: value for key, value in conditions.items() if key not in ELSEWHERE}
    order = [key for key in LABELS if key in flat] + [key for key in flat if key not in LABELS]
    pairs = [pair for key in order for pair in _facts(LABELS.get(key, key.replace("_", " ")), flat[key])]
    entries = join(*(join(tag("dt", name), tag("dd", value)) for name, value in pairs))
    flags = [
        join(tag("h3", name), tag("pre", " ".join(map(str, words)).replace(" --", "\n--")))
        for name, words in (conditions.get("flags") or {}).items()
    ]
    details = tag("details", tag("summary", "Flags of every service"), *flags) if flags else ""
    return section("Conditions", "", tag("dl", entries), details)


def _facts(name: str, value: Any) -> list[tuple[str, str]]:
    """A condition as lines of (name, value); a mapping in it names its parts."""
    if isinstance(value, Mapping):
        if all(not isinstance(part, Mapping | list) for part in value.values()):
            return [(name, ", ".join(f"{key} {part}" for key, part in value.items()))] if value else []
        return [fact for key, part in value.items() for fact in _facts(f"{name} of {key}", part)]
    if value is None or value == "" or isinstance(value, list):
        return []
    return [
        (name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value >= 1000 else str(value))
    ]


def _raw(conditions: Mapping[str, Any], samples: Sequence[Sample]) -> Markup:
    """Everything as JSON, to look at elsewhere; the link makes a file of it without a server."""
    whole = {"result": conditions, "samples": [asdict(sample) for sample in samples]}
    name = re.sub(
        r"[^A-Za-z0-9._-]+", "-", f"kvdemo-{conditions.get('project', 'run')}-{conditions.get('run_id', '')}"
    )[:80]
    link = tag("a", "Download result and samples as JSON", id="download", download=f"{name}.json", href="#raw")
    block = tag("script", data(whole), type="application/json", id="raw")
    return join(tag("p", link, class_="dim screen"), block)
