"""Files of results that are damaged, foreign or of several runs: one error with file and line, never a traceback."""

from __future__ import annotations

import io
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kvdemo.errors import UsageError
from kvdemo.report import compare, page, savedrun, tables
from kvdemo.words import comparison as words
from runs import edit, run, samples, save

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**70,
    -0.5,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "NaN",
    "1",
    "\x1b[31m\u202e\a",
    "a\nb",
    [],
    [None],
    [[]],
    {},
    {"a": {}},
    [1, "x"],
    {"computed": 1},
    "\N{SNOWMAN}" * 200,
    [0.1] * 3,
    {"": None},
)
"""What an editor, another program or a broken disk might leave where something else should be."""


def show(path: Path, other: Path) -> str:
    """Everything that `report` and `compare` make of a file; UsageError is the only error that may come."""
    console = Console(width=80, color_system=None, file=io.StringIO(), record=True)
    held = savedrun.any_result(path)
    if isinstance(held, savedrun.SavedRun):
        json.loads(held.to_json(), parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
        for verbose in (True, False):
            console.print(tables.result(held.result, verbose=verbose))
        page.render(held.result, held.samples or ()).encode()
    for pair in ((held, savedrun.any_result(other)), (savedrun.any_result(other), held)):
        try:
            words.text(compare.compare(*pair)).encode()
        except UsageError as error:
            str(error).encode()
    text = console.export_text()
    assert not set(text) & set("\x1b\a\b\r\u202e")
    return text


def value(path: Path, generator: random.Random) -> None:
    """A value anywhere in one line becomes an odd one."""
    lines = path.read_text().split("\n")
    number = generator.choice([0, generator.randrange(len(lines) - 1)])
    document = json.loads(lines[number])
    target = document
    while True:
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        key = generator.choice(keys)
        if isinstance(target[key], dict | list) and target[key] and generator.random() < 0.6:
            target = target[key]
            continue
        target[key] = generator.choice(ODD)
        break
    lines[number] = json.dumps(document)
    path.write_text("\n".join(lines))


def key(path: Path, generator: random.Random) -> None:
    """A key of one line is missing, or one of the result's own is there."""
    lines = path.read_text().split("\n")
    number = generator.choice([0, generator.randrange(len(lines) - 1)])
    document = json.loads(lines[number])
    if generator.random() < 0.5:
        del document[generator.choice(list(document))]
    else:
        names = [
            "limit",
            "rows",
            "answer",
            "matrix",
            "lengths",
            "costs",
            "valid",
            "speedup",
            "nice",
            "history",
            "nodes",
        ]
        document[generator.choice(names)] = generator.choice(ODD)
    lines[number] = json.dumps(document)
    path.write_text("\n".join(lines))


def bytes_(path: Path, generator: random.Random) -> None:
    """Some bytes are others, or missing, or the end is."""
    content = bytearray(path.read_bytes())
    at = generator.randrange(len(content))
    match generator.randrange(3):
        case 0:
            content[at : at + 8] = generator.randbytes(generator.randrange(12))
        case 1:
            del content[at:]
        case _:
            del content[at : at + generator.randrange(1, 2000)]
    path.write_bytes(content)


def order(path: Path, generator: random.Random) -> None:
    """Lines are shuffled, repeated, lost."""
    lines = path.read_text().rstrip("\n").split("\n")
    picked = [generator.choice(lines) for _ in range(generator.randrange(1, 30))]
    path.write_text("\n".join(picked))


@pytest.mark.parametrize("damage", [value, key, bytes_, order])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_no_damage_is_a_traceback(tmp_path: Path, damage: Callable[[Path, random.Random], None], suffix: str) -> None:
    """480 damaged files in all: each is either read, or refused as a user's mistake that names the file."""
    good = save(tmp_path, "good", samples(), memory_bandwidth=1e9, nodes={"a": "n1"}, tier="l1")
    whole = good.with_suffix(suffix).read_text()
    if suffix == ".json":
        whole = f"{json.dumps(json.loads(whole))}\n"
    refused = named = 0
    for seed in range(60):
        path = tmp_path / f"damaged{suffix}"
        path.write_text(whole)
        damage(path, random.Random(seed))  # noqa: S311 (which damage, no secret)
        try:
            show(path, good)
        except UsageError as error:
            named += path.name in str(error)
            refused += 1
    assert named == refused > 0


@pytest.mark.parametrize(
    ("line", "changes", "said"),
    [
        (1, {"nodes": []}, "1: not a line of a kvdemo run: nodes"),
        (1, {"memory_bandwidth": 1e-320}, "1: not a line of a kvdemo run: memory_bandwidth"),
        (2, {"itl": [0.1, float("nan")]}, "2: not a line of a kvdemo run: itl.1"),
        (2, {"ttft": 1e-320}, "2: not a line of a kvdemo run: ttft"),
        (2, {"prompt_tokens": 2**70}, "2: not a line of a kvdemo run: prompt_tokens"),
        (4, {"kind": "odd"}, "4: not a line of a kvdemo run: kind"),
        (14, {"kind": "odd"}, "14: not a line of a kvdemo run: kind"),
        (3, {"kind": "run", "run_id": "other"}, "3: not a line of a kvdemo run: model_id is missing"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path: Path, line: int, changes: dict[str, Any], said: str) -> None:
    """`report` and `compare` alike: exit code 2, the file, the line and the field."""
    good, bad = save(tmp_path, "good", samples()), edit(save(tmp_path, "bad", samples()), line, **changes)
    for command in (("report", bad), ("compare", good, bad)):
        done = run(*command)
        assert done.returncode == 2, done
        assert "Traceback" not in done.stderr
        assert f"bad.jsonl:{said}" in re.sub(r"\s+", " ", done.stderr)


def test_a_pipe_is_no_result(tmp_path: Path) -> None:
    """It could be read once only, and nobody may ever write into it: every command that takes a run says so at once."""
    os.mkfifo(pipe := tmp_path / "run.jsonl")
    for command in (("report", pipe), ("compare", pipe, pipe), ("load", "--what-if", pipe)):
        done = run(*command)
        assert (done.returncode, "no file; a result is read more than once" in done.stderr) == (2, True), done


def test_two_runs_in_one_file_are_not_judged_as_one(tmp_path: Path) -> None:
    """The second is refused with the line where it begins."""
    one, other = save(tmp_path, "one", samples()), save(tmp_path, "other", samples(), run_id="another")
    both = tmp_path / "both.jsonl"
    both.write_text(one.read_text() + other.read_text())
    with pytest.raises(UsageError, match=r"both\.jsonl:15: another run begins here \(another after abcdef\)"):
        savedrun.run(both)


def test_samples_without_times_have_no_limit(tmp_path: Path) -> None:
    """A run whose requests have no time to first token is shown without ratio and limit."""
    path = save(tmp_path, "run", samples(), memory_bandwidth=1e9)
    for line in range(2, 15):
        edit(path, line, ttft=None)
    held = savedrun.run(path)
    assert (held.result.limit, held.result.speedup) == (None, None)
    said = page.render(held.result, held.samples or ())
    assert "Nothing is proved: no trial holds a cold request of plain and a reuse that both prove something." in said


def test_conditions_cannot_pretend_to_be_findings(tmp_path: Path) -> None:
    """Keys of the result in a run's conditions are ignored: what the samples mean is judged from them alone."""
    path = edit(save(tmp_path, "run", samples()), 1, limit=[], matrix={}, speedup={"median": 99}, valid=True, rows=[])
    held = savedrun.run(path)
    document = json.loads(held.to_json())
    assert {"limit", "matrix"}.isdisjoint(document)
    assert document["speedup"]["median"] == 20.0


def test_a_summary_without_times_is_refused(tmp_path: Path) -> None:
    """A ratio of zero in an edited .json is no ratio."""
    path = save(tmp_path, "run", samples()).with_suffix(".json")
    summary = json.loads(path.read_text())
    summary["rows"][2]["speedup"]["median"] = 0
    path.write_text(json.dumps(summary))
    with pytest.raises(UsageError, match=r"run\.json: not a result of kvdemo bench: rows\.2\.speedup\.median is '0'"):
        savedrun.any_result(path)
