"""Start a service under its guardian, find everything that belongs to it, end it, and prove that it is gone.

A process belongs to a service if it descends from the guardian, is in the leader's session, or carries the service's
mark in its environment; a descendant of such a process does too. Signals go through pidfds to verified identities, so
a pid that was given away, another boot or a namesake is never touched. Limits: a process that left the session *and*
replaced its environment *and* lost its parents after the guardian was killed cannot be told from a stranger.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kvdemo.errors import ServiceError
from kvdemo.host import marks, procfs, shim
from kvdemo.host.procfs import Exit, Identity, Record, alive, identify, listeners, port_free, remove_segments, segments

__all__ = [
    "Exit",
    "Identity",
    "Record",
    "alive",
    "identify",
    "kill",
    "listeners",
    "members",
    "memory",
    "port_free",
    "remove_segments",
    "resident",
    "segments",
    "spawn",
    "terminate",
    "wait_exit",
]

MARK = marks.RUN
START_PATIENCE = 60.0  # seconds for the guardian to say that the service runs: two small writes and an exec
ABANDON_PATIENCE = 5.0  # seconds that an interrupted start gets to come to its end
MUCH = 256 << 20  # bytes of shared memory below which nobody asks how often they are mapped: that takes milliseconds
GUARDIAN_PATIENCE = 3.0  # seconds for a guardian whose service is dead to record that and leave


def spawn(  # noqa: PLR0913 (each says another thing about the process)
    run_dir: Path,
    service: str,
    run_id: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    lock_fd: int | None,
    *,
    lease: tuple[int, float] | None = None,
) -> Record:
    """Start ``argv`` under a guardian; returns once the record with the leader's identity is on disk.

    ``env`` is the whole environment of the service; ``lock_fd`` stays locked by the guardian until the record is
    complete, however this process ends. ``lease`` is the reading end of a pipe and seconds: when nobody holds the
    other end any more, the service is stopped, after these seconds by force. Raises ServiceError if the program
    cannot be executed.
    """
    run_dir = run_dir.absolute()
    file = run_dir / "services" / f"{service}.json"
    _refuse_twice(file, service)
    lock = "-" if lock_fd is None else str(lock_fd)
    places = [str(run_dir), service, run_id, str(cwd.absolute()), str(log.absolute()), lock]
    places += [f"{lease[0]}:{lease[1]:g}"] if lease else []
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        starter = subprocess.Popen(
            [sys.executable, "-I", "-S", shim.__file__, *places, "--", *argv],
            # Without SPT_NOENV, setproctitle overwrites the environment that /proc shows, and with it our mark.
            env={**env, **marks.variables(run_dir, run_id, service), "SPT_NOENV": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[fd for fd in (lock_fd, lease[0] if lease else None) if fd is not None],
            start_new_session=True,  # Ctrl-C is for us: we stop what was started, from its record
        )
    except OSError as error:
        raise ServiceError(f"{service}: cannot start its guardian: {error}") from error
    answer = _answer(starter, marks.Mark(str(run_dir), run_id, service, guardian=True))
    if starter.returncode:
        raise ServiceError(f"{service}: cannot start {argv[0]}: {answer}")
    try:
        return Record.from_json(file.read_text())
    except (OSError, ValueError) as error:
        raise ServiceError(f"{service}: its record is gone: {error}") from error


def _refuse_twice(file: Path, service: str) -> None:
    """A record that is written over is a service that nobody finds again."""
    try:
        old = Record.from_json(file.read_text())
    except (OSError, ValueError):
        return
    if not wait_exit([old], 0):
        raise ServiceError(f"{service}: still runs (guardian pid {old.guardian.pid})", "run `kvdemo down` first")


def _answer(starter: subprocess.Popen[bytes], mark: marks.Mark) -> str:
    """What the guardian says once the service runs or cannot run; one that was stopped, or says nothing, is ended."""
    deadline = time.monotonic() + START_PATIENCE
    with starter:
        try:
            while True:
                try:
                    return starter.communicate(timeout=1)[1].decode(errors="replace").strip()
                except subprocess.TimeoutExpired:
                    _check_guardian(mark, deadline)
        except BaseException as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if not isinstance(error, ServiceError):
                    starter.wait(ABANDON_PATIENCE)  # the record is complete soon, and whoever cleans up finds it
            if starter.poll() is None:
                starter.kill()
                _abandon(mark)
            raise


def _check_guardian(mark: marks.Mark, deadline: float) -> None:
    """Raises ServiceError when it is too late, or when the guardian cannot go on because somebody stopped it."""
    for record in _started_records(mark):
        if procfs.stopped(record.guardian):
            raise ServiceError(
                f"{mark.service}: its guardian (pid {record.guardian.pid}) was stopped (SIGSTOP) and has been ended",
                "start it again",
            )
    if time.monotonic() > deadline:
        raise ServiceError(f"{mark.service}: its guardian did not answer in {START_PATIENCE:.0f} s")


def _started_records(mark: marks.Mark) -> list[Record]:
    records = marks.in_directory(Path(mark.run_dir), ())
    return [record for record in records if (record.run_id, record.service) == (mark.run_id, mark.service)]


def _abandon(mark: marks.Mark) -> None:
    """End a start that does not come to its end, the guardian first: it would go on."""
    for record in _started_records(mark):
        _signal(record.guardian, signal.SIGKILL)
        kill(record)


def members(record: Record) -> list[Identity]:
    """Every live process of the service except its guardian (and except the caller), oldest first."""
    anchor = record.leader or record.guardian
    if not procfs.is_here(anchor):
        return []
    processes = shim.table()
    pids = _marked_pids(record, processes, anchor) | _session(record, processes)
    if alive(record.guardian):
        pids |= shim.descendants(processes, [record.guardian.pid])
    pids |= shim.descendants(processes, pids)
    pids -= {os.getpid(), record.guardian.pid} if alive(record.guardian) else {os.getpid()}
    live = (processes[pid] for pid in pids if not processes[pid].dead and processes[pid].starttime >= anchor.starttime)
    marks = (
        Identity(e.pid, e.starttime, anchor.boot_id, anchor.pidns, anchor.uid)
        for e in live
        if procfs.uid_of(e.pid) == anchor.uid
    )
    return sorted(marks, key=lambda identity: (identity.starttime, identity.pid))


def _marked_pids(record: Record, processes: Mapping[int, shim.Stat], anchor: Identity) -> set[int]:
    mark = f"{MARK}={record.run_id}/{record.service}".encode()
    young = [pid for pid, entry in processes.items() if entry.starttime >= anchor.starttime and not entry.dead]
    return {pid for pid in young if mark in (procfs.environ(pid) or ())}


def _session(record: Record, processes: Mapping[int, shim.Stat]) -> set[int]:
    """The leader's session. Its number can only be trusted while it cannot have been given to another session."""
    if record.leader is None:
        return set()
    holder = processes.get(record.leader.pid)
    session = {pid for pid, entry in processes.items() if entry.sid == record.leader.pid}
    if holder is None:
        # The number may have been used again since, by a session whose own leader is gone too. Those who
        # overwrote their environment (process titles) are ours; those who have one without our mark are not.
        return {pid for pid in session if procfs.environ(pid) == []}
    return session if holder.starttime == record.leader.starttime else set()


def _signal(identity: Identity | None, number: signal.Signals) -> bool:
    """Signal exactly this process; False if it is gone."""
    if identity is None or not procfs.is_here(identity):
        return False
    fd = shim.pidfd(identity.pid, identity.starttime)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def terminate(record: Record) -> bool:
    """SIGTERM to the leader, once while the guardian lives (it passes on the first only). False if both are gone."""
    for one in (record.guardian, record.leader):
        if _signal(one, signal.SIGTERM):
            _signal(one, signal.SIGCONT)  # one that somebody stopped could not hear it
            return True
    return False


def kill(record: Record) -> int:
    """SIGKILL the service and then its guardian; how many processes of the service had to be killed.

    What survives (a process that hangs in the kernel) is in ``members`` afterwards. Takes at most some 25 seconds.
    """

    def find() -> list[shim.Stat]:
        pids = [(identity, shim.stat(identity.pid)) for identity in members(record)]
        return [entry for identity, entry in pids if entry and entry.starttime == identity.starttime]

    killed = shim.sweep(find)
    _signal(record.guardian, signal.SIGCONT)
    # The guardian sees its leader die, records how, and leaves by itself: let it.
    if not wait_exit([record], GUARDIAN_PATIENCE):
        _signal(record.guardian, signal.SIGKILL)
        wait_exit([record], 1.0)
        killed |= shim.sweep(find)
    shim.unlink_kv(killed)
    return len(killed)


def _watch(record: Record) -> list[int]:
    """Pidfds whose end is news about this service: its guardian, which outlives the rest, or what outlived it."""
    while processes := [record.guardian] if alive(record.guardian) else members(record):
        fds = [fd for one in processes if (fd := shim.pidfd(one.pid, one.starttime)) is not None]
        if fds:
            return fds
    return []


def wait_exit(records: Iterable[Record], timeout: float, *, first: bool = False) -> set[str]:
    """The services that have ended (guardian gone, no member left) when all have, or after ``timeout`` seconds.

    With ``first`` it returns as soon as one has ended.
    """
    deadline = time.monotonic() + timeout
    poll = select.poll()
    owners: dict[int, Record] = {}
    services: set[str] = set()
    todo = list(records)
    try:
        while True:
            for record in todo:
                fds = _watch(record)
                owners.update(dict.fromkeys(fds, record))
                for fd in fds:
                    poll.register(fd, select.POLLIN)
                if not fds:
                    services.add(record.service)
            remaining = deadline - time.monotonic()
            if not owners or remaining <= 0 or (first and services):
                return services
            todo = []
            for fd, _ in poll.poll(remaining * 1000):
                poll.unregister(fd)
                record = owners.pop(fd)  # first: who is interrupted in between must not close it again
                os.close(fd)
                if record not in owners.values():  # all we knew of it ended: look again
                    todo.append(record)
    finally:
        for fd in owners:
            os.close(fd)


def resident(record: Record) -> int:
    """Bytes that the service's processes hold; of much shared memory no object counts for more than its size.

    Quick to tell, also of engines that are being timed: for PSS, which is exact, the kernel took 30 to 60 ms for an
    engine on the processor, and 30 ms more for each GiB of shared memory mapped. vLLM's own tiers map their L1 twice.
    """
    pids = [identity.pid for identity in members(record)]
    parts = [procfs.resident_of(pid) for pid in pids]
    shared = sum(part.shared for part in parts)
    if shared > MUCH:
        sizes: dict[tuple[str, str], int] = {}
        for pid in pids:
            sizes |= {key: max(size, sizes.get(key, 0)) for key, size in procfs.shared_sizes(pid).items()}
        shared = min(shared, sum(sizes.values()))
    return sum(part.own for part in parts) + shared


def memory(record: Record) -> int:
    """Bytes of memory of the service (sum of PSS, so that shared pages count once; RSS where that is not readable)."""
    return sum(procfs.memory_of(identity.pid) for identity in members(record))
