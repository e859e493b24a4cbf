"""Runs saved by earlier versions, and one of each mode with fake engines: judged again they say what they always said.

``KVDEMO_GOLDEN=write`` writes what they say now beside them; the difference is then to be read before it is committed.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from kvdemo.report import savedrun, tables

GOLDEN = Path(__file__).parent / "golden"
RUNS = sorted(path.stem for path in GOLDEN.glob("*.jsonl"))
WRITE = os.environ.get("KVDEMO_GOLDEN") == "write"


def held(path: Path, text: str) -> None:
    """Compare with the file, or write it."""
    if WRITE:
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", RUNS)
def test_the_result_of_a_saved_run_stays(name: str) -> None:
    """Keys, their order and every value of the result document."""
    result = savedrun.run(GOLDEN / f"{name}.jsonl")
    held(GOLDEN / f"{name}.json", json.dumps(json.loads(result.to_json()), indent=1, ensure_ascii=False) + "\n")


@pytest.mark.parametrize("name", RUNS)
def test_what_the_terminal_says_of_a_saved_run_stays(name: str) -> None:
    """Every line of the screen."""
    console = Console(width=200, color_system=None, record=True, file=io.StringIO())
    console.print(tables.result(savedrun.run(GOLDEN / f"{name}.jsonl").result, verbose=True))
    held(GOLDEN / f"{name}.txt", "".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines()))
