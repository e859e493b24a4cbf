"""The README says what is there: files, exit codes, options, profiles."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvdemo.errors import ExitCode

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("folder", ["kvdemo", "scripts"])
def test_every_file_stands_in_the_tree(folder: str) -> None:
    """A file that the tree does not name, or a name without a file, is a README that lies."""
    tree = README[README.index("## The files") :]
    named = set(re.findall(r"\b(\w+)\.py\b", tree))
    there = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
    assert there <= named
    if folder == "scripts":
        assert all((ROOT / "kvdemo" / f"{n}.py").exists() or (ROOT / "scripts" / f"{n}.py").exists() for n in named)


def test_every_exit_code_is_explained() -> None:
    """Scripts rely on them."""
    section = README[README.index("## Exit codes") :]
    assert {int(code) for code in re.findall(r"(?:^|· )\s*(\d+) ", section, re.MULTILINE)} == {*map(int, ExitCode)}


def test_every_option_of_bench_is_explained() -> None:
    """The table of options is complete, and names none that is gone."""
    words = [sys.executable, "-m", "kvdemo", "bench", "--help"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env={"COLUMNS": "200"}).stdout
    offered = set(re.findall(r"--[a-z][a-z-]+", shown)) - {"--help", "--project-name"}
    section = README[README.index("### bench") : README.index("## The profile")]
    assert set(re.findall(r"--[a-z][a-z-]+", section)) == offered - {"--limit"}


def test_every_profile_is_mentioned() -> None:
    """Each shipped profile has its place in the README."""
    assert all(path.name in README for path in (ROOT / "profiles").glob("*.yaml"))
