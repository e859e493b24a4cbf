"""README and docs/ say what is there: files, exit codes, options, profiles, and links that lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvdemo.errors import ExitCode

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    """The text of one page of docs/."""
    return (ROOT / "docs" / name).read_text()


def test_every_package_and_script_stands_in_the_tree() -> None:
    """A folder or script that the page does not name, or a name without one, is a page that lies."""
    tree = page("files.md")
    packages = {f"{path.parent.name}/" for path in (ROOT / "kvdemo").glob("*/__init__.py")}
    scripts = {path.name for path in (ROOT / "scripts").iterdir() if path.is_file()}
    top, inner = (set(re.findall(rf"^ {{{n}}}(\w+/)", tree, re.MULTILINE)) for n in (4, 6))
    assert inner == packages
    assert all((ROOT / name).is_dir() for name in top)
    section = tree[tree.index("    scripts/") : tree.index("    tests/")]
    named = {name.strip(",") for line in section.splitlines()[1:] for name in line.strip().split("  ")[0].split()}
    assert named == scripts


def test_every_exit_code_is_explained() -> None:
    """Scripts rely on them."""
    section = page("ci.md").split("## Exit codes")[1]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == {*map(int, ExitCode)}


def test_every_option_of_bench_is_explained() -> None:
    """The table of options is complete, and names none that is gone."""
    words = [sys.executable, "-m", "kvdemo", "bench", "--help"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env={"COLUMNS": "200"}).stdout
    offered = set(re.findall(r"--[a-z][a-z-]+", shown)) - {"--help", "--project-name"}
    negations = {name for name in offered if name.startswith("--no-") and f"--{name[5:]}" in offered}
    explained = set(re.findall(r"--[a-z][a-z-]+", page("bench.md")))
    assert explained | negations | {"--limit"} == offered  # --no-limit is the one that is needed


def test_every_profile_is_mentioned() -> None:
    """Each shipped profile has its place in the README."""
    assert all(path.name in README for path in (ROOT / "profiles").glob("*.yaml"))


def test_readme_is_a_first_screen_and_a_list_of_pages() -> None:
    """What takes longer than two minutes to read stands in docs/, and the README leads to each page there."""
    assert len(README.splitlines()) <= 150
    linked = set(re.findall(r"\]\((docs/[\w./-]+\.md)\)", README))
    assert linked == {path.relative_to(ROOT).as_posix() for path in PAGES} - {"README.md"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file(path: Path) -> None:
    """A link or picture of a page that is no web address names a file, and a heading that it has."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", path.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        name, _, heading = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text in headings}
