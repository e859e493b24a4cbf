"""Damaged and foreign state: each of it is named, and disturbs nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Lab
from guarding import until
from kvdemo.errors import ServiceError
from kvdemo.host import state, survey, typed
from kvdemo.planning.plan import Plan

DEEP = "[" * 100_000


def _file(path: Path) -> None:
    path.write_text("x")


def _fifo(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "project.json")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _inner_loop(path: Path) -> None:
    path.mkdir()
    (path / "project.json").symlink_to("project.json")
    (path / "services").symlink_to("services")


def _documents(text: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / "services").mkdir(parents=True)
        (path / "project.json").write_text(text)
        (path / "services" / "a.json").write_text(text)

    return damage


def _directories(path: Path) -> None:
    (path / "project.json").mkdir(parents=True)
    (path / "services" / "a.json").mkdir(parents=True)


def _binary(path: Path) -> None:
    path.mkdir()
    (path / "project.json").write_bytes(bytes(range(256)))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "file": _file,
    "loop": _loop,
    "inner-loop": _inner_loop,
    "fifo": _fifo,
    "directories": _directories,
    "binary": _binary,
    "empty": _documents(""),
    "other-version": _documents('{"schema_version": 99, "plan": {}}'),
    "list": _documents("[1]"),
    "deep": _documents(DEEP),
    "infinite": _documents(
        '{"schema_version": 1, "service": "a", "run_id": "r", "started_at": 1, "exit": null, "leader": null,'
        ' "guardian": {"pid": 1e999, "starttime": 1, "boot_id": "b", "pidns": 1, "uid": 0}}'
    ),
}


def test_one_damaged_project_disturbs_no_other(lab: Lab) -> None:
    """`up`, `ps`, `ps --all` and `down --all` go on beside every kind of damage, and name what is damaged."""
    base = state.root(lab.environ)
    base.mkdir(parents=True)
    for name, damage in DAMAGES.items():
        damage(base / f"bad-{name}")
    shut = base / "bad-shut"
    shut.mkdir(mode=0)
    run = lab.run("up", lab.profile({"a": {}}))
    assert run.returncode == 0, run.stderr
    run = lab.run("ps")
    assert (run.returncode, "ready" in run.stdout) == (0, True)
    run = lab.run("ps", "--all", "--json")
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    states = {one["project"]: [row["state"] for row in one["services"]] for one in document["projects"]}
    assert states[lab.name] == ["ready"]
    named = {Path(row["path"]).relative_to(base).parts[0] for row in document["damaged"]}
    assert named >= {f"bad-{name}" for name in DAMAGES}
    assert all(row["problem"] and "kvdemo down -p bad-" in row["remedy"] for row in document["damaged"])
    run = lab.run("down", "--all")
    assert (run.returncode, "1 services ended" in run.stdout) == (0, True), run.stdout + run.stderr
    assert "bad-loop cannot be used" in run.stderr
    assert "Traceback" not in run.stderr
    shut.chmod(0o700)


@pytest.mark.parametrize("name", DAMAGES)
def test_down_and_up_of_a_damaged_project_go_on_or_say_what_to_do(lab: Lab, name: str) -> None:
    """`down` clears what it can; where it cannot, it and `up` name the place in one sentence, never a traceback."""
    path = lab.profile({"a": {}})
    place = lab.project().dir
    place.parent.mkdir(parents=True, exist_ok=True)
    DAMAGES[name](place)
    run = lab.run("down", "-p", lab.name)
    assert run.returncode in (0, 1)
    assert "Traceback" not in run.stderr
    if run.returncode:
        assert str(place) in run.stderr
        assert "remove what stands there" in run.stderr
        place.unlink()
    run = lab.run("up", path)
    assert run.returncode == 0, run.stderr


def test_a_plan_of_wrong_types_is_no_plan(lab: Lab) -> None:
    """Whatever is changed in a saved plan, it is the same plan, another one, or none; never one of wrong types."""
    lab.up(lab.profile())
    project = lab.project()
    document = project.load()
    assert document is not None
    good = survey.saved_plan(project)
    assert typed.fits(good, Plan)
    for value in (None, 7, "x", [], {}, [None], {"x": 1}, True):
        for key in document["plan"]:
            changed = json.loads(json.dumps(document))
            changed["plan"][key] = value
            project.save(changed)
            plan = survey.saved_plan(project)
            assert plan is None or typed.fits(plan, Plan)
        for key in document["plan"]["services"][0]:
            changed = json.loads(json.dumps(document))
            changed["plan"]["services"][0][key] = value
            project.save(changed)
            plan = survey.saved_plan(project)
            assert plan is None or all(isinstance(port, int) for spec in plan.services for port in spec.ports)
    project.save(document)
    assert survey.saved_plan(project) == good


def test_a_private_directory_is_real_ours_and_closed(tmp_path: Path) -> None:
    """A link, a file, and a directory open to others are refused with the way out; a fresh one is made 0700."""
    made = state.private_directory(tmp_path / "fresh")
    assert made.stat().st_mode & 0o777 == 0o700
    assert state.private_directory(made) == made
    (tmp_path / "link").symlink_to(made)
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    for name, why in (("link", "a link"), ("file", "not a directory"), ("open", "open to others"), ("no/no", "make")):
        with pytest.raises(ServiceError, match=why) as caught:
            state.private_directory(tmp_path / name)
        assert "TMPDIR" in caught.value.hint


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    """Whoever makes the directory of our sockets before us gets none of them."""
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(ServiceError, match="another user"):
        state.private_directory(tmp_path / "theirs")


def test_up_refuses_a_sockets_directory_that_is_not_private(lab: Lab) -> None:
    """Nothing is started, the link's target is untouched, and the way out is said."""
    path = lab.profile({"a": {}})
    target = lab.path / "target"
    target.mkdir()
    sockets = lab.project().sockets
    sockets.symlink_to(target)
    try:
        run = lab.run("up", path)
        assert run.returncode == 1
        assert f"{sockets} is not a directory, but a link" in run.stderr
        until(lambda: not lab.pids())
        assert list(target.iterdir()) == []
        assert sockets.is_symlink()
    finally:
        sockets.unlink()
        shutil.rmtree(target)
