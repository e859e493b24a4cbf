"""Stop services, and prove that they are gone.

Engines end before caches: an LMCache server has mapped the memory of its engines, and gives it back only when they
leave in good order. After the last one, ``verify`` looks for anything that outlived its owner.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, field

from kvdemo import gpus, process, procfs
from kvdemo.plan import Plan
from kvdemo.process import remove_segments, segments
from kvdemo.procfs import Record
from kvdemo.state import Project
from kvdemo.stores import delete as delete_stores
from kvdemo.survey import saved_plan, sockets
from kvdemo.watch import Event, State

GPU_SLACK = 256 * 1024**2
"""Bytes by which a GPU's memory may differ from before the start and still count as given back."""

GPU_PATIENCE = 60.0
"""Seconds to wait for the driver to give memory back after its holder ended."""


@dataclass
class Remains:
    """What was looked for after ``down``; empty lists are the proof."""

    processes: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    segments: list[str] = field(default_factory=list)
    gpus: list[str] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    """How many of each kind were checked."""

    def __bool__(self) -> bool:
        return bool(self.processes or self.ports or self.segments or self.gpus)

    def __str__(self) -> str:
        parts = [f"process {name}" for name in self.processes]
        parts += [f"port {port}" for port in self.ports]
        parts += [f"/dev/shm/{name}" for name in self.segments]
        return ", ".join(parts + self.gpus)


def stop(
    project: Project, names: Collection[str], plan: Plan | None, found: set[str], timeout: float | None = None
) -> Generator[Event]:
    """Stop these services, engines first; the names of their shared-memory segments are added to ``found``.

    What has not ended after ``timeout`` seconds (default: what the plan says) is killed.
    """
    if timeout is None:
        timeout = max([spec.stop_timeout for spec in plan.services] if plan else [30.0])
    records = {name: record for name, record in project.records().items() if name in names}
    kinds = {spec.name: spec.kind for spec in plan.services} if plan else {}
    engines = {name: record for name, record in records.items() if kinds.get(name) != "cache"}
    caches = {name: record for name, record in records.items() if name not in engines}
    for group in (engines, caches):
        yield from _stop_together(project, group, found, timeout)


def _stop_together(
    project: Project, records: Mapping[str, Record], found: set[str], timeout: float
) -> Generator[Event]:
    began = time.monotonic()
    for name, record in records.items():
        pids = {member.pid for member in process.members(record)}
        found |= segments(pids | ({record.leader.pid} if record.leader else set()))
        if pids:
            yield Event(name, State.STOPPING)
            process.terminate(record)
    ended: set[str] = set()
    while len(ended) < len(records):
        left = began + timeout - time.monotonic()
        waiting = {name: record for name, record in records.items() if name not in ended}
        for name in sorted(process.wait_exit(waiting.values(), max(0.0, left), first=True)):
            ended.add(name)
            yield _ended(project, name, began)
        if left <= 0:
            break
    for name, record in records.items():
        if name in ended:
            continue
        killed = process.kill(record)
        detail = f"killed: it did not stop within {timeout:.0f} s ({killed} processes)"
        if alive := process.members(record):
            detail = f"survived SIGKILL: pid {', '.join(str(member.pid) for member in alive)}"
            yield Event(name, State.FAILED, detail=detail)
        else:
            project.forget(name)
            yield Event(name, State.EXITED, detail=detail, elapsed=time.monotonic() - began)


def _ended(project: Project, name: str, began: float) -> Event:
    record = project.record(name)
    ended = record.exit if record else None
    detail = ""
    if ended and ended.swept:
        detail = f"its guardian had to end {ended.swept} left-over process{'es' if ended.swept > 1 else ''}"
    project.forget(name)
    return Event(name, State.EXITED, detail=detail, elapsed=time.monotonic() - began)


def down(project: Project, *, remove_store: bool = False, timeout: float | None = None) -> Generator[Event | Remains]:
    """Stop everything of a project; the last thing yielded are its Remains. Safe to repeat, and after any crash."""
    plan = saved_plan(project)
    document = project.load(strict=False) or {}
    found = set(document.get("segments", []))
    records = project.records()
    names = list(records)
    yield from stop(project, names, plan, found, timeout)
    freed = delete_stores(project.stores) if remove_store else 0
    runs = {record.run_id for record in records.values()}
    remains = verify(project, plan, found, document.get("gpu_used", {}), runs)
    shutil.rmtree(sockets(project), ignore_errors=True)
    if not remains:
        project.clear()
    remains.checked |= {"services": len(names), "freed": freed}
    yield remains


def verify(
    project: Project, plan: Plan | None, found: set[str], gpu_used: Mapping[str, int], runs: Collection[str]
) -> Remains:
    """Look for whatever is left: processes, ports, shared memory, GPU memory (``gpu_used``: bytes before the start).

    ``runs`` are the marks of what was stopped: a port that a stranger took in the meantime is not ours to free.
    """
    remains = Remains()
    for name, record in project.records().items():
        remains.processes += [f"{member.pid} ({name})" for member in process.members(record)]
    ports = [(spec.host, port) for spec in (plan.services if plan else ()) for port in spec.ports]
    remains.ports = [port for host, port in ports if not process.port_free(host, port) and not _strangers(port, runs)]
    remains.segments = remove_segments(found)
    involved = {uuid for uuid in gpu_used if plan and any(spec.gpus for spec in plan.services)}
    remains.gpus = _gpu_memory_back({uuid: gpu_used[uuid] for uuid in involved})
    remains.checked |= {"ports": len(ports), "segments": len(found), "gpus": len(involved)}
    return remains


def _strangers(port: int, runs: Collection[str]) -> bool:
    """Whether those who listen here are visibly not of these runs. Who hides, or overwrote its environment, may be."""
    ours = tuple(f"{process.MARK}={run}/".encode() for run in runs)
    given = [procfs.environ(pid) for pid in process.listeners(port)]
    return bool(given) and all(pairs and not any(pair.startswith(ours) for pair in pairs) for pairs in given)


def _gpu_memory_back(before: Mapping[str, int]) -> list[str]:
    """Wait for the GPUs' memory to be as before; the driver gives no event for it, so it is asked for."""
    deadline = time.monotonic() + GPU_PATIENCE
    while before:
        now = gpus.used(frozenset(before))
        late = [uuid for uuid in before if now.get(uuid, 0) > before[uuid] + GPU_SLACK]
        if not late:
            break
        if time.monotonic() > deadline:
            return [f"GPU {uuid}: {(now[uuid] - before[uuid]) / 1024**3:.1f} GiB not given back" for uuid in late]
        time.sleep(0.25)
    return []
