"""Mooncake as a standalone store: one pool of host memory for a machine's engines, which outlives each of them.

The store is two processes, which ``host.mooncakepool`` runs as one service: `mooncake_master`, which knows where each
key lies and answers over HTTP, and `mooncake_client`, which owns the memory. Engines move KV blocks to and from it
over TCP by vLLM's MooncakeStoreConnector. Source: vLLM 0.32 (kv_connector/v1/mooncake/store, mooncake_store.py) and
mooncake-transfer-engine 0.3.13, and its answers. A key holds a prefix, the last part of the model's path, the rank and
vLLM's hash of the block, which contains the request's salt; weights are not in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvdemo.backends.backend import READ, Address, Backend, Losses, Refusal, Server, Usage, Wiring, share_kept
from kvdemo.backends.series import Chart, Line, Series

SERVICE = Path(__file__).resolve().parents[1] / "host" / "mooncakepool.py"
"""What runs master and pool as one service."""

BUFFER = 128 * 1024**2
"""Bytes that each engine registers for its copies. Mooncake's own default is 4 GiB."""

TCP = {
    "MC_TCP_ENABLE_CONNECTION_POOL": "1",
    "MC_TCP_LANES_PER_PEER": "8",
    "MC_TCP_MAX_PENDING_ADMISSIONS_PER_PEER": "65535",
    "MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER": "65535",
}
"""How its transfer engine moves KV over TCP. A load is thousands of pieces at once: with its own defaults one of 4 GB
failed on two H200 ("TCP lane queue-full rejection"), after a minute, again and again."""

_OWN_FLAGS = {"host": "host", "http-port": "http_port", "l1": "l1", "port": "port"}

_REFUSED_FLAGS = {
    flag: Refusal("kvdemo decides where the store listens; leave this flag out")
    for flag in ("metrics-host", "metrics-port", "pool-port", "rpc-address", "rpc-port")
}
_REFUSED_FLAGS |= {
    "enable-ha": Refusal("the store is one master on one machine here; leave this flag out", (None, False)),
    "enable-metric-reporting": Refusal(READ, (None, True)),
    "help": Refusal("it ends the master before it starts; see `mooncake_master --help` for every flag"),
}

OPERATIONS = Series("vllm:", "mooncake_store_operation_time_seconds", "histogram", "operation")
CAPACITY = Series("master_", "total_capacity_bytes", "gauge")
ALLOCATED = Series("master_", "allocated_bytes", "gauge")
KEYS = Series("master_", "key_count", "gauge")
PUTS = Series("master_", "batch_put_end_items", "counter")
FAILED_PUTS = Series("master_", "batch_put_end_failed_items", "counter")
EVICTED = Series("master_", "evicted_key_count", "gauge")
REFUSED = Series("master_", "put_start_alloc_failures", "counter")

_CHARTS = (
    Chart(
        "Bytes in the pool",
        "bytes",
        "KV in the store's memory, and how much it can hold.",
        (Line(ALLOCATED, "value", "held"), Line(CAPACITY, "value", "capacity")),
    ),
    Chart(
        "Blocks stored",
        "short",
        "Keys in the store (each rank's part of a block is one), and what went missing since the store started: keys "
        "evicted, and those that found no room.",
        (Line(KEYS, "value", "stored"), Line(EVICTED, "value", "evicted"), Line(REFUSED, "value", "refused")),
    ),
)

_MEMORY_ONLY = "Mooncake is run with host memory only here: leave it out, and say its size as 'l1'"


class Mooncake(Backend):
    """See the module."""

    kind = "mooncake"
    title = "Mooncake"
    command = (str(SERVICE),)
    package = "mooncake"
    connector = "MooncakeStoreConnector"
    parts = ("store",)
    install = (
        "install requirements-mooncake.lock into that interpreter (on a GPU: mooncake-transfer-engine-cuda13), and "
        "Debian's libibverbs1"
    )
    engine_bytes = BUFFER
    more_ports = ("pool",)
    lacks = {"l2": _MEMORY_ONLY, "l2_adapter": _MEMORY_ONLY}  # noqa: RUF012 (read only)
    one_machine = True
    exposed = (
        "Mooncake's transfer engine listens on all interfaces, on ports that it chooses, and asks nobody who they are, "
        "whatever `host` says"
    )
    own_flags = _OWN_FLAGS
    refused_flags = _REFUSED_FLAGS
    refused_variables = {  # noqa: RUF012
        "MOONCAKE_CONFIG_PATH": "kvdemo writes this file for the engines of a cache of kind mooncake; leave it out",
        "VLLM_HOST_IP": "engines and stores of one machine reach each other on `host`; leave this variable out",
    }
    server_variables = TCP
    chunk_is_block = True
    prefixes = ("master",)
    health_path = "/health"
    report_path = "/health"
    lookup = Line(OPERATIONS, "mean", where="lookup_exists")
    charts = _CHARTS

    def options(self, server: Server) -> dict[str, Any]:
        """Those of ``host.mooncakepool``; further ones are for `mooncake_master`."""
        return {
            "host": server.host,
            "port": server.port,
            "http-port": server.http_port,
            "pool-port": server.more.get("pool", 0),
            "l1": server.l1,
        }

    def wiring(self, server: Address) -> Wiring:
        """The store's connector.

        The number of the lookup socket is that of the engine's own port: by default all engines of a machine take one
        socket from each other, and when the one that had it last stops, the others hang. The prefix keeps apart what
        differs in weights, flags or versions.
        """
        transfer = self.transfer(cache_prefix=server.fingerprint, lookup_rpc_port=server.own_port)
        config = {
            "mode": "standalone-store",
            "metadata_server": "P2PHANDSHAKE",
            "master_server_address": f"{server.host}:{server.port}",
            "global_segment_size": 0,
            "local_buffer_size": BUFFER,
            "protocol": "tcp",
            "device_name": "",
        }
        path = f"{server.sockets}/mooncake-{server.own_port}.json"
        return Wiring(
            {**transfer, "block-size": server.chunk_size},
            {"MOONCAKE_CONFIG_PATH": path, "VLLM_HOST_IP": server.host, **TCP},
            {path: json.dumps(config)},
        )

    def share_kept(self, flags: Mapping[str, Any]) -> float:
        """Eviction begins at 95 % and takes 5 %, unless its flags say otherwise."""
        return share_kept(flags, "eviction-high-watermark-ratio", 0.95, 0.05)

    def usable(self, counters: Mapping[str, float]) -> bool:
        """The master answers before the pool has given it its memory."""
        return counters.get(CAPACITY.key, 0) > 0

    def chunks_written(self, before: Mapping[str, float], after: Mapping[str, float]) -> int:
        """Keys, of which every tensor-parallel rank writes one a chunk."""
        return round(_puts(after) - _puts(before))

    def losses(self, since: Mapping[str, float], before: Mapping[str, float], after: Mapping[str, float]) -> Losses:
        """The master counts keys that it evicted, and those that found no room."""
        del before
        return Losses(
            evictions=int(after.get(EVICTED.key, 0) - since.get(EVICTED.key, 0)),
            refusals=int(after.get(REFUSED.key, 0) - since.get(REFUSED.key, 0)),
        )

    def usage(self, counters: Mapping[str, float], report: Mapping[str, Any]) -> Usage:
        """Its pool is all that it has; it does not count lookups in tokens, nor engines."""
        del report
        allocated, size = (counters.get(one.key) for one in (ALLOCATED, CAPACITY))
        if allocated is None or size is None:
            return Usage()
        return Usage(l1=int(allocated), l1_size=int(size), has_l2=False)


def _puts(counters: Mapping[str, float]) -> float:
    return counters.get(PUTS.key, 0) - counters.get(FAILED_PUTS.key, 0)
