"""What lies on disk on real engines: a KV store outlives its fleet, and other weights get nothing of it.

And the plan as a shell script: it starts the same fleet without kvdemo.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guarding import until
from kvdemo.planning.plan import Plan
from real_fleet import HANDBOOK, MODEL, ROOT, START, Real, Told, ask, needs_engines, nothing_left

pytestmark = needs_engines

PAIR = """
version: 1
name: pair
model: ./model
defaults:
  engine: {gpus: [], kv_cache: 1GiB, max_model_len: 16384}
caches:
  shared: {l1: 1GiB, l2: ./kv, chunk_size: 128}
engines:
  writer: {cache: shared}
  reader: {cache: shared}
"""
TEXT = HANDBOOK.read_text()[:8000]
SALT = "kept"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """Two engines that share a store; the model is a copy, so that its weights can be changed."""
    path = tmp_path_factory.mktemp("pair")
    (path / "pair.yaml").write_text(PAIR)
    shutil.copytree(MODEL, path / "model")
    one = Real(path, path / "pair.yaml", "pair")
    try:
        yield one
    finally:
        one.close()


def files(pair: Real) -> set[Path]:
    """The KV files of TEXT."""
    return set((pair.path / "kv").glob(f"*/*@{SALT}*.data"))


@pytest.fixture(scope="module")
def stored(pair: Real) -> Told:
    """The answer of the engine that computed TEXT and stored its KV; its fleet, started by a script, is down again.

    The plan as a shell script serves and shares as `up` does; on SIGTERM it stops everything it started.
    """
    plan = Plan.from_json(json.loads(pair.do("plan", pair.profile, "--format", "json")))
    script, log = pair.path / "fleet.sh", pair.path / "fleet.out"
    script.write_text(pair.do("export", "shell", pair.profile))
    with log.open("w") as out:
        running = subprocess.Popen(["bash", str(script)], cwd=pair.path, env=pair.environ, stdout=out, stderr=out)
    try:
        until(lambda: "all ready" in log.read_text() or running.poll() is not None, START)
        assert running.poll() is None, log.read_text()
        wrote, loaded = ask(plan, "writer", TEXT, SALT), ask(plan, "reader", TEXT, SALT)
        assert wrote.local == wrote.shared == 0
        assert loaded.shared == wrote.computed // 128 * 128
        until(lambda: len(files(pair)) == wrote.computed // 128, 30)
        segments = pair.segments()
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 128 + signal.SIGTERM
        until(lambda: not pair.processes(), 10)
        assert nothing_left(plan, segments)
    finally:
        for pid in pair.processes():
            os.kill(pid, signal.SIGKILL)
        running.wait()
    return wrote


def test_a_script_starts_the_same_fleet(stored: Told) -> None:
    """Its engines have computed and shared, and nothing of it is left."""
    assert stored.computed > 128


def test_other_weights_get_nothing_from_the_store(pair: Real, stored: Told) -> None:
    """Weights of another seed at the same path: no hit under the same salt, and the answer of the new weights."""
    before = files(pair)
    assert len(before) == stored.computed // 128
    weights = (pair.path / "model" / "model.safetensors").read_bytes()
    command = [sys.executable, str(ROOT / "scripts" / "tiny_model.py"), str(pair.path / "model"), "--seed", "1"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert (pair.path / "model" / "model.safetensors").read_bytes() != weights
    pair.up("reader")
    told, fresh = pair.ask("reader", TEXT, SALT), pair.ask("reader", TEXT, "fresh")
    assert (told.local, told.shared, told.computed) == (0, 0, stored.computed)
    assert told.answer == fresh.answer
    assert told.token_ids != stored.token_ids
    until(lambda: len(files(pair)) == 2 * len(before), 30)
    (pair.path / "kept.txt").write_text("mine\n")
    pair.do("down", "-v")
    # What the script stored stays: kvdemo has never used that directory.
    assert files(pair) == before
    assert set((pair.path / "kv").iterdir()) == {file.parent for file in before}
    assert {"kept.txt", "model", "pair.yaml"} <= {entry.name for entry in pair.path.iterdir()}
