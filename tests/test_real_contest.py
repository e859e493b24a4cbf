"""Two real backends side by side, the fleet of contest-cpu.yaml: each proves its sharing, neither leaves a trace.

Beside them two engines with a connector of vLLM's that kvdemo knows nothing about.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from guarding import gone
from kvdemo import backends
from kvdemo.bench.measure import Meter
from kvdemo.bench.workload import Step, body
from kvdemo.judge.verdict import Verdict, judge
from real_fleet import HANDBOOK, MODEL, ROOT, Real, needs_engines, nothing_left
from test_mooncake import needs_mooncake

pytestmark = [*needs_engines, needs_mooncake]

BLOCK = 128


UNKNOWN = "ExampleConnector"


@pytest.fixture(scope="module")
def contest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """The fleet and two engines that share a folder by their ``args`` alone, up."""
    path = tmp_path_factory.mktemp("contest")
    (path / "short.txt").write_text(HANDBOOK.read_text()[:2500])
    document = yaml.safe_load((ROOT / "profiles" / "contest-cpu.yaml").read_text())
    document["bench"]["context"] = str(HANDBOOK)
    shared = {"kv_connector": UNKNOWN, "kv_role": "kv_both"}
    shared |= {"kv_connector_extra_config": {"shared_storage_path": str(path / "folder")}}
    document["engines"] |= {f"folder-{end}": {"args": {"kv-transfer-config": shared}} for end in "ab"}
    (path / "contest.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    one = Real(path, path / "contest.yaml", "real-contest", KVDEMO_MODEL=str(MODEL))
    try:
        one.up()
        yield one
    finally:
        one.close()


def test_both_share_in_the_same_trials(contest: Real) -> None:
    """One baseline, both caches: the reader of each loads whole chunks, and answers the same to the last bit."""
    found = contest.bench("--context", "short.txt", "--trials", "1", "--no-limit", "--result-dir", "results")
    verdicts = {(row["engine"], row["arm"]): row["verdict"] for row in found["rows"]}
    assert verdicts.pop(("vllm-a", "cold")) == "COLD"
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
    cold = dict.fromkeys([("vllm-a", "cold"), ("folder-a", "store")], "COLD")
    assert verdicts == cold | {("folder-b", "reuse"): "SHARED", ("folder-b", "again"): "LOCAL"}
    reuse = next(row for row in found["rows"] if row["arm"] == "reuse")
    blocks = (found["prompt_tokens"] - 1) // BLOCK
    assert reuse["external_cached_tokens"] == found["expected_hit_tokens"] == blocks * BLOCK
    assert reuse["tiers"] is None
    assert list((contest.path / "folder").glob("*/*.safetensors"))
    assert found["answer"]["same"] is True
    assert found["valid"]


def test_nothing_is_left_of_either(contest: Real) -> None:
    """Master, pool and engines end; their ports, shared memory and the directory of sockets and files are gone."""
    plan, segments, pids = contest.plan, contest.segments(), contest.processes()
    places = {Path(path).parent for spec in plan.services for path in spec.files}
    assert len(places) == 1
    assert all(place.is_dir() for place in places)
    said = contest.do("down")
    assert "Nothing is left" in said
    assert nothing_left(plan, segments)
    assert not any(place.exists() for place in places)
    assert all(gone(pid) for pid in pids)
