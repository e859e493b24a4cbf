"""A run as GitHub shows it: the summary of a step in Markdown, and annotations. Pure.

The words are those of the terminal; only what Markdown or the runner would act upon is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from kvdemo import units
from kvdemo.judge.result import Result
from kvdemo.words import findings
from kvdemo.words.table import COLUMNS, note


def text(words: str) -> str:
    """Words in which nothing is Markdown or HTML, on one line."""
    flat = " ".join(units.printable(words).split())
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def summary(result: Result) -> str:
    """The finding, the table of arms, what is below it, and the details folded up."""
    about = findings.headline(result)
    lines = [f"### {text(about.hero)}", "", " · ".join(map(text, findings.facts(result))), ""]
    if result.rows:
        lines += [_row(column.heading for column in COLUMNS), _row("--:" if one.numeric else "---" for one in COLUMNS)]
        for row in result.rows:
            cells = ["".join(piece.text for piece in column.cell(result, row)) for column in COLUMNS]
            lines.append(_row(map(text, cells)))
        lines += ["", *([text(sentence), ""] if (sentence := note(result)) else [])]
    lines += [f"- {text(piece.text)}" for piece in findings.lines(result)]
    if details := findings.details(result):
        lines += ["", "<details><summary>Limit, noise, costs</summary>", ""]
        lines += [*(f"- {text(piece.text)}" for piece in details), "", "</details>"]
    return "\n".join([*lines, "", ""])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def failure(message: str, hint: str) -> str:
    """Why the command fails, and what to do, below the summary or in its place."""
    rows = [message, *hint.split("\n")] if hint else [message]
    return "\n".join([f"**kvdemo bench failed:** {text(rows[0])}", *(f"- {text(row)}" for row in rows[1:]), "", ""])


def annotation(level: str, title: str, message: str) -> str:
    """A line by which the runner shows a message beside the run; ``level`` is error, warning or notice."""
    data = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    name = title.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A").replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={name}::{data}"
