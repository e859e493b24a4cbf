"""The document as a user gives it: a file, a pipe, or something that is neither text nor there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kvdemo.bench import context
from kvdemo.errors import UsageError

TEXT = "A line of text, with é and ☃.\n" * 40


@pytest.mark.parametrize(
    ("encoding", "told"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
        ("utf-32", "UTF-32"),
        ("utf-32-le", "UTF-32LE"),
        ("utf-32-be", "UTF-32BE"),
    ],
)
def test_wide_text_is_called_by_its_name(encoding: str, told: str) -> None:
    """With a byte order mark or without: the encoding, and the command that converts it."""
    with pytest.raises(UsageError) as refused:
        context.decode(TEXT.encode(encoding), "doc.txt")
    assert str(refused.value) == f"doc.txt: is {told} text"
    assert refused.value.hint == f"convert it: iconv -f {told} -t UTF-8 FILE > NEW"
    converted = subprocess.run(
        ["iconv", "-f", told, "-t", "UTF-8"], input=TEXT.encode(encoding), capture_output=True, check=True
    )
    assert context.decode(converted.stdout, "doc.txt") == TEXT


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"%PDF-1.7\n\x00\x01\x02\xff", "is binary"),
        (b"a\0b" * 99, "is binary"),
        (b"\x7fELF\x02\x01\x01\x00" + bytes(64), "is binary"),
        ("café\n".encode("latin-1"), "doc.txt:1: is not UTF-8"),
        (b"one\ntwo \xff\n", "doc.txt:2: is not UTF-8"),
        (b" \n\t", "is empty"),
        (b"", "is empty"),
    ],
)
def test_what_is_no_text_is_refused(data: bytes, said: str) -> None:
    """Binary, another encoding, nothing: each in its own words."""
    with pytest.raises(UsageError) as refused:
        context.decode(data, "doc.txt")
    assert said in str(refused.value)


def test_a_million_characters_are_a_million(tmp_path: Path) -> None:
    """Nothing is cut."""
    text = "word " * 200_000
    (tmp_path / "long.txt").write_text(text)
    assert context.read(tmp_path / "long.txt") == text


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    """Whoever writes may take breaks; characters that are cut between two pieces are whole again."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data, between = TEXT.encode(), threading.Event()

    def write() -> None:
        with pipe.open("wb", buffering=0) as stream:
            stream.write(data[:27])
            between.wait(0.2)
            stream.write(data[27:])

    thread = threading.Thread(target=write)
    thread.start()
    assert context.read(pipe) == TEXT
    thread.join()
    assert context.name(pipe) == "pipe"


def test_a_pipe_that_nobody_writes_into_ends(tmp_path: Path) -> None:
    """In words, soon, and without a writer ever coming."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError) as refused:
        context.read(pipe, patience=0.1)
    assert "nothing came out of this pipe for 0.1 seconds" in str(refused.value)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/dev/zero", "is larger than 64 MiB"),
        ("/dev/null", "is empty"),
        ("/proc/self/mem", "cannot be read"),
        ("/", "is a directory"),
        ("/none", "no such file"),
    ],
)
def test_what_has_no_end_or_no_content_is_refused(path: str, said: str) -> None:
    """A device is no reason to hang."""
    with pytest.raises(UsageError) as refused:
        context.read(Path(path))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("argument", "called"), [("/dev/stdin", "standard input"), ("/dev/fd/0", "standard input"), ("<(cat)", "a pipe")]
)
def test_what_a_shell_gives(argument: str, called: str) -> None:
    """Standard input and a process substitution, as a user types them."""
    code = "import sys; from pathlib import Path; from kvdemo.bench import context as c; p = Path(sys.argv[1]);"
    code += "name = c.name(p); sys.stdout.write(name + '|' + c.read(p))"
    line = f'"{sys.executable}" -c "{code}" {argument}'
    done = subprocess.run(["bash", "-c", line], input=TEXT, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == f"{called}|{TEXT}", done.stderr
