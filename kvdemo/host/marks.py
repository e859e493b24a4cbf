"""Services that are known by their marks alone, when the records of their guardians are lost or damaged.

A guardian names its run directory, service and run in its command line, and all that it starts carries the same in its
environment. Only processes of this user count, never this process or one above it. Limits: a process that replaced its
environment, and whose guardian was killed, carries no mark; what an earlier version started is known by its guardian
only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from kvdemo.host import procfs, shim
from kvdemo.host.procfs import Identity, Record

RUN = "KVDEMO_RUN"
"""The variable that says ``RUN_ID/SERVICE``."""

RUN_DIR = "KVDEMO_RUN_DIR"
"""The variable that names the run directory: that of the project."""

_SHIM = b"/kvdemo/host/shim.py"


@dataclass(frozen=True)
class Mark:
    """What a process says of itself: whose it is, and whether it is the guardian."""

    run_dir: str
    run_id: str
    service: str
    guardian: bool


def variables(run_dir: Path, run_id: str, service: str) -> dict[str, str]:
    """The marks as variables of a service's environment."""
    return {RUN: f"{run_id}/{service}", RUN_DIR: str(run_dir)}


def services() -> dict[Path, list[Record]]:
    """All marked services of this user that have a live process, by run directory, as records made anew."""
    processes = shim.table()
    others = _ancestors(processes)
    marked: dict[tuple[str, str, str], list[tuple[Mark, shim.Stat]]] = {}
    for pid, entry in processes.items():
        if pid in others or entry.dead or procfs.uid_of(pid) != os.getuid():
            continue
        if mark := mark_of(entry):
            marked.setdefault((mark.run_dir, mark.run_id, mark.service), []).append((mark, entry))
    records: dict[Path, list[Record]] = {}
    for (run_dir, run_id, service), members in marked.items():
        records.setdefault(Path(run_dir), []).append(_record(run_id, service, members))
    return records


def in_directory(run_dir: Path, records: Iterable[Record]) -> list[Record]:
    """The marked services of this run directory without a record among ``records``."""
    recorded = {(record.run_id, record.service) for record in records}
    services_here = services().get(run_dir.absolute(), [])
    return [record for record in services_here if (record.run_id, record.service) not in recorded]


def mark_of(entry: shim.Stat) -> Mark | None:
    """The mark of a process; None if it carries none."""
    words = procfs.command_line(entry.pid)
    if mark := guardian_of(words):
        # The process that starts a guardian waits for it with the same words, as the leader of a session.
        return mark if entry.pid != entry.sid else replace(mark, guardian=False)
    pairs = dict(pair.split(b"=", 1) for pair in procfs.environ(entry.pid) or ())
    run_id, slash, service = pairs.get(RUN.encode(), b"").decode(errors="replace").partition("/")
    run_dir = os.fsdecode(pairs.get(RUN_DIR.encode(), b""))
    if not (slash and run_dir.startswith("/") and procfs.is_label(service)):
        return None
    return Mark(run_dir, run_id, service, guardian=False)


def guardian_of(words: list[bytes]) -> Mark | None:
    """What this command line guards; None if it is not that of a guardian."""
    at = next((number for number, word in enumerate(words[:5]) if word.endswith(_SHIM)), 0)
    if not at or b"--" not in words or len(words) < at + 4:
        return None
    run_dir, service, run_id = (os.fsdecode(word) for word in words[at + 1 : at + 4])
    return Mark(run_dir, run_id, service, guardian=True) if procfs.is_label(service) else None


def _ancestors(processes: dict[int, shim.Stat]) -> set[int]:
    """This process and all above it: whoever runs `kvdemo down` inside a service must not end itself."""
    pids: set[int] = set()
    pid = os.getpid()
    while pid in processes and pid not in pids:
        pids.add(pid)
        pid = processes[pid].ppid
    return pids


def _record(run_id: str, service: str, members: list[tuple[Mark, shim.Stat]]) -> Record:
    entries = sorted((entry for mark, entry in members if not mark.guardian), key=lambda e: (e.starttime, e.pid))
    guardian = next((entry for mark, entry in members if mark.guardian), None)
    leader = next((e for e in entries if e.pid == e.sid and (guardian is None or e.ppid == guardian.pid)), None)
    oldest = min(entry.starttime for _, entry in members)
    since = time.clock_gettime(time.CLOCK_BOOTTIME) - oldest / os.sysconf("SC_CLK_TCK")
    return Record(
        service=service,
        run_id=run_id,
        started_at=time.time() - since,
        guardian=_identity(guardian.pid if guardian else 0, guardian.starttime if guardian else oldest),
        leader=_identity(leader.pid, leader.starttime) if leader else None,
        exit=None,
    )


def _identity(pid: int, starttime: int) -> Identity:
    """``pid`` 0 stands for a process that is gone."""
    return Identity(pid, starttime, *procfs.boot_and_namespace(), os.getuid())
