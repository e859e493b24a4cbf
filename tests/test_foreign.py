"""Engines with a connector of their own in ``args``: not plain, and a pair when they are named."""

from __future__ import annotations

from typing import Any

import pytest

from kvdemo import backends
from kvdemo.bench import foreign, workload
from kvdemo.errors import UsageError
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
