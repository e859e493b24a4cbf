"""What CI gets: step summary, annotations, outputs, JUnit, and the workflow and the action of this repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import runs
from conftest import Lab
from kvdemo.commands import pipeline
from kvdemo.judge.result import Result
from kvdemo.judge.sample import Sources
from kvdemo.judge.verdict import Verdict
from kvdemo.report import savedrun
from kvdemo.words import findings, junit, markdown
from kvdemo.words.junit import Case, Problem
from kvdemo.words.table import COLUMNS

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github" / "actions" / "kvdemo" / "action.yml"
WORKFLOW = ROOT / ".github" / "workflows" / "kvdemo.yml"
RESULT = runs.result()
HOSTILE = "a|b <img src=x> `c` *d* [e](f) % \r\n::error::x ]]> \x00 \x1b[31m"


def gated(*, gate: bool) -> Problem:
    """A failure, of the gate or of the run."""
    return Problem("reuse is 2x faster (TTFT), 4x was expected", "measure more --trials", gate)


def broken() -> Result:
    """A run whose reuse missed."""
    made = [replace(one, sources=None) if one.arm == "reuse" else one for one in runs.samples()]
    return runs.result(made=made)


def test_the_summary_says_what_the_terminal_says() -> None:
    """The headline, every cell of the table, and every sentence, in Markdown that shows them as they are."""
    shown = markdown.summary(RESULT)
    assert shown.startswith(f"### {findings.headline(RESULT).hero}\n")
    for piece in [*findings.lines(RESULT), *findings.details(RESULT)]:
        assert f"- {markdown.text(piece.text)}\n" in shown
    rows = [row for row in shown.splitlines() if row.startswith("|")]
    assert len(rows) == 2 + len(RESULT.rows)
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {len(COLUMNS) + 2}


@given(st.text())
def test_no_text_is_markdown_html_or_a_second_line(words: str) -> None:
    """Names of models and messages of engines are shown, never acted upon."""
    made = markdown.text(words)
    assert len(made.splitlines()) <= 1
    assert not re.search(r"[<>]", made)
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*_\[\]]", made)


@given(st.sampled_from(["error", "warning"]), st.text(), st.text())
def test_an_annotation_is_one_line_and_can_be_read_back(level: str, title: str, message: str) -> None:
    """By the runner's rules: %25, %0D and %0A in the message, %3A and %2C too in the title."""
    line = markdown.annotation(level, title, message)
    assert "\n" not in line
    assert "\r" not in line
    found = re.fullmatch(r"::(\w+) title=([^:,]*)::(.*)", line, re.DOTALL)
    assert found
    codes = {"%0D": "\r", "%0A": "\n", "%3A": ":", "%2C": ",", "%25": "%"}
    read = [re.sub("%(0D|0A|3A|2C|25)", lambda match: codes[match[0]], part) for part in found.groups()[1:]]
    assert [found[1], *read] == [level, title, message]


def check(document: str) -> ET.Element:
    """The rules that the JUnit schemas of Ant and of Jenkins share: elements in order, attributes, true sums."""
    root = ET.fromstring(document)  # noqa: S314 (made by what is tested)
    assert root.tag == "testsuites"
    (suite,) = root
    needed = {"name", "timestamp", "hostname", "tests", "failures", "errors", "time", "id", "package"}
    assert needed <= set(suite.attrib) <= needed | {"skipped"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
    tags = [child.tag for child in suite]
    assert tags == ["properties", *["testcase"] * (len(tags) - 3), "system-out", "system-err"]
    outcomes = []
    for case in suite.iter("testcase"):
        assert set(case.attrib) == {"classname", "name", "time"}
        assert float(case.attrib["time"]) >= 0
        assert len(case) <= 1
        for child in case:
            outcomes.append(child.tag)
            assert set(child.attrib) == ({"message"} if child.tag == "skipped" else {"message", "type"})
    for attribute, tag in {"failures": "failure", "errors": "error", "skipped": "skipped"}.items():
        assert int(suite.attrib[attribute]) == outcomes.count(tag)
    assert int(suite.attrib["tests"]) == tags.count("testcase")
    assert set(outcomes) <= {"failure", "error", "skipped"}
    return suite


@pytest.mark.parametrize("problem", [None, gated(gate=True), gated(gate=False)])
@pytest.mark.parametrize("gain", [None, 4.0])
@pytest.mark.parametrize("result", [RESULT, broken(), None], ids=["valid", "invalid", "none"])
def test_junit_fails_where_the_command_does(result: Result | None, gain: float | None, problem: Problem | None) -> None:
    """Valid whatever happened; one case for the run, each arm, the answer and the gate; bad ones only if it fails."""
    made = junit.cases(result, gain, problem)
    suite = check(junit.xml(made, result, "2026-11-30T07:15:00", "host"))
    assert len(made) == 1 + (len(result.rows) + 1 if result else 0) + (gain is not None)
    bad = [case for case in made if case.outcome in {"failure", "error"}]
    if problem is None:
        assert bad == []
    elif gain is not None or not problem.gate:
        assert bad
    if result is RESULT and problem and problem.gate and gain:
        assert [case.group for case in bad] == ["gate"]
    assert all(case.message for case in made if case.outcome != "passed")
    assert suite.attrib["name"] == "kvdemo bench"


def test_junit_of_every_golden_run() -> None:
    """Matrices, sweeps and runs of GPUs: each is a valid document that names every arm and pair."""
    for path in sorted((Path(__file__).parent / "golden").glob("*.jsonl")):
        result = savedrun.run(path).result
        made = junit.cases(result, None, None)
        check(junit.xml(made, result, "2026-11-30T07:15:00", "host"))
        assert sum(case.group == "arm" for case in made) == len(result.rows)
        assert sum(case.group == "pair" for case in made) == (len(result.matrix.cells) if result.matrix else 0)
        assert markdown.summary(result)


@given(st.text(), st.text())
def test_no_text_breaks_the_xml(name: str, message: str) -> None:
    """Whatever an engine is called or says; what XML cannot hold is replaced."""
    suite = check(junit.xml([Case("arm", name, "failure", message, name)], None, "2026-11-30T07:15:00", name))
    (case,) = suite.iter("testcase")
    assert len(case.attrib["name"]) == len(name)
    check(junit.xml([Case("arm", HOSTILE, "skipped", HOSTILE)], None, "2026-11-30T07:15:00", HOSTILE))


@pytest.fixture(scope="module")
def fleet(shared_lab: Lab) -> Lab:
    """Fake engines that are up, and a document."""
    shared_lab.up(shared_lab.profile())
    (shared_lab.path / "context.txt").write_text(" ".join(f"word{n}" for n in range(900)))
    return shared_lab


BENCH = ("bench", "--context", "context.txt", "--trials", "2", "--no-limit", "--format", "github")


def outputs(path: Path) -> dict[str, str]:
    """What a step leaves in $GITHUB_OUTPUT, as the runner reads it."""
    found = re.findall(r"^([\w-]+)<<(\S+)\n(.*?)\n\2$", path.read_text(), re.MULTILINE | re.DOTALL)
    return {name: value for name, _, value in found}


def test_bench_tells_github(fleet: Lab) -> None:
    """Summary and outputs are appended, the paths are files, the JUnit file has no failure, nothing is annotated."""
    files = {name: fleet.path / name for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
    for path in files.values():
        path.write_text("before=it\n")
    done = fleet.run(*BENCH, "--junit", "junit.xml", **{name: str(path) for name, path in files.items()})
    assert done.returncode == 0, done.stderr
    summary = files["GITHUB_STEP_SUMMARY"].read_text()
    assert summary.startswith("before=it\n### ")
    assert "| Engine | Phase |" in summary
    told = outputs(files["GITHUB_OUTPUT"])
    assert told["valid"] == "true"
    assert all((fleet.path / told[name]).is_file() for name in ("result", "samples", "report", "junit"))
    suite = check((fleet.path / "junit.xml").read_text())
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("0", "0")
    assert "::error" not in done.stdout


@pytest.mark.parametrize(("factor", "speedup"), [(1.0, "20"), (20.0, "")])
def test_a_speedup_within_noise_is_none(
    factor: float, speedup: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A later step reads no number that the table does not claim; invalid and missing runs have none either."""
    told = tmp_path / "output"
    for result, expected in ((runs.result(made=runs.samples(reuse=factor)), speedup), (broken(), ""), (None, "")):
        told.write_text("")
        ci = pipeline.Pipeline({"GITHUB_OUTPUT": str(told)}, github=True, result=result)
        with ci.around():
            pass
        assert outputs(told)["speedup"] == expected
    assert "::error" not in capsys.readouterr().out


def test_without_a_runner_the_summary_is_printed(fleet: Lab) -> None:
    """And a missed gate is an annotation, a failed test case, and exit code 3."""
    gate = ("--expected-ttft-gain", "1000000", "--junit", "missed.xml")
    done = fleet.run(*BENCH, *gate, GITHUB_STEP_SUMMARY="", GITHUB_OUTPUT="")
    assert done.returncode == 3
    assert "| Engine | Phase |" in done.stdout
    assert "**kvdemo bench failed:**" in done.stdout
    commands = [line for line in done.stdout.splitlines() if line.startswith("::")]
    stop, go_on, *_, line = commands  # an answer that looks like a command is none: it stands between these two
    assert stop == f"::stop-commands::{go_on.strip(':')}"
    assert line.startswith("::error ")
    assert done.stdout.startswith(stop)
    assert done.stdout.index("Same answer?") < done.stdout.index(f"{go_on}\n") < done.stdout.index(line)
    assert "1e+06x was expected" in line
    suite = check((fleet.path / "missed.xml").read_text())
    (bad,) = [case for case in suite.iter("testcase") if case.find("failure") is not None]
    assert bad.attrib["classname"] == "kvdemo.bench.gate"


def test_a_run_that_cannot_begin_is_told_too(lab: Lab) -> None:
    """Nothing is up: an error in every form, and the exit code."""
    done = lab.run("bench", "--format", "github", "--junit", "junit.xml", GITHUB_STEP_SUMMARY="", GITHUB_OUTPUT="")
    assert done.returncode == 7
    assert "::error title=kvdemo bench::nothing is up" in done.stdout
    suite = check((lab.path / "junit.xml").read_text())
    assert (suite.attrib["tests"], suite.attrib["errors"]) == ("1", "1")
    for path in ("no/such/dir.xml", "junit.xml/in-a-file.xml"):
        refused = lab.run("bench", "--junit", path)
        assert refused.returncode == 2
        assert "cannot be written" in refused.stderr
    assert lab.run("bench", "--json", "--format", "github").returncode == 2


def document(path: Path) -> dict[str, Any]:
    """A YAML file; its key ``on`` stays a word."""
    made = yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # noqa: S506 (makes strings only)
    assert isinstance(made, dict)
    return made


@pytest.mark.parametrize(("path", "schema"), [(ACTION, "vendor.github-actions"), (WORKFLOW, "vendor.github-workflows")])
def test_github_would_take_them(path: Path, schema: str) -> None:
    """By the published schemas of actions and workflows."""
    program = Path(sys.executable).with_name("check-jsonschema")
    words = [str(program), "--builtin-schema", schema, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def expressions(value: object) -> Iterator[str]:
    """Every ${{ expression }} below a value."""
    if isinstance(value, str):
        yield from re.findall(r"\$\{\{\s*(.*?)\s*\}\}", value)
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from expressions(child)


def test_inputs_and_outputs_fit_together() -> None:
    """Every input that is read is declared and every declared one read; no script holds an expression (injection)."""
    action, workflow = document(ACTION), document(WORKFLOW)
    steps = action["runs"]["steps"]
    declared = set(action["inputs"])
    conditions = {name for step in steps for name in re.findall(r"inputs\.([\w-]+)", step.get("if", ""))}
    read = {name for one in expressions(action) for name in re.findall(r"inputs\.([\w-]+)", one)}
    assert read | conditions == declared
    call = workflow["on"]["workflow_call"]
    assert {n for one in expressions(workflow) for n in re.findall(r"inputs\.([\w-]+)", one)} == set(call["inputs"])
    used = next(step for step in workflow["jobs"]["kv-sharing"]["steps"] if step.get("id") == "kvdemo")
    assert set(used["with"]) <= declared
    assert not [step["name"] for step in steps if "${{" in step.get("run", "")]
    ids = {step["id"] for step in steps if "id" in step}
    assert {re.findall(r"steps\.(\w+)\.", one)[0] for one in expressions(action["outputs"])} <= ids
    for name in call["outputs"]:
        assert name in action["outputs"]


class Runner:
    """Runs the steps of the action as GitHub's runner does: bash -e -o pipefail, the files, if, env, outputs."""

    def __init__(self, lab: Lab, **inputs: str) -> None:
        self.action, self.lab = document(ACTION), lab
        self.inputs = {name: one.get("default", "") for name, one in self.action["inputs"].items()} | inputs
        self.ran: dict[str, int] = {}
        self.log = ""
        programs = lab.path / "bin"
        programs.mkdir()
        (programs / "kvdemo").write_text(f'#!/bin/sh\nexec {sys.executable} -m kvdemo "$@"\n')
        (programs / "kvdemo").chmod(0o755)
        self.files = {f"GITHUB_{name}": str(lab.path / name) for name in ("STEP_SUMMARY", "OUTPUT", "PATH", "ENV")}
        self.environ = {**lab.environ, **self.files, "GITHUB_ACTION_PATH": str(ACTION.parent)}
        self.environ |= {"PYTHONPATH": str(ROOT), "PATH": f"{programs}:{os.environ['PATH']}"}

    def run(self) -> int:
        """The exit code of the first step that failed."""
        failed = 0
        for step in self.action["runs"]["steps"]:
            when = {
                "always()": True,
                "failure()": bool(failed),
                "inputs.setup == 'true'": self.inputs["setup"] == "true",
            }
            if "run" not in step or not (when[step["if"]] if "if" in step else not failed):
                continue
            self.ran[step["name"]] = code = self._step(step)
            failed = failed or code
        return failed

    def _step(self, step: Mapping[str, Any]) -> int:
        assert step["shell"] == "bash"
        script = self.lab.path / "step.sh"
        script.write_text(step["run"])
        given = {name: self._filled(value) for name, value in step.get("env", {}).items()}
        words = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)]
        done = subprocess.run(
            words,
            cwd=self.lab.path,
            env={**self.environ, **given},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.log += done.stdout + done.stderr
        return done.returncode

    def _filled(self, value: str) -> str:
        return re.sub(r"\$\{\{\s*inputs\.([\w-]+)\s*\}\}", lambda match: self.inputs[match[1]], value)


def test_the_action_measures_and_leaves_nothing(lab: Lab) -> None:
    """Up, bench, down: exit code 0, the outputs that it declares, a summary; nothing runs afterwards."""
    (lab.path / "context.txt").write_text(" ".join(f"word{n}" for n in range(900)))
    profile = lab.profile(stop_timeout=10)
    runner = Runner(lab, profile=str(profile), setup="false", trials="1", arguments="--context context.txt --no-limit")
    assert runner.run() == 0, runner.log
    assert list(runner.ran) == ["Start the fleet", "Measure", "Stop the fleet"]
    told = outputs(lab.path / "OUTPUT")
    assert set(runner.action["outputs"]) <= set(told)
    assert (lab.path / told["report"]).is_file()
    assert "| Engine | Phase |" in (lab.path / "STEP_SUMMARY").read_text()
    assert "Nothing is left" in runner.log


@pytest.mark.parametrize(
    ("inputs", "code", "steps"),
    [
        ({"expected-ttft-gain": "1000000"}, 3, ["Start the fleet", "Measure", "Logs", "Stop the fleet"]),
        ({"profile": "missing.yaml"}, 4, ["Start the fleet", "Logs", "Stop the fleet"]),
    ],
)
def test_the_action_fails_with_the_first_failure(lab: Lab, inputs: dict[str, str], code: int, steps: list[str]) -> None:
    """A missed gate, a profile that is not there: the fleet is stopped all the same, logs are kept."""
    (lab.path / "context.txt").write_text(" ".join(f"word{n}" for n in range(900)))
    profile = str(lab.profile())
    more = {"profile": profile, "setup": "false", "trials": "1", "arguments": "--context context.txt --no-limit"}
    runner = Runner(lab, **(more | inputs))
    assert runner.run() == code, runner.log
    assert list(runner.ran) == steps
    assert runner.ran["Stop the fleet"] == 0
    assert (lab.path / "results" / "services.log").exists()


def test_verdicts_that_pass_are_those_that_support_a_speedup() -> None:
    """An arm that proves something else is no passed case, in a valid run either."""
    nothing = {"sources": Sources(runs.PROMPT, 0, 0), "cached_tokens": 0}
    again = [replace(one, **nothing) if one.arm == "again" else one for one in runs.samples()]  # type: ignore[arg-type]
    result = runs.result(made=again)
    assert result.valid
    (case,) = [case for case in junit.cases(result, None, None) if case.name.startswith("b again")]
    assert (case.outcome, case.kind) == ("skipped", Verdict.MISS)
