"""Whatever engines, files, names and paths hold, it never commands the terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from conftest import Lab
from kvdemo.fleet.watch import Event, State
from kvdemo.report import terminal
from kvdemo.units import printable

HOSTILE = {
    "title": "\x1b]0;owned\x07",
    "csi": "\x1b[2J\x1b[1;1H",
    "c1": "\x9b2J\x9d0;owned\x9c",
    "overwrite": "error\rok   ",
    "backspace": "no\b\byes",
    "bell": "\a",
    "override": "\u202egnp.exe\u2066",
    "separator": "one\u2028two",
    "clipboard": "\x1b]52;c;b3duZWQ=\x1b\\",
    "surrogate": "caf\udce9",
}


def harmless(text: str) -> bool:
    """Whether a terminal only shows this."""
    return not any(
        (unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") and one not in "\n\t")
        or unicodedata.bidirectional(one) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        for one in text
    )


@given(st.text())
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    """Of any text; and text without such characters is untouched."""
    assert harmless(printable(text))
    if harmless(text) and text.isascii():
        assert printable(text) == text


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_every_way_to_print_is_safe(hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Strings, texts, table cells and headings, titles, labels, events and errors, to a file and to a terminal."""
    for force in (False, True):
        console = terminal.PlainConsole(file=sys.stdout, force_terminal=force, color_system=None, width=80)
        event = Event("a", State.FAILED, detail=hostile, at=hostile, node=hostile, phase=hostile)
        table = Table(hostile, "b", title=hostile)
        table.add_row(hostile, Text(hostile))
        for shown in (hostile, Text(hostile), table, terminal.table([event]), terminal.line(event)):
            console.print(shown, markup=False)
        console.print(hostile.replace("[", "("), markup=True)
        with console.status(hostile):
            pass
        printed = capsys.readouterr().out
        for own in ("\x1b[?25l", "\x1b[?25h", "\x1b[2K", "\x1b[1A", "\r"):  # what rich itself does on a terminal
            printed = printed.replace(own, "") if force else printed
        assert harmless(printed), repr(printed)


def _on_a_terminal(lab: Lab, *arguments: str | Path) -> str:
    """What a command writes to a terminal."""
    master, slave = pty.openpty()
    env = {**lab.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TERM": "xterm"}
    argv = [sys.executable, "-m", "kvdemo", *map(str, arguments)]
    with subprocess.Popen(argv, cwd=lab.path, env=env, stdout=slave, stderr=slave, stdin=subprocess.DEVNULL) as one:
        os.close(slave)
        written = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:
                break
            if not piece:
                break
            written += piece
        one.wait()
    os.close(master)
    return written.decode(errors="surrogateescape")


@pytest.mark.parametrize("name", ["title", "csi", "c1", "override", "clipboard"])
def test_a_hostile_engine_does_not_reach_the_terminal(lab: Lab, name: str) -> None:
    """Its log, its last words as the cause, and its model's name: shown by `up`, `logs` and `ps`, never obeyed."""
    hostile = HOSTILE[name]
    env = {"FAKE_DIE": f"ValueError: so {hostile} it ends"}
    written = _on_a_terminal(lab, "up", lab.profile({"a": {"env": env}}))
    assert "so " in written
    written += _on_a_terminal(lab, "logs", "a", "-p", lab.name)
    for bad in ("\x1b]0;", "\x1b]52", "\x1b[2J", "\x1b[1;1H", "\x9b", "\x9d", "\x07", "\u202e", "\u2066"):
        assert bad not in written, repr(written)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_path_does_not_reach_the_terminal(lab: Lab, name: str) -> None:
    """A file of any name is told as an error that names it, and nothing else happens."""
    written = _on_a_terminal(lab, "up", lab.path / f"{HOSTILE[name]}.yaml")
    for bad in ("\x1b]0;", "\x1b]52", "\x1b[2J", "\x1b[1;1H", "\x9b", "\x9d", "\x07", "\u202e", "\u2066", "\b"):
        assert bad not in written, repr(written)
    assert "Traceback" not in written


def test_an_export_is_exact_in_a_file_and_harmless_on_a_terminal(lab: Lab) -> None:
    """A value of the profile that turns the direction reaches whoever reads the file, not the terminal."""
    path = lab.profile({"a": {"env": {"ODD": "so \u202egnp it is"}}})
    assert "so \u202egnp it is" in lab.run("export", "shell", path, PYTHONUTF8="1").stdout
    written = _on_a_terminal(lab, "export", "shell", path)
    assert "gnp it is" in written
    assert harmless(written.replace("\r\n", "\n"))


def test_a_line_of_any_length_costs_no_memory(lab: Lab) -> None:
    """`logs` and `ps` need no more memory for a line of 100 MB than for one of 1 MB; the lines around it stay."""
    lab.up(lab.profile({"a": {}}))
    log = lab.project().log("a")
    peaks: dict[int, list[int]] = {}
    for megabytes in (1, 100):
        with log.open("ab") as file:
            file.write(b"before\n")
            for _ in range(megabytes):
                file.write(b"x" * 1024**2)
            file.write(b"\nafter\n")
        for words in (["logs", "a"], ["logs", "a", "-n", "20"], ["ps"]):
            run = subprocess.run(
                [sys.executable, "-c", MEASURED, *words, "-p", lab.name],
                env={**lab.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
                capture_output=True,
                text=True,
                check=True,
            )
            peaks.setdefault(megabytes, []).append(json.loads(run.stderr.splitlines()[-1]))
            if words[0] == "logs":
                assert "a | after" in run.stdout
                assert "more bytes in this line)" in run.stdout
    assert all(large - small < 16 * 1024 for small, large in zip(peaks[1], peaks[100], strict=True)), peaks


MEASURED = """
import sys
from kvdemo.cli import app
try:
    app(sys.argv[1:], prog_name="kvdemo")
except SystemExit:
    pass
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(peak.split()[1], file=sys.stderr)
"""


def test_a_service_is_as_old_in_a_line_as_in_the_table() -> None:
    """`up` and `ps` tell the same age in the same words."""
    event = Event("a", State.UNCHANGED, elapsed=1296.4)
    console = terminal.PlainConsole(width=80, record=True)
    console.print(terminal.table([event]))
    assert "21m36s" in console.export_text()
    assert terminal.line(event).plain == "a              unchanged 21m36s"
