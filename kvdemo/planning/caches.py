"""The command and environment of one LMCache server (multiprocess mode): pure functions, as in ``engines``.

One server per fleet and node holds L1 (host memory) and, if the profile names one, uses an L2 for all of its engines:
a directory, or a Redis or Valkey server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvdemo.config import flags
from kvdemo.planning.engines import GIB, QUIET, normalized, visible
from kvdemo.planning.services import is_server, server

if TYPE_CHECKING:
    from kvdemo.config.profile import Cache

NATIVE: Mapping[str, Any] = {"type": "fs_native", "num_workers": 8, "shared": True}
"""L2 as files, read and written by native threads."""

PYTHON: Mapping[str, Any] = {"type": "fs", "shared": True}
"""Its twin in Python: one chunk after another (4 GB/s at best, LMCache 0.5.3); its lookup holds up the engine."""

FIRST_NATIVE = (0, 5, 6)
"""The first LMCache whose native adapter takes keys with a salt; before, it stores nothing of a salted request."""


def argv(cache: Cache, *, python: str, **decided: Any) -> tuple[str, ...]:
    """The command that runs this LMCache server."""
    return (*command(python), *flags.words(options(cache, **decided)))


def command(python: str) -> tuple[str, ...]:
    """The words that start an LMCache server in this interpreter."""
    return (python, "-m", "lmcache.cli.main", "server")


def options(
    cache: Cache,
    *,
    ports: tuple[int, int],
    inner: str,
    engines: int,
    on_gpu: bool,
    store: str | None,
    lmcache: str = "",
    node: str = "",
) -> dict[str, Any]:
    """Every flag of this LMCache server for ``engines`` engines, its L2 in ``store``, and its value.

    ``ports`` are for engines and for HTTP, ``inner`` the address on which engines reach it; ``lmcache`` is its version,
    empty if nobody knows; ``node`` tells the servers of several nodes apart that use one directory.
    """
    port, http_port = ports
    arguments: dict[str, Any] = {
        "host": inner,
        "port": port,
        "http-host": cache.host,
        "http-port": http_port,
        "chunk-size": cache.chunk_size,
        "l1-size-gb": f"{cache.l1 / GIB:g}",
        "eviction-policy": "LRU",
        # Fewer workers than engines would make engines wait for each other's copies.
        "max-workers": max(2, engines),
        "supported-transfer-mode": "lmcache_driven",
    }
    if not on_gpu:
        arguments["l1-use-lazy"] = False
    if store:
        # "retain" keeps in L1 what was read from L2: the default drops it after one use.
        arguments["l2-prefetch-policy"] = "retain"
        arguments["l2-adapter"] = _l2_adapter(store, cache.l2_adapter, lmcache, node)
    return arguments | normalized(cache.args)


def _l2_adapter(store: str, given: Mapping[str, Any], lmcache: str, node: str) -> dict[str, Any]:
    """The adapter's fields: what the profile gives, on top of the defaults of its type or of the best that works."""
    if is_server(store):
        host, port = server(store)
        # Name and password come from LMCACHE_RESP_USERNAME and LMCACHE_RESP_PASSWORD: secrets of the profile.
        return {"type": "resp", "host": host, "port": port, **given}
    number = tuple(int(part) for part in re.findall(r"[0-9]+", lmcache)[:3])
    known = {adapter["type"]: adapter for adapter in (NATIVE, PYTHON)}
    kind = given.get("type", (NATIVE if number >= FIRST_NATIVE else PYTHON)["type"])
    # By default the servers of all nodes would write the same chunk under the same temporary name.
    own = {"relative_tmp_dir": f"tmp-{node}"} if node else {}
    return {**known.get(kind, {"shared": True}), "type": kind, **own, **given, "base_path": store}


def env(cache: Cache, *, devices: Sequence[str]) -> dict[str, str]:
    """The variables this server gets on top of the user's own: it must see every GPU of its engines."""
    return QUIET | (visible(devices) if devices else {"CUDA_VISIBLE_DEVICES": ""}) | dict(cache.env)
