"""What one service of a plan is: plain data, read by everything that starts, watches, asks or exports it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kvdemo import backends
from kvdemo.backends.store import is_server


@dataclass(frozen=True)
class Node:
    """A machine of a cluster; ``device`` says what computes there."""

    id: str
    name: str
    ip: str
    device: str = field(default="", compare=False)


@dataclass(frozen=True)
class ServiceSpec:
    """One process to start. ``env`` comes on top of the user's environment; ``secrets`` are names, never values.

    ``port`` is where its HTTP API listens, on ``host``; ``ports`` everything it binds, on ``inner`` if that is given.
    ``context`` is the longest sequence in tokens; ``chunk_size`` the tokens per stored chunk; ``store`` L2: a
    directory or ``redis://HOST:PORT``, and ``kin`` the fingerprint of each model whose KV is in it. ``cache`` is the
    server that an engine is wired to, ``backend`` the kind of that cache, or of this one, ``pool`` the profile's name
    for it: on a cluster each ``node`` has its own. ``uuids`` are those of an engine's GPUs, ``weights`` is the digest
    of its model's files; ``address`` is the base URL
    of what something else started. ``files`` are texts by the paths at which they must be before it starts.

    ``command`` are the words of ``argv`` that start the program, ``options`` its flags and their values, of which the
    other words are made. ``python`` is the interpreter that runs it; ``source`` the directory or Hugging Face id that
    an engine loads, ``tokenizer`` that of its tokenizer if it is another; ``measures`` whether it measures the free
    memory of its GPUs at start; ``l1`` the bytes of a cache's host memory; ``paths`` what its flags name on the disk,
    ``repositories`` what they name on Hugging Face.
    """

    name: str
    kind: Literal["cache", "engine"]
    argv: tuple[str, ...]
    env: Mapping[str, str]
    host: str
    port: int
    ports: tuple[int, ...]
    start_timeout: float
    stop_timeout: float
    secrets: tuple[str, ...] = ()
    gpus: tuple[int, ...] = ()
    cache: str = ""
    model: str = ""
    weights: str = ""
    context: int | None = None
    chunk_size: int | None = None
    kv_bytes_per_token: int | None = None
    store: str = ""
    budget: str = ""
    uuids: tuple[str, ...] = ()
    address: str = ""
    inner: str = ""
    node: str = ""
    pool: str = ""
    kin: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    source: str = ""
    tokenizer: str = ""
    measures: bool = False
    l1: int | None = None
    paths: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    backend: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Changes exactly when the service would have to be started anew."""
        return hashlib.sha256(json.dumps(self._started_from, sort_keys=True).encode()).hexdigest()

    @property
    def _started_from(self) -> list[Any]:
        return [self.argv, dict(self.env), self.secrets, *([dict(self.files)] if self.files else [])]

    @property
    def url(self) -> str:
        """Base URL of its HTTP API; empty if nobody knows it."""
        return self.address or (f"http://{reachable(self.host)}:{self.port}" if self.port else "")

    @property
    def health_path(self) -> str:
        """The path of its HTTP API that answers 200 once it works."""
        return backends.of(self.backend).health_path if self.kind == "cache" else "/health"

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of everything it binds."""
        return tuple((self.host if port == self.port else self.inner or self.host, port) for port in self.ports)

    @property
    def server(self) -> str:
        """The cache server that an engine needs; empty where its cache has no process."""
        return self.cache if self.cache and backends.of(self.backend).serves else ""

    @property
    def shared_cache(self) -> str:
        """The profile's name for an engine's cache, the same for all who share it; empty for a plain engine."""
        return self.pool or self.cache

    @property
    def own_cache(self) -> ServiceSpec:
        """What stands for an engine's cache that has no process: nobody can ask it anything."""
        nothing: dict[str, Any] = {"argv": (), "env": {}, "host": "", "port": 0, "ports": ()}
        nothing |= {"start_timeout": 0.0, "stop_timeout": 0.0}
        kept: dict[str, Any] = {name: getattr(self, name) for name in ("backend", "chunk_size", "l1", "pool", "store")}
        return ServiceSpec(self.cache, "cache", **nothing, **kept)

    @property
    def directory(self) -> str:
        """The directory of L2; empty if there is none, or if L2 is a server."""
        return "" if is_server(self.store) else self.store


def reachable(host: str) -> str:
    """An address to listen on as one to connect to: a wildcard is reached through loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{host}]" if ":" in host else host
