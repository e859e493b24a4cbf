"""KV backends: what each must say, who may know one by its name, and how LMCache's answers are read."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdemo import backends
from kvdemo.backends import series
from kvdemo.backends.backend import Address, Backend, Lookups, Losses, Refusal, Server, Usage
from kvdemo.backends.lmcache import UNREGISTERED, LMCache
from kvdemo.config import decisions, flags
from kvdemo.config.profile import Cache
from kvdemo.host import health, shim
from real_fleet import needs_engines
from runs import CALM

PACKAGE = Path(__file__).parents[1] / "kvdemo"
SERVER = Server("127.0.0.1", "127.0.0.1", 1, 2, l1=2**30, chunk_size=256, engines=2, on_gpu=False, store="/kv/x")


def with_engines(test: Callable[..., None]) -> Callable[..., None]:
    """Where vLLM and LMCache are installed."""
    for mark in needs_engines:
        test = mark(test)
    return test


EVERY = pytest.mark.parametrize("backend", backends.BACKENDS.values(), ids=lambda one: one.kind)

NAMED = {
    "backends": "the backend itself, and the list of all",
    "config": "the keys, flags and variables of a profile, as users write them",
    "estimate/formats.py": "files that it writes",
    "estimate/stack.py": "the order in which its server and its simulator evict",
    "export": "images, manifests and other benchmarks",
    "fleet/software.py": "failure signatures",
    "fleet/signatures.py": "failure signatures",
    "fleet/logtext.py": "how its log lines look",
    "fleet/logtime.py": "how its log lines look",
    "host/imports.py": "the check of an installation",
    "host/packages.py": "what an interpreter has to hold",
    "host/probe.py": "what an interpreter has to hold",
    "host/runtime.py": "what an interpreter has to hold",
    "host/shim.py": "the guardian imports nothing of kvdemo; a test below holds it to the list",
    "planning/choice.py": "where a model comes from",
    "planning/pair.py": "the versions that kvdemo is run with",
    "planning/predict.py": "with what its constants were measured",
    "commands/checks.py": "doctor's checks of an installation",
    "commands/parameters.py": "the former name of --cache-url, and the name of another benchmark",
    "cli.py": "what kvdemo is, in one sentence",
}
"""Who may name LMCache, and why."""


def test_a_backend_is_known_by_its_name_to_few() -> None:
    """bench, load, judge, words, report and the page measure any backend; whoever names one has a reason."""
    texts = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
    # The engines of the shipped profiles, of which examples speak, are called lmcache-a and lmcache-b.
    named = {path for path, text in texts.items() if re.search(r"lmcache(?!-[ab]\b)", text, re.IGNORECASE)}
    assert {path for path in named if not {path, path.partition("/")[0]} & set(NAMED)} == set()


@EVERY
def test_what_a_backend_must_say(backend: Backend) -> None:
    """A kind as profiles write it, words that start its server, and flags that its engines and its server take."""
    assert backends.of(backend.kind) is backend
    assert re.fullmatch(r"[a-z][a-z0-9-]*", backend.kind)
    assert backend.title
    assert bool(backend.command) == backend.serves
    if not backend.serves:
        return
    wiring = backend.wiring(Address("10.0.0.1", 5555))
    text = " ".join([*flags.words(wiring.arguments), *wiring.env.values(), *wiring.files.values()])
    assert {"10.0.0.1", "5555"} <= set(re.findall(r"[\d.]+", text)), "an engine has to find its server"
    words = flags.words(backend.options(SERVER))
    assert all(isinstance(word, str) for word in words)
    if "l2" not in backend.lacks:
        assert any("/kv/x" in word for word in words), "L2 lies where the plan says"
        assert flags.words(backend.options(replace(SERVER, store=""))) != words


@EVERY
@CALM
@given(tokens=st.integers(1, 100_000), chunk=st.integers(16, 1024))
def test_the_last_token_is_computed(backend: Backend, tokens: int, chunk: int) -> None:
    """No engine loads a whole prompt, and of a longer one never less."""
    assert 0 <= backend.reusable(tokens, chunk) < tokens
    assert backend.reusable(tokens, chunk) <= backend.reusable(tokens + 1, chunk)


@CALM
@given(st.integers(1, 100_000), st.integers(16, 1024))
def test_lmcache_shares_whole_chunks(tokens: int, chunk: int) -> None:
    """All but the last token at most, and what is left over is no whole chunk more than that."""
    hit = LMCache().reusable(tokens, chunk)
    assert hit % chunk == 0 or hit == tokens - 1
    assert tokens - hit <= chunk


@EVERY
def test_a_profile_decides_each_thing_once(backend: Backend) -> None:
    """What a key decides is no flag and no variable beside it; and such a key there is."""
    assert set(backend.own_flags.values()) <= set(Cache.model_fields)
    assert set(backend.own_variables.values()) <= set(Cache.model_fields)
    assert not set(backend.own_flags) & set(backend.refused_flags)
    assert not set(backend.own_variables) & set(backend.refused_variables)
    assert set(backend.lacks) <= set(Cache.model_fields)
    assert set(backend.own_flags) <= set(backend.options(SERVER)), "a flag that a key decides is one that kvdemo writes"
    for flag, key in backend.own_flags.items():
        assert [*decisions.of_cache(flag, 1, backend.kind)] == [
            f"this flag has a key of its own: write '{key}' outside of args"
        ]


def test_a_value_that_changes_nothing_is_not_refused() -> None:
    """A flag that says what kvdemo says anyway may stand; a null leaves it out."""
    refusal = Refusal("why", (None, False, "auto"))
    assert [refusal.holds(value) for value in (None, False, "auto", True, "other", 5)] == [False] * 3 + [True] * 3


@EVERY
def test_a_backend_that_does_not_answer_is_unknown(backend: Backend) -> None:
    """Nothing read is nothing known: no report and no counters make no number but zero, and no tiers."""
    assert (backend.registered({}), backend.kv_bytes_per_token({}), backend.reported_chunk_size({})) == (None,) * 3
    assert (backend.objects({}), backend.chunks_written({}, {}), backend.pending({})) == (0, 0, 0)
    assert backend.tiers({}, {}) is None
    assert backend.losses({}, {}, {}) == Losses()
    assert (backend.lookups({}), backend.lookup_requests({}, {}), backend.usage({}, {})) == (None, None, Usage())


@EVERY
def test_what_a_chart_shows_is_read_by_the_same_name(backend: Backend) -> None:
    """Every series of a backend's charts, as its server exposes it, is what `counters` finds under its key."""
    lines = [line for chart in backend.charts for line in chart.lines] + [line for line in [backend.lookup] if line]
    shown = [one for line in lines for one in (line.series, line.less) if one]
    for one in shown:
        names = [f"{one.name}_sum"] if one.kind == "histogram" else [one.name]
        for name in names:
            assert health.parsed(f'{name}{{a="b"}} 3.0\n') == {one.key + name.removeprefix(one.name): 3.0}
    assert all(line.series.label for line in lines if line.where)
    assert len({chart.title for chart in backend.charts}) == len(backend.charts)


def test_counters_are_summed_and_told_apart() -> None:
    """As vLLM 0.32.0 and LMCache 0.5.6 expose them: over salts the sum, and each source, each reason."""
    exposed = """\
# TYPE lmcache_mp_lookup_early_exit_requests_total counter
lmcache_mp_lookup_early_exit_requests_total{cache_salt="",model_name="m",reason="empty_chunk_hashes"} 2.0
lmcache_mp_lookup_early_exit_requests_total{cache_salt="a",model_name="m",reason="no_gpu_context"} 1.0
lmcache_mp_lookup_early_exit_requests_total{cache_salt="b",model_name="m",reason="no_gpu_context"} 3.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 149.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"} 2688.0
process_virtual_memory_bytes 2.1579116544e+010
"""
    assert health.parsed(exposed) == {
        "lookup_early_exit_requests": 6.0,
        "lookup_early_exit_requests{empty_chunk_hashes}": 2.0,
        "lookup_early_exit_requests{no_gpu_context}": 4.0,
        "prompt_tokens_by_source": 2837.0,
        series.BY_SOURCE.at(series.COMPUTED): 149.0,
        series.BY_SOURCE.at(series.LOCAL): 2688.0,
        "virtual_memory_bytes": 2.1579116544e10,
    }


def test_a_prompt_without_a_chunk_is_no_stranger() -> None:
    """Its lookup ends early, too: only an engine that LMCache does not know is told to be restarted."""
    after = {"lookup_early_exit_requests": 2.0, "lookup_early_exit_requests{empty_chunk_hashes}": 2.0}
    assert not LMCache().losses({}, {}, after).strange


@EVERY
def test_requests_are_told_apart_by_salt(backend: Backend) -> None:
    """A pattern for one salt is another than that for the next, in files as in keys."""
    for pattern in (backend.files, backend.keys):
        assert not pattern("run-1") or ("run-1" in pattern("run-1") and pattern("run-1") != pattern("run-2"))


@EVERY
def test_a_container_finds_its_server_and_its_directory(backend: Backend) -> None:
    """Exports move both; nothing of the machine's own addresses and directories is left."""
    if backend.one_machine:
        pytest.skip(f"{backend.title} is not exported")
    engine = backend.wiring(Address("10.0.0.1", 5555)).arguments
    words = " ".join(flags.words(backend.in_container(engine, host="cache-1")))
    assert "cache-1" in words
    assert "10.0.0.1" not in words
    moved = " ".join(flags.words(backend.in_container(backend.options(SERVER), directory="/kv")))
    assert "/kv/x" not in moved


def test_the_guardian_tidies_up_after_every_backend() -> None:
    """It imports nothing of kvdemo, so its list is written twice, and held together here."""
    assert backends.pools() == shim.POOLS


def test_a_plan_of_an_earlier_version_names_no_backend() -> None:
    """There was one; an unknown kind is an error, not that one."""
    assert backends.of("") is backends.DEFAULT
    with pytest.raises(KeyError):
        backends.of("unheard-of")


def test_what_lmcache_tells() -> None:
    """Its report and counters as LMCache 0.5.6 words them; what 0.5.3 leaves out is unknown."""
    backend = LMCache()
    layout = {"kv_cache_layout": {"cache_size_per_token": 100}, "world_size": 2}
    report = {
        "chunk_size": 128,
        "registered_gpu_ids": [7, 9],
        "cache_context_meta": {"7": {}, "9": layout},
        "storage_manager": {"l1_manager": {"total_object_count": 5}},
    }
    assert (backend.reported_chunk_size(report), backend.registered(report)) == (128, 2)
    assert (backend.kv_bytes_per_token(report), backend.objects(report)) == (200, 5)
    before = {"lookup_hit_l1_tokens": 10.0, "lookup_hit_tokens": 10.0, "l1_evicted_chunks": 3.0}
    after = {"lookup_hit_l1_tokens": 30.0, "lookup_hit_l2_tokens": 5.0, "lookup_hit_tokens": 35.0}
    after |= {
        "l1_evicted_chunks": 4.0,
        "lookup_early_exit_requests{no_gpu_context}": 1.0,
        "l2_prefetch_failure_chunks": 2.0,
    }
    assert backend.tiers(before, after) == {"l1": 20, "l2": 5}
    assert backend.losses({}, before, after) == Losses(strange=True, evictions=4, unreadable=2, matched=25)
    assert backend.tiers({}, {"lookup_hit_tokens": 35.0}) is None
    assert backend.lookups({**after, "lookup_requested_tokens": 70.0}) == Lookups(70, 35)
    assert backend.lookup_requests({"lookups_requests": 2.0}, {"lookups_requests": 5.0}) == 3
    full = {"num_l2_adapters": 1, "l1_manager": {"memory_used_bytes": 6, "memory_total_bytes": 8}}
    told = backend.usage({"l2_usage_bytes": 9.0}, {**report, "storage_manager": full})
    assert told == Usage(l1=6, l1_size=8, has_l2=True, l2=9, engines=2)
    assert backend.pending({"num_submitted_stores": 3.0, "num_finished_stores": 1.0}) == 2


TROUBLE = """
from types import SimpleNamespace
from prometheus_client import generate_latest
from lmcache.v1.mp_observability import otel_init
from lmcache.v1.mp_observability.event import Event, EventType
from lmcache.v1.mp_observability.subscribers.metrics import l1, l1_failures, l2_failures, lookup
otel_init.init_otel_metrics(start_http_server=False)
keys = [SimpleNamespace(model_name="m", cache_salt="s")]
nothing = {"requested_tokens": 0, "hit_tokens": 0, "model_name": "m"}
for counter, kind, facts in (
    (l1.L1MetricsSubscriber(), EventType.L1_KEYS_EVICTED, {"keys": keys}),
    (l1_failures.L1FailureMetricsSubscriber(), EventType.L1_ALLOCATION_FAILED, {"keys": keys, "during": "l1_store"}),
    (l2_failures.L2FailureMetricsSubscriber(), EventType.L2_PREFETCH_FAILED, {"keys": keys, "reason": "not_found"}),
    (lookup.LookupMetricsSubscriber(), EventType.MP_LOOKUP_PREFETCH_END, {**nothing, "early_exit_reason": REASON}),
):
    counter.get_subscriptions()[kind](Event(kind, metadata=facts))
print(generate_latest().decode())
"""


@pytest.mark.parametrize(("reason", "strange"), [(UNREGISTERED, True), ("empty_chunk_hashes", False)])
@with_engines
def test_trouble_is_read_by_the_names_that_lmcache_has_for_it(reason: str, strange: bool) -> None:
    """What its own counters expose once chunks are evicted, refused and unreadable, and a lookup ended early."""
    text = TROUBLE.replace("REASON", repr(reason))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    after = health.parsed(done.stdout)
    assert LMCache().losses({}, {}, after) == Losses(strange=strange, evictions=1, refusals=1, unreadable=1, matched=0)


def test_how_full_a_mooncake_pool_is() -> None:
    """Its memory only, by the master's gauges; without them nothing is known, not even that it has no L2."""
    told = backends.of("mooncake").usage({"allocated_bytes": 6.0, "total_capacity_bytes": 8.0}, {})
    assert told == Usage(l1=6, l1_size=8, has_l2=False)
    assert backends.of("mooncake").usage({"allocated_bytes": 6.0}, {}) == Usage()


@pytest.mark.parametrize(
    ("kind", "flags", "share"),
    [
        ("lmcache", {}, 0.72),
        ("lmcache", {"eviction-trigger-watermark": 0.5, "eviction-ratio": 1}, 0.25),
        ("mooncake", {}, 0.95 * 0.975),
        ("mooncake", {"eviction-high-watermark-ratio": 0.8, "eviction-ratio": "odd"}, 0.8 * 0.975),
        ("vllm", {}, 1.0),
    ],
)
def test_what_a_full_cache_holds(kind: str, flags: dict[str, Any], share: float) -> None:
    """On average between two evictions, by its own defaults and by the flags that it is given."""
    assert backends.of(kind).share_kept(flags) == pytest.approx(share)
