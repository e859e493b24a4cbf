"""Engines whose connector stands in their ``args``: none of them is plain; two that are named write and read. Pure."""

from __future__ import annotations

from dataclasses import replace

from kvdemo import backends
from kvdemo.backends import other
from kvdemo.errors import UsageError
from kvdemo.planning.demand import BLOCK, CPU_BLOCK
from kvdemo.planning.plan import Plan, ServiceSpec


def is_foreign(spec: ServiceSpec) -> bool:
    """Whether this engine has a connector of which kvdemo knows nothing but its name."""
    return spec.kind == "engine" and not spec.cache and bool(other.connector(spec.options))


def with_named(plan: Plan, writer: str, reader: str) -> Plan:
    """The plan in which two such engines, if they are named, share a cache that is called as their connector.

    Raises UsageError if only one of the two is such an engine, or if their connectors differ.
    """
    pair = [spec for spec in plan.engines if spec.name in (writer, reader)]
    if not any(map(is_foreign, pair)):
        return plan
    if len({*map(_connector_of, pair)}) != 1 or len(pair) != 2:
        text = "--writer and --reader: an engine with a connector in its args needs another one with the same connector"
        raise UsageError(text, "name both")
    shared = {spec.name: _sharing(spec) for spec in pair}
    return replace(plan, services=tuple(shared.get(spec.name, spec) for spec in plan.services))


def _connector_of(spec: ServiceSpec) -> str:
    return other.connector(spec.options) if is_foreign(spec) else ""


def _sharing(spec: ServiceSpec) -> ServiceSpec:
    size = spec.options.get("block-size") or (BLOCK if spec.gpus else CPU_BLOCK)
    name = other.connector(spec.options)
    return replace(spec, cache=name, pool=name, backend=backends.OTHER.kind, chunk_size=int(size))
