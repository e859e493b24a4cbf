"""A fleet of real engines for the tests: the installed command, a state directory and a KV store of its own.

Every service inherits a mark in its environment, so that what is left over is found without asking kvdemo.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import forking
from guarding import gone, until
from kvdemo.bench import workload
from kvdemo.bench.client import Client
from kvdemo.host import health, process, procfs, survey
from kvdemo.host.process import Record
from kvdemo.host.state import Project, root
from kvdemo.planning.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / ".cache" / "tiny-llama"
HANDBOOK = ROOT / "profiles" / "handbook.txt"
PROFILE = ROOT / "profiles" / "cpu-long.yaml"
SERVICES = {"shared", "vllm-a", "vllm-b", "lmcache-a", "lmcache-b"}
NOTICE = 10
"""Seconds within which a death must show."""
MARK = "LC_KVDEMO_TEST"
"""The services inherit every variable that begins with LC_, and none of them cares about this one."""

CONTEXTS = {"context.txt": 10000, "short.txt": 4000}
"""Documents beside the profile and how much of the handbook they are, in characters; four to a token."""

START = 300
"""Seconds for anything that starts engines (a minute on a quiet machine of two cores)."""

needs_engines = [
    pytest.mark.real,
    pytest.mark.timeout(2 * START),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None or not MODEL.exists(),
        reason="needs vLLM, LMCache and the tiny model (scripts/setup installs them)",
    ),
]


@dataclass(frozen=True)
class Told:
    """An engine's answer, to the last bit, and where the tokens of the prompt came from."""

    computed: int
    local: int
    shared: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def answer(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """What has to be equal where the same was computed."""
        return self.token_ids, self.logprobs


class Real:
    """One project; ``environ`` are the variables that its profile reads."""

    def __init__(self, path: Path, profile: Path, name: str, **environ: str) -> None:
        self.path, self.profile, self.name = path, profile, name
        drop = ("KVDEMO_", "KV_STORE_DIR", "VLLM_", "PYTEST_")
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith(drop)}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environ |= {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "160", MARK: str(path), **environ}
        # One directory for all: that the packages load together is asked once.
        self.environ |= {"KVDEMO_STATE_DIR": str(path.parent / "state"), "KVDEMO_PROJECT": name}

    def run(self, *arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        """A command to its end, whatever its exit code."""
        return forking.run(arguments, self.path, self.environ | environ, START)

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """A command, running, without the mark: it is none of the services."""
        environ = {key: value for key, value in self.environ.items() if key != MARK}
        return forking.start([*map(str, arguments)], self.path, environ)

    def do(self, *arguments: str | Path) -> str:
        """A command that has to succeed; what it printed."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def up(self, *services: str, profile: Path | None = None) -> str:
        """Start the profile, or these of its services and their caches."""
        return self.do("up", profile or self.profile, *services, "-p", self.name)

    def mend(self) -> None:
        """Start whatever is not ready."""
        if self.run("ps", "--check").returncode:
            self.up()

    @property
    def project(self) -> Project:
        """Where its state lies."""
        return Project(root(self.environ), self.name)

    @property
    def plan(self) -> Plan:
        """What it was started from."""
        plan = survey.saved_plan(self.project)
        assert plan is not None
        return plan

    @property
    def records(self) -> dict[str, Record]:
        """What its guardians wrote."""
        return self.project.records()

    def states(self) -> dict[str, str]:
        """What ``ps`` says."""
        rows = json.loads(self.do("ps", "--json"))["services"]
        return {row["service"]: row["state"] for row in rows}

    def replaced_since(self, before: dict[str, Record]) -> set[str]:
        """The services that run in another process than before."""
        return {name for name, record in self.records.items() if record.leader != before[name].leader}

    def core(self, engine: str) -> int:
        """The pid of an engine's core process."""
        pids = [member.pid for member in process.members(self.records[engine])]
        cores = [pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"VLLM::EngineCore")]
        assert len(cores) == 1, pids
        return cores[0]

    def bench(self, *arguments: str | Path) -> dict[str, Any]:
        """The result of ``kvdemo bench --json``: the last line of its output."""
        document: dict[str, Any] = json.loads(self.do("bench", "--json", *arguments).splitlines()[-1])
        return document

    def ask(self, engine: str, text: str, salt: str) -> Told:
        """Put a text to one engine under this salt."""
        return ask(self.plan, engine, text, salt)

    def processes(self) -> list[int]:
        """Every live process that carries the mark."""
        mark = f"{MARK}={self.path}".encode()
        found = (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
        return [pid for pid in found if mark in (procfs.environ(pid) or ()) and not gone(pid)]

    def segments(self) -> set[str]:
        """The shared memory of its processes."""
        return process.segments(self.processes())

    def close(self) -> None:
        """End everything, by force what ``down`` leaves; leaving something is an error."""
        done = self.run("down", "-p", self.name, "--timeout", "10")
        left = self.processes()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert (done.returncode, left) == (0, []), done


def cpu_fleet(path: Path) -> Real:
    """The fleet of cpu-long.yaml, not up yet; its KV store lies in a directory beside a file of the user's."""
    (path / "mine").mkdir()
    (path / "mine" / "notes.txt").write_text("mine\n")
    for name, characters in CONTEXTS.items():
        (path / name).write_text(HANDBOOK.read_text()[:characters])
    return Real(path, PROFILE, "real-cpu", KV_STORE_DIR=str(path / "mine"), KVDEMO_MODEL=str(MODEL))


def ask(plan: Plan, engine: str, text: str, salt: str) -> Told:
    """Put a text to one engine of a plan under this salt; the engine's counters say where the tokens came from."""
    spec = plan.service(engine)
    names = [f"prompt_tokens_by_source{{{s}}}" for s in ("local_compute", "local_cache_hit", "external_kv_transfer")]
    before = health.counters(spec.url)
    prompt = {"messages": workload.messages("Read this.", text, "What does it say?")}
    with Client(spec.url) as client:
        reply = client.stream("/v1/chat/completions", workload.body(spec.model, prompt, max_tokens=8, salt=salt))
    assert not reply.error
    expected = int(reply.usage["prompt_tokens"])
    deltas: list[int] = []

    def counted() -> bool:
        after = health.counters(spec.url)
        deltas[:] = [int(after[name] - before.get(name, 0)) for name in names]
        return sum(deltas) >= expected

    until(counted)
    assert sum(deltas) == expected
    computed, local, shared = deltas
    return Told(computed, local, shared, tuple(reply.token_ids), tuple(reply.logprobs))


def stored(fleet: Real, salt: str) -> set[Path]:
    """The files in the store of a fleet's cache with KV under this salt."""
    return set(Path(fleet.plan.service("shared").store).glob(f"*@{salt}*.data"))


def nothing_left(plan: Plan, segments: Sequence[str] | set[str]) -> bool:
    """Whether the ports of a plan are free and these segments gone."""
    ports = [(spec.host, port) for spec in plan.services for port in spec.ports]
    taken = [port for host, port in ports if not process.port_free(host, port)]
    return not taken and not [name for name in segments if (procfs.SHM / name).exists()]
