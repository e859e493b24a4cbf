"""The whole of kvdemo on real vLLM and real LMCache: one fleet of profiles/cpu.yaml, used, hurt, mended and ended.

The tests stand in the order in which they cost least; each one also runs alone.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from browsing import Tab, browser, needs_browser, page_of
from guarding import gone, sigkill, until
from kvdemo import health, record, results
from real_fleet import HANDBOOK, MODEL, ROOT, Real, needs_engines, nothing_left

pytestmark = needs_engines

PROFILE = ROOT / "profiles" / "cpu.yaml"
SERVICES = {"shared", "vllm-a", "vllm-b", "lmcache-a", "lmcache-b"}
CONTEXT_CHARACTERS = 30_000
NOTICE = 10
"""Seconds within which a death must show."""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """The fleet of this file; its KV store lies in a directory of the user's, beside a file of the user's."""
    path = tmp_path_factory.mktemp("real")
    (path / "mine").mkdir()
    (path / "mine" / "notes.txt").write_text("mine\n")
    (path / "context.txt").write_text(HANDBOOK.read_text()[:CONTEXT_CHARACTERS])
    (path / "short.txt").write_text(HANDBOOK.read_text()[: CONTEXT_CHARACTERS // 4])
    one = Real(path, PROFILE, "real-cpu", KV_STORE_DIR=str(path / "mine"), KVDEMO_MODEL=str(MODEL))
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def fleet(real: Real) -> Real:
    """The fleet, all of it ready whatever the test before did."""
    if real.run("ps", "--check").returncode:
        real.up()
    return real


@pytest.fixture(scope="module")
def benched(real: Real) -> dict[str, Any]:
    """One run of the benchmark with two trials."""
    if real.run("ps", "--check").returncode:
        real.up()
    return bench(real, 2)


def bench(real: Real, trials: int, context: str = "context.txt") -> dict[str, Any]:
    """Measure; the result."""
    return real.bench("--context", context, "--trials", str(trials), "--result-dir", "results")


def test_up_ends_when_everything_can_generate(real: Real) -> None:
    """Where nobody watches, `up` prints plain lines, ends with 0, and every service is ready then."""
    said = real.up()
    assert "\x1b" not in said
    assert "\r" not in said
    ready = re.findall(r"^(\S+) +ready .*:\d+$", said, re.MULTILINE)
    assert set(ready) == SERVICES
    assert ready.index("shared") < min(ready.index("lmcache-a"), ready.index("lmcache-b"))
    assert said.splitlines()[-1].startswith("Ready. Next: kvdemo bench")
    assert real.states() == dict.fromkeys(SERVICES, "ready")


def test_up_again_changes_nothing(fleet: Real) -> None:
    """The same profile once more: no process is touched."""
    before = fleet.records
    said = fleet.up()
    assert set(re.findall(r"^(\S+) +unchanged ", said, re.MULTILINE)) == SERVICES
    assert fleet.records == before


def test_ps_shows_every_service(fleet: Real) -> None:
    """As a table, and with exit code 0 under --check because all are ready; memory and port are real."""
    rows = [line.split() for line in fleet.do("ps", "--check").splitlines()]
    assert rows[0][:3] == ["SERVICE", "KIND", "STATE"]
    assert {row[0] for row in rows[1:]} == SERVICES
    for row in rows[1:]:
        assert row[2] == "ready"
        assert "GiB" in row
        assert any(re.fullmatch(r":\d+", cell) for cell in row)


def test_logs_have_prefixes_and_a_tail(fleet: Real) -> None:
    """Every line names its service; -n 2 gives the last two of each."""
    lines = fleet.do("logs", "-n", "2").splitlines()
    assert {line.split(" | ")[0].strip() for line in lines} == SERVICES
    assert len(lines) == 2 * len(SERVICES)
    whole = fleet.do("logs", "vllm-a", "--no-log-prefix").splitlines()
    assert whole[-2:] == fleet.do("logs", "vllm-a", "-n", "2", "--no-log-prefix").splitlines()
    assert any("Application startup complete" in line for line in whole)


def test_bench_proves_the_sharing(benched: dict[str, Any]) -> None:
    """Cold is cold, the reader loads what only the writer has computed, and then has it itself; all in whole chunks."""
    verdicts = {(row["engine"], row["arm"]): row["verdict"] for row in benched["rows"]}
    assert verdicts == {
        ("vllm-a", "cold"): "COLD",
        ("vllm-b", "cold"): "COLD",
        ("lmcache-a", "store"): "COLD",
        ("lmcache-b", "reuse"): "SHARED",
        ("lmcache-b", "again"): "LOCAL",
    }
    assert benched["valid"] is True
    reuse = next(row for row in benched["rows"] if row["arm"] == "reuse")
    assert reuse["cached_tokens"] == reuse["external_cached_tokens"] == benched["expected_hit_tokens"]
    assert benched["expected_hit_tokens"] == benched["prompt_tokens"] // 128 * 128
    assert benched["speedup"]["median"] > 3


def test_bench_compares_the_answer_exactly(benched: dict[str, Any]) -> None:
    """Loaded KV gives what the plain engine's own prefix hit gives, bit for bit."""
    assert benched["answer"]["same"] is True
    assert "2 of 2 reuses equal" in benched["answer"]["text"]
    assert "to the last bit" in benched["answer"]["text"]


def test_bench_saves_what_it_saw(real: Real, benched: dict[str, Any]) -> None:
    """The samples' sources add up to their prompts; judged again they give the same result as was saved and printed."""
    saved = next((real.path / "results").glob(f"*{benched['run_id'][:4]}.jsonl"))
    conditions, samples = record.read(saved)
    assert len(samples) == 2 * 5 + 2  # two trials, and a control on each plain engine
    for sample in samples:
        assert sample.sources is not None
        assert sample.sources.total == sample.prompt_tokens == benched["prompt_tokens"]
    again = results.summarize(conditions, samples)
    assert again == benched


def test_bench_leaves_no_kv_files(real: Real, benched: dict[str, Any]) -> None:
    """Its KV is of no use to anybody: no file of the run stays in the store, not even one written late."""
    store = Path(real.plan.service("shared").store)
    assert store.is_dir()
    assert not list(store.glob(f"*{benched['run_id']}*"))


def requests(real: Real) -> float:
    """How many prompts the fleet's engines have seen."""
    return sum(health.counters(spec.url)["request_success"] for spec in real.plan.engines)


def test_a_context_longer_than_the_window_is_refused(fleet: Real) -> None:
    """Before anything is generated, with both numbers."""
    (fleet.path / "long.txt").write_text(HANDBOOK.read_text() * 3)
    before = requests(fleet)
    done = fleet.run("bench", "--context", "long.txt", "--result-dir", "none")
    assert done.returncode == 2
    sizes = re.search(r"([\d,]+) prompt tokens .* window is 40,960", done.stderr)
    assert sizes, done.stderr
    assert int(sizes[1].replace(",", "")) > 40960
    assert requests(fleet) == before
    assert not (fleet.path / "none").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "unfit.txt: is empty"),
        (b" \n\t\n", "unfit.txt: is empty"),
        (b"a\0b" * 99, "unfit.txt: is binary"),
        (b"one\ncaf\xe9\n", "unfit.txt:2: is not UTF-8"),
    ],
    ids=["nothing", "white space", "binary", "latin-1"],
)
def test_an_unfit_context_is_refused(fleet: Real, content: bytes, said: str) -> None:
    """An empty, binary or otherwise encoded file is named with what is wrong."""
    (fleet.path / "unfit.txt").write_bytes(content)
    done = fleet.run("bench", "--context", "unfit.txt")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_context_is_refused(fleet: Real) -> None:
    """So is one that is not there, or a directory."""
    for context, said in (("nowhere.txt", "no such file"), (".", "is a directory")):
        done = fleet.run("bench", "--context", context)
        assert (done.returncode, said in done.stderr) == (2, True), done


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for the tests of the page."""
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def url(real: Real) -> Iterator[str]:
    """The page of the fleet."""
    if real.run("ps").returncode:
        real.up()
    with page_of(real.start) as found:
        yield found


@pytest.fixture
def tab(fleet: Real, chromium: Browser, url: str) -> Iterator[Tab]:  # noqa: ARG001 (it has to be ready)
    """The page, open."""
    one = Tab(chromium, url)
    yield one
    one.close()


@needs_browser
def test_the_page_shows_the_race(fleet: Real, tab: Tab) -> None:
    """Of a document that only A has read, B answers several times sooner than plain B, and its bar says why."""
    tab.upload("context.txt", (fleet.path / "context.txt").read_bytes())
    expect(tab.page.locator(".paper h2")).to_have_text("context.txt")
    assert tab.demonstrate(NOTICE * 11) == {"lmcache-a": "COLD", "vllm-b": "COLD", "lmcache-b": "SHARED"}
    assert tab.ttft("vllm-b") > 3 * tab.ttft("lmcache-b")
    assert tab.sources("lmcache-b")["shared"] > 0.9
    assert tab.sources("vllm-b")["computed"] == 1
    expect(tab.turn.locator(".finding")).to_contain_text("sooner: lmcache-b had")


@needs_browser
def test_the_page_survives_a_core_killed_mid_answer(fleet: Real, tab: Tab) -> None:
    """The lane says so, the engine's light goes out, the others go on.

    The engine stays dead: the next test finds it so, and mends it.
    """
    turn = tab.ask("Who?", "vllm-a")
    expect(turn.locator(".fill")).to_have_attribute("data-phase", "sent")
    os.kill(fleet.core("vllm-a"), signal.SIGKILL)
    assert tab.verdicts() == {"vllm-a": "FAILED"}
    expect(tab.page.locator(".pill[data-health=dead]")).to_contain_text("vllm-a")
    tab.upload("short.txt", (fleet.path / "short.txt").read_bytes())
    expect(tab.page.locator(".paper h2")).to_have_text("short.txt")
    tab.ask("Who?", "lmcache-b")
    assert tab.verdicts() == {"lmcache-b": "COLD"}


def test_a_killed_core_shows_and_is_replaced(real: Real) -> None:
    """`ps` says within seconds that the engine is gone, `bench` refuses with 7, `up` replaces that engine alone."""
    if real.run("ps").returncode:
        real.up()
    fleet, before = real, real.records
    if fleet.states()["vllm-a"] == "ready":
        os.kill(fleet.core("vllm-a"), signal.SIGKILL)
    until(lambda: fleet.states()["vllm-a"] != "ready", NOTICE)
    refused = fleet.run("bench", "--context", "context.txt")
    assert refused.returncode == 7
    assert "vllm-a" in refused.stderr
    assert fleet.run("ps", "--check").returncode == 7
    fleet.up()
    assert fleet.replaced_since(before) == {"vllm-a"}
    assert set(fleet.states().values()) == {"ready"}


def test_a_killed_cache_shows_and_is_replaced_with_its_engines(fleet: Real) -> None:
    """The plain engines go on; after `up` the others share again, through the new server."""
    before = fleet.records
    sigkill(before["shared"].leader)
    until(lambda: fleet.states()["shared"] != "ready", NOTICE)
    assert {fleet.states()[name] for name in ("vllm-a", "vllm-b")} == {"ready"}
    fleet.up()
    assert fleet.replaced_since(before) == {"shared", "lmcache-a", "lmcache-b"}
    reuse = next(row for row in bench(fleet, 1, "short.txt")["rows"] if row["arm"] == "reuse")
    assert reuse["verdict"] == "SHARED"


def test_restart_replaces_one_engine(fleet: Real) -> None:
    """The others keep their processes, and its log of before is still there."""
    before = fleet.records
    fleet.do("restart", "vllm-b")
    assert fleet.replaced_since(before) == {"vllm-b"}
    assert fleet.states()["vllm-b"] == "ready"
    assert "Application startup complete" in fleet.do("logs", "vllm-b", "--previous")


def test_down_leaves_nothing_whatever_was_killed(fleet: Real) -> None:
    """A guardian, an API server, and both of one engine killed: `down -v` still ends everything, and no stranger.

    It deletes the KV store, but neither the directory around it, which the user made, nor the file in there.
    """
    plan, records, segments = fleet.plan, fleet.records, fleet.segments()
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
        said = fleet.do("down", "-v")
        assert "Nothing is left" in said
        assert fleet.processes() == []
        assert nothing_left(plan, segments)
        assert not gone(stranger.pid)
        assert {entry.name for entry in (fleet.path / "mine").iterdir()} == {"notes.txt"}
        assert "Nothing was running." in fleet.do("down", "-v")
    finally:
        stranger.kill()
        stranger.wait()
