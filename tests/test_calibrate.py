from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from kvdemo.bench import calibrate


def test_calibration_measures_every_request() -> None:
    """So many requests of such a size; the client never took less than nothing; the server is gone afterwards."""
    before = {child.pid for child in psutil.Process().children()}
    found = calibrate.calibrate(100_000, n=5)
    assert (found.n, found.prompt_bytes) == (5, 100_000)
    assert 0 < found.p50 <= found.p90 <= found.max
    assert {child.pid for child in psutil.Process().children()} <= before


def test_one_request_is_enough() -> None:
    """A single request is a calibration, too."""
    found = calibrate.calibrate(10, n=1)
    assert found.n == 1
    assert found.p50 == found.p90 == found.max


def test_calibration_says_itself_in_one_line() -> None:
    """Milliseconds, count and prompt size."""
    line = str(calibrate.Calibration(50, 0.0006, 0.00112, 0.003, 118 * 1024))
    assert line == "client overhead p50 0.6 ms, p90 1.1 ms (n = 50, 118 KiB prompts)"


def test_the_null_server_leaves_with_its_parent() -> None:
    """A parent that is killed leaves no server behind: it ends with its standard input, and needs no kvdemo."""
    argv = [sys.executable, "-I", "-S", str(Path(calibrate.__file__))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        process.stdin.close()
        assert process.wait(10) == 0
