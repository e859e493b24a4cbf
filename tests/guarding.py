"""Real services for the tests: small Python programs under a real guardian, ended with the test whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kvdemo.host import process, procfs, shim

PRELUDE = """
import ctypes, json, os, signal, sys, time
def tell(said):
    with open(os.environ["EAR"], "w") as ear:
        ear.write(json.dumps(said) + "\\n")
def child(act=signal.pause, *, ignore=True, session=False):
    parent = os.getpid()
    said, says = os.pipe()
    if pid := os.fork():
        os.read(said, 1)  # it stands
        return pid
    if session:
        os.setsid()
    if ignore:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(says, b"!")
    act()
    os._exit(0)
"""


def program(text: str) -> list[str]:
    """The argv of a Python program with the helpers ``tell`` and ``child``."""
    return [sys.executable, "-S", "-c", PRELUDE + textwrap.dedent(text)]


def until(true: Callable[[], object], timeout: float = 30) -> None:
    """Wait for something that sends no event; so long only on a machine that is busy with something else."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def gone(pid: int) -> bool:
    """Whether this process has ended; its zombie may be there."""
    entry = shim.stat(pid)
    return entry is None or entry.dead


class Box:
    """A run directory, the services started in it, and an ear for what they say."""

    def __init__(self, path: Path) -> None:
        self.dir = path
        self.ear = path / "ear"
        self.started: list[process.Record] = []
        self.strangers: list[subprocess.Popen[bytes]] = []
        os.mkfifo(self.ear)
        self._ear = os.open(self.ear, os.O_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for record in [*self.started, *self._on_disk()]:
            process.kill(record)
        for stranger in self.strangers:
            for pid in (stranger.pid, *shim.descendants(shim.table(), [stranger.pid])):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            stranger.wait()
        os.close(self._ear)
        for record in self.started:
            assert process.members(record) == []

    def _on_disk(self) -> list[process.Record]:
        return [procfs.Record.from_json(path.read_text()) for path in (self.dir / "services").glob("*.json")]

    @property
    def env(self) -> dict[str, str]:
        """What a program needs."""
        return {"PATH": os.environ["PATH"], "EAR": str(self.ear)}

    @property
    def log(self) -> Path:
        """Where the services write."""
        return self.dir / "svc.log"

    def start(
        self, text: str | list[str], service: str = "svc", lock_fd: int | None = None, **env: str
    ) -> process.Record:
        """Run a program as a service."""
        argv = program(text) if isinstance(text, str) else text
        record = process.spawn(
            self.dir, service, f"run-{time.monotonic_ns()}", argv, self.env | env, self.dir, self.log, lock_fd
        )
        self.started.append(record)
        return record

    def stranger(self, text: str) -> subprocess.Popen[bytes]:
        """Run the same kind of program without a guardian, in its own session."""
        self.strangers.append(subprocess.Popen(program(text), env=self.env, start_new_session=True))
        return self.strangers[-1]

    def hear(self, timeout: float = 20) -> Any:
        """The next thing a program tells."""
        line = b""
        while not line.endswith(b"\n"):
            assert select.select([self._ear], [], [], timeout)[0], f"heard nothing; {self.log.read_text()}"
            line += os.read(self._ear, 1)
        return json.loads(line)

    def on_disk(self, service: str = "svc") -> process.Record:
        """The record as the guardian last wrote it."""
        return procfs.Record.from_json((self.dir / "services" / f"{service}.json").read_text())

    def end(self, record: process.Record) -> process.Exit:
        """Wait for the end of a service; how it ended."""
        assert process.wait_exit([record], 20) == {record.service}
        ended = self.on_disk(record.service).exit
        assert ended is not None
        return ended


def sigkill(identity: process.Identity | None) -> None:
    """What the kernel's out-of-memory killer does."""
    assert identity is not None
    os.kill(identity.pid, signal.SIGKILL)
    until(lambda: gone(identity.pid))
