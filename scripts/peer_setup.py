"""The clients that scripts/compare_clients.py puts side by side: how each is started, asked, and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".cache" / "peers"
WANTED = {"guidellm": ["guidellm==0.8.1", "torch==2.13.0+cpu"], "aiperf": ["aiperf==0.13.0"]}
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
LIMIT = 4.0
"""Seconds after which a client that still waits for a stalled stream is stopped."""

Outcome = dict[str, Any]


class NotHereError(Exception):
    """This client cannot be had here, and why."""


class Null:
    """The scripted server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def log(self, scenario: str) -> list[Outcome]:
        """Every POST of this scenario so far."""
        with urllib.request.urlopen(f"{self.url}/log", timeout=10) as answer:  # noqa: S310 (our own)
            return [entry for entry in json.load(answer) if entry["scenario"] == scenario]


@contextmanager
def null_server() -> Iterator[Null]:
    """A server for one client, so that its log is of this client alone."""
    argv = [sys.executable, "-I", "-S", str(ROOT / "tests" / "sse_server.py")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 (a pipe was asked for)
        try:
            yield Null(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()


class Driven:
    """A client that scripts/peer_clients.py drives: it stays, so that rounds can alternate between clients."""

    def __init__(self, name: str, python: str, stack: ExitStack) -> None:
        self.null = stack.enter_context(null_server())
        argv = [python, str(ROOT / "scripts" / "peer_clients.py"), name, self.null.url]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = stack.enter_context(subprocess.Popen(argv, text=True, **pipes))
        stack.callback(self.process.kill)
        self.version = self._answer()["version"]

    def ask(self, prompts: list[str]) -> list[Outcome]:
        """One request after the other."""
        found = []
        for prompt in prompts:
            assert self.process.stdin is not None  # noqa: S101 (a pipe was asked for)
            self.process.stdin.write(json.dumps({"prompt": prompt, "limit": LIMIT}) + "\n")
            self.process.stdin.flush()
            found.append(self._answer())
        return found

    def _answer(self) -> Outcome:
        """Its next line that is ours: libraries print, too."""
        assert self.process.stdout is not None  # noqa: S101 (a pipe was asked for)
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise NotHereError(f"its client ended with {self.process.wait()}")


class AIPerf:
    """AIPerf's command: it starts a dozen processes for each list of prompts."""

    def __init__(self, python: str, tokenizer: Path, stack: ExitStack) -> None:
        if not tokenizer.exists():
            raise NotHereError(f"it needs a tokenizer, and there is none at {tokenizer} (scripts/setup makes one)")
        self.null = stack.enter_context(null_server())
        self.command, self.tokenizer = str(Path(python).with_name("aiperf")), tokenizer
        self.version = WANTED["aiperf"][0].partition("==")[2]

    def ask(self, prompts: list[str]) -> list[Outcome]:
        """All of them in one run; a stalled one is stopped like the other clients."""
        with tempfile.TemporaryDirectory() as place:
            inputs = Path(place, "prompts.jsonl")
            inputs.write_text("".join(json.dumps({"text": prompt}) + "\n" for prompt in prompts))
            argv = [
                self.command,
                "profile",
                "-m",
                "m",
                "--url",
                self.null.url,
                "--endpoint-type",
                "chat",
                "--streaming",
            ]
            argv += ["--input-file", str(inputs), "--custom-dataset-type", "single_turn", "--concurrency", "1"]
            argv += ["--dataset-sampling-strategy", "sequential", "--request-count", str(len(prompts)), "--ui", "none"]
            argv += ["--tokenizer", str(self.tokenizer), "--use-server-token-count", "--artifact-dir", place]
            argv += ["--no-server-metrics", "--no-gpu-telemetry"]
            quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            with subprocess.Popen(argv, cwd=place, start_new_session=True, **quiet) as process:
                try:
                    if not self._wait(process, "stall" if "scenario:stall" in prompts[0] else ""):
                        return [{"ttft": None, "success": False, "error": f"still waiting after {LIMIT:g} s"}]
                finally:
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
            return self._records(Path(place, "profile_export.jsonl"))

    def _wait(self, process: subprocess.Popen[bytes], stall: str) -> bool:
        """Whether it ends by itself: at the latest so long after it has asked for the stalled stream."""
        while stall and not self.null.log(stall) and process.poll() is None:
            time.sleep(0.1)
        try:
            process.wait(LIMIT if stall else 300)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _records(self, path: Path) -> list[Outcome]:
        if not path.exists():
            return []
        records = [json.loads(line) for line in path.read_text().splitlines()]
        found = []
        for record in sorted(records, key=lambda record: record["metadata"]["session_num"]):
            first = record["metrics"].get("time_to_first_token", {}).get("value")
            error = (record.get("error") or {}).get("message", "")
            found.append({"ttft": None if first is None else first / 1e3, "success": not error, "error": error})
        return found


def install(name: str) -> str:
    """The interpreter of this peer's environment, made if need be. Raises NotHereError if it cannot be."""
    python = PEERS / name / "bin" / "python"
    pin = WANTED[name][0].partition("==")
    check = f"import importlib.metadata as m, sys; sys.exit(m.version({pin[0]!r}) != {pin[2]!r})"
    if python.exists() and subprocess.run([python, "-c", check], check=False, capture_output=True).returncode == 0:
        return str(python)
    print(f"installing {pin[0]} {pin[2]} below {PEERS} ...", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(PEERS / name)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *WANTED[name]]
    why = ""
    for index in ([], ["--extra-index-url", TORCH_INDEX]):
        done = subprocess.run([*pip, *index], check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return str(python)
        why = done.stderr.strip()[-300:]
    raise NotHereError(f"cannot be installed: {why}")
