"""The command and environment of one LMCache server (multiprocess mode): pure functions, as in ``engines``.

One server per fleet holds L1 (host memory) and, if the profile names a directory, L2 (files) for all of its engines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvdemo.engines import GIB, QUIET, flags, normalized, visible

if TYPE_CHECKING:
    from kvdemo.profile import Cache

NATIVE: Mapping[str, Any] = {"type": "fs_native", "num_workers": 8, "shared": True}
"""L2 as files, read and written by native threads."""

PYTHON: Mapping[str, Any] = {"type": "fs", "shared": True}
"""Its twin in Python: one chunk after another, and a lookup that holds up the engine (docs/results has both)."""

FIRST_NATIVE = (0, 5, 6)
"""The first LMCache whose native adapter takes keys with a salt; before, it stores nothing of a salted request."""


def argv(
    cache: Cache,
    *,
    python: str,
    port: int,
    http_port: int,
    engines: int,
    on_gpu: bool,
    store: str | None,
    lmcache: str = "",
) -> tuple[str, ...]:
    """The command that runs this LMCache server for ``engines`` engines, its L2 files in the directory ``store``.

    ``lmcache`` is the version of it; empty if nobody knows.
    """
    arguments: dict[str, Any] = {
        "host": cache.host,
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
        arguments["l2-adapter"] = _l2_adapter(cache.l2_adapter, lmcache) | {"base_path": store}
    arguments |= normalized(cache.args)
    return (python, "-m", "lmcache.cli.main", "server", *flags(arguments))


def _l2_adapter(given: Mapping[str, Any], lmcache: str) -> dict[str, Any]:
    """The adapter's fields: what the profile gives, on top of the defaults of its type or of the best that works."""
    number = tuple(int(part) for part in re.findall(r"[0-9]+", lmcache)[:3])
    known = {adapter["type"]: adapter for adapter in (NATIVE, PYTHON)}
    kind = given.get("type", (NATIVE if number >= FIRST_NATIVE else PYTHON)["type"])
    return {**known.get(kind, {"shared": True}), "type": kind, **given}


def env(cache: Cache, *, devices: Sequence[str]) -> dict[str, str]:
    """The variables this server gets on top of the user's own: it must see every GPU of its engines."""
    return QUIET | (visible(devices) if devices else {"CUDA_VISIBLE_DEVICES": ""}) | dict(cache.env)
