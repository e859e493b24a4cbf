"""The real fleet hurt, mended and ended: what dies shows, what is replaced is that alone, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from guarding import gone, sigkill, until
from real_fleet import MODEL, NOTICE, Real, needs_engines, nothing_left

pytestmark = needs_engines


def test_a_killed_core_shows_and_restart_replaces_it(real: Real) -> None:
    """`ps` says within seconds that the engine is gone, `bench` refuses with 7 if it needs it, `restart` replaces it.

    No other service is touched, and the log of before is still there.
    """
    if real.run("ps").returncode:
        real.up()
    before = real.records
    if real.states()["vllm-a"] == "ready":
        os.kill(real.core("vllm-a"), signal.SIGKILL)
    until(lambda: real.states()["vllm-a"] != "ready", NOTICE)
    refused = real.run("bench", "--context", "context.txt", "--baseline", "vllm-a")
    assert refused.returncode == 7
    assert "vllm-a" in refused.stderr
    assert real.run("ps", "--check").returncode == 7
    real.do("restart", "vllm-a")
    assert real.replaced_since(before) == {"vllm-a"}
    assert set(real.states().values()) == {"ready"}
    assert "Application startup complete" in real.do("logs", "vllm-a", "--previous")


def test_a_killed_cache_shows_and_is_replaced_with_its_engines(ready: Real) -> None:
    """The plain engines go on; after `up` the others share again, through the new server."""
    before = ready.records
    sigkill(before["shared"].leader)
    until(lambda: ready.states()["shared"] != "ready", NOTICE)
    assert {ready.states()[name] for name in ("vllm-a", "vllm-b")} == {"ready"}
    ready.up()
    assert ready.replaced_since(before) == {"shared", "lmcache-a", "lmcache-b"}
    found = ready.bench("--context", "short.txt", "--trials", "1", "--no-limit", "--result-dir", "recovered")
    assert next(row for row in found["rows"] if row["arm"] == "reuse")["verdict"] == "SHARED"


def test_down_leaves_nothing_whatever_was_killed(ready: Real) -> None:
    """A guardian, an API server, and both of one engine killed: `down -v` still ends everything, and no stranger.

    It deletes the KV store, but neither the directory around it, which the user made, nor the file in there.
    """
    plan, records, segments = ready.plan, ready.records, ready.segments()
    assert segments, "engines and cache share memory"
    assert all(spec.store == "" or Path(spec.store).is_dir() for spec in plan.services)
    namesake = 'exec -a VLLM::EngineCore "$0" -S -c "import time; time.sleep(600)" --model "$1"'
    argv = ["bash", "-c", namesake, sys.executable, str(MODEL)]
    stranger = subprocess.Popen(argv, start_new_session=True)
    try:
        for victim in (records["lmcache-a"].guardian, records["vllm-b"].leader):
            sigkill(victim)
        sigkill(records["vllm-a"].guardian)
        sigkill(records["vllm-a"].leader)
        said = ready.do("down", "-v")
        assert "Nothing is left" in said
        assert ready.processes() == []
        assert nothing_left(plan, segments)
        assert not gone(stranger.pid)
        assert {entry.name for entry in (ready.path / "mine").iterdir()} == {"notes.txt"}
        assert "Nothing was running." in ready.do("down", "-v")
    finally:
        stranger.kill()
        stranger.wait()
