"""The launcher of this machine: a thin face over ``process`` and the project's directory.

Limits: what it says of shared memory and ports is about this machine as this user may see it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Generator, Mapping
from pathlib import Path
from typing import Any

from kvdemo.errors import ServiceError
from kvdemo.host import gpus, logend, marks, process, procfs
from kvdemo.host.files import private_directory
from kvdemo.host.launcher import BEGIN, PIECE, Event, Place, Remains, State, Status
from kvdemo.host.procfs import Record, alive
from kvdemo.host.state import Project, amounts
from kvdemo.planning import environment
from kvdemo.planning.facts import Gpu
from kvdemo.planning.plan import ServiceSpec

GPU_SLACK = 256 * 1024**2
"""Bytes by which a GPU's memory may differ from before the start and still count as given back."""

GPU_PATIENCE = 60.0
"""Seconds to wait for the driver to give memory back after its holder ended."""


class Local:
    """Services of a project as processes of this machine. Guardians share the lock ``lock_fd`` until they stand.

    ``leased``: services end with this process; else nobody owns them.
    """

    def __init__(self, project: Project, lock_fd: int | None = None, *, leased: bool = False) -> None:
        self.project, self.lock_fd = project, lock_fd
        self.leases: dict[str, int] | None = {} if leased else None
        self.segments: set[str] = _names(project.load(strict=False), "segments")
        self.strays: dict[str, Record] = {}

    def recover(self) -> list[str]:
        """By the marks of their processes."""
        records = self.project.records()
        self.strays = {}
        for record in marks.in_directory(self.project.dir, records.values()):
            name = record.service
            self.strays[f"{name}-{record.run_id[:8]}" if name in records or name in self.strays else name] = record
        return sorted(self.strays)

    def records(self) -> dict[str, Record]:
        """What the guardians wrote, and what ``recover`` knows without."""
        return {**self.strays, **self.project.records()}

    def record(self, service: str) -> Record | None:
        """The same of one service."""
        return self.project.record(service) or self.strays.get(service)

    def _forget(self, name: str) -> None:
        if not self.strays.pop(name, None):
            self.project.forget(name)

    def started_services(self) -> list[str]:
        """Those with a record."""
        return list(self.records())

    def runs(self) -> set[str]:
        """The run of each record."""
        return {record.run_id for record in self.records().values()}

    def running(self) -> set[str]:
        """Those of which a process lives."""
        records = self.records()
        return {name for name, record in records.items() if process.members(record) or alive(record.guardian)}

    def prepare(self, *, fresh: bool) -> dict[str, Any]:
        """The GPU memory in use before the first start, and the shared memory to look for."""
        document = {} if fresh else self.project.load(strict=False) or {}
        if "gpu_used" not in document:
            detected = gpus.detect({})
            document["gpu_used"] = {gpu.uuid: gpu.total - gpu.free for gpu in detected}
            document["gpu_pids"] = sorted({holder.pid for gpu in detected for holder in gpu.holders})
        kept = {"gpu_used": amounts(document), "gpu_pids": sorted(_numbers(document, "gpu_pids"))}
        return kept | {"segments": sorted(self.segments), "sockets": str(self.project.sockets)}

    def start(self, spec: ServiceSpec, run_id: str, environ: Mapping[str, str]) -> None:
        """Under a guardian, its output in a fresh log."""
        log = self.project.rotate_log(spec.name)
        private_directory(self.project.sockets)
        for path, text in spec.files.items():
            Path(path).write_text(text, encoding="utf-8")
        self.project.forget(spec.name)
        directory, variables = self.project.dir, environment.of_service(environ, spec.env, spec.secrets)
        if self.leases is None:
            process.spawn(directory, spec.name, run_id, spec.argv, variables, directory, log, self.lock_fd)
            return
        reading, write_end = os.pipe()
        if old := self.leases.pop(spec.name, None):
            os.close(old)
        self.leases[spec.name] = write_end
        try:
            lease = (reading, spec.stop_timeout)
            process.spawn(directory, spec.name, run_id, spec.argv, variables, directory, log, self.lock_fd, lease=lease)
        finally:
            os.close(reading)

    def note(self, service: str) -> None:
        """Its shared memory."""
        record = self.record(service)
        self.segments |= process.segments({member.pid for member in process.members(record)} if record else set())

    def note_shared_memory(self) -> None:
        """Note the shared memory in use, so that ``remains`` can tell ours from others'."""
        records = self.records().values()
        self.segments |= process.segments({member.pid for record in records for member in process.members(record)})
        if document := self.project.load(strict=False):
            self.project.save({**document, "segments": sorted(self.segments)})

    def status(self, service: str) -> Status | None:
        """From its record and /proc."""
        record = self.record(service)
        if record is None:
            return None
        lives = alive(record.leader)
        leader, stopped = record.leader, procfs.stopped(record.guardian)
        memory = process.resident(record) if lives else 0
        nice = procfs.nice_of(record.leader.pid) if lives and record.leader else 0
        return Status(
            record.started_at,
            lives,
            alive(record.guardian),
            record.exit,
            memory,
            nice,
            pid=leader.pid if leader else 0,
            start_ticks=leader.starttime if leader else 0,
            guardian_stopped=record.guardian.pid if stopped else 0,
        )

    def wait_for_end(self, service: str, timeout: float) -> bool:
        """By the pidfds of its processes: no polling."""
        record = self.record(service)
        return record is None or bool(process.wait_exit([record], timeout))

    def stranger(self, spec: ServiceSpec) -> int:
        """As the kernel's table of sockets says: this user sees its own processes there, of others that they are."""
        record = self.record(spec.name)
        members = {member.pid for member in process.members(record)} if record else set()
        listening = process.listeners(spec.port, hidden=True)
        return 0 if not listening or members & set(listening) else next((pid for pid in listening if pid), -1)

    def logs(self, *, previous: bool = False) -> list[str]:
        """By the files there are."""
        suffix = ".1" if previous else ""
        return sorted(path.name.removesuffix(f".log{suffix}") for path in self.project.dir.glob(f"logs/*.log{suffix}"))

    def read_log(
        self, service: str, place: Place = BEGIN, *, previous: bool = False, last: int = 0
    ) -> tuple[Place, bytes]:
        """A file that was put aside by a new start is read to its end first."""
        log = self.project.log(service)
        if previous:
            return _read(Path(f"{log}.1"), place[1], last)
        if place != BEGIN and _inode(log) != place[0]:
            aside = next((file for file in log.parent.glob(f"{log.name}.*") if _inode(file) == place[0]), None)
            end, data = _read(aside, place[1], last) if aside else (BEGIN, b"")
            if data:
                return end, data
            place = BEGIN
        return _read(log, place[1], last)

    def log_end(self, service: str) -> bytes:
        """Read backwards."""
        return logend.read(self.project.log(service))

    def stop(self, services: Collection[str], timeout: float) -> Generator[Event]:
        """SIGTERM to all leaders, then SIGKILL to whatever has not ended in time; at once to those without a leader."""
        began = time.monotonic()
        records = {name: record for name, record in self.records().items() if name in services}
        exits: set[str] = set()
        for name, record in records.items():
            pids = {member.pid for member in process.members(record)}
            self.segments |= process.segments(pids | ({record.leader.pid} if record.leader else set()))
            if pids or alive(record.guardian):
                yield Event(name, State.STOPPING, detail=_stopped_process(record))
                if not process.terminate(record):
                    exits.add(name)
                    yield self._kill(name, record, began, "its guardian and its leader were gone")
        while len(exits) < len(records):
            remaining = began + timeout - time.monotonic()
            waiting = {name: record for name, record in records.items() if name not in exits}
            for name in sorted(process.wait_exit(waiting.values(), max(0.0, remaining), first=True)):
                exits.add(name)
                yield self._end_event(name, began)
            if remaining <= 0:
                break
        for name, record in records.items():
            if name not in exits:
                yield self._kill(name, record, began, f"it did not stop within {timeout:.0f} s")

    def _kill(self, name: str, record: Record, began: float, why: str) -> Event:
        killed = process.kill(record)
        if alive := process.members(record):
            detail = f"survived SIGKILL: pid {', '.join(str(member.pid) for member in alive)}"
            return Event(name, State.FAILED, detail=detail)
        self._forget(name)
        detail = f"killed: {why} ({killed} processes)"
        return Event(name, State.EXITED, detail=detail, elapsed=time.monotonic() - began)

    def _end_event(self, name: str, began: float) -> Event:
        record = self.record(name)
        end = record.exit if record else None
        detail = ""
        if end and end.swept:
            detail = f"its guardian had to end {end.swept} left-over process{'es' if end.swept > 1 else ''}"
        self._forget(name)
        return Event(name, State.EXITED, detail=detail, elapsed=time.monotonic() - began)

    def release(self) -> None:
        """Nothing was reserved."""

    def tidy(self) -> None:
        """Unlink it, except what a live process still maps; the sockets' directory goes with the last service."""
        process.remove_segments(self.segments)
        if not self.running():
            self.remove_sockets()

    def remains(self, specs: Collection[ServiceSpec], runs: Collection[str]) -> Remains:
        """Processes, ports, shared memory, GPU memory. A port that a stranger took in the meantime is not ours."""
        remains = Remains()
        for name, record in self.records().items():
            remains.processes += [f"{member.pid} ({name})" for member in process.members(record)]
        ports = [address for spec in specs for address in spec.addresses]
        remains.ports = [
            port for host, port in ports if not process.port_free(host, port) and not _strangers(port, runs)
        ]
        remains.segments = process.remove_segments(self.segments)
        document = self.project.load(strict=False)
        devices = sorted(
            {word for spec in specs for word in spec.env.get("CUDA_VISIBLE_DEVICES", "").split(",") if word}
        )
        own = {gpu.uuid for gpu in gpus.detect({"CUDA_VISIBLE_DEVICES": ",".join(devices)})} if devices else set()
        involved = {uuid: size for uuid, size in amounts(document).items() if uuid in own}
        remains.gpus = _gpu_memory_back(involved, _numbers(document, "gpu_pids"), runs)
        remains.checked = {"ports": len(ports), "segments": len(self.segments), "gpus": len(involved)}
        self.remove_sockets()
        return remains

    def remove_sockets(self) -> None:
        """Remove the directory of the engines' sockets, if it is the private one that ``start`` made."""
        now = self.project.sockets
        earlier = (self.project.load(strict=False) or {}).get("sockets")  # TMPDIR may have been another one then
        places = [now, Path(earlier)] if isinstance(earlier, str) else [now]
        for path in places:
            with contextlib.suppress(ServiceError):
                if path.name == now.name and path.exists():
                    shutil.rmtree(private_directory(path), ignore_errors=True)


def _names(document: dict[str, Any] | None, key: str) -> set[str]:
    """The names that a document lists; what is no list of them is none."""
    value = (document or {}).get(key)
    return {name for name in value if isinstance(name, str)} if isinstance(value, list) else set()


def _numbers(document: Mapping[str, Any] | None, key: str) -> set[int]:
    """The same for whole numbers."""
    value = (document or {}).get(key)
    return {number for number in value if isinstance(number, int)} if isinstance(value, list) else set()


def _stopped_process(record: Record) -> str:
    """What a service cannot hear that it shall end, because somebody stopped it."""
    stopped = {"guardian": record.guardian, "process": record.leader}
    pids = [f"its {what} (pid {one.pid})" for what, one in stopped.items() if one and procfs.stopped(one)]
    return f"{' and '.join(pids)} was stopped (SIGSTOP): continued, to end" if pids else ""


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _read(path: Path, offset: int, last: int) -> tuple[Place, bytes]:
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if last:
                offset = max(offset, status.st_size - last)
            stream.seek(offset)
            data = stream.read(PIECE)
    except OSError:
        return BEGIN, b""
    return (status.st_ino, offset + len(data)), data


def _strangers(port: int, runs: Collection[str]) -> bool:
    """Whether those who listen here are visibly not of these runs. Who hides, or overwrote its environment, may be."""
    listeners = process.listeners(port)
    return bool(listeners) and all(_is_stranger(pid, runs) for pid in listeners)


def _is_stranger(pid: int, runs: Collection[str]) -> bool:
    own = tuple(f"{process.MARK}={run}/".encode() for run in runs)
    pairs = procfs.environ(pid)
    return bool(pairs) and not any(pair.startswith(own) for pair in pairs or ())


def _gpu_memory_back(before: Mapping[str, int], earlier: Collection[int], runs: Collection[str]) -> list[str]:
    """Wait for the memory of these GPUs to be as before; the driver gives no event for it, so it is asked for.

    What processes hold that came later and are visibly not of these runs is not ours, nor what was there earlier.
    """
    deadline = time.monotonic() + GPU_PATIENCE
    while before:
        kept = [
            (gpu, size)
            for gpu in gpus.detect({})
            if gpu.uuid in before and (size := _memory_kept(gpu, earlier, runs) - before[gpu.uuid]) > GPU_SLACK
        ]
        if not kept:
            break
        if time.monotonic() > deadline:
            return [
                f"GPU {gpu.uuid}: {size / 1024**3:.1f} GiB not given back"
                + (f" (on it now: {', '.join(map(str, gpu.holders))})" if gpu.holders else "")
                for gpu, size in kept
            ]
        time.sleep(0.25)
    return []


def _memory_kept(gpu: Gpu, earlier: Collection[int], runs: Collection[str]) -> int:
    """Bytes in use on a GPU but for what strangers hold who came later."""
    later = [holder for holder in gpu.holders if holder.pid not in earlier]
    return gpu.total - gpu.free - sum(one.memory or 0 for one in later if _is_stranger(one.pid, runs))
