from __future__ import annotations

import dataclasses
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guarding import Box, gone, sigkill, until
from kvdemo.errors import PreflightError, ServiceError
from kvdemo.host import process, procfs, shim
from kvdemo.host.process import Identity, Record

SHM = procfs.SHM
FAMILY = """
    child()
    child(session=True)
    tell("ready")
    signal.pause()
"""
# What setproctitle does: write over the memory that /proc/PID/environ shows.
BLANK = """
    def blank():
        fields = open("/proc/self/stat").read().rpartition(")")[2].split()
        start, end = int(fields[47]), int(fields[48])
        ctypes.memset(start, 0, end - start)
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A place for services that are ended with the test."""
    with Box(tmp_path) as one:
        yield one


def pids(record: Record) -> set[int]:
    """The members by number."""
    return {identity.pid for identity in process.members(record)}


def pretend(pid: int, **changes: object) -> Record:
    """A record whose leader is this process, changed in some fields, with a guardian that is gone."""
    leader = process.identify(pid)
    assert leader is not None
    wrong = dataclasses.replace(leader, **changes)  # type: ignore[arg-type]
    return Record("svc", "run", 0.0, dataclasses.replace(wrong, pid=2**22 + 1), wrong, None)


def test_a_record_is_what_is_on_disk(box: Box) -> None:
    """Spawn returns the record as written; writing and reading it changes nothing."""
    record = box.start("signal.pause()")
    assert record == box.on_disk() == Record.from_json(record.to_json())
    assert process.alive(record.guardian)
    assert process.alive(record.leader)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"service": 1}', "\0", '{"service":"a","run_id":"b","started_at":null}']
)
def test_what_is_no_record_is_refused(text: str) -> None:
    """A damaged record file is a ValueError, never another exception."""
    with pytest.raises(ValueError, match=r"record|Expecting"):
        Record.from_json(text)


def test_the_environment_is_the_given_one_and_secrets_stay_in_it(box: Box) -> None:
    """The service sees what it was given and its mark; neither record nor command lines hold a value."""
    record = box.start("tell(dict(os.environ)); signal.pause()", TOKEN="hf_secret")  # noqa: S106 (its being one is the test)
    seen = box.hear()
    given = {**box.env, "TOKEN": "hf_secret", "SPT_NOENV": "1"}
    given |= {"KVDEMO_RUN": f"{record.run_id}/svc", "KVDEMO_RUN_DIR": str(box.dir)}
    assert {name: seen[name] for name in given} == given
    assert set(seen) - set(given) <= {"LC_CTYPE"}  # Python's own doing
    assert "hf_secret" not in (box.dir / "services" / "svc.json").read_text()
    for pid in (record.guardian.pid, *pids(record)):
        assert b"hf_secret" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_running_service_is_not_started_twice(box: Box) -> None:
    """Overwriting the record of what still runs would lose it."""
    record = box.start("signal.pause()")
    with pytest.raises(ServiceError, match="still runs"):
        box.start("signal.pause()")
    assert box.on_disk() == record
    process.kill(record)
    assert process.alive(box.start("signal.pause()").leader)


def test_a_service_outlives_a_killed_starter(box: Box) -> None:
    """SIGKILL of the command that started it changes nothing: its record finds it."""
    code = f"""
        sys.path[:0] = {[str(Path(process.__file__).parents[2]), *sys.path]!r}
        from pathlib import Path
        from kvdemo.host import process
        place = Path({str(box.dir)!r})
        process.spawn(place, "svc", "run", ["sleep", "1000"], os.environ, place, place / "svc.log", None)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert box.stranger(code).wait(20) == -signal.SIGKILL
    record = box.on_disk()
    assert process.alive(record.guardian)
    assert record.leader is not None
    assert pids(record) == {record.leader.pid}
    assert process.kill(record) == 1


@pytest.mark.parametrize("victims", [[], ["leader"], ["guardian"], ["guardian", "leader"], ["leader", "guardian"]])
def test_kill_finds_everything_whoever_was_killed_before(box: Box, victims: list[str]) -> None:
    """Children and a child in a session of its own are found and ended after any SIGKILL."""
    record = box.start(FAMILY)
    box.hear()
    family = pids(record)
    assert len(family) == 3
    for victim in victims:
        os.kill(getattr(record, victim).pid, signal.SIGKILL)
    process.kill(record)
    assert process.members(record) == []
    assert process.wait_exit([record], 5) == {"svc"}
    assert all(gone(pid) for pid in (record.guardian.pid, *family))
    assert process.kill(record) == 0


def test_kill_counts_and_lets_the_guardian_record(box: Box) -> None:
    """The number is that of the service's processes, but for those that its guardian ends once it sees the leader dead.

    The record tells that it was killed.
    """
    record = box.start(FAMILY)
    box.hear()
    assert 1 <= process.kill(record) <= 3
    assert process.members(record) == []
    ended = box.on_disk().exit
    assert ended is not None
    assert (ended.code, ended.signal) == (None, signal.SIGKILL)


def test_orphans_with_an_overwritten_environment_are_found(box: Box) -> None:
    """VLLM's processes blank what /proc shows of their environment; the session still gives them away."""
    record = box.start(BLANK + "    child(lambda: (blank(), tell(os.getpid()), signal.pause()))\n    signal.pause()")
    worker = box.hear()
    assert procfs.environ(worker) == []
    sigkill(record.guardian)
    assert record.leader is not None
    until(lambda: gone(record.leader.pid))  # type: ignore[union-attr]
    assert pids(record) == {worker}
    assert process.kill(record) == 1
    assert gone(worker)


def test_descendants_are_found_without_session_and_environment(box: Box) -> None:
    """A child in its own session with an empty environment is found through its living parent, without a guardian."""
    record = box.start("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        tell(child(lambda: os.execve("/bin/sleep", ["sleep", "1000"], {}), session=True))
        signal.pause()
    """)
    away = box.hear()
    until(lambda: procfs.environ(away) == [])
    sigkill(record.guardian)
    assert record.leader is not None
    assert pids(record) == {record.leader.pid, away}
    process.kill(record)
    assert gone(away)


def test_kill_is_faster_than_a_process_that_keeps_forking(box: Box) -> None:
    """What is born while the others are killed is found too, by this process or by the guardian."""
    record = box.start("""
        def breed():
            for _ in range(40):
                child(lambda: time.sleep(60))
                time.sleep(0.001)
            signal.pause()
        child(breed)
        tell("ready")
        signal.pause()
    """)
    box.hear()
    assert process.kill(record)
    assert process.members(record) == []


def test_a_namesake_is_never_touched(box: Box) -> None:
    """The same program with the same arguments, started by somebody else, lives on."""
    stranger = box.stranger(FAMILY)
    record = box.start(FAMILY)
    assert [box.hear(), box.hear()] == ["ready", "ready"]
    theirs = {stranger.pid, *shim.descendants(shim.table(), [stranger.pid])}
    assert len(theirs) == 3
    sigkill(record.guardian)
    process.kill(record)
    assert not any(gone(pid) for pid in theirs)


@pytest.mark.parametrize("change", [{"starttime": 1}, {"boot_id": "another"}, {"pidns": 1}])
def test_a_pid_that_means_another_process_is_never_touched(box: Box, change: dict[str, object]) -> None:
    """A reused pid, a record of another boot or of another pid namespace: nothing to find, signal or kill."""
    stranger = box.stranger("tell(child()); signal.pause()")
    theirs = [stranger.pid, box.hear()]
    record = pretend(stranger.pid, **change)
    assert process.members(record) == []
    assert not process.alive(record.leader)
    process.terminate(record)
    assert process.kill(record) == 0
    assert process.wait_exit([record], 0) == {"svc"}
    assert not any(gone(pid) for pid in theirs)


def test_the_guardians_reused_pid_is_never_touched(box: Box) -> None:
    """A stranger under the old pid of a guardian gets no signal, and its children are not ours."""
    stranger = box.stranger("tell(child()); signal.pause()")
    theirs = [stranger.pid, box.hear()]
    used = process.identify(stranger.pid)
    assert used is not None
    older = dataclasses.replace(used, starttime=used.starttime - 1)
    record = Record("svc", "run", 0.0, older, dataclasses.replace(older, pid=2**22 + 1), None)
    process.terminate(record)
    assert process.kill(record) == 0
    assert not any(gone(pid) for pid in theirs)


def test_a_session_number_used_again_is_never_touched(box: Box) -> None:
    """When the leader's pid came back as a session whose own leader is gone too, its members are strangers."""
    stranger = box.stranger("tell(child()); signal.pause()")
    orphan = box.hear()
    record = pretend(stranger.pid)
    try:
        stranger.kill()
        stranger.wait()
        assert shim.stat(orphan).sid == stranger.pid  # type: ignore[union-attr]
        assert process.kill(record) == 0
        assert not gone(orphan)
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_orphans_of_a_reaped_leader_are_found(box: Box) -> None:
    """When nothing is left of leader and guardian, an overwritten environment in that session is still ours."""
    leader = box.stranger(BLANK + "    child(lambda: (blank(), tell(os.getpid()), signal.pause()))\n    signal.pause()")
    orphan = box.hear()
    record = pretend(leader.pid)
    leader.kill()
    leader.wait()
    assert pids(record) == {orphan}
    assert process.kill(record) == 1
    assert gone(orphan)


def test_a_zombie_is_dead() -> None:
    """A process that nobody has reaped yet has a pid and an identity, but does not live."""
    if not (pid := os.fork()):
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    identity = process.identify(pid)
    assert identity is not None
    assert not process.alive(identity)
    assert shim.pidfd(pid, identity.starttime) is None
    os.waitpid(pid, 0)
    assert process.identify(pid) is None


def test_a_process_whose_main_thread_ended_is_alive(box: Box) -> None:
    """It shows as a zombie while its other threads run: found and killed like any other."""
    record = box.start("""
        import threading
        threading.Thread(target=lambda: (time.sleep(0.01), tell("ready"), time.sleep(1000))).start()
        ctypes.CDLL(None).pthread_exit(None)
    """)
    box.hear()
    assert record.leader is not None
    until(lambda: b") Z" in Path(f"/proc/{record.leader.pid}/stat").read_bytes())  # type: ignore[union-attr]
    assert process.alive(record.leader)
    assert process.kill(record) == 1
    assert not process.alive(record.leader)


def test_nobody_is_not_alive() -> None:
    """No identity, no life."""
    assert not process.alive(None)
    assert process.identify(2**22 + 1) is None


def test_terminate_asks_the_leader_once(box: Box) -> None:
    """A second `down` does not disturb the shutdown that the first one began; children get no signal."""
    record = box.start("""
        def act():
            signal.signal(signal.SIGTERM, lambda number, frame: tell("a child was told"))
            while True:
                signal.pause()
        child(act)
        asked = []
        signal.signal(signal.SIGTERM, lambda number, frame: (asked.append(1), tell(len(asked))))
        tell(0)
        while True:
            signal.pause()
    """)
    assert box.hear() == 0
    process.terminate(record)
    assert box.hear() == 1
    process.terminate(record)
    until(lambda: b"S" in Path(f"/proc/{record.guardian.pid}/stat").read_bytes().rpartition(b")")[2].split()[0])
    with pytest.raises(AssertionError, match="heard nothing"):
        box.hear(timeout=0.2)


def test_terminate_works_without_a_guardian(box: Box) -> None:
    """A leader that missed its guardian's death is asked directly."""
    record = box.start("""
        ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
        tell("ready")
        signal.pause()
    """)
    box.hear()
    sigkill(record.guardian)
    assert process.alive(record.leader)
    process.terminate(record)
    assert process.wait_exit([record], 10) == {"svc"}


def test_wait_exit_tells_who_has_ended(box: Box) -> None:
    """All at the end, those so far after the timeout, or the first one at once."""
    short = box.start("sys.stdin.read(); tell('ready'); signal.pause()", service="short")
    long = box.start("signal.pause()", service="long")
    box.hear()
    assert process.wait_exit([short, long], 0) == set()
    process.terminate(short)
    assert process.wait_exit([short, long], 20, first=True) == {"short"}
    began = time.monotonic()
    assert process.wait_exit([short, long], 0.2) == {"short"}
    assert 0.2 <= time.monotonic() - began < 5
    process.terminate(long)
    assert process.wait_exit([short, long], 20) == {"short", "long"}
    assert process.wait_exit([], 1) == set()


def test_wait_exit_waits_for_orphans(box: Box) -> None:
    """A service whose guardian and leader are gone has not ended while a child of it lives."""
    record = box.start(FAMILY)
    box.hear()
    sigkill(record.guardian)
    assert process.wait_exit([record], 0.1) == set()
    for identity in process.members(record):
        os.kill(identity.pid, signal.SIGKILL)
    assert process.wait_exit([record], 10) == {"svc"}


def test_memory_counts_shared_pages_once(box: Box) -> None:
    """64 MiB shared by three processes are 64 MiB."""
    record = box.start("""
        import mmap
        shared = mmap.mmap(-1, 64 << 20)
        shared.write(b"x" * len(shared))
        child(lambda: tell(sum(shared[::4096])) or signal.pause())
        child(lambda: tell(sum(shared[::4096])) or signal.pause())
        signal.pause()
    """)
    box.hear()
    box.hear()
    assert 64 << 20 <= process.memory(record) < 128 << 20
    process.kill(record)
    assert process.memory(record) == 0


def test_shared_memory_that_is_mapped_twice_is_held_once(box: Box) -> None:
    """As vLLM's own tiers map their L1, by one process and by two; what is little is not looked at so closely."""
    record = box.start("""
        import mmap, tempfile
        file = tempfile.TemporaryFile(dir="/dev/shm")
        file.truncate(160 << 20)
        first, second = (mmap.mmap(file.fileno(), 160 << 20) for _ in range(2))
        first.write(b"x" * len(first))
        tell(sum(second[::4096]))
        child(lambda: tell(sum(first[::4096])) or signal.pause())
        signal.pause()
    """)
    box.hear()
    box.hear()
    assert 160 << 20 <= process.resident(record) < 240 << 20
    process.kill(record)
    assert process.resident(record) == 0


def test_a_listening_port_is_taken_and_its_owner_known() -> None:
    """Both a plain server and one that listens on all addresses."""
    for host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104 (that is the test)
        with socket.create_server((host, 0)) as server:
            port = server.getsockname()[1]
            assert not process.port_free("127.0.0.1", port)
            assert process.listeners(port) == [os.getpid()]
        assert process.port_free("127.0.0.1", port)
        assert process.listeners(port) == []


def test_a_port_that_is_bound_but_not_listened_on_is_taken() -> None:
    """So vLLM holds its port while it loads the model; no list of sockets shows it."""
    with socket.socket() as early:
        early.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        early.bind(("127.0.0.1", 0))
        port = early.getsockname()[1]
        assert process.listeners(port) == []
        assert not process.port_free("127.0.0.1", port)
    assert process.port_free("127.0.0.1", port)


def test_a_port_with_only_old_connections_is_free() -> None:
    """TIME_WAIT of the server that just left does not keep the next one from starting."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
    accepted.close()  # the server closes first, so TIME_WAIT is on its side
    assert client.recv(1) == b""
    client.close()
    with socket.socket() as plain, pytest.raises(OSError, match="in use"):
        plain.bind(("127.0.0.1", port))
    assert process.port_free("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    """No port of it will ever be free here."""
    with pytest.raises(PreflightError, match=r"cannot bind 192\.0\.2\.1:8000"):
        process.port_free("192.0.2.1", 8000)


def test_segments_go_when_nobody_maps_them(box: Box) -> None:
    """Mapped and named segments of a service are found; they are removed once their last user is dead, not before."""
    name = f"kvdemo_test_{os.getpid()}"
    record = box.start(f"""
        import mmap
        def pool(name):
            fd = os.open("{SHM}/" + name, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(fd, 4096)
            return mmap.mmap(fd, 4096)
        kept = pool("{name}")
        open(f"{SHM}/lmcache_kv_{{os.getpid()}}_0", "w").close()
        tell("ready")
        signal.pause()
    """)
    box.hear()
    assert record.leader is not None
    pool = f"lmcache_kv_{record.leader.pid}_0"
    found = process.segments([record.leader.pid])
    assert found == {name, pool}
    with (SHM / name).open("r+b") as file, mmap.mmap(file.fileno(), 0):
        process.kill(record)
        assert process.remove_segments(found) == [name]
    assert process.remove_segments(found) == []
    assert not {name, pool} & {path.name for path in SHM.iterdir()}


def test_segments_of_strangers_are_not_ours() -> None:
    """A name that merely contains the pid, or a pool of a pid that begins with it, belongs to somebody else."""
    pid = os.getpid()
    theirs = [SHM / f"psm_{pid}", SHM / f"lmcache_kv_{pid}9_0", SHM / f"sem.mp-{pid}"]
    try:
        for path in theirs:
            path.touch()
        assert not process.segments([pid]) & {path.name for path in theirs}
    finally:
        for path in theirs:
            path.unlink()


def test_only_shared_memory_is_removed(tmp_path: Path) -> None:
    """A name that leads out of /dev/shm stays, whoever wrote it into a state file."""
    outside = tmp_path / "file"
    outside.touch()
    names = [str(outside), f"../..{outside}"]
    assert process.remove_segments(names) == sorted(names)
    assert outside.exists()


def test_an_identity_of_this_process_is_alive() -> None:
    """The one process we know to live."""
    me = process.identify(os.getpid())
    assert isinstance(me, Identity)
    assert process.alive(me)
    assert me.uid == os.getuid()


def test_the_caller_is_never_a_member(box: Box) -> None:
    """A kvdemo that runs inside a service does not kill itself while it kills the service."""
    record = box.start("signal.pause()")
    argv = [
        sys.executable,
        "-c",
        "import sys; from kvdemo.host.process import *; print(kill(Record.from_json(sys.argv[1])))",
    ]
    env = {**os.environ, "KVDEMO_RUN": f"{record.run_id}/svc", "PYTHONPATH": str(Path(process.__file__).parents[2])}
    run = subprocess.run([*argv, record.to_json()], env=env, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "1"
