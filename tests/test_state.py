from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guarding import Box
from kvdemo.errors import LockedError, ServiceError, UsageError
from kvdemo.host import process, state
from kvdemo.host.procfs import Exit, Identity, Record

ME = Identity(os.getpid(), 1, "boot", 2, 3)


@pytest.fixture
def project(tmp_path: Path) -> state.Project:
    """A project that has nothing yet."""
    return state.Project(tmp_path, "demo")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A place for services that are ended with the test."""
    with Box(tmp_path) as one:
        yield one


def write(project: state.Project, service: str, text: str) -> Path:
    """Put this text where a guardian writes its record."""
    path = project.dir / "services" / f"{service}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_state_lives_where_the_user_says(tmp_path: Path) -> None:
    """KVDEMO_STATE_DIR, then XDG_STATE_HOME if absolute, then ~/.local/state; always one directory per machine."""
    machine = state.root({"KVDEMO_STATE_DIR": str(tmp_path)}).name
    assert len(machine) == 8
    assert state.root({"KVDEMO_STATE_DIR": str(tmp_path), "XDG_STATE_HOME": "/x"}) == tmp_path / machine
    assert state.root({"XDG_STATE_HOME": "/x"}) == Path("/x/kvdemo") / machine
    home = Path("/home/u/.local/state/kvdemo") / machine
    assert state.root({"XDG_STATE_HOME": "x", "HOME": "/home/u"}) == state.root({"HOME": "/home/u"}) == home


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "A", "-a", "a-", "a" * 64, "a\n"])
def test_names_cannot_leave_the_directory(tmp_path: Path, name: str) -> None:
    """Only DNS labels become file names, for projects and services."""
    with pytest.raises(UsageError):
        state.Project(tmp_path, name)
    with pytest.raises(UsageError):
        state.Project(tmp_path, "demo").log(name)


def test_a_held_lock_names_its_holder(project: state.Project) -> None:
    """Who tries meanwhile is told the pid, the verb and since when; after that the lock is free."""
    with (
        project.lock("up"),
        pytest.raises(LockedError, match=rf"`kvdemo up` \(pid {os.getpid()}, since "),
        project.lock("down"),
    ):
        pass
    with project.lock("down", timeout=1):
        assert (project.dir / "project.lock").read_text().split()[:2] == [str(os.getpid()), "down"]
        assert project.dir.stat().st_mode & 0o777 == 0o700


def test_a_command_leaves_no_empty_directory(project: state.Project) -> None:
    """The directory goes with the last holder of its lock if nothing was written into it, else it stays."""
    with project.lock("up"):
        (project.dir / "logs").mkdir()
    assert not project.dir.exists()
    with project.lock("up"):
        project.save({})
    assert project.load() is not None


def test_whoever_waits_for_a_lock_that_is_removed_gets_the_next_one(project: state.Project) -> None:
    """Two never hold the project at once, although its directory comes and goes between them."""
    code = (
        "import sys; from pathlib import Path; from kvdemo.host.state import Project\n"
        "for _ in range(40):\n"
        "    with Project(Path(sys.argv[1]), 'demo').lock('up', timeout=60):\n"
        "        Path(sys.argv[1], 'mark').mkdir(); Path(sys.argv[1], 'mark').rmdir()\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(project.dir.parent)]) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]


def test_the_lock_is_waited_for(project: state.Project) -> None:
    """With a timeout, the end of the holder is enough."""
    holder = "import fcntl, sys; fcntl.flock(f := open(sys.argv[1], 'w'), 2); print(flush=True); sys.stdin.read(1)"
    project.dir.mkdir()
    argv = [sys.executable, "-c", holder, str(project.dir / "project.lock")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(LockedError, match=rf"in use by pid {other.pid} "), project.lock("up", timeout=0.2):
            pass
        other.kill()
        with project.lock("up", timeout=10):
            pass


def test_the_lock_dies_with_its_holder_but_not_with_its_heirs(project: state.Project) -> None:
    """A SIGKILLed holder frees it, unless a process it handed the descriptor to is still busy."""
    with project.lock("up") as fd:
        heir = subprocess.Popen(["sleep", "1000"], pass_fds=[fd])
    with pytest.raises(LockedError), project.lock("down"):
        pass
    heir.send_signal(signal.SIGKILL)
    heir.wait()
    with project.lock("down"):
        pass


def test_a_started_service_does_not_keep_the_lock(box: Box) -> None:
    """The guardian lets go of the inherited lock once its record is complete."""
    project = state.Project(box.dir.parent, "demo")
    with project.lock("up") as fd:
        record = process.spawn(project.dir, "svc", "run", ["sleep", "1000"], box.env, box.dir, box.log, fd)
        box.started.append(record)
    with project.lock("down"):
        assert process.alive(record.leader)


def test_the_document_comes_back(project: state.Project) -> None:
    """Saved, replaced and loaded, with no other file left; None before that."""
    assert project.load() is None
    project.save({"a": 1})
    project.save({"a": [2, "ü"]})
    assert project.load() == {"a": [2, "ü"], "schema_version": 1}
    assert [path.name for path in project.dir.iterdir()] == ["project.json"]
    assert (project.dir / "project.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"schema_version": 2}', b"\xff\xfe", b"null"])
def test_a_document_of_no_use_is_named(project: state.Project, text: bytes) -> None:
    """Damaged or newer: an error with the file and what to do; `down` can look away."""
    project.dir.mkdir()
    (project.dir / "project.json").write_bytes(text)
    with pytest.raises(ServiceError, match=r"project\.json") as caught:
        project.load()
    assert "kvdemo down" in caught.value.hint
    assert project.load(strict=False) is None


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """A state directory that is a file, say."""
    (tmp_path / "file").write_text("")
    blocked = state.Project(tmp_path / "file", "demo")
    with pytest.raises(ServiceError, match="cannot write"):
        blocked.save({})
    with pytest.raises(ServiceError, match="cannot write"), blocked.lock("up"):
        pass


def test_records_are_read_whole_or_not_at_all(project: state.Project) -> None:
    """Good ones come back equal; damaged ones and half-written temporary files are left out, damaged ones named."""
    good = Record("a", "run", 1.5, ME, None, Exit(None, 9, 2.5, 3))
    assert project.records() == {}
    write(project, "a", good.to_json())
    broken = write(project, "b", "{")
    write(project, "a.json.77.tmp", "{")
    assert project.records() == {"a": good}
    assert project.record("a") == good
    assert project.record("b") is None
    assert project.record("c") is None
    assert project.unreadable() == [broken]
    project.forget("a")
    project.forget("a")
    assert project.records() == {}


def test_the_guardians_record_is_found(box: Box) -> None:
    """The run directory of a service is the directory of its project."""
    project = state.Project(box.dir.parent, "demo")
    log = project.rotate_log("svc")
    record = process.spawn(project.dir, "svc", "run", ["sleep", "1000"], box.env, box.dir, log, None)
    box.started.append(record)
    assert project.records() == {"svc": record}
    process.kill(record)
    written = project.record("svc")
    assert written is not None
    assert written.exit is not None


def test_logs_rotate(project: state.Project) -> None:
    """Every start gets a fresh log; the last five older ones are kept in order."""
    log = project.log("svc")
    for number in range(8):
        assert project.rotate_log("svc") == log
        assert not log.exists()
        log.write_text(str(number))
    assert [Path(f"{log}.{age}").read_text() for age in range(1, 6)] == ["6", "5", "4", "3", "2"]
    assert len(list(log.parent.iterdir())) == 6
    assert log.parent.stat().st_mode & 0o777 == 0o700


def test_clear_keeps_the_logs(project: state.Project) -> None:
    """Everything is forgotten but the logs and the lock file; clearing nothing is fine."""
    project.clear()
    with project.lock("down"):
        project.save({})
        write(project, "a", "{}")
        project.rotate_log("a").write_text("x")
        project.clear()
    assert sorted(path.name for path in project.dir.iterdir()) == ["logs", "project.lock"]
    assert project.log("a").read_text() == "x"


def test_projects_are_those_with_something_to_tell(tmp_path: Path) -> None:
    """A document or a record makes one; old logs and foreign files do not."""
    assert state.projects(tmp_path / "none") == []
    state.Project(tmp_path, "b").save({})
    write(state.Project(tmp_path, "a"), "svc", json.dumps({}))
    state.Project(tmp_path, "logs-only").rotate_log("svc").touch()
    (tmp_path / "Not a project").mkdir()
    (tmp_path / "file").touch()
    assert [project.name for project in state.projects(tmp_path)] == ["a", "b"]
