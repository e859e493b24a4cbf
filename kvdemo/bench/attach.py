"""A plan of engines that something else started: all that is known of them is what they say at their addresses.

The last two targets are the writer and the reader, those before them plain engines, unless the user says otherwise. No
target is asked whether it shares a cache with another: the samples prove that, or do not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from kvdemo import backends
from kvdemo.config.benchmark import Bench
from kvdemo.errors import NotReadyError, UsageError
from kvdemo.host import health
from kvdemo.planning.plan import Plan, ServiceSpec

CACHE = backends.DEFAULT.kind
"""The name of the cache that writer and reader are thought to share."""

PATIENCE = 10.0


@dataclass(frozen=True)
class Targets:
    """What the command line says about them."""

    urls: Sequence[str]
    writer: str = ""
    reader: str = ""
    model: str = ""
    chunk_size: int | None = None
    cache_url: str = ""


def key_of(environ: Mapping[str, str]) -> str:
    """The API key for all targets. Raises UsageError for one that no request can carry."""
    name = "VLLM_API_KEY" if environ.get("VLLM_API_KEY") else "OPENAI_API_KEY"
    key = environ.get(name, "")
    if why := health.unusable(key):
        raise UsageError(f"{name} {why}", "check where it was set")
    return key


def plan(targets: Targets, key: str) -> Plan:
    """Ask every target what it is.

    Raises UsageError for targets that make no sense, NotReadyError for one that does not answer.
    """
    urls = dict(_named_targets(targets.urls))
    if len(urls) < 2:
        raise UsageError(
            "--target: one is not enough: one engine writes, another reads",
            "name every engine by its own address; behind a router nobody can tell which one answered",
        )
    writer, reader = _pair(list(urls), targets.writer, targets.reader)
    models = {name: _models(name, url, key) for name, url in urls.items()}
    model = _common(models, targets.model)
    cache = _cache(targets)
    engines = [
        ServiceSpec(
            **_unknown(name, "engine", url),
            cache=CACHE if name in (writer, reader) else "",
            model=model,
            context=models[name][model],
            backend=cache.backend if name in (writer, reader) else "",
            chunk_size=cache.chunk_size if name in (writer, reader) else None,
            secrets=("VLLM_API_KEY",) if key else (),
        )
        for name, url in urls.items()
    ]
    versions = sorted({_version(url, key) for url in urls.values()} - {""})
    return Plan(
        project="attached",
        profile="",
        services=(cache, *engines),
        bench=Bench().model_dump(mode="json"),
        versions={"": {"vllm": " and ".join(versions)}} if versions else {},
    )


def services(urls: Sequence[str], cache_url: str = "") -> list[ServiceSpec]:
    """The targets, and the cache server if it has an address, as services; nobody is asked anything.

    Raises UsageError for an address that is none.
    """
    engines = [ServiceSpec(**_unknown(name, "engine", url)) for name, url in _named_targets(urls)]
    if not cache_url:
        return engines
    address = _base(cache_url, "--cache-url")
    return [*engines, ServiceSpec(**_unknown(CACHE, "cache", address), backend=CACHE)]


def _unknown(name: str, kind: str, address: str) -> dict[str, Any]:
    """What a service has that kvdemo did not start."""
    nothing = {"argv": (), "env": {}, "host": "", "port": 0, "ports": (), "start_timeout": 0.0, "stop_timeout": 0.0}
    return {"name": name, "kind": kind, "address": address, **nothing}


def _named_targets(targets: Sequence[str]) -> Iterator[tuple[str, str]]:
    names: set[str] = set()
    for text in targets:
        name, equals, url = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,62}", name, re.ASCII):
            raise UsageError(f"--target {text}: expected NAME=URL", "for example --target a=http://127.0.0.1:8000")
        if name in names:
            raise UsageError(f"--target: two are called {name}", "give each its own name")
        names.add(name)
        yield name, _base(url, f"--target {name}")


def _base(url: str, what: str) -> str:
    """The base URL, without the /v1 that OpenAI clients have at its end."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        parts, usable = urlsplit(""), False
    if not usable:
        raise UsageError(f"{what}: {url!r} is not an address", "for example http://127.0.0.1:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(f"{what}: an address holds no password and no query", "a key comes from VLLM_API_KEY")
    return re.sub(r"(/v1)?/*$", "", url)


def _pair(names: Sequence[str], writer: str, reader: str) -> tuple[str, str]:
    for option, name in (("--writer", writer), ("--reader", reader)):
        if name and name not in names:
            raise UsageError(f"{option}: no target is called {name}", f"they are {', '.join(names)}")
    reader = reader or next(name for name in reversed(names) if name != writer)
    writer = writer or next(name for name in reversed(names) if name != reader)
    if writer == reader:
        raise UsageError(f"{writer} cannot be writer and reader", "what an engine reads of its own proves no sharing")
    return writer, reader


def _models(name: str, url: str, key: str) -> dict[str, int | None]:
    """The models that a target offers, adapters left out, and the longest sequence of each."""
    status, body = health.request(url, "/v1/models", timeout=PATIENCE, key=key)
    if status in (401, 403):
        raise NotReadyError(f"{name} refuses us (HTTP {status})", "set VLLM_API_KEY or OPENAI_API_KEY to its key")
    try:
        cards = json.loads(body)["data"] if status == 200 else []
        windows = {str(card["id"]): card.get("max_model_len") for card in cards if not card.get("parent")}
    except (ValueError, LookupError, TypeError, AttributeError):
        windows = {}
    if not windows:
        answer = f"HTTP {status}" if status else body.decode(errors="replace")
        raise NotReadyError(f"{name} offers no model at {url}/v1/models ({answer})", "is it up, and the address right?")
    return {model: length if isinstance(length, int) else None for model, length in windows.items()}


def _common(models: Mapping[str, Mapping[str, Any]], model: str) -> str:
    """The model to ask for: all targets must have it."""
    common = set.intersection(*(set(models) for models in models.values()))
    if model and model not in common:
        lack = next(name for name, models in models.items() if model not in models)
        raise UsageError(f"--target-model: {lack} has no {model}", f"it offers {', '.join(sorted(models[lack]))}")
    if not common:
        offers = "; ".join(f"{name}: {', '.join(sorted(models))}" for name, models in models.items())
        raise UsageError(f"the targets have no model in common ({offers})", "engines share KV of one model only")
    if not model and len(common) > 1:
        raise UsageError(f"the targets offer several models: {', '.join(sorted(common))}", "say which: --target-model")
    return model or common.pop()


def _cache(targets: Targets) -> ServiceSpec:
    """The cache of writer and reader; without an address, or with one that nobody asks for more than it tells."""
    backend = backends.DEFAULT
    url = _base(targets.cache_url, "--cache-url") if targets.cache_url else ""
    cache = ServiceSpec(**_unknown(CACHE, "cache", url), backend=backend.kind)
    report = health.report(cache) if url else {}
    if url and not report:
        where = f"{url}{backend.report_path}"
        raise NotReadyError(f"no {backend.title} server answers at {where}", "give its HTTP address, not the engines'")
    chunk = targets.chunk_size or backend.reported_chunk_size(report) or backend.chunk_size
    return replace(cache, chunk_size=chunk)


def _version(url: str, key: str) -> str:
    status, body = health.request(url, "/version", timeout=PATIENCE, key=key)
    try:
        return str(json.loads(body)["version"]) if status == 200 else ""
    except (ValueError, LookupError, TypeError):
        return ""
