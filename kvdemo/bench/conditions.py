"""Everything that must be equal for two runs to be compared, and what the limit needs; saved with each run."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kvdemo import __version__, backends
from kvdemo.bench import cacheserver, calibrate
from kvdemo.bench.session import Session
from kvdemo.bench.workload import Pair
from kvdemo.config import flags
from kvdemo.host import bandwidth, gpus, runtime
from kvdemo.planning import environment
from kvdemo.planning.plan import Plan, ServiceSpec


def of(session: Session, name: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The conditions of a run whose document is called ``name``.

    With the option ``limit`` also what this machine and this client could do at best.
    """
    plan, roles, options = session.plan, session.roles, session.options
    reader = roles.reader
    facts: dict[str, Any] = {
        "kvdemo_version": __version__,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "project": plan.project,
        "run_id": session.run_id,
        "backend": "openai-chat" if options.endpoint == "chat" else "openai",
        "model_id": reader.model,
        "model_digest": reader.weights,
        "versions": plan.versions_of(reader),
        "device": "unknown" if plan.attached else _device(plan, roles.engines, environ),
        "nodes": {spec.name: spec.node for spec in plan.engines if spec.node},
        "num_trials": options.trials,
        "max_concurrency": options.concurrency,
        "max_tokens": options.max_tokens,
        "ignore_eos": options.ignore_eos,
        "tier": options.tier,
        "drop_page_cache": options.drop_page_cache,
        "seed": options.seed,
        "question": options.asked_question,
        "context": name,
        "chunk_size": reader.chunk_size,
        "kv_bytes_per_token": cacheserver.kv_bytes_per_token(session.meter.cache(reader)) or reader.kv_bytes_per_token,
        "kv_bytes_per_token_by_config": reader.kv_bytes_per_token,
        "baseline": roles.baseline.name,
        "writer": roles.writer.name,
        "reader": reader.name,
        "flags": {spec.name: _flags(spec) for spec in plan.services if spec.options},
    }
    if roles.others and not (options.matrix or options.evicted or options.restarted):
        facts["contenders"] = [_contender(pair) for pair in roles.pairs]
    if has_random_weights(plan, roles.engines):
        facts["random_weights"] = True
    if options.limit:
        facts |= _client(len(session.document.encode()))
        # Those of this machine say nothing about another one that the reader runs on.
        if not (plan.attached or reader.node):
            facts |= _bandwidths(reader, plan.service(reader.cache).directory, environ)
    return facts


def _contender(pair: Pair) -> dict[str, Any]:
    """One of several caches that are measured in the same trials."""
    cache, reader = pair.reader.shared_cache, pair.reader
    title = backends.of(reader.backend).title
    chunk = reader.chunk_size
    return {"cache": cache, "title": title, "writer": pair.writer.name, "reader": reader.name, "chunk_size": chunk}


def has_random_weights(plan: Plan, engines: Iterable[ServiceSpec]) -> bool:
    """Whether the words of one of these engines mean nothing: vLLM made its weights up, or its model says they are."""
    digests = set()
    for spec in engines:
        if spec.options.get("load-format") == "dummy":
            return True
        digests.add(spec.weights)
    paths = [name for name, digest in plan.models.items() if digest and digest in digests]
    return any(runtime.has_random_weights(Path(path)) for path in paths)


def _device(plan: Plan, engines: tuple[ServiceSpec, ...], environ: Mapping[str, str]) -> str:
    if plan.nodes:
        return "; ".join(f"{node.name}: {node.device}" for node in plan.nodes)
    names = sorted({gpu.name for gpu in gpus.detect(environ) for spec in engines if gpu.index in spec.gpus})
    return ", ".join(names) or f"{os.cpu_count()} processor cores"


def _flags(spec: ServiceSpec) -> list[str]:
    """What it was started with."""
    return [_without_folders(word) for word in flags.words(spec.options)]


def _without_folders(word: str) -> str:
    """Reports are shown to others: the folders of this machine are nobody's business."""
    return re.sub(r"(?<![\w.:/])/(?:[^/\s\"']+/)+", ".../", word)


def _client(prompt_bytes: int) -> dict[str, Any]:
    """What this client adds to each TTFT, at the size of this run's prompt."""
    overhead = calibrate.calibrate(prompt_bytes)
    milliseconds = {"p50_ms": overhead.p50, "p90_ms": overhead.p90, "max_ms": overhead.max}
    rounded = {name: round(value * 1000, 3) for name, value in milliseconds.items()}
    return {"client_overhead": {"n": overhead.n, "prompt_bytes": overhead.prompt_bytes, **rounded}}


def _bandwidths(reader: ServiceSpec, store: str, environ: Mapping[str, str]) -> dict[str, float | None]:
    """How fast KV could be moved here at best, in bytes a second."""
    variables = environment.of_service(environ, reader.env, ())
    disk = bandwidth.disk(Path(store)) if store else None
    return {
        "memory_bandwidth": bandwidth.copy(reader.python, variables, gpu=bool(reader.gpus)),
        "disk_bandwidth": disk.best if disk else None,
    }
