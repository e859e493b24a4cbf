#!/usr/bin/env python3
"""Break a fleet in every way that fleets break, and show that each GPU's memory comes back.

    scripts/gpu_faults.py [PROFILE] [--at-once N] [--json FILE]

On one running fleet: SIGKILL of an API server, of an engine core, of a guardian, of the cache server, then `kvdemo
down`. In projects of their own: Ctrl-C while an engine imports, loads its weights, compiles and captures graphs, and an
engine that fails to start. After each, the memory in use on the profile's GPUs is waited for until it is what it was
before. Exit code 3 if it is not, or if a process is left. ``--at-once`` runs several of the second kind side by side
(the profile must leave ports out). Without a GPU the same is done, and only processes can be counted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import yaml

from kvdemo.config import profile
from kvdemo.fleet import diagnose
from kvdemo.host import gpus, process
from kvdemo.host.procfs import Record
from kvdemo.host.state import Project, root

PROFILE = Path(__file__).resolve().parent.parent / "profiles" / "one-gpu.yaml"
SLACK = 256 * 1024**2
PATIENCE = 60.0
PHASES = ("import", "load weights", "compile", "capture graphs", "warm up")
MIB = 1024**2


@dataclass(frozen=True)
class Row:
    """One fault: GPU memory in use (MiB) before anything started, at the fault, at the end; what else was seen.

    ``seconds`` from the fault until the memory was back (or, of a killed process in a fleet, its own share).
    """

    fault: str
    before: int
    at_fault: int
    after: int
    seconds: float
    exit_code: int | None
    left: str = ""

    @property
    def clean(self) -> bool:
        """Whether nothing is left."""
        return not self.left


def used() -> int:
    """Bytes in use on all GPUs that this process may use."""
    return sum(gpus.memory_in_use(frozenset(gpu.uuid for gpu in gpus.detect(os.environ))).values())


def wait_for(done: Callable[[], bool]) -> float:
    """Seconds until it is so, at most the patience; asked again and again, since the driver has no event for it."""
    began = time.monotonic()
    while not done() and time.monotonic() - began < PATIENCE:
        time.sleep(0.1)
    return time.monotonic() - began


def kvdemo(*arguments: str, **environ: str) -> subprocess.Popen[str]:
    """The command, running, in a session of its own, with these variables beside the others."""
    argv, pipe = [sys.executable, "-m", "kvdemo", *arguments], subprocess.PIPE
    variables = {**os.environ, **environ}
    return subprocess.Popen(
        argv, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=variables
    )


def finish(running: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it said."""
    said, _ = running.communicate()
    return running.returncode, said


def project(name: str) -> Project:
    """The state of a project."""
    return Project(root(os.environ), name)


def alive(names: Iterable[str]) -> list[int]:
    """Pids of every process that belongs to these projects."""
    return [m.pid for name in names for record in project(name).records().values() for m in process.members(record)]


def leader(record: Record) -> int:
    """The first process of a service."""
    if record.leader is None:
        raise SystemExit(f"{record.service} has not started")
    return record.leader.pid


def core(record: Record) -> int:
    """The process of an engine that holds GPU memory: vLLM's engine core, or the only one there is."""
    pids = [member.pid for member in process.members(record)]
    cores = [pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"VLLM::EngineCore")]
    return cores[0] if cores else leader(record)


def kills(path: Path) -> list[Row]:
    """SIGKILL parts of one fleet, one after the other, then take it down."""
    name, before = "faults", used()
    code, said = finish(kvdemo("up", str(path), "-p", name))
    if code:
        raise SystemExit(f"kvdemo up failed with {code}:\n{said}")
    wanted = profile.load(path, os.environ)
    plain = [engine for engine, settings in wanted.engines.items() if not settings.cache]
    cached = [engine for engine, settings in wanted.engines.items() if settings.cache]
    records = project(name).records()
    targets = [(one, "API server", leader(records[one])) for one in plain[:1]]
    targets += [(one, "engine core", core(records[one])) for one in plain[1:2]]
    targets += [(one, "guardian", records[one].guardian.pid) for one in cached[-1:]]
    targets += [(one, "cache server", leader(records[one])) for one in wanted.caches]
    rows = []
    for service, what, pid in targets:
        at_fault, record = used(), records[service]
        os.kill(pid, signal.SIGKILL)
        stays = what == "guardian"  # its engine goes on without it, and `down` must find it all the same
        seconds = wait_for(lambda: stays or not process.members(record))  # noqa: B023 (called within this round)
        left = "" if stays else ", ".join(f"pid {member.pid}" for member in process.members(record))
        rows.append(
            Row(f"SIGKILL {what} of {service}", before // MIB, at_fault // MIB, used() // MIB, seconds, None, left)
        )
        print(line(rows[-1]), flush=True)
    at_fault, began = used(), time.monotonic()
    code, said = finish(kvdemo("down", "-p", name, "-v"))
    rows.append(end("then kvdemo down", [name], before, at_fault, time.monotonic() - began, code, said if code else ""))
    return rows


def end(
    fault: str, names: list[str], before: int, at_fault: int, seconds: float, code: int | None, left: str = ""
) -> Row:
    """A row that ends a project: wait for the memory, look for processes."""
    seconds += wait_for(lambda: used() <= before + SLACK)
    pids = alive(names)
    memory = used()
    left = left or ", ".join(f"pid {pid}" for pid in pids)
    if memory > before + SLACK:
        left = f"{left} {(memory - before) // MIB} MiB".strip()
    row = Row(fault, before // MIB, at_fault // MIB, memory // MIB, seconds, code, left)
    print(line(row), flush=True)
    return row


def interrupted(path: Path, engine: str, phase: str) -> tuple[str, int, int]:
    """Ctrl-C when the engine's log shows this phase; the fault, its exit code, GPU memory at that moment."""
    name = project_for(phase)
    log = project(name).log(engine)
    # What was compiled before would be loaded, and the phase would not show.
    afresh = {"VLLM_DISABLE_COMPILE_CACHE": "1"} if phase == "compile" else {}
    running = kvdemo("up", str(path), engine, "-p", name, **afresh)
    reached = ""
    while running.poll() is None and reached != phase:
        time.sleep(0.05)
        reached = diagnose.phase(log.read_text(errors="replace")) if log.exists() else ""
    at_fault = used()
    if running.poll() is not None:
        finish(running)
        code, _ = finish(kvdemo("down", "-p", name))
        return f"phase {phase} never showed", code, at_fault
    running.send_signal(signal.SIGINT)
    code, _ = finish(running)
    return f"Ctrl-C in phase {phase}", code, at_fault


def project_for(phase: str) -> str:
    """The project of an interrupted start."""
    return f"faults-{phase.replace(' ', '-')}"


def failing(path: Path, engine: str) -> tuple[str, int, int]:
    """An engine that finds no weights of the kind it is told to load: it fails when it already holds the GPU."""
    document = yaml.safe_load(path.read_text())
    document["engines"][engine] = {**(document["engines"][engine] or {}), "args": {"load-format": "pt"}}
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".faults-", suffix=".yaml") as file:
        yaml.safe_dump(document, file, sort_keys=False)
        file.flush()
        code, said = finish(kvdemo("up", file.name, engine, "-p", "faults-failing"))
    if code == 0:
        finish(kvdemo("down", "-p", "faults-failing"))
    told = next((text for text in said.splitlines() if text.startswith("error: ")), said[-200:])
    return f"a start that fails ({told.removeprefix('error: ')[:80]})", code, used()


def starts(path: Path, at_once: int) -> list[Row]:
    """Starts that do not end well, ``at_once`` side by side."""
    before = used()
    engine = next(iter(profile.load(path, os.environ).engines))
    jobs = [partial(interrupted, path, engine, phase) for phase in PHASES] + [partial(failing, path, engine)]
    names = [*map(project_for, PHASES), "faults-failing"]
    rows: list[Row] = []
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        # One after the other must mean just that: the next one starts when the memory of this one is back.
        together = pool.map(lambda job: job(), jobs) if at_once > 1 else (job() for job in jobs)
        for fault, code, at_fault in together:
            expected = {"a": 1, "Ctrl-C": 130}.get(fault.split()[0], 0)
            left = "" if code == expected else f"exit code {code} instead of {expected}"
            if at_once == 1:
                rows.append(end(fault, names, before, at_fault, 0.0, code, left))
            else:
                rows.append(Row(fault, before // MIB, at_fault // MIB, used() // MIB, 0.0, code, left))
                print(line(rows[-1]), flush=True)
    if at_once > 1:
        rows.append(end("after all of these", names, before, used(), 0.0, None))
    return rows


def line(row: Row) -> str:
    """A row as text."""
    code = "" if row.exit_code is None else f"exit {row.exit_code}"
    return (
        f"{row.fault[:66]:<66} {row.before:>8,} {row.at_fault:>9,} {row.after:>8,} MiB {row.seconds:6.1f} s "
        f"{code:<8} {'clean' if row.clean else 'LEFT: ' + row.left}"
    )


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "profile", type=Path, nargs="?", default=PROFILE, metavar="PROFILE", help="default: one-gpu.yaml"
    )
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="broken starts side by side (default: 1)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="save the rows")
    arguments = parser.parse_args()
    # What a shell starts in the background ignores this signal, and so would everything that is interrupted below.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="kvdemo-faults-") as scratch:
        os.environ["KVDEMO_STATE_DIR"] = f"{scratch}/state"
        path = arguments.profile.absolute()
        print(f"{'fault':<66} {'before':>8} {'at fault':>9} {'after':>8}")
        rows = [*kills(path), *starts(path, arguments.at_once)]
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0 if all(row.clean for row in rows) else 3


if __name__ == "__main__":
    sys.exit(main())
