"""The house stays small: lengths of modules and functions, and what a command imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kvdemo"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONG = {"host/shim.py"}  # one file by design: it runs where nothing of kvdemo can be imported
# pydantic too, but typer itself imports it for the help of a command.
HEAVY = ("httpx", "yaml", "psutil", "pynvml", "rich.live", "asyncio", "ray", "redis", "kvdemo.config", "kvdemo.fleet")


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_modules_are_short(module: Path) -> None:
    """At most 400 lines a module, 50 lines a function."""
    text = module.read_text()
    assert module.relative_to(PACKAGE).as_posix() in LONG or len(text.splitlines()) <= 400
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > 50} == {}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["up", "--help"]])
def test_help_imports_little(arguments: list[str]) -> None:
    """Nothing that a verb needs is imported before the verb runs."""
    code = f"""
import sys
from kvdemo.cli import app
try:
    app({arguments!r}, prog_name="kvdemo")
finally:
    sys.stderr.write(" ".join(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert set(HEAVY) & set(done.stderr.split()) == set()


def test_one_machine_pays_nothing_for_clusters() -> None:
    """Neither Ray nor what speaks to it is imported for a fleet of this machine."""
    code = """
import sys
from kvdemo.commands import benchmark, scope
from kvdemo.fleet import fleet, logbook
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert {"ray", "redis", "kvdemo.cluster"} & set(done.stdout.split()) == set()


def test_the_guardian_imports_nothing_of_kvdemo() -> None:
    """It must go on when kvdemo is replaced under it."""
    tree = ast.parse((PACKAGE / "host" / "shim.py").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_the_formatter_is_never_told_to_skip() -> None:
    """No line is packed: what a formatter makes of the code is how it stands."""
    mark = "fmt: " + "skip"
    root = PACKAGE.parent
    files = [path for folder in ("kvdemo", "scripts", "tests") for path in (root / folder).rglob("*.py")]
    assert [path.name for path in files if mark in path.read_text()] == []


VAGUE = frozenset(
    [
        "announced",
        "asked",
        "assigned",
        "begun",
        "cast",
        "chosen",
        "counted",
        "decided",
        "drawn",
        "dumped",
        "fate",
        "filed",
        "found",
        "given",
        "heard",
        "held",
        "here",
        "kept",
        "kin",
        "known",
        "listed",
        "made",
        "meant",
        "mine",
        "named",
        "nope",
        "offered",
        "ours",
        "picked",
        "promised",
        "raised",
        "reached",
        "said",
        "seat",
        "seats",
        "seen",
        "shown",
        "spoken",
        "stamped",
        "taken",
        "theirs",
        "there",
        "thrown",
        "told",
        "tried",
        "wanted",
        "written",
    ]
)
"""Participles and pointers that name no thing: what was found, given or wanted is what a name has to say."""

NAMES_OF_FILES = {"kept", "kin"}
"""Fields of saved plans and results, whose keys stay."""


def _bound(tree: ast.AST) -> Iterator[str]:
    """Every name that a module binds: functions, classes, parameters, fields, attributes, variables."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case _:
                pass


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_names_are_nouns(module: Path) -> None:
    """No module, function, field or variable is named by a participle that could stand for anything."""
    names = {module.stem, *_bound(ast.parse(module.read_text()))}
    assert {name for name in names if name.strip("_") in VAGUE} - NAMES_OF_FILES == set()
