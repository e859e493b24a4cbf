"""Other real backends join the fleet of cpu-long.yaml: each proves its sharing, none leaves a trace.

Mooncake, as contest-cpu.yaml has it, and two engines with a connector of vLLM's that kvdemo knows nothing about.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from guarding import gone
from kvdemo import backends
from kvdemo.bench.measure import Meter
from kvdemo.bench.workload import Step, body
from kvdemo.host import process
from kvdemo.judge.verdict import Verdict, judge
from real_fleet import PROFILE, ROOT, SERVICES, Real, needs_engines, nothing_left
from test_mooncake import needs_mooncake

pytestmark = [*needs_engines, needs_mooncake]

BLOCK = 128
UNKNOWN = "ExampleConnector"
JOINED = {"mooncake", "mooncake-a", "mooncake-b", "folder-a", "folder-b"}


@pytest.fixture(scope="module")
def contest(real: Real) -> Real:
    """The fleet, and beside it Mooncake and two engines that share a folder: `up` starts those, and only those."""
    real.mend()
    before = real.records
    document, other = (yaml.safe_load(path.read_text()) for path in (PROFILE, ROOT / "profiles" / "contest-cpu.yaml"))
    del document["bench"]
    document["caches"]["mooncake"] = other["defaults"]["cache"] | other["caches"]["mooncake"]
    size = {"kv_cache": other["defaults"]["engine"]["kv_cache"]}
    document["engines"] |= {f"mooncake-{end}": size | other["engines"][f"mooncake-{end}"] for end in "ab"}
    shared: dict[str, Any] = {"kv_connector": UNKNOWN, "kv_role": "kv_both"}
    shared |= {"kv_connector_extra_config": {"shared_storage_path": str(real.path / "folder")}}
    document["engines"] |= {f"folder-{end}": size | {"args": {"kv-transfer-config": shared}} for end in "ab"}
    path = real.path / "contest.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    real.up(profile=path)
    assert real.records == before | {name: real.records[name] for name in JOINED}
    return real


def test_both_share_in_the_same_trials(contest: Real) -> None:
    """One baseline, both caches: the reader of each loads whole chunks, and answers the same to the last bit."""
    found = contest.bench("--context", "short.txt", "--trials", "1", "--no-limit", "--result-dir", "contest")
    verdicts = {(row["engine"], row["arm"]): row["verdict"] for row in found["rows"]}
    assert [verdicts.pop((plain, "cold")) for plain in ("vllm-a", "vllm-b")] == ["COLD", "COLD"]
    arms = {"store": "COLD", "reuse": "SHARED", "again": "LOCAL"}
    engines = {"store": "a", "reuse": "b", "again": "b"}
    kinds = ("lmcache", "mooncake")
    assert verdicts == {(f"{kind}-{engines[arm]}", arm): verdict for kind in kinds for arm, verdict in arms.items()}
    hits = {row["external_cached_tokens"] for row in found["rows"] if row["arm"] == "reuse"}
    assert hits == {found["expected_hit_tokens"]}
    assert found["prompt_tokens"] - BLOCK <= found["expected_hit_tokens"] < found["prompt_tokens"]
    assert found["answer"]["same"] is True
    assert [side["contender"]["title"] for side in found["contest"]["sides"]] == ["LMCache", "Mooncake"]
    assert found["contest"]["between"][0]["ratio"]["n"] == 1
    assert found["valid"]


@pytest.mark.parametrize("kind", ["lmcache", "mooncake"])
def test_hits_worked_out_by_hand(contest: Real, kind: str) -> None:
    """At a block, and one token more or less: of 2 * 128 tokens LMCache loads all but the last, Mooncake one block."""
    byhand = {255: 128, 256: {"lmcache": 255, "mooncake": 128}[kind], 257: 256}
    plan = contest.plan
    writer, reader = plan.service(f"{kind}-a"), plan.service(f"{kind}-b")
    hits = {}
    with Meter(plan) as meter:
        for length, hit in byhand.items():
            assert backends.of(kind).reusable(length, BLOCK) == hit
            ids, salt = [7 + index * 11 % 4000 for index in range(length)], f"by-hand-{length}"
            asked = body(reader.model, {"prompt": ids}, max_tokens=2, salt=salt, logprobs=1)
            meter.ask(Step(1, "store", writer, salt, 0), "/v1/completions", asked, length // BLOCK)
            sample = meter.ask(Step(1, "reuse", reader, salt, hit), "/v1/completions", asked)
            assert judge(sample).verdict is Verdict.SHARED, sample.note
            assert sample.sources
            hits[length] = sample.sources.shared
    assert hits == byhand


def test_a_connector_that_nobody_knows(contest: Real) -> None:
    """Named, its engines are measured against the plain one: whole blocks by vLLM's counters, and the same answer."""
    given = ("--context", "short.txt", "--trials", "1", "--no-limit", "--result-dir", "folder-results")
    found = contest.bench("--writer", "folder-a", "--reader", "folder-b", *given)
    verdicts = {(row["engine"], row["arm"]): row["verdict"] for row in found["rows"]}
    cold = dict.fromkeys([("vllm-a", "cold"), ("vllm-b", "cold"), ("folder-a", "store")], "COLD")
    assert verdicts == cold | {("folder-b", "reuse"): "SHARED", ("folder-b", "again"): "LOCAL"}
    reuse = next(row for row in found["rows"] if row["arm"] == "reuse")
    blocks = (found["prompt_tokens"] - 1) // BLOCK
    assert reuse["external_cached_tokens"] == found["expected_hit_tokens"] == blocks * BLOCK
    assert reuse["tiers"] is None
    assert list((contest.path / "folder").glob("*/*.safetensors"))
    assert found["answer"]["same"] is True
    assert found["valid"]


def test_down_of_some_leaves_nothing_of_them_and_all_of_the_others(contest: Real) -> None:
    """A cache takes its engines along: processes, ports and shared memory are gone. Nobody else is replaced."""
    before = contest.records
    joined = replace(contest.plan, services=tuple(contest.plan.service(name) for name in sorted(JOINED)))
    # Files of a service lie among the project's sockets, and go with them: tests/test_real_recovery.py.
    assert {Path(path).parent for spec in joined.services for path in spec.files} == {contest.project.sockets}
    pids = [one.pid for name in JOINED for one in process.members(before[name])]
    segments = process.segments(pids)
    assert "Nothing is left: 5 services ended" in contest.do("down", "mooncake", "folder-a", "folder-b")
    assert nothing_left(joined, segments)
    assert all(gone(pid) for pid in pids)
    assert contest.records == {name: before[name] for name in SERVICES}
    assert {contest.states()[name] for name in SERVICES} == {"ready"}
