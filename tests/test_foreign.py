"""Engines with a connector of their own in ``args``: not plain, and a pair when they are named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conftest import Lab
from kvdemo import backends
from kvdemo.bench import foreign, workload
from kvdemo.errors import UsageError
from kvdemo.host import survey
from kvdemo.load import experiment
from kvdemo.planning.plan import Plan, ServiceSpec


def spec(name: str, connector: str = "", cache: str = "", block: int = 0) -> ServiceSpec:
    """An engine, and the connector in its args."""
    options: dict[str, Any] = {"kv-transfer-config": {"kv_connector": connector}} if connector else {}
    options |= {"block-size": block} if block else {}
    return ServiceSpec(name, "engine", (), {}, "", 0, (), 0.0, 0.0, cache=cache, model="m", options=options)


FLEET = Plan(
    "p",
    "",
    (
        spec("plain"),
        spec("a", "ExampleConnector"),
        spec("b", "ExampleConnector"),
        spec("x", "NixlConnector"),
        spec("s1", cache="shared"),
        spec("s2", cache="shared"),
    ),
)


def test_named_they_are_a_pair() -> None:
    """They share what is called as their connector; the cache of the profile takes no part then."""
    roles = workload.roles(FLEET, "a", "b")
    assert [(pair.writer.name, pair.reader.name) for pair in roles.pairs] == [("a", "b")]
    assert [engine.name for engine in roles.plain] == ["plain"]
    assert (roles.reader.cache, roles.reader.chunk_size) == ("ExampleConnector", 128)
    shared = foreign.with_named(FLEET, "a", "b").service("ExampleConnector")
    assert (shared.kind, shared.url, shared.backend) == ("cache", "", backends.OTHER.kind)
    assert backends.of(shared.backend).reusable(2297, 128) == 2176


def test_unnamed_they_are_nothing() -> None:
    """No baseline, for they may load; and no pair, for nobody said that they share."""
    roles = workload.roles(FLEET)
    assert [engine.name for engine in roles.engines] == ["plain", "s1", "s2"]
    sides = experiment.sides(FLEET)
    assert {side: [one.name for one in engines] for side, engines in sides.items()} == {
        "plain": ["plain"],
        "shared": ["s1"],
    }


@pytest.mark.parametrize(("writer", "reader"), [("a", "x"), ("a", ""), ("a", "s1"), ("plain", "b")])
def test_they_need_the_same_connector(writer: str, reader: str) -> None:
    """One of two is refused, as are two that cannot share."""
    with pytest.raises(UsageError, match="same connector"):
        workload.roles(FLEET, writer, reader)


def test_the_block_of_the_engine_counts() -> None:
    """As the profile sets it."""
    pair = (spec("a", "C", block=256), spec("b", "C", block=256))
    assert workload.roles(Plan("p", "", pair), "a", "b").reader.chunk_size == 256
    assert not foreign.is_foreign(spec("plain"))
    with pytest.raises(KeyError):
        backends.of("unheard-of")
    assert backends.OTHER.kind not in backends.BACKENDS


def test_a_fleet_of_them_is_measured(lab: Lab) -> None:
    """Behind the connector stands no process of which readiness could be asked; the engines' counters prove it."""
    (lab.path / "context.txt").write_text(" ".join(f"w{number}" for number in range(400)))
    engines: dict[str, Any] = {"plain": {}, "a": {"cache": "shared"}}
    caches = {"shared": {"l1": "16MiB", "chunk_size": 64}}
    lab.up(lab.profile(engines, caches))
    planned = survey.saved_plan(lab.project())
    assert planned is not None
    wired = planned.service("a").options["kv-transfer-config"]["kv_connector_extra_config"]
    place = {end: wired[f"lmcache.mp.{end}"] for end in ("host", "port")}
    homemade = {"kv_connector": "HomemadeConnector", "kv_role": "kv_both", "kv_connector_extra_config": place}
    given = {"args": {"kv-transfer-config": homemade, "block-size": 64}}
    lab.up(lab.profile(engines | {"x": given, "y": given}, caches))
    done = lab.run("bench", "--writer", "x", "--reader", "y", "--context", "context.txt", "--trials", "1", "--json")
    assert done.returncode == 0, done
    rows = {row["arm"]: (row["engine"], row["verdict"]) for row in json.loads(done.stdout.splitlines()[-1])["rows"]}
    assert rows["cold"] == ("plain", "COLD")
    assert rows["reuse"] == ("y", "SHARED")
