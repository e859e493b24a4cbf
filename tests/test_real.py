"""The spine of kvdemo on real vLLM and real LMCache, the fleet of profiles/cpu-long.yaml: up, ps, logs, bench.

One fleet serves the files test_real*.py in their order: it is used, measured, looked at, hurt and ended. Each test also
runs alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kvdemo.backends import lmcache, series
from kvdemo.bench import cacheserver
from kvdemo.host import health
from kvdemo.judge import document, record, results
from real_fleet import HANDBOOK, SERVICES, Real, needs_engines
from watching import RARE, checked, needs_prometheus, prometheus

pytestmark = needs_engines


@pytest.fixture(scope="module")
def benched(real: Real) -> dict[str, Any]:
    """One run of the benchmark."""
    real.mend()
    return real.bench("--context", "context.txt", "--trials", "1", "--result-dir", "results")


def test_up_ends_when_everything_can_generate(real: Real) -> None:
    """Where nobody watches, `up` prints plain lines, ends with 0, and every service is ready then."""
    said = real.up()
    assert "\x1b" not in said
    assert "\r" not in said
    started = re.findall(r"^(\S+) +ready .*:\d+$", said, re.MULTILINE)
    assert set(started) == SERVICES
    assert started.index("shared") < min(started.index("lmcache-a"), started.index("lmcache-b"))
    assert said.splitlines()[-1].startswith("Ready. Next: kvdemo bench")
    assert real.states() == dict.fromkeys(SERVICES, "ready")


def test_up_again_changes_nothing(ready: Real) -> None:
    """The same profile once more: no process is touched."""
    before = ready.records
    said = ready.up()
    assert set(re.findall(r"^(\S+) +unchanged ", said, re.MULTILINE)) == SERVICES
    assert ready.records == before


def test_ps_shows_every_service(ready: Real) -> None:
    """As a table, and with exit code 0 under --check because all are ready; memory and port are real."""
    rows = [line.split() for line in ready.do("ps", "--check").splitlines()]
    assert rows[0][:3] == ["SERVICE", "KIND", "STATE"]
    assert {row[0] for row in rows[1:]} == SERVICES
    for row in rows[1:]:
        assert row[2] == "ready"
        assert "GiB" in row
        assert any(re.fullmatch(r":\d+", cell) for cell in row)


def test_logs_have_prefixes_and_a_tail(ready: Real) -> None:
    """Every line names its service; -n 2 gives the last two of each, as they were when it was asked."""
    lines = ready.do("logs", "-n", "2").splitlines()
    assert {line.split(" | ")[0].strip() for line in lines} == SERVICES
    assert len(lines) == 2 * len(SERVICES)
    before, tail, after = (
        ready.do("logs", "vllm-a", "--no-log-prefix", *few).splitlines() for few in ((), ("-n", "2"), ())
    )
    # An idle engine writes, too: the tail is the end of the log at some moment between the two others.
    assert tail in [after[end - 2 : end] for end in range(len(before), len(after) + 1)]
    assert any("Application startup complete" in line for line in before)


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
    assert "1 of 1 reuses equal" in benched["answer"]["text"]
    assert "to the last bit" in benched["answer"]["text"]


def test_bench_saves_what_it_saw(real: Real, benched: dict[str, Any]) -> None:
    """The samples' sources add up to their prompts; judged again they give the same result as was saved and printed."""
    saved = next((real.path / "results").glob(f"*{benched['run_id'][:4]}.jsonl"))
    held = record.read(saved)
    assert len(held.samples) == 5 + 2  # one trial, and a control on each plain engine
    for sample in held.samples:
        assert sample.sources is not None
        assert sample.sources.total == sample.prompt_tokens == benched["prompt_tokens"]
    again = document.to_json(results.summarize(held.conditions, held.samples))
    assert again == benched


def test_bench_leaves_no_kv_files(real: Real, benched: dict[str, Any]) -> None:
    """Its KV is of no use to anybody: no file of the run stays in the store, not even one written late."""
    store = Path(real.plan.service("shared").store)
    assert store.is_dir()
    assert not list(store.glob(f"*{benched['run_id']}*"))


@needs_prometheus
def test_prometheus_answers_the_dashboard(ready: Real) -> None:
    """It reads every service, agrees with what kvdemo reads, and answers each question about what the fleet exposes."""
    said = ready.do("export", "prometheus", "-o", "watch")
    assert said.startswith(f"prometheus --config.file={ready.path}/watch/prometheus.yml reads the fleet")
    directory = ready.path / "watch"
    checked(directory)
    text = HANDBOOK.read_text()[:4000]
    with prometheus(directory, pace="2s") as watcher:
        watcher.wait_up()
        assert watcher.health() == dict.fromkeys(SERVICES, "up")
        told = [ready.ask(engine, text, "watched") for engine in ("vllm-a", "lmcache-a")]
        cacheserver.settle(ready.plan.service("shared"))
        told += [ready.ask("lmcache-b", text, "watched") for _ in range(2)]
        assert [one.shared > 0 for one in told] == [False, False, True, False]
        watcher.scraped_again()
        exposed = watcher.exposed()
        unanswered = watcher.unanswered(directory)
        by_source = watcher.ask(f"sum by (service, source) ({series.BY_SOURCE.name})")
    assert unanswered <= RARE
    # A prompt without a whole chunk ended early, too, but for another reason than the question's.
    assert exposed & unanswered <= {lmcache.EARLY_EXIT.name}
    for spec in ready.plan.engines:
        counted = health.counters(spec.url)
        assert {source: by_source[(spec.name, source)] for source in series.SOURCES} == {
            source: counted[series.BY_SOURCE.at(source)] for source in series.SOURCES
        }


def test_top_shows_where_a_prompt_came_from(ready: Real) -> None:
    """A computes a text and B loads it: each is one line's only prompt, with the sources that the counters tell.

    Asked by addresses alone, the same engines answer; what was counted since their start is the same.
    """
    text, salt = HANDBOOK.read_text()[:8000], "top"
    process = ready.start("top", "--json", "--interval", "1")
    assert process.stdout is not None
    lines = map(json.loads, process.stdout)
    try:
        next(lines)
        seen = {}
        for engine in ("lmcache-a", "lmcache-b"):
            told = ready.ask(engine, text, salt)
            prompt = next(one for line in lines for one in line["prompts"] if one["engine"] == engine)
            assert prompt["sources"] == {"computed": told.computed, "local": told.local, "shared": told.shared}
            assert prompt["ttft_s"] > 0
            assert prompt["hit_tokens"] in (None, {"l1": told.shared, "l2": 0})
            seen[engine] = told.shared
        shared = seen["lmcache-b"]
        assert (seen["lmcache-a"], shared > 1000) == (0, True)
        line = next(line for line in lines if line["caches"][0]["hit_tokens"] == {"l1": shared, "l2": 0})
        b = next(one for one in line["engines"] if one["service"] == "lmcache-b")
        assert b["prompt_tokens"]["shared"] == shared
        assert b["memory_bytes"] > 1024**3
        (cache,) = line["caches"]
        assert 0 < cache["l1_used_bytes"] <= cache["l1_size_bytes"]
        assert cache["engines_registered"] == 2
    finally:
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in err) == (130, False), err
    urls = [f"--target={spec.name}={spec.url}" for spec in ready.plan.engines]
    outside = json.loads(ready.do("top", *urls, "--count", "1", "--json"))
    rates = {one["service"]: one["hit_rate_since_start"] for one in outside["engines"]}
    assert rates["lmcache-b"] == b["hit_rate_since_start"]
    assert all(one["answers"] and one["kv_cache_usage"] is not None for one in outside["engines"])


def requests(real: Real) -> float:
    """How many prompts the fleet's engines have seen."""
    return sum(health.counters(spec.url)["request_success"] for spec in real.plan.engines)


def test_a_context_longer_than_the_window_is_refused(ready: Real) -> None:
    """Before anything is generated, with both numbers."""
    (ready.path / "long.txt").write_text(HANDBOOK.read_text() * 3)
    before = requests(ready)
    done = ready.run("bench", "--context", "long.txt", "--result-dir", "none")
    assert done.returncode == 2
    sizes = re.search(r"([\d,]+) prompt tokens .* window is 40,960", done.stderr)
    assert sizes, done.stderr
    assert int(sizes[1].replace(",", "")) > 40960
    assert requests(ready) == before
    assert not (ready.path / "none").exists()
