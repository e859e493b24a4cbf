"""The benchmark's face in the terminal: the latency table and the sentences below it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.terminal_theme import TerminalTheme
from rich.text import Text

STYLES = {"SHARED": "bold green", "LOCAL": "cyan", "COLD": "", "PARTIAL": "yellow", "MISS": "bold yellow"}
_TONES = [(92, 101, 113), (214, 69, 65), (31, 158, 117), (208, 140, 31), (106, 142, 186), (160, 110, 200),
          (47, 143, 200), (140, 150, 160)]  # fmt: skip
PAGE = TerminalTheme((245, 246, 248), (20, 24, 29), _TONES, _TONES)
"""The terminal's colours for a page: middle tones, to be read on light and on dark."""

PHASES = {"cold": "cold", "store": "cold+store", "reuse": "reuse", "again": "again"}


def result(document: Mapping[str, Any]) -> Group:
    """Everything a person wants to know of a run."""
    parts: list[RenderableType] = [_heading(document), ""]
    if document["rows"]:
        parts += [latency(document), "", waterfall(document), ""]
    parts += [part for part in (matrix(document), lengths(document)) if part]
    return Group(*parts, *_sentences(document))


def as_html(document: Mapping[str, Any]) -> str:
    """The same as markup for a page, in colour; all text in it is escaped."""
    console = Console(record=True, file=io.StringIO(), width=120, force_terminal=True, color_system="truecolor")
    console.print(result(document))
    return console.export_html(theme=PAGE, code_format="<pre>{code}</pre>", inline_styles=True)


def _heading(document: Mapping[str, Any]) -> Text:
    text = Text("\n")
    text.append("Time to First Token", style="bold")
    ran = document.get("trials_run", document["num_trials"])
    trials = f"{ran} trial{'s' if ran != 1 else ''}{', interrupted' if document.get('interrupted') else ''}"
    text.append(
        f"  {document['model_id']}, {document['prompt_tokens']:,} prompt tokens, {trials}, {document['device']}"
    )
    return text


def latency(document: Mapping[str, Any]) -> Table:
    """The table of arms; narrow enough for a terminal of 80 columns."""
    grid = Table(box=None, header_style="bold underline", padding=(0, 1, 0, 0), pad_edge=False)
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
    lines = [Text(line, style="yellow") for line in complaints(document)]
    if nice := document.get("nice"):
        given = ", ".join(f"{name} {value}" for name, value in nice.items())
        lines.append(Text(f"Lowered priority (nice {given}): others on the machine come first.", style="yellow"))
    if speedup := document["speedup"]:
        bounds = (speedup["low"], speedup["high"]) if "low" in speedup else None
        interval = (
            f" (speed-up {speedup['median']:.3g}, 95 % interval {bounds[0]:.3g} to {bounds[1]:.3g})" if bounds else ""
        )
        ratio = speedup["median"]
        how = f"{times(ratio)} sooner than" if ratio >= 1 else f"{times(1 / ratio)} later than"
        sentence = f"{document['reader']} answers {how} a plain engine about what only {document['writer']} has read"
        lines.append(Text(f"{sentence}{interval}.", style="bold"))
    if document["rows"]:
        answer = document["answer"]
        lines.append(
            Text("Same answer? ").append(answer["text"], style="" if answer["same"] is not False else "bold red")
        )
    if "limit" in document:
        lines.append(Text(document["limit"]["text"]))
    return lines + _costs(document)


def complaints(document: Mapping[str, Any]) -> list[str]:
    """What does not prove what it should, and why: rows, samples that are not counted, cells of the matrix."""
    lines = []
    for row in document["rows"]:
        name = f"{row['engine']} {row['arm']}"
        if row["why"]:
            lines.append(f"{name}: {row['verdict']}: {row['why']}")
        else:
            lines += [
                f"{name}: trial {sample['trial']} is not counted: {sample['verdict']}: {sample['why']}"
                for sample in row.get("dropped", [])
            ]
    for cell in document.get("matrix", {}).get("cells", []):
        if cell["verdict"] != cell["expected"]:
            what = f"{cell['verdict']} instead of {cell['expected']}"
            lines.append(f"{cell['writer']} to {cell['reader']}: {what}" + (f": {cell['why']}" if cell["why"] else ""))
    return lines


def _costs(document: Mapping[str, Any]) -> list[Text]:
    lines = []
    if floor := document["noise_floor"]:
        spread = f"{floor['median']:.2f}x ({floor['min']:.2f} to {floor['max']:.2f})"
        lines.append(f"Noise: cold against cold is {spread}.")
    for name, cost in document.get("costs", {}).items():
        unit = f" {cost['unit']}" if cost["unit"] not in ("x",) else cost["unit"]
        low, high = cost.get("low", cost.get("min")), cost.get("high", cost.get("max"))
        title = name.replace("_", " ").capitalize()
        lines.append(f"{title}: {cost['median']:.3g}{unit} ({low:.3g} to {high:.3g}; {cost['text']}).")
    if own := document.get("client_overhead"):
        size = f"{own['prompt_bytes'] / 1024:.0f} KiB prompts"
        lines.append(
            f"Client overhead: p50 {own['p50_ms']:.2g} ms, p90 {own['p90_ms']:.2g} ms (n = {own['n']}, {size})."
        )
    return [Text(line, style="dim") for line in lines]


BAR = 46


def waterfall(document: Mapping[str, Any]) -> Table | Text:
    """Each arm's median TTFT as a bar: client and HTTP, queue and cache load, prefill."""
    rows = [row for row in document["rows"] if row.get("waterfall")]
    if not rows:
        return Text("")
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    longest = max(sum(row["waterfall"].values()) for row in rows) or 1
    for row in rows:
        bar = Text()
        for value, style in zip(row["waterfall"].values(), ("blue", "yellow", "green"), strict=True):
            bar.append("█" * round(BAR * value / longest) or ("▏" if value else ""), style=style)
        grid.add_row(row["engine"], PHASES[row["arm"]], bar)
    legend = Text.assemble(
        ("█", "blue"), " client+HTTP  ", ("█", "yellow"), " queue+cache load  ", ("█", "green"), " prefill"
    )
    grid.add_row("", "", legend)
    return grid


def matrix(document: Mapping[str, Any]) -> Table | Text:
    """Writers down, readers across: how much sooner than the reader's own cold."""
    if "matrix" not in document:
        return Text("")
    found = document["matrix"]
    grid = Table(box=None, header_style="bold underline", padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column("writer \\ reader", no_wrap=True)
    for engine in found["engines"]:
        grid.add_column(engine, justify="right", no_wrap=True)
    cells = {(cell["writer"], cell["reader"]): cell for cell in found["cells"]}
    for writer in found["engines"]:
        grid.add_row(writer, *(_cell(cells.get((writer, reader))) for reader in found["engines"]))
    grid.caption = found.get("text")
    return grid


def _cell(cell: Mapping[str, Any] | None) -> Text:
    if cell is None:
        return Text("-")
    shown = f"{times(cell['speedup'])} " if cell["speedup"] and cell["verdict"] != "COLD" else ""
    return Text(f"{shown}{cell['verdict']}", style=STYLES.get(cell["verdict"], "bold red"))


def lengths(document: Mapping[str, Any]) -> Table | Text:
    """The sweep as bars on one scale, and where reuse begins to win."""
    if "lengths" not in document:
        return Text("")
    points = document["lengths"]["points"]
    longest = max(point["cold_ms"] for point in points)
    grid = Table(box=None, header_style="bold underline", padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("Prompt tokens", "Cold (ms)", "Reuse (ms)", "Floor (ms)", "Sooner"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("cold / reuse")
    for point in points:
        bars = Text("█" * max(1, round(20 * point["cold_ms"] / longest)), style="red")
        bars.append("\n" + "█" * max(1, round(20 * point["reuse_ms"] / longest)), style="green")
        ratio = times(point["cold_ms"] / point["reuse_ms"])
        numbers = [milliseconds(point[name]) for name in ("cold_ms", "reuse_ms", "floor_ms")]
        grid.add_row(f"{point['prompt_tokens']:,}", *numbers, ratio, bars)
    even = document["lengths"]["break_even_tokens"]
    caption = f"reuse wins from about {even:,} tokens on" if even else "reuse does not win at these lengths"
    everywhere = all(point["reuse_ms"] <= point["cold_ms"] for point in points)
    grid.caption = "reuse wins at all of these lengths" if everywhere else caption
    return grid


def milliseconds(value: float | None) -> str:
    """Three significant digits."""
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(value: float) -> str:
    """A ratio for people: 23x, 5.7x, 0.33x."""
    return f"{value:.0f}x" if value >= 20 else f"{value:.1f}x" if value >= 1.5 else f"{value:.2f}x"
