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
from kvdemo.judge.sample import Sample
from kvdemo.report import figures
from kvdemo.report.figures import section, span
from kvdemo.report.look import POLICY, SCRIPT, STYLE
from kvdemo.report.markup import Markup, data, join, tag
from kvdemo.report.saved import mapping, mappings, number
from kvdemo.report.tables import PHASES, times

GOOD = ("COLD", "LOCAL", "SHARED")
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
ELSEWHERE = {"schema_version", "question", "valid", "rows", "speedup", "noise_floor", "store_tax", "answer", "flags",
             "lengths", "matrix", "costs", "limit"}  # fmt: skip
"""What has a place of its own on the page, or says nothing to people."""


def save(path: Path, text: str) -> Path:
    """Write the page. Raises UsageError if it cannot be written, or if the name is that of results."""
    if path.suffix in (".json", ".jsonl"):
        raise UsageError(f"{path}: the report is HTML; that name is for results", "--html FILE.html")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "choose another with --html FILE") from None
    return path


def render(document: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """The whole page of a result document (``results.summarize``) and the samples it was made from."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="generator", content=f"kvdemo {document.get('kvdemo_version', '')}"),
        tag("title", f"kvdemo: {document['model_id']} on {document['device']}"),
        tag("style", STYLE),
    )
    main = tag(
        "main",
        _headline(document, samples),
        figures.lengths(document),
        figures.matrix(document),
        _latency(document),
        figures.requests(document, samples),
        figures.waterfall(document),
        figures.costs(document),
        figures.limit(document),
        _answers(document, samples),
        _conditions(document),
        _raw(document, samples),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', main, tag('script', SCRIPT)), lang='en')}\n"


def _headline(document: Mapping[str, Any], samples: Sequence[Sample]) -> Markup:
    hero, kind, lead = _finding(document)
    trials = len({sample.trial for sample in samples if sample.arm not in ("control", "decode")})
    few = trials < document["num_trials"]
    said = f"{trials} of {document['num_trials']} trials: interrupted" if few else f"{trials} trial{'s'[: trials != 1]}"
    facts = [document["model_id"], f"{document['prompt_tokens']:,} prompt tokens", said, document["device"],
             str(document.get("date", ""))[:10]]  # fmt: skip
    answer = document["answer"]
    colour = {True: "good", False: "bad"}.get(answer["same"], "dim")
    return tag(
        "header",
        tag("p", "kvdemo · time to first token with a shared KV cache", class_="eyebrow"),
        tag("h1", hero, class_=kind or None),
        tag("p", lead, class_="lead"),
        tag("p", "Same answer? ", tag("span", answer["text"], class_=colour)) if document["rows"] else "",
        tag("p", " · ".join(str(fact) for fact in facts if fact), class_="dim"),
    )


def _finding(document: Mapping[str, Any]) -> tuple[str, str, str]:
    """The headline, its colour (a class), and the sentence below it."""
    speedup = mapping(document["speedup"])
    if document["answer"]["same"] is False:
        return "Wrong answer", "bad", "What was loaded from the cache gives another answer than computing it."
    if not speedup:
        return _without_speedup(document)
    ratio, low, high = speedup["median"], number(speedup.get("low")), number(speedup.get("high"))
    if low is not None and high is not None:
        sure = f" (95 % interval {_digits(low)} to {_digits(high)})"
    else:
        sure = f" ({speedup['n']} trial{'s'[: speedup['n'] != 1]}: too few for an interval)"
    alone = document["baseline"] == document["writer"]
    than = f"than {document['writer']} computing it" if alone else "than a plain engine"
    what = f"about what only {document['writer']} has read"
    if low is not None and high is not None and low <= 1 <= high:
        return "No difference", "plain", f"{document['reader']}: {times(ratio)} sooner{sure} {what}. May be chance."
    if ratio < 1:
        later = times(1 / ratio)
        text = f"{document['reader']} takes {later} as long {than} {what}; sooner by {times(ratio)}{sure}."
        return f"{later} later", "bad", text
    return f"{times(ratio)} sooner", "", f"{document['reader']} answers {times(ratio)} sooner{sure} {than} {what}."


def _digits(ratio: float) -> str:
    """Three significant digits, zeros among them."""
    return f"{ratio:,.{0 if ratio >= 100 else 1 if ratio >= 10 else 2}f}"


def _without_speedup(document: Mapping[str, Any]) -> tuple[str, str, str]:
    cells = mappings(mapping(document.get("matrix")).get("cells"))
    pairs = [cell for cell in cells if cell.get("expected", "SHARED") == "SHARED"
             and cell.get("writer") != cell.get("reader")]  # fmt: skip
    if pairs:
        shared = sum(cell.get("verdict") == "SHARED" for cell in pairs)
        text = f"In {shared} of {len(pairs)} pairs the reader got its tokens from what the writer had stored."
        return f"{shared} of {len(pairs)} pairs share", "" if document["valid"] else "bad", text
    why = next((f"{row['engine']} {row['arm']}: {row['verdict']}: {row['why']}" for row in document["rows"]
                if row["why"]), "No request of a reader was answered from the shared cache.")  # fmt: skip
    return "Nothing proved", "bad", why


def _latency(document: Mapping[str, Any]) -> Markup:
    """The table of arms, and what must be said with it."""
    if not document["rows"]:
        return Markup()
    names = [("Engine", None), ("Phase", None), ("Cached tokens", "n"), ("TTFT", "n"), ("Min to max", "n"),
             ("Sooner", "n"), ("Verdict", None)]  # fmt: skip
    head = tag("tr", *(tag("th", name, class_=kind) for name, kind in names))
    rows = [
        tag("tr", *_cells(row, document), class_="key" if row["arm"] == "reuse" else None) for row in document["rows"]
    ]
    said = [tag("p", f"{row['engine']} {row['arm']}: {row['verdict']}: {row['why']}", class_="warn")
            for row in document["rows"] if row["why"] and row["verdict"] not in GOOD]  # fmt: skip
    notes = []
    if floor := mapping(document.get("noise_floor")):
        notes.append(f"Cold against cold is {floor['median']:.2f}x ({floor['min']:.2f} to {floor['max']:.2f}): "
                     "this machine's noise.")  # fmt: skip
    if (tax := mapping(document.get("store_tax"))) and not mapping(document.get("costs")).get("store_tax"):
        notes.append(f"Storing makes cold {tax['median']:.2f}x ({tax['min']:.2f} to {tax['max']:.2f}) as long.")
    table = tag("div", tag("table", head, *rows), class_="wide")
    note = tag("p", " ".join(notes), class_="dim", style="margin-top:14px") if notes else ""
    return section("Time to first token", "Medians; each token's source is proved by the engine's own counters.",
                   table, note, *said)  # fmt: skip


def _cells(row: Mapping[str, Any], document: Mapping[str, Any]) -> list[Markup]:
    baseline = row["engine"] == document["baseline"] and row["arm"] in ("cold", "store")
    speedup = mapping(row["speedup"])
    sooner = "baseline" if baseline else times(speedup["median"]) if speedup else "-"
    several = ", ".join(f"{n} {name}" for name, n in row["verdicts"].items()) if len(row["verdicts"]) > 1 else ""
    return [
        tag("td", row["engine"]),
        tag("td", PHASES.get(row["arm"], row["arm"])),
        tag("td", _cached(row), class_="n"),
        tag("td", span(row.get("median_ttft_ms")), class_="n"),
        tag("td", _range(row), class_="n dim"),
        tag("td", sooner, class_="n"),
        tag("td", tag("span", row["verdict"], class_="good" if row["verdict"] in GOOD else "bad"),
            tag("span", f" ({several})", class_="dim") if several else ""),
    ]  # fmt: skip


def _range(row: Mapping[str, Any]) -> str:
    return f"{span(row['min_ttft_ms'])} to {span(row['max_ttft_ms'])}" if row["n_ttft"] else "-"


def _cached(row: Mapping[str, Any]) -> str:
    known = [(row["local_cached_tokens"], "local"), (row["external_cached_tokens"], "shared")]
    if any(tokens is None for tokens, _ in known):
        return "unknown"
    return " + ".join(f"{tokens:,} {source}" for tokens, source in known if tokens) or "0"


def _answers(document: Mapping[str, Any], samples: Sequence[Sample]) -> Markup:
    """What was asked, and what each arm first answered."""
    seen = [(row, next((s.text for s in figures.samples_of(row, samples) if s.text), "")) for row in document["rows"]]
    said = [join(tag("p", figures.arm_name(row), class_="dim"), tag("blockquote", text)) for row, text in seen if text]
    question = document.get("question")
    if not said or not question:
        return Markup()
    shown = tag("details", tag("summary", "The answers, each arm's first"), *said)
    return section("Question and answers", "", tag("blockquote", question), shown)


def _conditions(document: Mapping[str, Any]) -> Markup:
    flat = {key: value for key, value in document.items() if key not in ELSEWHERE}
    order = [key for key in LABELS if key in flat] + [key for key in flat if key not in LABELS]
    pairs = [pair for key in order for pair in _facts(LABELS.get(key, key.replace("_", " ")), flat[key])]
    listed = join(*(join(tag("dt", name), tag("dd", value)) for name, value in pairs))
    flags = [join(tag("h3", name), tag("pre", " ".join(map(str, given)).replace(" --", "\n--")))
             for name, given in mapping(document.get("flags")).items() if isinstance(given, list)]  # fmt: skip
    shown = tag("details", tag("summary", "Flags of every service"), *flags) if flags else ""
    return section("Conditions", "", tag("dl", listed), shown)


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


def _raw(document: Mapping[str, Any], samples: Sequence[Sample]) -> Markup:
    """Everything as JSON, to look at elsewhere; the link makes a file of it without a server."""
    whole = {"result": document, "samples": [asdict(sample) for sample in samples]}
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"kvdemo-{document.get('project', 'run')}-{document.get('run_id', '')}")[
        :80
    ]
    link = tag("a", "Download result and samples as JSON", id="download", download=f"{name}.json", href="#raw")
    block = tag("script", data(whole), type="application/json", id="raw")
    return join(tag("p", link, class_="dim screen"), block)
