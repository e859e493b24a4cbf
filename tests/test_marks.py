from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Lab
from guarding import Box, gone, program, sigkill, until
from kvdemo.host import marks, process


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A place for services that are ended with the test."""
    with Box(tmp_path) as one:
        yield one


def test_a_service_without_its_record_is_the_same_one(box: Box) -> None:
    """Run, guardian and leader are known again from the processes alone."""
    record = box.start("tell(0); signal.pause()")
    box.hear()
    shutil.rmtree(box.dir / "services")
    (again,) = marks.in_directory(box.dir, ())
    assert (again.run_id, again.service) == (record.run_id, "svc")
    assert (again.guardian, again.leader) == (record.guardian, record.leader)
    assert abs(again.started_at - record.started_at) < 2
    assert marks.in_directory(box.dir, [record]) == []
    assert marks.in_directory(box.dir.parent, ()) == []


def test_what_outlived_its_guardian_is_known_without_a_record(box: Box) -> None:
    """A guardian and a leader that were killed leave processes that carry their mark."""
    record = box.start("tell(child(session=True)); signal.pause()")
    worker = box.hear()
    for one in (record.guardian, record.leader):
        sigkill(one)
    (again,) = marks.in_directory(box.dir, ())
    assert not process.alive(again.guardian)
    assert [member.pid for member in process.members(again)] == [worker]
    assert process.kill(again) == 1


def test_strangers_carry_no_mark(box: Box) -> None:
    """Who has some of the words or variables only is not ours; nor is whoever asks, or its shell."""
    script = str(Path(marks.__file__).with_name("shim.py"))
    for env in ({marks.RUN: "run/svc"}, {marks.RUN_DIR: str(box.dir)}, {marks.RUN: "svc", marks.RUN_DIR: str(box.dir)}):
        box.strangers.append(subprocess.Popen(["sleep", "1000"], env={**os.environ, **env}, start_new_session=True))
    words = [sys.executable, "-c", "import time; time.sleep(1000)", script, str(box.dir), "svc", "run"]
    box.strangers.append(subprocess.Popen(words, start_new_session=True))
    assert marks.in_directory(box.dir, ()) == []
    ask = f"import kvdemo.host.marks as m, pathlib; print(m.in_directory(pathlib.Path({str(box.dir)!r}), ()))"
    env = {**os.environ, **marks.variables(box.dir, "run", "svc"), "PYTHONPATH": str(Path(__file__).parents[1])}
    shell = subprocess.run(["sh", "-c", f'{sys.executable} -c "{ask}"; true'], env=env, capture_output=True, check=True)
    assert shell.stdout.strip() == b"[]"


@pytest.mark.parametrize("damage", ["services", "record", "document", "everything"])
def test_down_ends_what_runs_whatever_is_left_of_its_state(lab: Lab, damage: str) -> None:
    """Without records, document or the whole directory `down` ends the services, and only then says that none ran."""
    lab.up(lab.profile({"a": {}, "b": {}}))
    project = lab.project()
    engines = set(lab.pids())
    if damage == "services":
        shutil.rmtree(project.dir / "services")
    elif damage == "record":
        (project.dir / "services" / "a.json").write_text('{"service": "a", "run_id": [')
    elif damage == "document":
        project.document.write_text('{"schema_version": 1, "plan": {"services": [1, 2]}}')
        (project.dir / "services" / "b.json").unlink()
    else:
        shutil.rmtree(project.dir)
    run = lab.run("down", "-p", lab.name)
    assert (run.returncode, "2 services ended" in run.stdout) == (0, True), run.stdout + run.stderr
    until(lambda: all(gone(pid) for pid in engines))
    run = lab.run("down", "-p", lab.name)
    assert (run.returncode, run.stdout) == (0, "Nothing was running.\n")


def test_a_project_without_records_is_still_the_only_one(lab: Lab) -> None:
    """`ps` and `down` without a name find it, and `ps` says what to do."""
    lab.up(lab.profile({"a": {}}))
    shutil.rmtree(lab.project().dir)
    run = lab.run("ps")
    assert run.returncode == 1
    assert f"project {lab.name} runs (a)" in run.stderr
    assert f"kvdemo down -p {lab.name}" in run.stderr
    assert "1 service ended" in lab.run("down").stdout


def test_ps_and_up_know_services_without_their_records(lab: Lab) -> None:
    """`ps` shows them as they are; a second `up` changes nothing."""
    path = lab.profile({"a": {}})
    lab.up(path)
    before = lab.run("ps", "--json").stdout
    shutil.rmtree(lab.project().dir / "services")
    assert '"state": "ready"' in before
    assert '"state": "ready"' in lab.run("ps", "--json").stdout
    assert "a              unchanged" in lab.run("up", path).stdout


def test_a_second_run_of_a_service_without_record_is_ended_too(lab: Lab) -> None:
    """One service may run twice when its record was lost in between: `down` ends both."""
    lab.up(lab.profile({"a": {}}))
    record = lab.project().records()["a"]
    env, log = {"PATH": os.environ["PATH"]}, lab.path / "log"
    second = process.spawn(lab.project().dir, "b", "other", program("signal.pause()"), env, lab.path, log, None)
    (lab.project().dir / "services" / "b.json").unlink()
    os.kill(second.guardian.pid, signal.SIGSTOP)
    events, remains = lab.down()
    assert not remains
    assert not process.alive(record.guardian)
    assert not process.alive(second.guardian)
    assert {event.service for event in events} == {"a", "b"}
    assert any(f"(pid {second.guardian.pid}) was stopped" in event.detail for event in events)
