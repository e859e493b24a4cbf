from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guarding import Box, gone, program, sigkill, until
from kvdemo.errors import ServiceError
from kvdemo.host import process, procfs, shim
from kvdemo.host.procfs import SHM
from kvdemo.host.state import Project

FAMILY = """
    worker = child(lambda: child() and signal.pause())
    away = child(session=True)
    tell([worker, away])
    signal.pause()
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A place for services that are ended with the test."""
    with Box(tmp_path) as one:
        yield one


def status(pid: int, field: str) -> str:
    """One line of what the kernel tells about a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith(f"{field}:"))


def starter(box: Box, *argv: str, log: Path | None = None, lock: str = "-", run_id: str = "run") -> list[str]:
    """The command that starts a guardian, as a launcher other than ours would run it."""
    script = [sys.executable, "-I", "-S", str(shim.__file__)]
    return [*script, str(box.dir), "svc", run_id, str(box.dir), str(log or box.log), lock, "--", *argv]


def test_the_record_is_complete_before_the_service_runs(box: Box) -> None:
    """A service that looks finds itself on disk as the leader."""
    record = box.start(f"tell([os.getpid(), json.load(open({str(box.dir)!r} + '/services/svc.json'))])")
    pid, seen = box.hear()
    assert record.leader is not None
    assert seen["leader"]["pid"] == pid == record.leader.pid
    assert seen["exit"] is None


def test_the_leader_gets_a_clean_start(box: Box) -> None:
    """Own session, given directory, default signals, empty mask, no stdin, no core, no stray descriptors."""
    record = box.start("""
        import resource
        checked = signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP
        handled = [int(s) for s in checked if signal.getsignal(s) != signal.SIG_DFL]
        mask = [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
        tell([os.getsid(0), os.getcwd(), handled, mask, os.readlink("/proc/self/fd/0"),
              resource.getrlimit(resource.RLIMIT_CORE), sorted(os.listdir("/proc/self/fd"))])
    """)
    assert record.leader is not None
    sid, cwd, handled, mask, stdin, core, fds = box.hear()
    assert (sid, cwd) == (record.leader.pid, str(box.dir))
    assert (handled, mask, stdin, core) == ([], [], "/dev/null", [0, 0])
    assert len(fds) == 4  # the fourth is the listing itself


def test_both_outputs_are_appended_to_a_private_log(box: Box) -> None:
    """A log survives a restart, and only its owner can read it."""
    box.log.write_text("before\n")
    box.log.chmod(0o600)
    box.end(box.start("print('out', flush=True); print('err', file=sys.stderr)"))
    box.end(box.start("print('again')", service="other"))
    assert box.log.read_text() == "before\nout\nerr\nagain\n"
    assert box.log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("text", "code", "number"), [("", 0, None), ("sys.exit(3)", 3, None), ("os.abort()", None, 6)])
def test_the_end_is_recorded(box: Box, text: str, code: int | None, number: int | None) -> None:
    """An exit code or a signal, and when."""
    ended = box.end(box.start(text))
    assert (ended.code, ended.signal, ended.swept, ended.error) == (code, number, 0, "")
    assert time.time() - 30 < ended.at <= time.time()


def test_a_killed_leader_leaves_nothing(box: Box) -> None:
    """Children that ignore SIGTERM, their children, and those in a session of their own are swept."""
    record = box.start(FAMILY)
    pids = box.hear()
    sigkill(record.leader)
    ended = box.end(record)
    assert (ended.code, ended.signal, ended.swept) == (None, signal.SIGKILL, 3)
    assert all(gone(pid) for pid in pids)


def test_a_leader_that_exits_early_leaves_nothing(box: Box) -> None:
    """What it started in the background goes with it, even when it daemonised and replaced its environment."""
    record = box.start("""
        def daemon():
            os.setsid()
            if os.fork():
                os._exit(0)
            tell(os.getpid())
            os.execve("/bin/sleep", ["sleep", "1000"], {})
        child(daemon)
        signal.pause()
    """)
    pid = box.hear()
    os.kill(record.leader.pid if record.leader else 0, signal.SIGTERM)
    assert box.end(record).signal == signal.SIGTERM
    assert gone(pid)


def test_the_resource_tracker_dies_last(box: Box) -> None:
    """Shared memory of killed processes is unlinked by their own tracker."""
    record = box.start("""
        import multiprocessing.shared_memory
        tell(multiprocessing.shared_memory.SharedMemory(create=True, size=4096).name)
        signal.pause()
    """)
    segment = SHM / box.hear()
    assert segment.exists()
    sigkill(record.leader)
    assert box.end(record).swept == 0
    assert not segment.exists()


def test_the_kv_segments_of_the_dead_are_unlinked(box: Box) -> None:
    """LMCache's pools of killed workers go, also of one that died earlier; another process's pool stays."""
    mine = SHM / f"lmcache_kv_{os.getpid()}_0"
    mine.touch()
    try:
        record = box.start("""
            def pool():
                open(f"/dev/shm/lmcache_kv_{os.getpid()}_0", "w").close()
            def worker():
                pool()
                signal.pause()
            def forsaken():
                def orphan():
                    pool()
                    tell(os.getpid())
                    signal.pause()
                child(orphan)
            pool()
            child(worker)
            child(forsaken)
            tell(os.getpid())
            signal.pause()
        """)
        pids = [box.hear(), box.hear()]
        assert record.leader is not None
        orphan = next(pid for pid in pids if pid != record.leader.pid)
        os.kill(orphan, signal.SIGKILL)
        until(lambda: not (SHM / f"lmcache_kv_{orphan}_0").exists())
        own = {f"lmcache_kv_{one.pid}_0" for one in process.members(record)}
        assert own & {path.name for path in SHM.iterdir()}
        sigkill(record.leader)
        box.end(record)
        assert not own & {path.name for path in SHM.iterdir()}
        shim.unlink_kv([os.getpid()])  # we live
        assert mine.exists()
    finally:
        mine.unlink()


@pytest.mark.parametrize("what", ["program", "directory", "log"])
def test_a_start_that_fails_says_why(box: Box, what: str) -> None:
    """A missing program or directory is recorded as exit 127; an impossible log too reaches the starter's stderr."""
    argv = starter(
        box, "/no/such/program" if what == "program" else "true", log=box.dir / "no" / "log" if what == "log" else None
    )
    if what == "directory":
        argv[argv.index("run") + 1] = "/no/such/directory"
    (box.dir / "services").mkdir()
    run = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert run.returncode == 1
    assert "No such file or directory" in run.stderr
    if what != "log":
        ended = box.on_disk().exit
        assert ended is not None
        assert ended.code == 127
        assert "No such file or directory" in ended.error


def test_sigterm_reaches_the_leader_once(box: Box) -> None:
    """The guardian passes the first SIGTERM on and swallows the others, as vLLM takes a second one for a kill."""
    record = box.start("""
        signals = []
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: signals.append(number))
        tell("ready")
        while signal.SIGUSR1 not in signals:
            signal.pause()
        sys.exit(signals.count(signal.SIGTERM))
    """)
    box.hear()
    for _ in range(3):
        os.kill(record.guardian.pid, signal.SIGTERM)
        until(
            lambda: (
                not int(status(record.guardian.pid, "ShdPnd"), 16) and status(record.guardian.pid, "State")[0] == "S"
            )
        )
    assert record.leader is not None
    os.kill(record.leader.pid, signal.SIGUSR1)
    assert box.end(record).code == 1


def test_hangup_and_interrupt_do_not_reach_the_guardian(box: Box) -> None:
    """Closing the terminal or pressing Ctrl-C leaves a detached service alone."""
    record = box.start("signal.pause()")
    for number in (signal.SIGHUP, signal.SIGINT):
        os.kill(record.guardian.pid, number)
    until(lambda: status(record.guardian.pid, "State")[0] == "S")
    assert process.alive(record.leader)


def test_a_killed_guardian_takes_the_leader_along(box: Box) -> None:
    """The leader is told to stop (SIGTERM) when its guardian dies."""
    record = box.start("""
        signal.signal(signal.SIGTERM, lambda number, frame: (tell("told"), os._exit(0)))
        tell("ready")
        signal.pause()
    """)
    assert box.hear() == "ready"
    sigkill(record.guardian)
    assert box.hear() == "told"


def test_a_start_keeps_the_lock_when_its_starter_is_killed(box: Box) -> None:
    """Nobody gets the project's lock before the record is complete; after that anybody does."""
    late = box.dir / "late"
    os.mkfifo(late)  # opening it as the log holds the guardian up
    (box.dir / "services").mkdir()
    lock, other = (os.open(box.dir / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    fcntl.flock(lock, fcntl.LOCK_EX)
    argv = starter(box, *program("signal.pause()"), log=late, lock=str(lock))
    with subprocess.Popen(argv, pass_fds=[lock], env=box.env) as first:
        os.close(lock)
        until(lambda: _guardians(box))
        first.kill()
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    reader = os.open(late, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    record = box.on_disk()
    box.started.append(record)
    assert process.alive(record.leader)
    os.close(reader)
    os.close(other)


def _guardians(box: Box) -> list[int]:
    """Processes with our directory in their command line that are neither session leader nor the starter."""
    mine = [e for e in shim.table().values() if e.sid != e.pid and e.ppid != os.getpid() and not e.dead]
    return [e.pid for e in mine if str(box.dir).encode() in _command(e.pid)]


def _guardian(box: Box) -> int:
    """The first of them as soon as it is there, by one look: between two looks it may execute another program."""
    seen: list[int] = []

    def look() -> bool:
        seen.extend(_guardians(box))
        return bool(seen)

    until(look)
    return seen[0]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_the_guardian_is_small_and_sleeps(box: Box) -> None:
    """At most 16 MiB resident, and not one wake-up while nothing happens."""
    record = box.start("signal.pause()")
    pid = record.guardian.pid
    until(lambda: status(pid, "State")[0] == "S")
    assert int(status(pid, "VmRSS").split()[0]) <= 16 * 1024
    before = status(pid, "voluntary_ctxt_switches")
    time.sleep(0.5)
    assert status(pid, "voluntary_ctxt_switches") == before


def test_the_end_of_an_old_run_does_not_touch_the_record_of_a_new_one(box: Box) -> None:
    """A guardian writes its exit only over its own record, and never brings back one that was cleared."""
    first = box.start("signal.pause()")
    file = box.dir / "services" / "svc.json"
    newer = json.dumps(json.loads(file.read_text()) | {"run_id": "newer"})
    file.write_text(newer)
    sigkill(first.leader)
    assert process.wait_exit([first], 10)
    assert file.read_text() == newer
    second = box.start("signal.pause()")
    file.unlink()
    sigkill(second.leader)
    assert process.wait_exit([second], 10)
    assert list(file.parent.iterdir()) == []


HOPPER = """
def hop(tokens):
    while os.read(tokens, 1):  # at its end every token is spent
        if os.fork():
            os._exit(0)
        os.setsid()
    signal.pause()
tokens, mint = os.pipe()
os.write(mint, b"x" * 4000)
os.close(mint)
if not os.fork():
    hop(tokens)
"""

BOMB = """
tokens, mint = os.pipe()
os.write(mint, b"x" * 600)
os.close(mint)
if not os.fork():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while os.read(tokens, 1):  # every process forks on; together they spend the tokens
        if not os.fork():
            os.setsid()
    signal.pause()
"""


@pytest.mark.parametrize("text", [HOPPER, BOMB], ids=["hopping", "bomb"])
def test_what_forks_while_it_is_swept_is_swept_too(box: Box, text: str) -> None:
    """A process that forks and leaves, or forks faster than one looks, in sessions of its own, is not missed."""
    for _ in range(5):
        record = box.start(text)
        mark = f"{process.MARK}={record.run_id}/".encode()
        box.end(record)
        left = [pid for pid in shim.table() if any(pair.startswith(mark) for pair in procfs.environ(pid) or ())]
        assert [pid for pid in left if not gone(pid)] == []


def test_a_stopped_guardian_and_leader_end_in_good_order(box: Box) -> None:
    """SIGTERM to a service that somebody stopped lets it go on, so that it hears it: the leader's own exit code."""
    record = box.start("""
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(7))
        tell("ready")
        while True:
            signal.pause()
    """)
    box.hear()
    assert record.leader is not None
    for pid in (record.leader.pid, record.guardian.pid):
        os.kill(pid, signal.SIGSTOP)
    until(lambda: procfs.stopped(record.guardian) and procfs.stopped(record.leader))
    assert process.terminate(record)
    assert box.end(record).code == 7


def test_kill_gets_past_a_stopped_guardian(box: Box) -> None:
    """A guardian that somebody stopped is ended with its service."""
    record = box.start("child(); tell(0); signal.pause()")
    box.hear()
    os.kill(record.guardian.pid, signal.SIGSTOP)
    assert process.kill(record) == 2
    assert not process.alive(record.guardian)


def test_a_guardian_stopped_in_its_start_does_not_hold_up_the_starter(box: Box) -> None:
    """It is named and ended, and so is whatever it had started."""
    late = box.dir / "late"
    os.mkfifo(late)  # opening it as the log holds the guardian up
    halted = []

    def halt() -> None:
        halted.append(_guardian(box))
        os.kill(halted[0], signal.SIGSTOP)

    thread = threading.Thread(target=halt)
    thread.start()
    with pytest.raises(ServiceError, match=r"its guardian \(pid \d+\) was stopped"):
        process.spawn(box.dir, "svc", "run-1", program("signal.pause()"), box.env, box.dir, late, None)
    thread.join()
    until(lambda: gone(halted[0]))


def test_a_guardian_stopped_in_its_start_does_not_keep_the_lock(box: Box) -> None:
    """Its starter is gone: the next command names it, ends it, and has the project."""
    project = Project(box.dir, "demo")
    late = box.dir / "late"
    os.mkfifo(late)
    (project.dir / "services").mkdir(parents=True)
    lock = os.open(project.dir / "project.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    argv = starter(box, *program("signal.pause()"), log=late, lock=str(lock))
    argv[argv.index(str(box.dir))] = str(project.dir)
    with subprocess.Popen(argv, pass_fds=[lock], env=box.env, stderr=subprocess.DEVNULL) as first:
        os.close(lock)
        guardian = _guardian(box)
        os.kill(guardian, signal.SIGSTOP)
        first.kill()
    said: list[str] = []
    with project.lock("down", timeout=5, waiting=lambda *words: said.append(words[0])):
        assert gone(guardian)
    assert "guardian" in said[0]
    assert f"pid {guardian}) was stopped" in said[1]


def test_an_ignored_sigchld_does_not_lose_the_exit_code(box: Box) -> None:
    """Shells and supervisors may hand down an ignored SIGCHLD."""
    (box.dir / "services").mkdir()
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    subprocess.run([sys.executable, "-c", ignoring, *starter(box, *program("sys.exit(5)"))], check=True, env=box.env)
    assert box.end(box.on_disk()).code == 5


def test_a_killed_start_never_runs_the_service_unrecorded(box: Box) -> None:
    """Wherever a SIGKILL hits the guardian on its way, what runs is on disk as its leader, or nothing runs."""
    (box.dir / "services").mkdir()
    for delay in range(12):
        marker = box.dir / f"ran-{delay}"
        argv = starter(
            box, "sh", "-c", f"echo $$ > {marker}.tmp; mv {marker}.tmp {marker}; exec sleep 1000", run_id=f"run-{delay}"
        )
        with subprocess.Popen(argv, env=box.env, stderr=subprocess.DEVNULL) as first:
            time.sleep(0.012 + delay * 0.002)
            for pid in _guardians(box):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        file = box.dir / "services" / "svc.json"
        if marker.exists():
            assert str(json.loads(file.read_text())["leader"]["pid"]) == marker.read_text().strip()
        if file.exists():
            process.kill(box.on_disk())
            assert process.members(box.on_disk()) == []
        assert first.returncode is not None


def test_spawn_raises_with_the_reason(box: Box) -> None:
    """The error of the starter is the error of the call."""
    with pytest.raises(ServiceError, match=r"svc: cannot start /no/such/program: .*No such file"):
        box.start(["/no/such/program"])


def leased(box: Box, text: str, grace: float) -> tuple[process.Record, int]:
    """A program as a service that ends with its owner; the owner's end of the lease."""
    lease, held = os.pipe()
    argv = program(text)
    try:
        record = process.spawn(box.dir, "svc", "run-1", argv, box.env, box.dir, box.log, None, lease=(lease, grace))
    finally:
        os.close(lease)
    box.started.append(record)
    return record, held


def test_a_service_ends_with_its_owner(box: Box) -> None:
    """The lease says so however the owner ended: SIGTERM to the leader, what it leaves is swept, the log says why."""
    record, held = leased(box, "child(session=True)\ntell(1)\nsignal.pause()", 20)
    assert box.hear() == 1
    os.close(held)
    ended = box.end(record)
    assert (ended.signal, ended.swept) == (signal.SIGTERM, 1)
    assert "owner of this service has ended" in box.log.read_text()


def test_a_deaf_service_is_killed_when_its_owner_has_ended(box: Box) -> None:
    """After the seconds of grace, for there is nobody left who could do it."""
    record, held = leased(box, "signal.signal(15, signal.SIG_IGN)\ntell(1)\nwhile True: signal.pause()", 0.3)
    assert box.hear() == 1
    began = time.monotonic()
    os.close(held)
    assert box.end(record).signal == signal.SIGKILL
    assert 0.25 < time.monotonic() - began < 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a priority")
def test_a_leased_service_sheds_its_owners_priority(box: Box) -> None:
    """Ray runs its workers at nice 15, first to be killed for memory; an engine must not be measured so."""
    said = "tell([os.nice(0), open('/proc/self/oom_score_adj').read()])\nsignal.pause()"
    adjustment = Path("/proc/self/oom_score_adj")
    before = os.getpriority(os.PRIO_PROCESS, 0), adjustment.read_text()
    os.setpriority(os.PRIO_PROCESS, 0, 7)
    adjustment.write_text("300")
    try:
        _, held = leased(box, said, 5)
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before[0])
        adjustment.write_text(before[1])
    assert box.hear() == [0, "0\n"]
    os.close(held)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            {"/proc/self/cgroup": "0::/user/x\n", "/sys/fs/cgroup/user/x/memory.events": "oom 9\noom_kill 3\n"},
            (True, 3),
        ),
        (
            {
                "/proc/self/cgroup": "4:memory:/a\n0::/\n",
                "/sys/fs/cgroup/memory/a/memory.oom_control": "under_oom 0\noom_kill 2\n",
            },
            (True, 2),
        ),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.events": "oom_kill 1\n"}, (True, 1)),
        ({"/proc/self/cgroup": "0::/x\n", "/proc/vmstat": "nr_free 5\noom_kill 7\n"}, (False, 7)),
        ({"/proc/self/cgroup": "0::/x\n", "/proc/vmstat": "oom_kill seven\n"}, (False, -1)),
        ({}, (False, -1)),
    ],
)
def test_where_the_kernel_counts_its_kills(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], told: tuple[bool, int]
) -> None:
    """The control group's own count, of either version, before the machine's; -1 where there is none to read."""

    def fake_open(path: str) -> io.StringIO:
        if path not in files:
            raise FileNotFoundError(path)
        return io.StringIO(files[path])

    monkeypatch.setattr(shim, "open", fake_open, raising=False)
    assert shim.oom_kills() == told
