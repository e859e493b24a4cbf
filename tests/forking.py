"""``kvdemo`` as a process of its own, forked from one that has imported it: half a second of processor less for each.

Only the start of the interpreter and the imports are left out: directory, environment, session, streams, signals and
exit code are those of ``python -m kvdemo``. tests/test_forking.py holds the two against each other.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = [sys.executable, "-m", "kvdemo"]
IMPORTED = (
    *("rich.console", "rich.live", "rich.progress", "rich.table"),
    *("kvdemo.cli", "kvdemo.estimate.result", "kvdemo.fleet.gauges", "kvdemo.fleet.lifecycle", "kvdemo.bench.preheat"),
    *("kvdemo.bench.bench", "kvdemo.bench.context", "kvdemo.load.experiment", "kvdemo.judge.document"),
)
"""What most commands need. Nothing that looks at its terminal or its variables while it is imported."""
AT_START = ("PYTHON", "LC_ALL", "LC_CTYPE", "LANG", "PYDANTIC_")
"""Variables that count only while an interpreter starts or imports."""
LARGEST = 1 << 20


def _at_start(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(AT_START)}


class Server:
    """The process that has imported kvdemo."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def can(self, environ: Mapping[str, str]) -> bool:
        """Whether a process with these variables would have started and imported the same way."""
        return _at_start(environ) == _at_start(self.environ)

    def fork(self, request: Mapping[str, Any], fds: Sequence[int]) -> int:
        """The pid of a new process; ``fds`` are its standard streams, and where is written how it ended."""
        socket.send_fds(self.socket, [json.dumps(request).encode()], fds)
        return int(self.socket.recv(LARGEST))

    def close(self) -> None:
        """End it."""
        self.socket.close()
        self.process.wait()


class Forked(subprocess.Popen[str]):
    """What ``subprocess.Popen`` is of a process that was started by itself."""

    def __init__(self, server: Server, arguments: Sequence[str], cwd: Path, environ: Mapping[str, str]) -> None:
        self._server, self._request = server, {"arguments": arguments, "cwd": str(cwd), "environ": dict(environ)}
        self._end = -1
        pipe = subprocess.PIPE
        super().__init__([*PROGRAM, *arguments], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)

    def _execute_child(self, *given: Any) -> None:
        # Where Popen forks. Of its pipes' ends each second one is ours.
        fds = [*given[10:16]]
        self._end, status = os.pipe()
        theirs = [fds[0], fds[3], fds[5], status]
        self.pid = self._server.fork(self._request, theirs)
        self._child_created = self._closed_child_pipe_fds = True
        for fd in theirs:
            os.close(fd)

    def _internal_poll(self, *_: object, **__: object) -> int | None:
        if self.returncode is None and select.select([self._end], [], [], 0)[0]:
            self._wait(None)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            if not select.select([self._end], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(int(os.read(self._end, 16)))
            os.close(self._end)
        return self.returncode


@cache
def _server() -> Server:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = Server(environ)
    atexit.register(server.close)
    return server


_forbidden: list[bool] = []


@contextlib.contextmanager
def never() -> Iterator[None]:
    """Meanwhile each process is a new interpreter."""
    _forbidden.append(True)
    yield
    _forbidden.pop()


def start(arguments: Sequence[str], cwd: Path, environ: Mapping[str, str]) -> subprocess.Popen[str]:
    """``kvdemo``, running in a session of its own: a fork where that is the same, else a new interpreter."""
    if not _forbidden and _server().can(environ):
        return Forked(_server(), arguments, cwd, environ)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=cwd,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )


def run(
    arguments: Sequence[object], cwd: Path, environ: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """The same to its end; killed if that does not come in time (seconds)."""
    with start([*map(str, arguments)], cwd, environ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _children(requests: socket.socket) -> Iterator[tuple[dict[str, Any], list[int]]]:
    # Fork for each request: yields it in the child; ends in the server, when nobody will ask any more.
    living: dict[int, int] = {}
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    while True:
        ready, *_ = select.select([requests.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            for child in list(living):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    fd = living.pop(child)
                    with contextlib.suppress(BrokenPipeError):
                        os.write(fd, str(status).encode())
                    os.close(fd)
        if requests.fileno() not in ready:
            continue
        message, fds, *_ = socket.recv_fds(requests, LARGEST, 4)
        if not message:
            return
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            for fd in (woken, wake, fds.pop(), *living.values()):
                os.close(fd)
            yield json.loads(message), fds
        requests.send(str(pid).encode())
        living[pid] = fds.pop()
        for fd in fds:
            os.close(fd)


def _serve(requests: socket.socket) -> None:
    # In each child: become the program.
    for name in IMPORTED:
        importlib.import_module(name)
    assert "kvdemo.report.terminal" not in sys.modules
    gc.freeze()
    for request, fds in _children(requests):
        os.setsid()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environ"])
        sys.argv = [str(ROOT / "kvdemo" / "__main__.py"), *request["arguments"]]
        importlib.import_module("kvdemo.__main__").main()
        sys.exit()


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
