"""A laboratory for whole fleets: real processes, fake engines, nothing left behind.

``lab.profile(...)`` writes a profile whose engines are the fakes below tests/fake; ``lab.run("up", path)`` runs the
installed command, ``lab.up(path)`` the same story in this process. Whatever a test leaves running is an error.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

import forking
import wheels
from guarding import until
from kvdemo.config import profile
from kvdemo.fleet import fleet, teardown
from kvdemo.fleet.watch import Event
from kvdemo.host import survey
from kvdemo.host.state import Project, projects, root
from kvdemo.planning import plan
from real_fleet import Real, cpu_fleet

FAKES = Path(__file__).parent / "fake"
PATIENCE = 30
"""Seconds for anything here that should take one."""

LONGEST = (
    *("web", "bench", "cli", "cluster", "attach", "export", "network_cut", "fleet", "top", "load", "lifecycle", "ci"),
    *("interrupt", "estimate_peers", "init", "kill_rounds", "shim", "preheat", "estimate", "flags", "compare", "hub"),
)
"""Modules that begin first: each is one process's from its first test to its last, and the others fill the gaps."""

needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc, to build a library whose symbol is missing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first, the others in their order."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


class Lab:
    """A directory with profiles, a state directory, and an interpreter that holds the fake vLLM and LMCache."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = "t" + hashlib.sha256(str(path).encode()).hexdigest()[:8]
        self.environ = {**os.environ, "KVDEMO_STATE_DIR": str(path / "state"), "COLUMNS": "200", "NO_COLOR": "1"}
        for name in ("KVDEMO_PROJECT", "KVDEMO_PROFILE", "PYTEST_CURRENT_TEST"):
            self.environ.pop(name, None)
        self.running: list[subprocess.Popen[str]] = []
        self.patience = PATIENCE
        self.python = path / "python"
        self.python.write_text(f'#!/bin/sh\nPYTHONPATH={FAKES} exec {sys.executable} -S "$@"\n')
        self.python.chmod(0o755)
        (path / "model").mkdir()
        (path / "model" / "config.json").write_text('{"max_position_embeddings": 65536, "dtype": "bfloat16"}')

    def profile(
        self,
        engines: Mapping[str, Mapping[str, Any]] | None = None,
        caches: Mapping[str, Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> Path:
        """Write a profile; without arguments one plain engine, two cached ones and their cache."""
        if engines is None:
            engines = {"plain": {}, "a": {"cache": "shared"}, "b": {"cache": "shared"}}
            caches = {"shared": {"l1": "16MiB", "chunk_size": 64}}
        name = settings.setdefault("name", self.name)
        document = {
            "runtime": {"python": str(self.python)},
            "model": "./model",
            "start_timeout": PATIENCE,
            "stop_timeout": 10,
            "defaults": {"engine": {"gpus": [], "kv_cache": "16MiB", "memory": "32MiB"}},
            "caches": caches or {},
            "engines": engines,
            **settings,
        }
        path = self.path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    def project(self, name: str = "") -> Project:
        """The project of the profile."""
        return Project(root(self.environ), name or self.name)

    def plan(self, path: Path) -> plan.Plan:
        """What ``up`` would run."""
        wanted = profile.load(path, self.environ)
        return plan.make(wanted, survey.survey(wanted, self.project(wanted.name), self.environ))

    def up(self, path: Path, names: Sequence[str] = (), **options: Any) -> list[Event]:
        """Bring it up in this process; every event."""
        planned = self.plan(path)
        project = self.project(planned.project)
        with (
            project.lock("up") as lock,
            closing(fleet.up(planned, project, self.environ, lock, names=names, **options)) as events,
        ):
            return list(events)

    def down(self, name: str = "", **options: Any) -> tuple[list[Event], teardown.Remains]:
        """Take it down in this process; the events, and what is left."""
        *events, remains = teardown.down(self.project(name), **options)
        assert isinstance(remains, teardown.Remains)
        return [event for event in events if isinstance(event, Event)], remains

    def start(self, *arguments: str | Path, **environ: str) -> subprocess.Popen[str]:
        """The installed command, running."""
        variables = {**self.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environ}
        process = forking.start([*map(str, arguments)], self.path, variables)
        self.running.append(process)
        return process

    def run(self, *arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        """The installed command to its end; ``returncode``, ``stdout``, ``stderr``."""
        process = self.start(*arguments, **environ)
        out, err = process.communicate(timeout=self.patience)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def pids(self) -> dict[int, str]:
        """Every live process that has anything to do with this laboratory: pid and command line."""
        mark, found = str(self.path), {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if line and (mark in line or mark in str((entry / "cwd").readlink())):
                    found[int(entry.name)] = line
            except OSError:
                continue
        return found

    def close(self) -> None:
        """End everything; whatever does not end by ``down`` is an error."""
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()
        remains = {}
        for project in projects(root(self.environ)):
            with project.lock("down", timeout=PATIENCE):
                *_, remains[project.name] = teardown.down(project, timeout=1)
        assert not any(remains.values()), f"down left {remains}"
        try:
            until(lambda: not self.pids())
        except AssertionError:
            left = self.pids()
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"left behind: {left}") from None


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A laboratory of this test alone."""
    one = Lab(tmp_path)
    try:
        yield one
    finally:
        one.close()


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A laboratory for all tests of a module."""
    one = Lab(tmp_path_factory.mktemp("lab"))
    try:
        yield one
    finally:
        one.close()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of kvdemo."""
    return wheels.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """The real engines of profiles/cpu-long.yaml: one fleet for all tests that can share one; a test starts it."""
    one = cpu_fleet(tmp_path_factory.mktemp("real"))
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def ready(real: Real) -> Real:
    """That fleet, all of it ready whatever the test before did."""
    real.mend()
    return real
