#!/usr/bin/env python3
"""The worst load of a profile on its GPU: every engine computes a long document at the same time, and must survive it.

    scripts/gpu_peak.py [PROFILE] [--leave GIB] [--tokens N] [--rounds N] [--json FILE]

``--leave`` makes a large GPU a small one: a process of torch holds memory until only so many GiB are free (an H100 80GB
has 79.6). Then `kvdemo up`; in each round every engine gets a document of its own, of N tokens, all at once; in the
last one each gets the document of its neighbour before it, which cached engines load while the plain ones compute. The
GPU's memory is read every 20 ms. Exit code 3 if an answer failed or an engine is not ready afterwards. Without a GPU
the same is done, and no memory is told.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from kvdemo.config import profile
from kvdemo.host import gpus, survey
from kvdemo.host.state import Project, root
from kvdemo.planning.plan import ServiceSpec

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "peak"
INTERVAL = 0.02
GIB = 1024**3
MIB = 1024**2
PATIENCE = 600.0
BALLAST = """
import sys, torch
want, held = float(sys.argv[1]) * 2**30, []
free = torch.cuda.mem_get_info()[0]
while free - want > 2**20:
    held.append(torch.empty(min(2**30, int(free - want)), dtype=torch.uint8, device="cuda"))
    free = torch.cuda.mem_get_info()[0]
print(int(free), flush=True)
sys.stdin.read()
"""
"""Hold all of the first GPU's memory but so many GiB, until standard input ends."""


def used() -> int:
    """Bytes in use on the first GPU; 0 without one."""
    found = gpus.detect(os.environ)
    return gpus.memory_in_use(frozenset({found[0].uuid}))[found[0].uuid] if found else 0


class Peak:
    """The most memory in use while it is entered."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            self.bytes = max(self.bytes, used())

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@contextmanager
def ballast(leave: float) -> Iterator[None]:
    """So many GiB of the first GPU are free inside; all of it if 0."""
    if not leave:
        yield
        return
    argv = [sys.executable, "-c", BALLAST, str(leave)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if not (process.stdout and process.stdout.readline()):
            raise SystemExit("the ballast could not be allocated")
        yield
        process.communicate()


def kvdemo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command to its end."""
    argv = [sys.executable, "-m", "kvdemo", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def document(engine: ServiceSpec, text: str, tokens: int) -> str:
    """The beginning of a text (repeated if it is too short) that is about so many of the engine's tokens."""
    body = {"model": engine.model, "prompt": text}
    count = httpx.post(f"{engine.url}/tokenize", json=body, timeout=PATIENCE).json()["count"]
    length = int(len(text) * tokens / count)
    return (text * (length // len(text) + 1))[:length]


def ask(engine: ServiceSpec, prompt: str) -> dict[str, Any]:
    """One completion; its tokens and seconds, or what went wrong."""
    body = {"model": engine.model, "prompt": prompt, "max_tokens": 64, "temperature": 0, "ignore_eos": True}
    began = time.monotonic()
    try:
        answer = httpx.post(f"{engine.url}/v1/completions", json=body, timeout=PATIENCE)
        answer.raise_for_status()
        usage = answer.json()["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        told = {"prompt_tokens": usage["prompt_tokens"], "cached_tokens": cached}
    except (httpx.HTTPError, LookupError, ValueError) as error:
        told = {"error": f"{type(error).__name__}: {error}"}
    return {"engine": engine.name, "seconds": round(time.monotonic() - began, 3), **told}


def load(path: Path, tokens: int, rounds: int) -> tuple[list[list[dict[str, Any]]], int]:
    """The answers of each round, and the most memory in use meanwhile."""
    plan = survey.saved_plan(Project(root(os.environ), PROJECT))
    if plan is None:
        raise SystemExit("the fleet left no plan")
    text = Path(profile.load(path, os.environ).bench.context or ROOT / "profiles" / "handbook.txt").read_text()
    prompt = document(plan.engines[0], text, tokens)
    prompts = [[f"Copy {number} for {engine.name}. {prompt}" for engine in plan.engines] for number in range(rounds)]
    prompts.append([*prompts[-1][-1:], *prompts[-1][:-1]])
    with ThreadPoolExecutor(len(plan.engines)) as pool, Peak() as peak:
        answers = [list(pool.map(ask, plan.engines, some)) for some in prompts]
    return answers, peak.bytes


def measure(path: Path, leave: float, tokens: int, rounds: int) -> dict[str, Any]:
    """Everything, as a document; the fleet is down and the ballast gone at the end."""
    with ballast(leave):
        before = used()
        plan = kvdemo("plan", str(path), "-p", PROJECT, "--format", "json")
        if plan.returncode:
            raise SystemExit(f"kvdemo plan failed with exit code {plan.returncode}:\n{plan.stderr}")
        done = kvdemo("up", str(path), "-p", PROJECT)
        try:
            if done.returncode:
                raise SystemExit(f"kvdemo up failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
            started = used()
            answers, peak = load(path, tokens, rounds)
            after, check = used(), kvdemo("ps", "-p", PROJECT, "--check")
        finally:
            kvdemo("down", "-p", PROJECT, "-v")
    sizes = {"before": before, "started": started, "peak": peak, "after": after}
    return {
        "profile": path.name,
        "left_free_gib": leave or None,
        "mib": {name: size // MIB for name, size in sizes.items()},
        "fleet_gib": {name: round((size - before) / GIB, 2) for name, size in sizes.items()},
        "planned": json.loads(plan.stdout)["sums"],
        "rounds": answers,
        "ready_afterwards": check.returncode == 0,
        "ps": check.stdout + check.stderr,
    }


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = ROOT / "profiles" / "one-gpu.yaml"
    parser.add_argument("profile", type=Path, nargs="?", default=default, metavar="PROFILE", help="default: one-gpu")
    parser.add_argument("--leave", type=float, default=0.0, metavar="GIB", help="of the GPU's memory (default: all)")
    parser.add_argument("--tokens", type=int, default=30000, metavar="N", help="of each document (default: 30000)")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="in which all compute (default: 2)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="save the result")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvdemo-peak-") as scratch:
        os.environ |= {"KVDEMO_STATE_DIR": f"{scratch}/state", "KV_STORE_DIR": f"{scratch}/kv-store"}
        found = measure(given.profile.absolute(), given.leave, given.tokens, given.rounds)
    text = json.dumps(found, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")
    failed = [answer for some in found["rounds"] for answer in some if "error" in answer]
    return 0 if found["ready_afterwards"] and not failed else 3


if __name__ == "__main__":
    sys.exit(main())
