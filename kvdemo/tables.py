"""The benchmark's face in the terminal: the latency table and the sentences below it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

STYLES = {"SHARED": "bold green", "LOCAL": "cyan", "COLD": "", "PARTIAL": "yellow", "MISS": "bold yellow"}
PHASES = {"cold": "cold", "store": "cold+store", "reuse": "reuse", "again": "again"}


def result(document: Mapping[str, Any]) -> Group:
    """Everything a person wants to know of a run."""
    return Group(_heading(document), "", latency(document), *_sentences(document))


def _heading(document: Mapping[str, Any]) -> Text:
    text = Text("\n")
    text.append("Time to First Token", style="bold")
    text.append(
        f"  {document['model_id']}, {document['prompt_tokens']:,} prompt tokens, "
        f"{document['num_trials']} trial{'s' if document['num_trials'] != 1 else ''}, {document['device']}"
    )
    return text


def latency(document: Mapping[str, Any]) -> Table:
    """The table of arms; narrow enough for a terminal of 80 columns."""
    grid = Table(box=None, header_style="bold underline", padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("Engine", "Phase"):
        grid.add_column(heading, no_wrap=True)
    for heading in ("Cached tokens", "TTFT (ms)", "min-max", "Sooner"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("Verdict", no_wrap=True)
    for row in document["rows"]:
        grid.add_row(
            row["engine"],
            PHASES[row["arm"]],
            _cached(row),
            milliseconds(row.get("median_ttft_ms")),
            f"{milliseconds(row.get('min_ttft_ms'))}-{milliseconds(row.get('max_ttft_ms'))}" if row["n_ttft"] else "",
            _speedup(row, document),
            _verdict(row),
        )
    return grid


def _cached(row: Mapping[str, Any]) -> str:
    """How many prompt tokens came from where."""
    parts = [(row["local_cached_tokens"], "local"), (row["external_cached_tokens"], "shared")]
    if any(tokens is None for tokens, _ in parts):
        return "unknown"
    return " + ".join(f"{tokens:,} {source}" for tokens, source in parts if tokens) or "0"


def _speedup(row: Mapping[str, Any], document: Mapping[str, Any]) -> Text:
    if row["engine"] == document["baseline"] and row["arm"] in ("cold", "store"):
        return Text("baseline", style="dim")
    if not row["speedup"]:
        return Text("-")
    return Text(times(row["speedup"]["median"]), style="bold" if row["arm"] == "reuse" else "")


def _verdict(row: Mapping[str, Any]) -> Text:
    text = Text(row["verdict"], style=STYLES.get(row["verdict"], "bold red"))
    if len(row["verdicts"]) > 1:
        text.append(" (" + ", ".join(f"{n} {name}" for name, n in row["verdicts"].items()) + ")", style="dim")
    return text


def _sentences(document: Mapping[str, Any]) -> list[Text]:
    lines: list[Text] = []
    for row in document["rows"]:
        if row["why"] and row["verdict"] not in ("COLD", "SHARED", "LOCAL"):
            lines.append(Text(f"{row['engine']} {row['arm']}: {row['verdict']}: {row['why']}", style="yellow"))
    if speedup := document["speedup"]:
        interval = f" (95 % interval {speedup['low']:.3g} to {speedup['high']:.3g})" if "low" in speedup else ""
        sentence = f"{document['reader']} answers {times(speedup['median'])}{interval} sooner than a plain engine"
        lines.append(Text(f"{sentence} about what only {document['writer']} has read.", style="bold"))
    answer = document["answer"]
    lines.append(Text("Same answer? ").append(answer["text"], style="" if answer["same"] is not False else "bold red"))
    notes = []
    if floor := document["noise_floor"]:
        notes.append(
            f"cold against cold is {floor['median']:.2f}x ({floor['min']:.2f} to {floor['max']:.2f}), "
            "this machine's noise"
        )
    if tax := document["store_tax"]:
        notes.append(f"storing makes cold {tax['median']:.2f}x ({tax['min']:.2f} to {tax['max']:.2f}) as long")
    if notes:
        lines.append(Text("In the same trials " + "; ".join(notes) + ".", style="dim"))
    return lines


def milliseconds(value: float | None) -> str:
    """Three significant digits."""
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(value: float) -> str:
    """A ratio for people: 23x, 5.7x, 0.33x."""
    return f"{value:.0f}x" if value >= 20 else f"{value:.1f}x" if value >= 1.5 else f"{value:.2f}x"
