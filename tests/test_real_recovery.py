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


def test_what_was_killed_shows_and_is_replaced(real: Real) -> None:
    """`ps` says within seconds that two engines are gone, `bench` refuses with 7 if it needs one of them.

    `restart` replaces the one that it is told, `up` the other, and nobody else is touched. The log of before stays.
    """
    if real.run("ps").returncode:
        real.up()
    before, states = real.records, real.states()
    if states["vllm-a"] == "ready":
        os.kill(real.core("vllm-a"), signal.SIGKILL)
    sigkill(before["vllm-b"].leader)
    until(lambda: "ready" not in {real.states()[name] for name in ("vllm-a", "vllm-b")}, NOTICE)
    refused = real.run("bench", "--context", "context.txt", "--baseline", "vllm-a")
    assert refused.returncode == 7
    assert "vllm-a" in refused.stderr
    assert real.run("ps", "--check").returncode == 7
    real.do("restart", "vllm-a")
    assert real.replaced_since(before) == {"vllm-a"}
    real.up()
    assert real.replaced_since(before) == {"vllm-a", "vllm-b"}
    assert set(real.states().values()) == {"ready"}
    assert "Application startup complete" in real.do("logs", "vllm-a", "--previous")


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
        assert not ready.project.sockets.exists()
        assert not gone(stranger.pid)
        assert {entry.name for entry in (ready.path / "mine").iterdir()} == {"notes.txt"}
        assert "Nothing was running." in ready.do("down", "-v")
    finally:
        stranger.kill()
        stranger.wait()
