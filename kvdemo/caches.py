"""The command and environment of one LMCache server (multiprocess mode): pure functions, as in ``engines``.

One server per fleet holds L1 (host memory) and, if the profile names a directory, L2 (files) for all of its engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvdemo.engines import GIB, QUIET, flags, normalized, visible

if TYPE_CHECKING:
    from kvdemo.profile import Cache


def argv(
    cache: Cache, *, python: str, port: int, http_port: int, engines: int, on_gpu: bool, store: str | None
) -> tuple[str, ...]:
    """The command that runs this LMCache server for ``engines`` engines, its L2 files in the directory ``store``."""
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
        arguments["l2-adapter"] = {"type": "fs", "base_path": store, "shared": True}
    arguments |= normalized(cache.args)
    return (python, "-m", "lmcache.cli.main", "server", *flags(arguments))


def env(cache: Cache, *, devices: Sequence[str]) -> dict[str, str]:
    """The variables this server gets on top of the user's own: it must see every GPU of its engines."""
    return QUIET | (visible(devices) if devices else {"CUDA_VISIBLE_DEVICES": ""}) | dict(cache.env)
