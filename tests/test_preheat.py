"""``up --preheat``: every engine has read something before anybody asks, and nothing of it is left."""

from __future__ import annotations

import asyncio
import io
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conftest import PATIENCE, Lab
from guarding import until
from kvdemo.bench import preheat, trials
from kvdemo.errors import ServiceError
from kvdemo.fleet import fleet
from kvdemo.fleet.watch import State
from kvdemo.host import health
from kvdemo.report import terminal
from kvdemo.ui.conversation import Bell
from kvdemo.ui.engines import EnginePool
from test_cli import read_until

ENGINES: dict[str, dict[str, Any]] = {"plain": {}, "a": {"cache": "shared"}, "b": {"cache": "shared"}}
READ = "prompt_tokens"
LOADED = "prompt_tokens_by_source{external_kv_transfer}"


def profile(lab: Lab, engines: dict[str, dict[str, Any]] | None = None, **settings: Any) -> Path:
    """One plain engine and two that share, with files."""
    caches = {"shared": {"l1": "16MiB", "l2": "./kv", "chunk_size": 64}}
    return lab.profile(engines or ENGINES, caches, **settings)


def counted(lab: Lab, name: str = READ) -> dict[str, float]:
    """A counter of each engine."""
    engines = fleet.load_plan(lab.project()).engines
    return {spec.name: health.counters(spec.url)[name] for spec in engines}


def said(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The last line about each service."""
    return {line.split()[0]: line for line in done.stdout.splitlines() if line and not line.startswith("Ready.")}


@pytest.mark.parametrize("context", ["", "one two three\n" * 3, "word " * 9000], ids=["none", "short", "long"])
def test_every_engine_reads_once(lab: Lab, context: str) -> None:
    """Whatever the profile's document is: enough to be warm, the second of a cache from the cache; no file is left."""
    (lab.path / "context.txt").write_text(context)
    path = profile(lab, bench={"context": "context.txt"} if context else {})
    done = lab.run("up", path, "--preheat")
    assert done.returncode == 0, done
    assert done.stdout.count("preheating") == 3
    assert all("preheated: first token after" in said(done)[name] for name in ENGINES)
    assert "Ready. Next:" in done.stdout
    read = counted(lab)
    assert min(read.values()) >= preheat.PREHEAT_TOKENS
    assert counted(lab, LOADED)["b"] > preheat.PREHEAT_TOKENS / 2
    assert (lab.path / "kv").is_dir()
    assert not list((lab.path / "kv").glob("**/*.data"))
    again = lab.run("up", path, "--preheat")
    assert all("warm already" in said(again)[name] for name in ENGINES)
    greeting = 1  # what `up` lets an engine generate from to see that it can
    assert counted(lab) == {name: tokens + greeting for name, tokens in read.items()}


@pytest.mark.parametrize("warm", [True, False])
def test_the_page_has_nothing_left_to_warm(lab: Lab, warm: bool) -> None:
    """Engines that ``up`` has preheated are not asked again; others are."""
    assert lab.run("up", profile(lab), *(["--preheat"] if warm else [])).returncode == 0
    before = counted(lab)
    stage = EnginePool(lab.project(), lab.environ)
    loop = asyncio.new_event_loop()
    stage.bell = Bell(loop)
    with stage.meter:
        stage.preheat()
    loop.close()
    assert stage.warmed.is_set()
    assert (counted(lab) == before) == warm
    assert min(counted(lab).values()) >= preheat.PREHEAT_TOKENS


def test_a_failure_is_told_and_stops_nothing(lab: Lab) -> None:
    """One cannot read, one dies of it: exit code 1 with the reasons; the others are warm, and the fleet stays."""
    engines = ENGINES | {"bad": {"env": {"FAKE_STATUS": "503"}}, "mortal": {"env": {"FAKE_DIE_AFTER": "0"}}}
    done = lab.run("up", profile(lab, engines), "--preheat")
    assert done.returncode == 1
    assert "error: not preheated: bad: HTTP 503: not now; mortal: " in done.stderr
    assert "the fleet is up all the same" in done.stderr
    assert "not preheated: HTTP 503: not now" in said(done)["bad"]
    assert "preheated: first token" in said(done)["b"]
    assert "Ready. Next:" not in done.stdout
    states = {event.service: event.state.value for event in fleet.status(lab.project(), lab.environ)}
    assert states == dict.fromkeys(("shared", "plain", "a", "b", "bad"), "ready") | {"mortal": "exited"}


def test_it_fits_a_small_window(lab: Lab) -> None:
    """An engine that can read little is warm when it has read that."""
    path = profile(lab, {"plain": {"max_model_len": 600}})
    assert lab.run("up", path, "--preheat").returncode == 0
    assert "warm already" in said(lab.run("up", path, "--preheat"))["plain"]


def test_only_who_was_named_is_preheated(lab: Lab) -> None:
    """As everything that ``up`` does."""
    path = profile(lab)
    assert lab.run("up", path).returncode == 0
    before = counted(lab)
    assert lab.run("up", path, "a", "--preheat").returncode == 0
    assert {name for name, read in counted(lab).items() if read != before[name]} == {"a"}


def test_what_cannot_be_is_refused_before_anything_starts(lab: Lab) -> None:
    """Nobody waits for minutes to be told."""
    done = lab.run("up", profile(lab), "--preheat", "--no-wait")
    assert (done.returncode, "cannot be combined with --no-wait" in done.stderr) == (2, True)
    done = lab.run("up", profile(lab, bench={"context": "missing.txt"}), "--preheat")
    assert (done.returncode, "missing.txt: no such file" in done.stderr) == (2, True)
    assert not lab.project().records()


def test_ctrl_c_stops_what_was_started(lab: Lab) -> None:
    """The preheat is a part of ``up``."""
    process = lab.start("up", profile(lab, {"slow": {"env": {"FAKE_DELAY_S": "60"}}}), "--preheat")
    read_until(process, "preheating")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "interrupted" in err, "Traceback" in err) == (130, True, False), err
    assert not lab.project().records()
    until(lambda: not lab.pids())


def test_the_live_table_shows_it(lab: Lab) -> None:
    """On a terminal it stands in the row of its engine."""
    path = profile(lab, {"plain": {}})
    screen = io.StringIO()
    heat = preheat.Preheat(lab.plan(path), lab.project(), lab.environ)
    with terminal.Fleet(Console(file=screen, force_terminal=True, width=200)) as show:
        for event in lab.up(path, then=heat):
            show(event)
    heat.check()
    assert "preheated: first token after" in screen.getvalue()


def test_a_store_that_cannot_be_tidied_is_told(lab: Lab) -> None:
    """The KV that is left is named; the fleet stays."""
    path = profile(lab)
    lab.up(path)
    plan = lab.plan(path)
    heat = preheat.Preheat(plan, lab.project(), lab.environ)
    obstacle = Path(plan.service("shared").directory) / f"directory@{heat.salt}.data"
    obstacle.mkdir()
    assert lab.up(path, then=heat)[-1].state is State.READY
    with pytest.raises(ServiceError, match=r"its KV is left in L2: .*directory@"):
        heat.check()


def test_the_text_is_long_enough(lab: Lab) -> None:
    """For every profile."""
    assert len(preheat.text(lab.plan(profile(lab)))) >= trials.WARM_UP_CHARACTERS
