"""How fast this machine copies and reads: measured, or said to be unknown, and nothing left behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kvdemo.host import bandwidth


def test_a_disk_is_measured(tmp_path: Path) -> None:
    """Plausible numbers, the best of which counts; the file is gone."""
    found = bandwidth.disk(tmp_path)
    assert found is not None
    assert all(1e6 < rate < 1e12 for rate in (found.write, found.sequential, found.parallel))
    assert found.best == max(found.sequential, found.parallel)
    assert found.readers in bandwidth.READERS[2:]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["nowhere", "file"])
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    """Is unknown, not an error."""
    (tmp_path / "file").touch()
    assert bandwidth.disk(tmp_path / place) is None


@pytest.mark.parametrize("words", ["exit 1", "echo fast", "exec true"])
def test_an_interpreter_that_cannot_copy(tmp_path: Path, words: str) -> None:
    """No torch, no number, no output: unknown."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{words}\n")
    python.chmod(0o755)
    assert bandwidth.copy(str(python), os.environ, gpu=False) is None


def test_no_interpreter(tmp_path: Path) -> None:
    """Nor one that is not there."""
    assert bandwidth.copy(str(tmp_path / "none"), os.environ, gpu=False) is None


def test_the_rate_is_what_the_interpreter_prints(tmp_path: Path) -> None:
    """The program runs with torch on the device that was asked for; here a stand-in that copies nothing."""
    (tmp_path / "torch.py").write_text(
        "uint8 = None\n"
        "class Tensor:\n"
        "    def copy_(self, source, non_blocking): pass\n"
        "def ones(size, dtype, pin_memory): assert size == 256 * 1024**2 and not pin_memory; return Tensor()\n"
        "def empty(size, dtype, device): assert device == 'cpu'; return Tensor()\n"
    )
    rate = bandwidth.copy(sys.executable, {**os.environ, "PYTHONPATH": str(tmp_path)}, gpu=False)
    assert rate is not None
    assert rate > 1e9


def test_dropping_pages_never_fails(tmp_path: Path) -> None:
    """A file may have been deleted meanwhile."""
    file = tmp_path / "kv"
    bandwidth.drop_pages(file)
    file.write_bytes(b"kv")
    bandwidth.drop_pages(file)
    assert file.read_bytes() == b"kv"
