"""LMCache in its multiprocess mode: one server for a fleet and node, to which engines lend their KV memory.

The server holds L1 (host memory) and, if the profile names one, uses an L2 for all of its engines: a directory, or a
Redis or Valkey server. Source: LMCache 0.5.3 to 0.5.6 (lmcache/v1/multiprocess, lmcache/v1/distributed) and their
answers. Its key of a chunk holds the model's name, the tokens and the request's salt only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kvdemo.backends import store
from kvdemo.backends.backend import (
    NOTHING,
    READ,
    Address,
    Backend,
    Lookups,
    Losses,
    Refusal,
    Server,
    Usage,
    Wiring,
    share_kept,
)
from kvdemo.backends.series import Chart, Line, Series

GIB = 1024**3

NATIVE: Mapping[str, Any] = {"type": "fs_native", "num_workers": 8, "shared": True}
"""L2 as files, read and written by native threads."""

GPU_WORKERS = 32
"""Threads of that adapter beside engines on a GPU, whose documents are not 50 MB but 4 GB: reading them from the page
cache took 104 and 113 ms instead of 165 on either of two H200 hosts; storing cost nothing more, and a disk gave the
2.2 GB/s that it has (LMCache 0.5.6; docs/results)."""

PYTHON: Mapping[str, Any] = {"type": "fs", "shared": True}
"""Its twin in Python: one chunk after another (4 GB/s at best, LMCache 0.5.3); its lookup holds up the engine."""

FIRST_NATIVE = (0, 5, 6)
"""The first LMCache whose native adapter takes keys with a salt; before, it stores nothing of a salted request."""


_OWN_FLAGS = {
    "chunk-size": "chunk_size",
    "host": "host",
    "http-host": "host",
    "http-port": "http_port",
    "l1-size-gb": "l1",
    "port": "port",
}

_REFUSED_FLAGS = {
    "disable-metrics": Refusal(READ, (None, False)),
    "disable-observability": Refusal(READ, (None, False)),
    "help": Refusal("it ends the server before it starts; see `lmcache server --help` for every flag"),
    "l2-adapter": Refusal("write 'l2' (a directory or redis://HOST:PORT), and further fields as 'l2_adapter'", ()),
    "supported-transfer-mode": Refusal(
        "its engines move KV in the mode lmcache_driven; leave this flag out", (None, "lmcache_driven", "auto")
    ),
    "transport": Refusal("its engines ask over zmq; leave this flag out", (None, "zmq")),
}

_OWN_VARIABLES = {
    "LMCACHE_CHUNK_SIZE": "chunk_size",
    "LMCACHE_LOCAL_DISK": "l2",
    "LMCACHE_MAX_LOCAL_CPU_SIZE": "l1",
    "LMCACHE_MAX_LOCAL_DISK_SIZE": "l2",
    "LMCACHE_REMOTE_URL": "l2",
    "LMCACHE_RESP_HOST": "l2",
    "LMCACHE_RESP_PORT": "l2",
}

_REFUSED_VARIABLES = {
    "LMCACHE_CONFIG_FILE": "LMCache runs as a server here, which reads no such file: write 'l1', 'l2' and 'chunk_size' "
    "of a cache, and further flags under its 'args'",
    "LMCACHE_LOCAL_CPU": "host memory is always used by a cache: write its size as 'l1'",
    "LMCACHE_MP_TRANSFER_MODE": "engines and caches move KV in the mode lmcache_driven; leave this variable out",
}

_QUIET = {"LMCACHE_DISABLE_BANNER": "1", "LMCACHE_TRACK_USAGE": "false"}


def _counter(key: str, label: str = "") -> Series:
    return Series("lmcache_mp_", key, "counter", label)


def _gauge(key: str) -> Series:
    return Series("lmcache_mp_", key, "gauge")


LOOKUPS, ASKED = map(_counter, ("lookups_requests", "lookup_requested_tokens"))
HIT, HIT_L1, HIT_L2 = map(_counter, ("lookup_hit_tokens", "lookup_hit_l1_tokens", "lookup_hit_l2_tokens"))
EARLY_EXIT = _counter("lookup_early_exit_requests", "reason")
UNREGISTERED = "no_gpu_context"
"""Why a lookup ended early, if the engine that asked has not registered; a prompt without a whole chunk ends so too."""

WRITTEN, EVICTED, REFUSED, UNREADABLE = map(
    _counter, ("l1_write_chunks", "l1_evicted_chunks", "l1_allocation_failure_chunks", "l2_prefetch_failure_chunks")
)
SUBMITTED, FINISHED = map(_counter, ("num_submitted_stores", "num_finished_stores"))
L1_BYTES, L1_USE, L2_BYTES = map(_gauge, ("l1_memory_usage_bytes", "l1_usage_ratio", "l2_usage_bytes"))
LOOKUP = Line(Series("vllm:", "lmcache_mp_lookup_duration_seconds", "histogram"), "mean")

_CHARTS = (
    Chart(
        "Tokens found",
        "suffix: tok/s",
        "Tokens that lookups found in L1 (host memory), and beyond those in L2. An engine loads of them what it lacks.",
        (Line(HIT_L1, "rate", "L1"), Line(HIT_L2, "rate", "L2")),
        stacked=True,
    ),
    Chart("L1 in use", "percentunit", "Share of L1 that holds chunks.", (Line(L1_USE, "share"),)),
    Chart(
        "Bytes held",
        "bytes",
        "KV in L1, and in L2 by the server's own account.",
        (Line(L1_BYTES, "value", "L1"), Line(L2_BYTES, "value", "L2")),
    ),
    Chart(
        "Chunks stored",
        "short",
        "Chunks that came into L1 since the server started, and stores in hand: what is not stored cannot be loaded.",
        (Line(WRITTEN, "value", "written"), Line(SUBMITTED, "value", "stores in hand", less=FINISHED)),
    ),
    Chart(
        "Why tokens are missing",
        "short",
        "Since the server started; it exposes each of them only once it has happened. Chunks evicted from L1, refused "
        "because L1 was full, unreadable in L2; lookups of engines that had not registered.",
        (
            Line(EVICTED, "value", "evicted"),
            Line(REFUSED, "value", "refused"),
            Line(UNREADABLE, "value", "unreadable"),
            Line(EARLY_EXIT, "value", "not registered", where=UNREGISTERED),
        ),
    ),
)


class LMCache(Backend):
    """See the module."""

    kind = "lmcache"
    title = "LMCache"
    command = ("-m", "lmcache.cli.main", "server")  # as a module: a script need not be on PATH
    package = "lmcache"
    connector = "LMCacheMPConnector"
    chunk_size = 256
    gpu_bytes = int(0.65 * GIB)  # its CUDA context and staging: 522 to 650 MiB were reported (LMCache#4287)
    quiet = _QUIET
    own_flags = _OWN_FLAGS
    refused_flags = _REFUSED_FLAGS
    own_variables = _OWN_VARIABLES
    refused_variables = _REFUSED_VARIABLES
    secrets = ("LMCACHE_RESP_",)
    prefixes = ("lmcache_mp",)
    health_path = "/healthcheck"
    report_path = "/status"
    clear_path = "/cache/clear"
    pools = ("lmcache_kv_{pid}_",)
    registers = True
    lookup = LOOKUP
    charts = _CHARTS
    user = "LMCACHE_RESP_USERNAME"
    password = "LMCACHE_RESP_PASSWORD"  # noqa: S105 (the name of a variable)

    def options(self, server: Server) -> dict[str, Any]:
        """Those of `lmcache server`."""
        arguments: dict[str, Any] = {
            "host": server.inner,
            "port": server.port,
            "http-host": server.host,
            "http-port": server.http_port,
            "chunk-size": server.chunk_size,
            "l1-size-gb": f"{server.l1 / GIB:g}",
            "eviction-policy": "LRU",
            # Fewer workers than engines would make engines wait for each other's copies.
            "max-workers": max(2, server.engines),
            "supported-transfer-mode": "lmcache_driven",
        }
        if not server.on_gpu:
            arguments["l1-use-lazy"] = False
        if server.store:
            # "retain" keeps in L1 what was read from L2: the default drops it after one use.
            arguments["l2-prefetch-policy"] = "retain"
            arguments["l2-adapter"] = _l2_adapter(server)
        return arguments

    def wiring(self, server: Address) -> Wiring:
        """The multiprocess connector; values by which engines survive the death of their cache server.

        A failed load is computed again, a dead server is noticed by heartbeat within seconds, and KV blocks move by
        mapped memory or CUDA IPC only (the other modes unpickle what arrives on a socket).
        """
        fields = {
            "lmcache.mp.host": f"tcp://{server.host}",
            "lmcache.mp.port": server.port,
            "lmcache.mp.mp_transfer_mode": "lmcache_driven",
            "lmcache.mp.heartbeat_interval": 2,
            "lmcache.mp.mq_timeout": 10,
        }
        return Wiring(self.transfer(**fields))

    def in_container(
        self, options: Mapping[str, Any], *, host: str = "", directory: str = "", adapter: Mapping[str, str] = NOTHING
    ) -> dict[str, Any]:
        """Engines name the server's host in their connector's fields, a server its directory in the adapter's."""
        options = dict(options)
        if host:
            transfer = options["kv-transfer-config"]
            extra = {**transfer["kv_connector_extra_config"], "lmcache.mp.host": f"tcp://{host}"}
            options["kv-transfer-config"] = {**transfer, "kv_connector_extra_config": extra}
        if directory:
            options["l2-adapter"] = {**options["l2-adapter"], "base_path": directory, **adapter}
        return options

    def share_kept(self, flags: Mapping[str, Any]) -> float:
        """Eviction begins at a watermark and takes a part of what is there: by default 80 %, and 20 % of that."""
        return share_kept(flags, "eviction-trigger-watermark", 0.8, 0.2)

    def fingerprint(self, adapter: Mapping[str, Any]) -> dict[str, Any]:
        """Compressed KV has the names of plain KV, but not its content."""
        serde = adapter.get("serde")
        return {"serde": serde} if serde else {}

    def files(self, salts: str) -> str:
        """A chunk's file is called after its key, which ends with the salt."""
        return f"*@{salts}.data"

    def keys(self, salts: str) -> str:
        """A chunk's key ends with the salt."""
        return f"*@{salts}"

    def keys_of_model(self, model: str) -> str:
        """A chunk's key begins with the model's name."""
        return f"{model}@*"

    def reported_chunk_size(self, report: Mapping[str, Any]) -> int | None:
        """As it was started."""
        size = report.get("chunk_size")
        return size if isinstance(size, int) and size > 0 else None

    def registered(self, report: Mapping[str, Any]) -> int | None:
        """Engines that died are among them until the server starts anew."""
        engines = report.get("registered_gpu_ids")
        return None if engines is None else len(engines)

    def kv_bytes_per_token(self, report: Mapping[str, Any]) -> int | None:
        """None if no engine has registered."""
        for meta in report.get("cache_context_meta", {}).values():
            if size := meta.get("kv_cache_layout", {}).get("cache_size_per_token"):
                return int(size) * int(meta.get("world_size", 1))
        return None

    def objects(self, report: Mapping[str, Any]) -> int:
        """Each is one chunk."""
        return int(report.get("storage_manager", {}).get("l1_manager", {}).get("total_object_count", 0))

    def chunks_written(self, before: Mapping[str, float], after: Mapping[str, float]) -> int:
        """Of everybody's requests."""
        return _since(WRITTEN.key, before, after)

    def pending(self, counters: Mapping[str, float]) -> float:
        """Stores are counted when they begin and when they end."""
        return counters.get(SUBMITTED.key, 0) - counters.get(FINISHED.key, 0)

    def tiers(self, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, int] | None:
        """0.5.6 tells, 0.5.3 does not."""
        names = {"l1": HIT_L1.key, "l2": HIT_L2.key}
        if not any(name in after for name in names.values()):
            return None
        return {tier: _since(name, before, after) for tier, name in names.items()}

    def losses(self, since: Mapping[str, float], before: Mapping[str, float], after: Mapping[str, float]) -> Losses:
        """A lookup ends early where the engine that asks has not registered."""
        return Losses(
            strange=_since(EARLY_EXIT.at(UNREGISTERED), before, after) > 0,
            evictions=_since(EVICTED.key, since, after),
            refusals=_since(REFUSED.key, since, after),
            unreadable=_since(UNREADABLE.key, since, after),
            matched=_since(HIT.key, before, after) if HIT.key in after else None,
        )

    def lookups(self, counters: Mapping[str, float]) -> Lookups | None:
        """Also of tokens that the engine turned out to have itself."""
        tells = ASKED.key in counters and HIT.key in counters
        return Lookups(counters[ASKED.key], counters[HIT.key]) if tells else None

    def lookup_requests(self, before: Mapping[str, float], after: Mapping[str, float]) -> int | None:
        """0.5.6 tells."""
        return _since(LOOKUPS.key, before, after) if LOOKUPS.key in after else None

    def usage(self, counters: Mapping[str, float], report: Mapping[str, Any]) -> Usage:
        """0.5.6 counts the bytes of L2; a directory that several servers share may hold more."""
        storage = report.get("storage_manager", {})
        l1, adapters = storage.get("l1_manager", {}), storage.get("num_l2_adapters")
        l2 = counters.get(L2_BYTES.key)
        return Usage(
            l1=l1.get("memory_used_bytes"),
            l1_size=l1.get("memory_total_bytes"),
            has_l2=None if adapters is None else adapters > 0,
            l2=None if l2 is None else int(l2),
            engines=self.registered(report),
        )


def _since(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> int:
    return int(after.get(name, 0) - before.get(name, 0))


def _l2_adapter(server: Server) -> dict[str, Any]:
    """The adapter's fields: what the profile gives, on top of the defaults of its type or of the best that works."""
    adapter = server.adapter
    if store.is_server(server.store):
        host, port = store.server(server.store)
        # Name and password come from LMCACHE_RESP_USERNAME and LMCACHE_RESP_PASSWORD: secrets of the profile.
        return {"type": "resp", "host": host, "port": port, **adapter}
    number = tuple(int(part) for part in re.findall(r"[0-9]+", server.version)[:3])
    adapters = {adapter["type"]: adapter for adapter in (NATIVE, PYTHON)}
    kind = adapter.get("type", (NATIVE if number >= FIRST_NATIVE else PYTHON)["type"])
    # By default the servers of all nodes would write the same chunk under the same temporary name.
    own: dict[str, Any] = {"relative_tmp_dir": f"tmp-{server.node}"} if server.node else {}
    if server.on_gpu and kind == NATIVE["type"]:
        own["num_workers"] = GPU_WORKERS
    return {**adapters.get(kind, {"shared": True}), "type": kind, **own, **adapter, "base_path": server.store}
