"""A run as JUnit's XML: one test case for each arm, pair of a matrix, the answer, the gate, and the run itself. Pure.

A case fails only in a run whose exit code is not 0. An arm that proves less than it should, in a run that is valid all
the same, is skipped, with the reason. Elements and attributes are those that the schemas of Ant and Jenkins have alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree as ET

from kvdemo.judge.result import Result, Row
from kvdemo.judge.verdict import SUPPORTS_SPEEDUP, Verdict
from kvdemo.words import findings
from kvdemo.words.table import PHASES

Outcome = Literal["passed", "failure", "error", "skipped"]
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Case:
    """One test case; ``seconds`` are the median of what was measured, ``message`` why it has not passed."""

    group: str
    name: str
    outcome: Outcome = "passed"
    message: str = ""
    kind: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Problem:
    """Why the command fails; ``gate``: only because a gate was missed."""

    message: str
    hint: str = ""
    gate: bool = False


def cases(result: Result | None, gain: float | None, problem: Problem | None) -> list[Case]:
    """What the run has shown, as test cases; without a result only why there is none."""
    cases = [_run(problem)]
    if result is not None:
        cases += [_arm(result, row, problem) for row in result.rows]
        for cell in result.matrix.cells if result.matrix else ():
            seconds = (cell.median_ttft_ms or 0.0) / 1000
            right = cell.verdict is cell.expected
            message = "" if right else f"{cell.verdict} instead of {cell.expected}: {cell.why}".removesuffix(": ")
            outcome: Outcome = "passed" if right else "failure" if problem else "skipped"
            cases.append(Case("pair", f"{cell.writer} to {cell.reader}", outcome, message, cell.verdict, seconds))
        answer = result.answer
        outcome = {True: "passed", False: "failure", None: "skipped"}[answer.same]  # type: ignore[assignment]
        cases.append(Case("answer", "same answer", outcome, "" if answer.same else answer.text, "answer"))
    if gain is not None:
        cases.append(_gate(gain, problem))
    return cases


def _run(problem: Problem | None) -> Case:
    """The run as a whole: a gate has a case of its own."""
    if problem is None or problem.gate:
        return Case("run", "the run proves the reuse")
    message = "\n".join(filter(None, (problem.message, problem.hint)))
    return Case("run", "the run proves the reuse", "error", message, "run")


def _arm(result: Result, row: Row, problem: Problem | None) -> Case:
    seconds = row.ttft.median / 1000 if row.ttft else 0.0
    name = f"{row.engine} {PHASES.get(row.arm, row.arm)}: {' or '.join(sorted(SUPPORTS_SPEEDUP[row.arm]))}"
    if row.verdict in SUPPORTS_SPEEDUP[row.arm]:
        return Case("arm", name, seconds=seconds)
    outcome: Outcome = "skipped"
    if problem and not (problem.gate and result.valid):
        outcome = "error" if row.verdict is Verdict.FAILED else "failure"
    message = f"{row.verdict}: {row.why}" if row.why else str(row.verdict)
    return Case("arm", name, outcome, message, row.verdict, seconds)


def _gate(gain: float, problem: Problem | None) -> Case:
    name = f"reuse is at least {gain:g}x faster (TTFT)"
    if problem is None:
        return Case("gate", name)
    if problem.gate:
        return Case("gate", name, "failure", problem.message, "gate")
    return Case("gate", name, "skipped", "not judged: the run does not prove the reuse")


def xml(cases: Sequence[Case], result: Result | None, moment: str, host: str) -> str:
    """The document. ``moment`` is the local time of the run in ISO 8601, to the second."""
    number = {
        outcome: str(sum(case.outcome == outcome for case in cases)) for outcome in ("failure", "error", "skipped")
    }
    counts = {"tests": str(len(cases)), "failures": number["failure"], "errors": number["error"]}
    seconds = f"{sum(case.seconds for case in cases):.6f}"
    root = ET.Element("testsuites")
    about = {"name": "kvdemo bench", "package": "kvdemo", "id": "0", "timestamp": moment[:19], "hostname": _clean(host)}
    suite = ET.SubElement(root, "testsuite", {**about, **counts, "skipped": number["skipped"], "time": seconds})
    properties = ET.SubElement(suite, "properties")
    run = result.conditions if result else None
    facts = {"model": run.model_id, "device": run.device, "kvdemo": run.kvdemo_version} if run else {}
    for name, value in facts.items():
        ET.SubElement(properties, "property", {"name": name, "value": _clean(value)})
    for case in cases:
        _add(suite, case)
    words = "\n".join(piece.text for piece in findings.lines(result)) if result else ""
    ET.SubElement(suite, "system-out").text = _clean(words)
    ET.SubElement(suite, "system-err").text = ""
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _add(suite: ET.Element, case: Case) -> None:
    about = {"classname": f"kvdemo.bench.{case.group}", "name": _clean(case.name), "time": f"{case.seconds:.6f}"}
    element = ET.SubElement(suite, "testcase", about)
    if case.outcome == "skipped":
        ET.SubElement(element, "skipped", {"message": _clean(case.message)})
    elif case.outcome != "passed":
        more = {"message": _clean(case.message.split("\n")[0]), "type": _clean(case.kind)}
        ET.SubElement(element, case.outcome, more).text = _clean(case.message)


def _clean(words: str) -> str:
    """Without the characters that XML cannot hold."""
    return NOT_XML.sub("\ufffd", words)
