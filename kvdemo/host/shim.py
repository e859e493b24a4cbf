"""The guardian of one service: a small process that starts it, waits for its end and leaves nothing of it behind.

    python -I -S shim.py RUN_DIR SERVICE RUN_ID CWD LOG LOCK_FD|- [LEASE_FD:GRACE] -- ARGV...

It imports nothing of kvdemo, so that it stays small and keeps working when kvdemo itself is upgraded under it; what
it knows about /proc (``stat``, ``below``, ``sweep``) is shared upwards. Limits: Linux 5.4 or newer, and what it tidies
is what it can prove to be its own: its descendants (it is their subreaper) and the session of the leader.

A lease is the reading end of a pipe whose other end its owner holds: when the owner ends, however that was, the service
is stopped, after GRACE seconds by force. Such a service also sheds what the owner's own launcher (Ray: nice 15, first
to be killed for memory) put on its processes, where the kernel permits it. Without a lease nobody owns the service.
"""

# pathlib would be a tenth of the memory that the guardian needs.
# ruff: noqa: PTH105, PTH108, PTH116, PTH123, PTH208
from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SHM = "/dev/shm"
SWEEP_PATIENCE = 10.0  # seconds until processes that do not even die of SIGKILL are left to `down` to report
SWEEP_LIMIT = 60.0  # seconds after which a service that still forks is left for the next look
TRACKER_GRACE = 2.0  # seconds the resource tracker gets to unlink the shared memory of its dead peers
BATCH = 200  # processes signalled, or waited for, at a time: well below the usual limit of 1024 descriptors
EXEC_FAILED = 127


class Stat:
    """What the kernel says about one process, from /proc/PID/stat; ``starttime`` in clock ticks since boot."""

    __slots__ = ("dead", "pid", "ppid", "sid", "starttime", "stopped")

    def __init__(self, pid: int, text: bytes) -> None:
        fields = text.rpartition(b")")[2].split()  # the name before it may hold blanks and parentheses
        self.pid = pid
        self.ppid = int(fields[1])
        self.sid = int(fields[3])
        # A process whose main thread has ended shows Z while its other threads run on.
        self.dead = fields[0] in (b"Z", b"X", b"x") and int(fields[17]) <= 1
        self.stopped = fields[0] in (b"T", b"t")
        self.starttime = int(fields[19])


def stat(pid: int) -> Stat | None:
    """The process with this pid, zombies included, or None."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return Stat(pid, file.read())
    except (OSError, IndexError):
        return None


def table() -> dict[int, Stat]:
    """Every process that is visible here, by pid."""
    stats = (stat(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {entry.pid: entry for entry in stats if entry}


def descendants(processes: dict[int, Stat], roots: Iterable[int]) -> set[int]:
    """The pids of all descendants of these roots, without the roots."""
    children: dict[int, list[int]] = {}
    for entry in processes.values():
        children.setdefault(entry.ppid, []).append(entry.pid)
    pids: set[int] = set()
    todo = list(roots)
    while todo:
        fresh = [pid for pid in children.get(todo.pop(), ()) if pid not in pids]
        pids.update(fresh)
        todo.extend(fresh)
    return pids


def pidfd(pid: int, starttime: int) -> int | None:
    """A file descriptor that means exactly this process, or None if it is gone or its pid was given to another."""
    if pid <= 0:
        return None
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    now = stat(pid)  # read after the open: the descriptor cannot change its meaning any more
    if now and now.starttime == starttime and not now.dead:
        return fd
    os.close(fd)
    return None


def is_tracker(pid: int) -> bool:
    """Whether this is multiprocessing's resource tracker, which unlinks shared memory when its peers are dead."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"multiprocessing.resource_tracker" in file.read()
    except OSError:
        return False


def await_end(fds: Iterable[int], timeout: float) -> None:
    """Wait until the processes behind these pidfds have ended, at most ``timeout`` seconds."""
    poll, left = select.poll(), set(fds)
    for fd in left:
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout
    while left and (remaining := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(remaining * 1000):
            poll.unregister(fd)
            left.discard(fd)


def sweep(find: Callable[[], list[Stat]], patience: float = SWEEP_PATIENCE) -> set[int]:
    """SIGKILL what ``find`` returns until it returns nothing, resource trackers last; the pids that were signalled.

    What is new is killed before anything is waited for: a process that forks faster than one can wait for its children
    is outrun so. Gives up ``patience`` seconds after the last new process, and after SWEEP_LIMIT seconds in any case.
    """
    pids: set[int] = set()
    signalled: set[tuple[int, int]] = set()
    end = time.monotonic() + SWEEP_LIMIT
    deadline = time.monotonic() + patience
    waited = False
    while (entries := find()) and time.monotonic() < min(deadline, end):
        trackers = [entry for entry in entries if is_tracker(entry.pid)]
        victims = [entry for entry in entries if entry not in trackers] or trackers
        if victims is trackers and not waited:
            waited = True
            await_ends(victims, TRACKER_GRACE)
            continue
        fresh = [entry for entry in victims if (entry.pid, entry.starttime) not in signalled]
        if fresh:
            signalled.update((entry.pid, entry.starttime) for entry in fresh)
            for at in range(0, len(fresh), BATCH):
                pids |= send(fresh[at : at + BATCH], signal.SIGKILL)
            deadline = time.monotonic() + patience
        else:
            await_ends(victims, 1.0)
    return pids


def send(entries: list[Stat], number: int) -> set[int]:
    """Signal exactly these processes; the pids of those that were there, and ours to signal."""
    fds = {fd: entry.pid for entry in entries if (fd := pidfd(entry.pid, entry.starttime)) is not None}
    sent = set()
    for fd, pid in fds.items():
        try:
            signal.pidfd_send_signal(fd, number)
            sent.add(pid)
        except OSError:
            pass
        finally:
            os.close(fd)
    return sent


def await_ends(entries: list[Stat], timeout: float) -> None:
    """Wait until these processes have ended (of very many the first ones), at most ``timeout`` seconds."""
    fds = [fd for entry in entries[:BATCH] if (fd := pidfd(entry.pid, entry.starttime)) is not None]
    try:
        await_end(fds, timeout)
    finally:
        for fd in fds:
            os.close(fd)


POOLS = ("lmcache_kv_{pid}_",)
"""How the names in /dev/shm begin in which engines offer KV memory to a cache: those of ``backends.pools``."""


def unlink_kv(pids: Iterable[int]) -> None:
    """Unlink the KV memory in /dev/shm that is named after those of these pids that are dead."""
    dead = [pid for pid in pids if (entry := stat(pid)) is None or entry.dead]
    prefixes = tuple(pool.format(pid=pid) for pid in dead for pool in POOLS)
    try:
        names = [name for name in os.listdir(SHM) if name.startswith(prefixes)]
    except OSError:
        return
    for name in names:
        path = f"{SHM}/{name}"
        try:
            if os.lstat(path).st_uid == os.getuid():
                os.unlink(path)
        except OSError:
            pass


def identity(pid: int) -> dict[str, object]:
    """What tells this process from every other one, also after a reboot or in another pid namespace."""
    entry = stat(pid)
    return {
        "pid": pid,
        "starttime": entry.starttime if entry else 0,
        "boot_id": boot_id(),
        "pidns": os.stat("/proc/self/ns/pid").st_ino,
        "uid": os.getuid(),
    }


def oom_kills() -> tuple[bool, int]:
    """Whether the count is of our control group alone (else of the machine), and the kernel's kills for memory there.

    Cgroup v2 first, then v1, then the whole machine; -1 where the kernel tells none of them.
    """
    places = []
    try:
        with open("/proc/self/cgroup") as file:
            groups = [line.strip().split(":", 2) for line in file]
    except OSError:
        groups = []
    for number, controllers, path in groups:
        if number == "0" and path != "/":
            places.append(f"/sys/fs/cgroup{path}/memory.events")
        elif "memory" in controllers.split(",") and path != "/":
            places.append(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
    for place in (*places, "/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        try:
            with open(place) as file:
                for line in file:
                    name, _, count = line.partition(" ")
                    if name == "oom_kill":
                        return place != "/proc/vmstat", int(count)
        except (OSError, ValueError):
            pass
    return False, -1


def boot_id() -> str:
    """The random name of this boot of the kernel."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def prctl(option: int, value: int) -> None:
    """Set a property of this process; raises OSError."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")


class Guardian:
    """One service from its start to the last of its processes."""

    def __init__(self, run_dir: str, service: str, run_id: str, cwd: str, log: str, lease: str) -> None:
        self.path = f"{run_dir}/services/{service}.json"
        self.cwd, self.log = cwd, log
        self.leader = 0
        self.terminated = False
        fd, _, grace = lease.partition(":")
        self.lease, self.grace = (int(fd), float(grace)) if grace else (-1, 0.0)
        self.deadline = 0.0
        self.oom = oom_kills()
        self.record: dict[str, object] = {
            "schema": 1,
            "service": service,
            "run_id": run_id,
            "started_at": time.time(),
            "guardian": identity(os.getpid()),
            "leader": None,
            "exit": None,
        }

    def save(self) -> None:
        """Write the record so that a reader sees the old one or the new one; raises OSError."""
        temporary = f"{self.path}.{os.getpid()}.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with open(fd, "w") as file:
                json.dump(self.record, file)
                file.flush()
                os.fsync(fd)
            os.replace(temporary, self.path)
        except OSError:
            os.unlink(temporary)
            raise

    def detach(self) -> None:
        """Take over the log, adopt every descendant, and hear signals only where we wait for them."""
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY, 0o600)
        null = os.open("/dev/null", os.O_RDONLY)
        for fd, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, fd)
        for fd in (null, log):
            if fd > 2:
                os.close(fd)
        os.chdir("/")
        os.close(os.pidfd_open(os.getpid()))  # start nothing where we could not end it
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD, signal.SIGIO})
        if self.lease >= 0:
            reset_priorities()
            # The end of the lease arrives as a signal among those that are waited for anyway.
            fcntl.fcntl(self.lease, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(self.lease, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)

    def start(self, argv: list[str], lock: int | None) -> str:
        """Start the leader; it runs nothing before its identity is on disk. Why it could not, or ""."""
        go, release = os.pipe()
        failed, failure = os.pipe()
        me = os.getpid()
        self.leader = os.fork()
        if not self.leader:
            for fd in (release, failed, *([lock] if lock is not None else [])):
                os.close(fd)
            self.become(argv, me, go, failure)
        os.close(go)
        os.close(failure)
        try:
            self.record["leader"] = identity(self.leader)
            self.save()
            os.write(release, b"!")
        finally:
            os.close(release)  # without the word before it, the child leaves
        with open(failed, encoding="utf-8", errors="replace") as file:
            return file.read()

    def become(self, argv: list[str], guardian: int, go: int, failure: int) -> None:
        """In the child: turn into the service. Never returns."""
        try:
            os.setsid()
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != guardian or os.read(go, 1) != b"!":
                os._exit(EXEC_FAILED)
            os.chdir(self.cwd)
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execvp(argv[0], argv)  # noqa: S606 (a shell would stand between us and the leader)
        except BaseException as error:
            os.write(failure, str(error).encode("utf-8", "replace"))
        finally:
            os._exit(EXEC_FAILED)

    def watch(self) -> os.waitid_result:
        """Sleep until the leader ends; bury other children meanwhile, pass the first SIGTERM on. Leaves it a zombie."""
        while True:
            while status := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                if status.si_pid == self.leader:
                    return status
                self.bury(status.si_pid)
            self.mind_the_lease()
            signals = {signal.SIGCHLD, signal.SIGTERM, signal.SIGIO}
            patience = max(0.0, self.deadline - time.monotonic()) if self.deadline else 86400.0
            signal_info = signal.sigtimedwait(signals, patience)
            if signal_info and signal_info.si_signo == signal.SIGTERM:
                self.tell()

    def tell(self) -> None:
        """Ask the leader to stop, once: a second SIGTERM in the middle of its shutdown makes vLLM kill its core."""
        if not self.terminated:
            self.terminated = True
            os.kill(self.leader, signal.SIGTERM)  # safe: while we have not reaped it, the pid stays its own
            try:  # noqa: SIM105 (contextlib is not worth its memory here)
                os.killpg(self.leader, signal.SIGCONT)  # one that somebody stopped could not hear it
            except OSError:
                pass  # it has left that group

    def mind_the_lease(self) -> None:
        """Stop the service when its owner has ended; kill it when it has not stopped in time."""
        if self.deadline:
            if time.monotonic() >= self.deadline:
                os.kill(self.leader, signal.SIGKILL)
        elif self.lease >= 0 and is_closed(self.lease):
            os.write(2, b"\nkvdemo: the owner of this service has ended: stopping it\n")
            self.deadline = time.monotonic() + self.grace
            self.tell()

    def bury(self, pid: int) -> None:
        """Tidy up after a dead child, then reap it: in this order its pid cannot mean another process yet."""
        unlink_kv([pid])
        os.waitpid(pid, 0)

    def survivors(self) -> list[Stat]:
        """What still lives of the service; buries what does not. The leader's zombie holds its pid and session."""
        processes = table()
        me = os.getpid()
        for entry in processes.values():
            if entry.dead and entry.ppid == me and entry.pid != self.leader:
                self.bury(entry.pid)
        pids = descendants(processes, [me])
        return [
            e for e in processes.values() if not e.dead and (e.pid in pids or (self.leader and e.sid == self.leader))
        ]

    def clear(self) -> set[int]:
        """End all that is left of the service; the pids that had to be killed.

        A look at /proc misses what is forked during the look, and whose parent ends in it. The kernel misses nothing:
        as the subreaper we have a child for as long as a descendant lives, so we look until it says that there is none.
        """
        killed_pids = sweep(self.survivors)
        if self.leader:
            self.bury(self.leader)
            self.leader = 0
        while children() and not self.survivors_after(killed_pids):
            pass
        return killed_pids

    def survivors_after(self, killed_pids: set[int]) -> bool:
        """Sweep once more, noting what was ``killed``; whether something is left that does not even die of SIGKILL."""
        killed_pids |= sweep(self.survivors)
        return bool(self.survivors())

    def finish(self, status: os.waitid_result, error: str) -> None:
        """Sweep what the leader left, record how it ended, and stay until nothing is below us any more."""
        at = time.time()
        killed_pids = self.clear()
        unlink_kv(killed_pids)
        by_signal = status.si_code != os.CLD_EXITED
        self.record["exit"] = {
            "code": None if by_signal else status.si_status,
            "signal": status.si_status if by_signal else None,
            "at": at,
            "swept": len(killed_pids),
            "error": error,
            **self.killed_for_memory(),
        }
        try:
            with open(self.path) as file:
                if json.load(file)["run_id"] == self.record["run_id"]:
                    self.save()
        except (OSError, ValueError):
            pass  # `down` has cleared the directory: nobody wants the record any more

    def killed_for_memory(self) -> dict[str, object]:
        """How many processes the kernel has killed for want of memory since the start, and whether only ours count."""
        before, now = self.oom, oom_kills()
        same = before[0] == now[0] and before[1] >= 0
        return {"oom_kills": max(0, now[1] - before[1]) if same else 0, "oom_ours": now[0]}

    def run(self, argv: list[str], lock: int | None, report: int) -> None:
        """The whole life of the guardian; says "ok", or what failed, to ``report`` once the leader runs."""
        self.detach()
        self.save()
        error = self.start(argv, lock)
        if lock is not None:
            os.close(lock)
        if error:
            self.finish(self.watch(), error)
        say(report, error or "ok")
        os.dup2(2, report, inheritable=False)
        if not error:
            self.finish(self.watch(), error)
        while children():  # what did not even die of SIGKILL keeps us as its reaper
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            self.clear()


def children() -> bool:
    """Whether we have any child, alive or not yet buried."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def is_closed(lease: int) -> bool:
    """Whether nobody holds the other end of this pipe any more."""
    try:
        return os.read(lease, 1) == b""
    except BlockingIOError:
        return False


def reset_priorities() -> None:
    """Take back a lowered priority and a raised readiness to be killed for memory, where that is permitted."""
    try:  # noqa: SIM105 (contextlib is not worth its memory here)
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except OSError:
        pass  # the launcher tells the priority that is left
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("0")
    except OSError:
        pass


def say(fd: int, text: str) -> None:
    """Write to whoever listens, if anybody still does: a service runs on when its starter was killed."""
    try:  # noqa: SIM105 (contextlib is not worth its memory here)
        os.write(fd, text.encode("utf-8", "replace"))
    except OSError:
        pass  # the starter is gone


def main(arguments: list[str]) -> int:
    """Fork the guardian away from its starter, then wait for its word; 0 once the service runs, else 1 and why."""
    dashes = arguments.index("--")
    run_dir, service, run_id, cwd, log, lock_name, *rest = arguments[:dashes]
    argv, lease = arguments[dashes + 1 :], "".join(rest)
    # An ignored SIGCHLD, inherited from a shell, would make the kernel throw exit statuses away.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    lock = None if lock_name == "-" else int(lock_name)
    if lock is not None:
        os.set_inheritable(lock, False)
    if lease:
        os.set_inheritable(int(lease.partition(":")[0]), False)
    answer, report = os.pipe()
    if not os.fork():
        os.setsid()
        if os.fork():  # whoever kills the children of its children does not find the guardian, and it gets no terminal
            os._exit(0)
        os.close(answer)
        try:
            Guardian(run_dir, service, run_id, cwd, log, lease).run(argv, lock, report)
        except BaseException as error:
            say(report, f"the guardian failed: {error}\n")
            os._exit(1)
        os._exit(0)
    os.close(report)
    os.wait()
    with open(answer, encoding="utf-8", errors="replace") as file:
        outcome = file.read()
    if outcome == "ok":
        return 0
    sys.stderr.write(outcome or "the guardian was killed before the service ran")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
