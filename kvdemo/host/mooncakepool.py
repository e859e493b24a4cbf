"""A Mooncake store as one process tree: `mooncake_master`, and `mooncake_client`, which owns the pool of memory.

    python mooncakepool.py --host ADDRESS --port RPC --http-port HTTP --pool-port POOL --l1 BYTES [MASTER-FLAG]...

Neither is of use without the other: when one of them ends, the other is ended too. It imports nothing of kvdemo, and
runs in whatever interpreter holds Mooncake.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import socket
import sys
import time
from pathlib import Path

PATIENCE = 30.0
"""Seconds for the master to listen."""

POLL = 0.05


def main(words: list[str]) -> int:
    """Run both until one ends or a signal comes; the exit code."""
    options, further = arguments(words)
    folder = package()
    if not folder:
        print("ModuleNotFoundError: Mooncake is not installed for this interpreter", file=sys.stderr)
        return 1
    running: dict[int, str] = {}
    stopping: list[int] = []

    def stop(number: int, _: object) -> None:
        stopping.append(number)
        for pid in running:
            os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    running[launch(master(folder, options, further))] = "mooncake_master"
    if not stopping and listens(options.host, options.port):
        running[launch(pool(folder, options))] = "mooncake_client"
    else:
        stop(0, None)
    return wait(running, stopping)


def arguments(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What is ours, and what is the master's."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--host", required=True)
    for name in ("--port", "--http-port", "--pool-port", "--l1"):
        parser.add_argument(name, type=int, required=True)
    return parser.parse_known_args(words)


def package() -> str:
    """The folder of the package, without importing it; empty if it is not installed."""
    spec = importlib.util.find_spec("mooncake")
    return next(iter(spec.submodule_search_locations or ()), "") if spec else ""


def master(folder: str, options: argparse.Namespace, further: list[str]) -> list[str]:
    """The command of the process that knows the keys; its flags have underscores."""
    words = [f"-rpc_address={options.host}", f"-rpc_port={options.port}", f"-metrics_host={options.host}"]
    words += [f"-metrics_port={options.http_port}", "-logtostderr"]
    return [f"{folder}/mooncake_master", *words, *map(underscored, further)]


def underscored(word: str) -> str:
    """A flag as gflags writes it: ``--no-enable-ha`` is ``-noenable_ha``; a value stays."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    name = f"no{name[3:]}" if name.startswith("no-") else name
    return f"-{name.replace('-', '_')}{equals}{value}"


def pool(folder: str, options: argparse.Namespace) -> list[str]:
    """The command of the process that owns the memory."""
    return [
        f"{folder}/mooncake_client",
        f"-host={options.host}",
        f"-port={options.pool_port}",
        f"-global_segment_size={options.l1}",
        f"-master_server_address={options.host}:{options.port}",
        "-metadata_server=P2PHANDSHAKE",
        "-protocol=tcp",
        "-logtostderr",
    ]


def launch(words: list[str]) -> int:
    """Start a program; its pid."""
    Path(words[0]).chmod(0o755)  # some installers drop the mode that the wheel gives it
    return os.posix_spawn(words[0], words, os.environ)


def listens(host: str, port: int) -> bool:
    """Wait until somebody listens there; False if nobody does in time, or if a child has ended."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) == 0:
                return True
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(POLL)
    return False


def wait(running: dict[int, str], stopping: list[int]) -> int:
    """Wait for the end of all; when the first ends unasked, say so, and end the others."""
    code = 0
    while running:
        pid, status = os.wait()
        name = running.pop(pid, "")
        if name and not stopping:
            code = 1
            how = os.waitstatus_to_exitcode(status)
            # In the form of an exception, by which a cause is found in a log.
            print(f"ChildProcessError: {name} ended by itself ({how})", file=sys.stderr, flush=True)
            stopping.append(0)
            for other in running:
                os.kill(other, signal.SIGTERM)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
