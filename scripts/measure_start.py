#!/usr/bin/env python3
"""Measure what starting costs: one engine alone against the whole profile, kvdemo's own verbs, and its guardians.

    scripts/measure_start.py [PROFILE] [--engine NAME] [--repetitions N] [--ratio GOAL]

Alone: `kvdemo up PROFILE NAME`; whole: `kvdemo up PROFILE`; each from its start to its end, when everything can
generate. The two alternate, so that a slow minute of the machine hurts both; a first start of the whole, which is told
but not counted, leaves the caches of compiled code and of files as all later ones find them. The goal for whole over
alone is one for two processor cores that all share; on a GPU host, where every service has its own, say --ratio 1.15.
Processor time is user and system time of the command and whatever it ran. Everything happens in a project of its own
and is taken down again. Exit code 3 if a goal is missed. Limit: a busy machine measures its other work too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kvdemo.config import profile
from kvdemo.host.state import Project, root

PROJECT = "measure"
PROFILE = Path(__file__).resolve().parent.parent / "profiles" / "cpu.yaml"
RATIO = 2.4
PROCESSOR_SECONDS = 0.35
GUARDIAN_MIB = 16.0


def start(*what: str) -> float:
    """Seconds that `kvdemo up` takes for this; the fleet stays up."""
    began = time.monotonic()
    kvdemo("up", *what, "-p", PROJECT)
    return time.monotonic() - began


def stop() -> None:
    """End it."""
    kvdemo("down", "-p", PROJECT, "-v")


def kvdemo(*arguments: str) -> float:
    """Run a command to its end; its processor time in seconds. Raises SystemExit with its words if it fails."""
    argv = [sys.executable, "-m", "kvdemo", *arguments]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"kvdemo {' '.join(arguments)} failed with exit code {process.returncode}:\n{said.read()}")
    return used.ru_utime + used.ru_stime


def guardians() -> list[float]:
    """Resident memory of every guardian of the whole fleet, in MiB."""
    records = Project(root(os.environ), PROJECT).records().values()
    pages = [int(Path(f"/proc/{record.guardian.pid}/statm").read_text().split()[1]) for record in records]
    return [count * os.sysconf("SC_PAGE_SIZE") / 1024**2 for count in pages]


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def report(what: str, unit: str, values: Sequence[float], goal: float | None = None) -> bool:
    """Print one line; whether the median keeps the goal."""
    median = statistics.median(values)
    kept = goal is None or median <= goal
    wanted = "" if goal is None else f"   goal {goal:g}: {'kept' if kept else 'MISSED'}"
    print(f"{what:<34}{median:8.2f} {unit:<4} ({min(values):.2f} to {max(values):.2f}, n={len(values)}){wanted}")
    return kept


def measure(path: Path, engine: str, repetitions: int, goal: float) -> bool:
    """All of it; whether every goal is kept."""
    alone: list[float] = []
    whole: list[float] = []
    memory: list[float] = []
    verbs = {"--help": ["--help"], f"plan {path.name}": ["plan", str(path)], "ps": ["ps", "-p", PROJECT]}
    spent: dict[str, list[float]] = {verb: [] for verb in verbs}
    try:
        say(f"before the first round, caches as they are: the whole profile {start(str(path)):.1f} s")
        for number in range(1, repetitions + 1):
            stop()
            alone.append(start(str(path), engine))
            say(f"round {number} of {repetitions}: {engine} alone {alone[-1]:.1f} s")
            stop()
            whole.append(start(str(path)))
            say(f"round {number} of {repetitions}: the whole profile {whole[-1]:.1f} s")
            memory += guardians()
            for verb, arguments in verbs.items():
                spent[verb] += [kvdemo(*arguments) for _ in range(3)]
    finally:
        stop()
    kept = [
        report(f"kvdemo up {path.name} {engine}", "s", alone),
        report(f"kvdemo up {path.name}", "s", whole),
        report("ratio", "x", [both / one for one, both in zip(alone, whole, strict=True)], goal),
    ]
    kept += [report(f"processor time of kvdemo {v}", "s", spent[v], PROCESSOR_SECONDS) for v in spent]
    kept.append(report("resident memory of a guardian", "MiB", memory, GUARDIAN_MIB))
    return all(kept)


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("profile", type=Path, nargs="?", default=PROFILE, metavar="PROFILE", help="default: cpu.yaml")
    parser.add_argument("--engine", default="", metavar="NAME", help="which one is measured alone (default: the first)")
    parser.add_argument("--repetitions", type=int, default=3, metavar="N")
    parser.add_argument("--ratio", type=float, default=RATIO, metavar="GOAL", help="of whole over alone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvdemo-measure-") as scratch:
        os.environ |= {"KVDEMO_STATE_DIR": f"{scratch}/state", "KV_STORE_DIR": f"{scratch}/kv-store"}
        engine = arguments.engine or next(iter(profile.load(arguments.profile, os.environ).engines))
        return 0 if measure(arguments.profile.absolute(), engine, arguments.repetitions, arguments.ratio) else 3


if __name__ == "__main__":
    sys.exit(main())
