#!/usr/bin/env python3
"""How long scripts/demo takes from a fresh clone, and once more: a table of its steps, in seconds.

    scripts/measure_demo.py [--runs N] [DEMO-ARGUMENT...]      e.g. scripts/measure_demo.py --runs 2 --smoke

The clone is made of the last commit here, into a temporary directory that is removed at the end. Beside the seconds
that passed stand the seconds of processor time that all processes of a run took, services included: this process
becomes the reaper of every orphan below it, so that the kernel adds their times to its own. On a machine that does
other work, too, the first depend on that work, the second much less.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
STEPS = ("install", "start", "measure", "stop")
TOOK = re.compile(r"(install|start|measure|stop) ([\d.]+) s")


def cpu_seconds() -> float:
    """Processor time of all processes below this one that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def reap_all() -> None:
    """Wait for every process below this one: what a run started has been told to end."""
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def run(clone: Path, state: Path, arguments: list[str]) -> tuple[int, dict[str, float]]:
    """One demonstration: its exit code, the seconds of each step, of all, and of processor time."""
    environ = {**os.environ, "KVDEMO_STATE_DIR": str(state)}
    begin, before, last = time.monotonic(), cpu_seconds(), ""
    with subprocess.Popen(
        [str(clone / "scripts" / "demo"), *arguments], env=environ, stdout=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None  # noqa: S101 (a pipe was asked for)
        for line in demo.stdout:
            print(line, end="", flush=True)
            last = line if TOOK.match(line) else last
    whole = time.monotonic() - begin
    reap_all()
    steps = {name: float(seconds) for name, seconds in TOOK.findall(last)}
    return demo.returncode, {**steps, "all": whole, "cpu": cpu_seconds() - before}


def table(runs: list[dict[str, float]]) -> str:
    """The runs beside each other, a line for each step."""
    heads = ["fresh clone", *(f"run {n}" for n in range(2, len(runs) + 1))]
    lines = [f"{'':<24}" + "".join(f"{head:>14}" for head in heads[: len(runs)])]
    for name, title in (*((step, step) for step in STEPS), ("all", "together"), ("cpu", "processor time")):
        cells = (f"{seconds[name]:>12.1f} s" if name in seconds else f"{'-':>14}" for seconds in runs)
        lines.append(f"{title:<24}" + "".join(cells))
    return "\n".join(lines)


def main() -> int:
    """Clone, run, print the table; the exit code of the first run that failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=2, metavar="N", help="how often in the same clone (default: 2)")
    options, arguments = parser.parse_known_args()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    runs: list[dict[str, float]] = []
    code = 0
    with tempfile.TemporaryDirectory(prefix="kvdemo-clone-") as scratch:
        clone, state = Path(scratch) / "kvdemo", Path(scratch) / "state"
        git = ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)]
        subprocess.run(git, check=True)
        while len(runs) < options.runs and code == 0:
            code, seconds = run(clone, state, arguments)
            runs.append(seconds)
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[1]
    print(f"\n{cores} processor cores, load {load:.1f} in the last five minutes\n{table(runs)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
