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
    opened, named = ["", "", ""], set()
    for line in README[README.index("## The files") :].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2 - 2
        if found := re.match(r" +(\w+)/", line):
            opened[depth] = f"{found[1]}/"
        named |= {"".join([*opened[:depth], name]) for name in re.findall(r"\b\w+\.py\b", line)}
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py") if path.stem != "__init__"}
    assert {name for name in named if name.startswith(f"{folder}/")} == there


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
