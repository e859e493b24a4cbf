"""A forked command is the command: what it says, how it ends, what it leaves, as that of a new interpreter."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

import pytest

import forking
from conftest import PATIENCE, Lab

NEVER = {"env": {"FAKE_NEVER_HEALTHY": "1"}}


def both(lab: Lab, *arguments: str | Path) -> None:
    """The same exit code, and the same to the last character."""
    ends = []
    for way in (contextlib.nullcontext, forking.never):
        with way():
            process = lab.start(*arguments)
        assert isinstance(process, forking.Forked) == (way is not forking.never)
        out, err = process.communicate(timeout=PATIENCE)
        ends.append((re.sub("[0-9.]+ GiB are free", "", out), err, process.returncode))
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["bench", "--help"], ["nonsense"], ["ps"], ["down"], ["up", "missing.yaml"], ["report", "missing"]],
    ids=" ".join,
)
def test_it_says_the_same(lab: Lab, arguments: list[str]) -> None:
    """On both streams, and by its exit code."""
    both(lab, *arguments)


def test_it_plans_the_same(lab: Lab) -> None:
    """With the profile's directory, the variables, and what the machine has."""
    lab.environ["COLUMNS"] = "77"
    both(lab, "plan", lab.profile({"a": {"port": 18231}}))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_it(lab: Lab, number: signal.Signals) -> None:
    """It leads a session, and its exit code tells the signal that nobody can catch."""
    process = lab.start("up", lab.profile({"one": {}, "two": NEVER}))
    assert isinstance(process, forking.Forked)
    assert process.stdout
    assert any("one            ready" in line for line in process.stdout)
    assert os.getsid(process.pid) == process.pid
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)


def test_another_interpreter_is_never_a_fork(lab: Lab) -> None:
    """What counts while Python starts cannot be given to one that has started."""
    process = lab.start("--version", PYTHONPATH="/nowhere:" + str(forking.ROOT))
    assert not isinstance(process, forking.Forked)
    assert process.communicate(timeout=PATIENCE)[0].startswith("kvdemo ")
