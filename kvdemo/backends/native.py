"""vLLM's own tiers: the OffloadingConnector, with host memory of each engine in front of files that all of them share.

There is no process: each engine pins ``l1`` of its own, and finds what others computed in ``l2`` only, a directory (in
/dev/shm it is memory). Source: vLLM 0.32 (v1/kv_offload and kv_connector/v1/offloading). A key is vLLM's hash of the
block, which contains the request's salt, in a folder by model name, dtype, block size, layers and ranks; weights are
not in it. Files are never evicted. vLLM's CPU build refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvdemo.backends.backend import Address, Backend, Wiring
from kvdemo.backends.series import Chart, Line, Series

TIER: Mapping[str, Any] = {"type": "fs", "n_read_threads": 16, "n_write_threads": 16}
"""What reads and writes files, with the threads of an engine that are vLLM's own defaults."""

BY_TIER = Series("vllm:", "prompt_tokens_cached_by_source", "counter", "source")
"""Cached prompt tokens by where they were: device, host, disk and others."""

_CHARTS = (
    Chart(
        "Cached prompt tokens by tier",
        "suffix: tok/s",
        "Prompt tokens that were not computed, by where their KV was: on the device, in host memory, in files.",
        (Line(BY_TIER, "rate"),),
        stacked=True,
    ),
)

_NO_SERVER = "vLLM's own tiers have no process: leave it out"


class Native(Backend):
    """See the module."""

    kind = "vllm"
    title = "vLLM's own tiers"
    command = ()
    package = "vllm"
    connector = "OffloadingConnector"
    chunk_size = 256
    serves = False
    chunk_files = "**/*.bin"
    private_l1 = True
    charts = _CHARTS
    needs_gpu = (
        "vLLM's own tiers need GPUs: its CPU build ends with 'CPU Offloading is currently only supported on CUDA-alike "
        "and XPU GPUs'"
    )
    needs_l2 = "engines share through 'l2' only: name a directory, on a disk or below /dev/shm"
    l2_server = "vLLM's own tiers keep KV in a directory, not in Redis or Valkey"
    lacks = {  # noqa: RUF012 (read only)
        "args": _NO_SERVER,
        "http_port": _NO_SERVER,
        "port": _NO_SERVER,
    }
    one_machine = True

    def wiring(self, server: Address) -> Wiring:
        """The connector with its two tiers."""
        return Wiring(
            self.transfer(
                spec_name="TieringOffloadingSpec",
                cpu_bytes_to_use=server.l1,
                block_size=server.chunk_size,
                secondary_tiers=[{**TIER, **server.adapter, "root_dir": server.store}],
            )
        )

    def engine_tiers(self, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, int] | None:
        """By the engine's own account of where cached tokens came from."""
        names = {"l1": BY_TIER.at("host"), "l2": BY_TIER.at("disk")}
        if not any(name in after for name in names.values()):
            return None
        return {tier: int(after.get(name, 0) - before.get(name, 0)) for tier, name in names.items()}
