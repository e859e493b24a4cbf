"""Kill processes of a fleet at random moments, then see whether `kvdemo down` leaves anything, or touched a stranger.

    python scripts/kill_rounds.py [--rounds 300] [--seed 1] [--jobs 2]
    python scripts/kill_rounds.py --replay SEED      one round again, with all that it printed

Each round has a fleet of fake engines (tests/fake) and a bystander: a group of processes with the same kind of names,
variables, shared memory and sockets. During up, ready, bench, restart or down, a random signal hits a random process:
the command, a guardian, an engine's API server, its core, the cache server, or a whole group; sometimes two. Afterwards
`kvdemo down -v` is run as a user would, and what is left is counted. Exits 1 unless that is nothing in every round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from kvdemo.host import marks, procfs, shim  # noqa: E402 (the package of this checkout, installed or not)
from kvdemo.host.state import Project, root  # noqa: E402

FAKES = ROOT / "tests" / "fake"
PHASES = ("up", "ready", "bench", "restart", "down")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGINT, signal.SIGHUP)
TARGETS = ("command", "guardian", "engine", "core", "cache", "group")
PATIENCE = 60
"""Seconds for a command that should take a few."""

BYSTANDER = """
import os, signal, socket, sys
server = socket.create_server(("127.0.0.1", 0))
names = [f"/dev/shm/lmcache_kv_{os.getpid()}_0", f"/dev/shm/{sys.argv[-1]}"]
for name in names:
    open(name, "w").close()
if not os.fork():
    signal.pause()
print(server.getsockname()[1], *names, flush=True)
signal.pause()
"""


@dataclass
class Round:
    """One round: what was hit, what `down` said, what was left, which strangers were touched."""

    seed: int
    phase: str = ""
    hits: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        fate = "; ".join(self.left + self.touched) or "nothing left"
        return f"seed {self.seed}: {self.phase}: {', '.join(self.hits) or 'nothing hit'}: {fate}"


class Command:
    """A command of kvdemo, running; its output goes to a file, so that no pipe holds it up."""

    def __init__(self, words: tuple[str, ...], path: Path, environ: dict[str, str]) -> None:
        self.words = " ".join(words)
        self.output = path / f"output-{time.monotonic_ns()}"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kvdemo", *words],
                cwd=path,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    @property
    def stopped(self) -> bool:
        """Whether somebody stopped it."""
        return self.runs and _stopped(self.pid)

    def wait(self, seconds: float) -> bool:
        """Wait for its end; whether it came."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return not self.runs

    def finish(self, result: Round) -> int:
        """Wait for its end and note what it said; one that hangs is a leftover, and so is a traceback."""
        if not self.wait(PATIENCE):
            result.left.append(f"kvdemo {self.words} hangs")
            self.process.kill()
        code = self.process.wait()
        text = self.output.read_text(errors="replace")
        result.said.append(f"$ kvdemo {self.words}  -> {code}\n{text}")
        if "Traceback" in text and "kvdemo/" in text:  # Python itself prints one when it is interrupted as it starts
            result.left.append("a traceback")
        return code


class Fleet:
    """A fleet of fake engines in a directory of its own."""

    def __init__(self, path: Path, seed: int, rng: random.Random) -> None:
        self.path, self.name = path, f"kr{seed % 10**12}"
        self.environ = {**os.environ, "KVDEMO_STATE_DIR": str(path / "state"), "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
        self.project = Project(root(self.environ), self.name)
        self.segment = f"lmcache_kv_{{pid}}_{self.name}"  # as LMCache names its pools
        python = path / "python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={FAKES} exec {sys.executable} -S "$@"\n')
        python.chmod(0o755)
        (path / "model").mkdir()
        (path / "model" / "config.json").write_text('{"max_position_embeddings": 65536, "dtype": "bfloat16"}')
        (path / "doc.txt").write_text("what is it about " * 300)
        self.profile = path / "profile.yaml"
        slow = {"FAKE_START_S": f"{rng.uniform(0, 0.6):.2f}"}
        engines = {
            "plain": {"env": {"FAKE_CHILD": "1", **slow}},
            "a": {"cache": "shared", "env": {"FAKE_CHILD": "1"}},
            "b": {"cache": "shared", "env": slow},
        }
        self.profile.write_text(
            json.dumps(
                {
                    "name": self.name,
                    "runtime": {"python": str(python)},
                    "model": "./model",
                    "start_timeout": 20,
                    "stop_timeout": 3,
                    "defaults": {"engine": {"gpus": [], "kv_cache": "16MiB", "memory": "32MiB"}},
                    "caches": {
                        "shared": {
                            "l1": "16MiB",
                            "l2": "./kv",
                            "chunk_size": 64,
                            "env": {"FAKE_LEAK": self.segment},
                        }
                    },
                    "engines": engines,
                    "bench": {"trials": 2, "max_tokens": 4, "context": "./doc.txt"},
                }
            )
        )

    def command(self, *words: str) -> Command:
        """A command of kvdemo, running."""
        return Command(words, self.path, self.environ)

    def targets(self, command: Command | None) -> dict[str, list[int]]:
        """The pids that can be hit now, by kind; a group is named by its leader."""
        found: dict[str, list[int]] = {kind: [] for kind in TARGETS}
        if command and command.runs:
            found["command"] = [command.pid]
        for entry in shim.table().values():
            mark = marks.mark_of(entry)
            if mark is None or entry.dead or mark.run_dir != str(self.project.dir):
                continue
            if mark.guardian:
                found["guardian"].append(entry.pid)
            elif entry.pid != entry.sid:
                found["core"].append(entry.pid)
            else:
                found["cache" if mark.service == "shared" else "engine"].append(entry.pid)
                found["group"].append(entry.pid)
        return found

    def ports(self) -> list[int]:
        """What the saved plan binds."""
        try:
            services = json.loads(self.project.document.read_text())["plan"]["services"]
            return [port for service in services for port in service["ports"]]
        except (OSError, ValueError, LookupError, TypeError):
            return []

    def leftovers(self, ports: list[int]) -> list[str]:
        """Whatever is there that `down` should have removed."""
        left = [f"process {pid} ({words})" for pid, words in self.processes().items()]
        left += [f"port {port}" for port in ports if not procfs.port_free("127.0.0.1", port)]
        left += [str(path) for path in Path("/dev/shm").glob(self.segment.replace("{pid}", "*"))]
        left += [str(path) for path in (self.project.sockets, self.path / "kv") if os.path.lexists(path)]
        there = {path.name for path in self.project.dir.iterdir()} if self.project.dir.exists() else set()
        return left + [f"state {name}" for name in sorted(there - {"logs", "project.lock"})]

    def processes(self) -> dict[int, str]:
        """Every live process that names the directory in its words, its variables or its place."""
        found = {}
        for pid, entry in shim.table().items():
            words = b" ".join(procfs.command_line(pid)).decode(errors="replace")
            variables = b" ".join(procfs.environ(pid) or ()).decode(errors="replace")
            try:
                place = str(Path(f"/proc/{pid}/cwd").readlink())
            except OSError:
                place = ""
            if (
                not entry.dead
                and pid != os.getpid()
                and any(str(self.path) in one for one in (words, variables, place))
            ):
                found[pid] = words[:100]
        return found


class Bystander:
    """A group of processes that looks like a fleet and is none of ours."""

    def __init__(self, fleet: Fleet) -> None:
        words = ["-m", "vllm.entrypoints.openai.api_server", "VLLM::EngineCore", str(Path(shim.__file__)), "svc", "run"]
        name = f"bystander-{os.getpid()}-{fleet.name}"
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", BYSTANDER, *words, name],
            env={"PATH": os.environ["PATH"], marks.RUN: "0123456789abcdef/plain", marks.RUN_DIR: "/nowhere"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        port, *self.files = self.process.stdout.readline().split() if self.process.stdout else [""]
        self.port = int(port)
        self.born = {pid: entry.starttime for pid, entry in self._group().items()}

    def _group(self) -> dict[int, shim.Stat]:
        return {pid: entry for pid, entry in shim.table().items() if entry.sid == self.process.pid}

    def touched(self) -> list[str]:
        """What is not as it was."""
        now = self._group()
        lost = [f"bystander {pid} ended" for pid in self.born if pid not in now or now[pid].dead]
        lost += [f"bystander {pid} was stopped" for pid, entry in now.items() if entry.stopped]
        lost += [f"bystander's {path} is gone" for path in self.files if not Path(path).exists()]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return lost
        return [*lost, "bystander's port is gone"]

    def end(self) -> None:
        """End it, and its files."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for path in self.files:
            Path(path).unlink(missing_ok=True)


def run(seed: int) -> Round:
    """One round, made by its seed (but for the moments, which the machine's load moves)."""
    rng = random.Random(seed)  # noqa: S311 (a round must be repeatable, not secret)
    result = Round(seed, phase=rng.choice(PHASES))
    path = Path(tempfile.mkdtemp(prefix="kr-", dir="/tmp"))
    fleet = Fleet(path, seed, rng)
    bystander = Bystander(fleet)
    try:
        _play(fleet, rng, result)
        result.touched = bystander.touched()
    finally:
        bystander.end()
        for pid in fleet.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for segment in Path("/dev/shm").glob(fleet.segment.replace("{pid}", "*")):
            segment.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    return result


def _play(fleet: Fleet, rng: random.Random, result: Round) -> None:
    command = None
    if result.phase != "up":
        fleet.command("up", str(fleet.profile)).finish(result)
    words = {
        "up": ["up", str(fleet.profile)],
        "bench": ["bench", "-p", fleet.name, "--result-dir", str(fleet.path / "results")],
        "restart": ["restart", "-p", fleet.name, rng.choice(["shared", "a", "plain"])],
        "down": ["down", "-p", fleet.name],
    }
    if result.phase in words:
        command = fleet.command(*words[result.phase])
    for _ in range(rng.choice([1, 1, 2])):
        _pause(rng, command, 2.5 if command else 0.2)
        _hit(fleet, rng, command, result)
    ports = fleet.ports()
    if command:
        _come_to_an_end(command, rng, result)
    ports = fleet.ports() or ports
    _down(fleet, result)
    if command and command.stopped:  # it held nothing, so `down` did not name it: its user ends it
        command.process.kill()
    if command:
        command.finish(result)
    result.left += fleet.leftovers(ports)


def _pause(rng: random.Random, command: Command | None, longest: float) -> None:
    """Let a random time pass, or less if the command ends meanwhile."""
    seconds = rng.uniform(0, longest)
    if command:
        command.wait(seconds)
    else:
        threading.Event().wait(seconds)


def _hit(fleet: Fleet, rng: random.Random, command: Command | None, result: Round) -> None:
    """Send a random signal to a random process of those that are there."""
    kind, number, choice = rng.choice(TARGETS), rng.choice(SIGNALS), rng.random()
    candidates = fleet.targets(command)
    if not candidates[kind]:
        kind = next((one for one in TARGETS if candidates[one]), "")
    if not kind:
        return
    pid = sorted(candidates[kind])[int(choice * len(candidates[kind]))]
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if kind == "group" else os.kill)(pid, number)
        result.hits.append(f"{number.name} to {kind} {pid}")


def _come_to_an_end(command: Command, rng: random.Random, result: Round) -> None:
    """Wait a little for the command; a user who has enough of it presses Ctrl-C, perhaps twice."""
    command.wait(4)
    for _ in range(rng.choice([1, 2])):
        if command.runs and not command.stopped:
            command.process.send_signal(signal.SIGINT)
            result.hits.append("Ctrl-C")
            command.wait(rng.uniform(0.1, 3))
    if not command.stopped:  # else as Ctrl-Z leaves it: `down` has to say so
        command.wait(PATIENCE)


def _stopped(pid: int) -> bool:
    entry = shim.stat(pid)
    return entry is not None and entry.stopped


def _down(fleet: Fleet, result: Round) -> None:
    """Take it down; where a command that was stopped holds the project, do what kvdemo says: end it, and try again."""
    code = 0
    for _ in range(2):
        code = fleet.command("down", "-v", "-p", fleet.name).finish(result)
        if code == 0:
            return
        advice = re.search(r"kill -KILL (\d+)", result.said[-1])
        if code == 9 and advice and _stopped(int(advice[1])):
            os.kill(int(advice[1]), signal.SIGKILL)
    result.left.append(f"down exits {code}")


def main() -> int:
    """Run the rounds; 0 if nothing was left, and nobody touched."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1, help="of the first round; the next ones count up from it")
    parser.add_argument("--jobs", type=int, default=2, help="rounds at a time")
    parser.add_argument("--replay", type=int, metavar="SEED", help="this one round, with everything that was printed")
    options = parser.parse_args()
    if options.replay is not None:
        one = run(options.replay)
        print(*one.said, one, sep="\n")
        return 1 if one.left or one.touched else 0
    rounds = []
    with ThreadPoolExecutor(options.jobs) as pool:
        tasks = [pool.submit(run, options.seed + number) for number in range(options.rounds)]
        try:
            for task in as_completed(tasks):
                rounds.append(task.result())
                if rounds[-1].left or rounds[-1].touched:
                    print(*rounds[-1].said, sep="\n")
                print(rounds[-1], flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            return 130
    left, touched = (sum(bool(getattr(one, what)) for one in rounds) for what in ("left", "touched"))
    print(f"{len(rounds)} rounds: {left} with leftovers, {touched} with strangers touched")
    return 1 if left or touched else 0


if __name__ == "__main__":
    sys.exit(main())
