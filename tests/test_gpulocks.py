"""Engines that measure GPU memory start one after another, also those of projects that know nothing of each other."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import FAKES, PATIENCE, Lab
from kvdemo.errors import ServiceError
from kvdemo.fleet import gpulocks
from nvml import machine

START = 1.5
"""Seconds that the fake engines take to start."""


@pytest.fixture
def gpu() -> Iterator[str]:
    """The UUID of a GPU that nobody else has; its lock file goes with the test."""
    name = f"GPU-{uuid.uuid4()}"
    yield name
    (gpulocks.directory() / f"{name}.lock").unlink(missing_ok=True)


def turn(*gpus: str, alone: bool = True, owner: str = "somebody") -> gpulocks.GpuLock:
    """A turn on these GPUs."""
    return gpulocks.GpuLock(gpus, alone=alone, owner=owner)


def test_one_measures_alone(gpu: str) -> None:
    """The next one is told whom it waits for, and comes after the release; on other GPUs nobody waits."""
    first, second = turn(gpu, owner="engine a of project x"), turn(gpu)
    assert first.take() == ""
    assert first.take() == ""
    assert second.take() == "engine a of project x"
    assert turn().take() == ""
    first.release()
    assert second.take() == ""
    second.release()


def test_engines_of_known_size_start_together(gpu: str) -> None:
    """They disturb nobody but one that measures, and that one waits for all of them."""
    first, second, third = turn(gpu, alone=False), turn(gpu, alone=False), turn(gpu)
    assert (first.take(), second.take()) == ("", "")
    first.release()
    assert third.take() != ""
    second.release()
    assert third.take() == ""
    assert first.take() != ""
    third.release()


def test_waiting_ends(gpu: str) -> None:
    """With the turn, at the deadline, or when nobody wants it any more; then nothing is held."""
    first, second = turn(gpu), turn(gpu)
    first.take()
    assert second.wait(lambda: False, time.monotonic()) == "somebody"
    threading.Timer(0.2, first.release).start()
    assert second.wait(lambda: False, time.monotonic() + PATIENCE) == ""
    second.release()
    stopping = turn(gpu)
    stopping.wait(lambda: True, time.monotonic() + PATIENCE)
    assert first.take() == ""
    first.release()


def test_the_directory_is_ours(gpu: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Private, and a link in place of a lock file is not followed."""
    monkeypatch.setattr(gpulocks, "directory", lambda: tmp_path / "gpus")
    turn(gpu).take()
    assert (tmp_path / "gpus").stat().st_mode & 0o777 == 0o700
    (tmp_path / "gpus" / "GPU-x.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(ServiceError, match="symbolic links"):
        turn("GPU-x").take()


def starts(lab: Lab, gpu: str, **engine: object) -> tuple[list[float], str]:
    """Start one engine in each of two projects on this GPU at once: when each one started, and what was printed."""
    (lab.path / "nvml.json").write_text(json.dumps(machine({"uuid": gpu})))
    lab.environ |= {"FAKE_NVML": str(lab.path / "nvml.json")}
    path = f"{FAKES / 'nvml'}{os.pathsep}{Path(__file__).parents[1]}"
    one = {"gpus": [0], "env": {"FAKE_START_S": str(START)}, **engine}
    names = [f"{lab.name}{letter}" for letter in "xy"]
    runs = [lab.start("up", lab.profile({"one": one}, name=name), PYTHONPATH=path) for name in names]
    said = [run.communicate(timeout=PATIENCE) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    return sorted(lab.project(name).records()["one"].started_at for name in names), "".join(out for out, _ in said)


@pytest.mark.parametrize("kv_cache", ["", "16MiB"])
def test_two_projects_on_one_gpu(lab: Lab, gpu: str, kv_cache: str) -> None:
    """Two that measure: the second one starts when the first is ready. Two that were told: at once."""
    (first, second), said = starts(lab, gpu, kv_cache=kv_cache)
    assert (second - first < START) == bool(kv_cache)
    assert ("for its GPU: engine one of project" in said) == (not kv_cache)
