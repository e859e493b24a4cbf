"""Memory of GPUs after ``down``: only what the project used, and not what others have taken since."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nvml
from kvdemo.host import local, process
from kvdemo.host.local import Local
from kvdemo.host.state import Project
from kvdemo.planning.plan import ServiceSpec

GIB = 1024**3
RUN = "run-of-this-test"


@pytest.fixture
def other(request: pytest.FixtureRequest) -> Iterator[int]:
    """A process that is no service; or one of the run, if the test asks for it."""
    mark = {process.MARK: f"{RUN}/one"} if getattr(request, "param", "") == "ours" else {"LC_OTHER": "1"}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=mark) as one:
        yield one.pid
        one.kill()


def left(
    monkeypatch: pytest.MonkeyPatch, path: Path, before: dict[str, object], after: list[dict[str, object]]
) -> list[str]:
    """What an engine of GPU 0 leaves, as far as ``down`` can tell, on a machine with two."""
    monkeypatch.setattr(local, "GPU_PATIENCE", 0.3)
    file = nvml.install(monkeypatch, path, nvml.machine(before, {}))
    project = Project(path / "state", "p")
    launcher = Local(project)
    project.save(launcher.prepare(fresh=True))
    spec = ServiceSpec("one", "engine", (), {"CUDA_VISIBLE_DEVICES": "0"}, "", 0, (), 0, 0, gpus=(0,))
    file.write_text(json.dumps(nvml.machine(*after)))
    remains = launcher.remains([spec], {RUN})
    assert remains.checked["gpus"] == 1
    return remains.gpus


def used(size: int, *holders: tuple[int, int]) -> dict[str, object]:
    """A GPU of 100 GiB with so many bytes in use, by these processes."""
    return {"total": 100 * GIB, "free": 100 * GIB - size, "processes": [list(one) for one in holders]}


def test_what_others_do_on_another_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Is nothing of this project: a second fleet may have started there in the meantime."""
    assert left(monkeypatch, tmp_path, used(0), [used(0), used(60 * GIB)]) == []


def test_what_nobody_holds_is_not_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No process is there to which it could belong."""
    (said,) = left(monkeypatch, tmp_path, used(GIB), [used(8 * GIB), used(0)])
    assert said == "GPU GPU-000: 7.0 GiB not given back"


def test_what_a_stranger_took_since(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: int) -> None:
    """A process that came later and is visibly not of the project's runs explains as much as it holds, and no more."""
    assert left(monkeypatch, tmp_path, used(0), [used(40 * GIB, (other, 40 * GIB)), used(0)]) == []
    (said,) = left(monkeypatch, tmp_path, used(0), [used(50 * GIB, (other, 40 * GIB)), used(0)])
    assert said.startswith(f"GPU GPU-000: 10.0 GiB not given back (on it now: pid {other} (40.0 GiB)")


def test_who_was_there_before_explains_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: int) -> None:
    """Else what a fleet leaves could hide behind it."""
    there = (other, 30 * GIB)
    (said,) = left(monkeypatch, tmp_path, used(30 * GIB, there), [used(35 * GIB, there), used(0)])
    assert "5.0 GiB not given back" in said


@pytest.mark.parametrize("other", ["ours"], indirect=True)
def test_what_a_process_of_the_run_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: int) -> None:
    """Its mark tells."""
    (said,) = left(monkeypatch, tmp_path, used(0), [used(5 * GIB, (other, 5 * GIB)), used(0)])
    assert "5.0 GiB not given back" in said
