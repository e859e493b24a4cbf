"""A fake LMCache server: ``python -m lmcache.cli.main server --port P --http-port H --chunk-size N``.

It keeps hashes of chunks, no KV. Engines reach it by HTTP on the port where the real one speaks ZMQ:
``/fake/register`` and ``/fake/unregister`` {id, model}, ``/fake/lookup`` and ``/fake/store`` {chunks, salt}.
Chunks asked for are counted as L1 hits, or as L2 hits: of chunks that are files in L2's directory, whoever wrote them.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import fakeserver as fake
from fakeserver import Handler

BYTES_PER_TOKEN = 8192
SALTED = (
    "lookup_requested_tokens",
    "lookup_hit_tokens",
    "lookup_hit_l1_tokens",
    "lookup_hit_l2_tokens",
    "lookups_requests",
)
"""Counters that have a series for each salt, from its first lookup on; one without a salt is there at once."""

COUNTERS = ("l1_write_chunks", "num_submitted_stores", "num_finished_stores", "num_finished_retrieves")


class Cache:
    """What is stored, by hash."""

    def __init__(self, chunk_size: int, l1_size: int, disk: Path | None) -> None:
        self.chunk_size, self.l1_size, self.disk = chunk_size, l1_size, disk
        self.l1: set[str] = set()
        self.engines: dict[int, str] = {}
        self.counters = {f"{name}_total": 0 for name in COUNTERS}
        self.counters |= {f'{name}_total{{cache_salt=""}}': 0 for name in SALTED}
        self.lock = threading.Lock()

    def count(self, name: str, value: int, salt: str | None = None) -> None:
        """Add to a counter; one of a salt is another series."""
        series = f"{name}_total" + ("" if salt is None else f'{{cache_salt="{salt}"}}')
        self.counters[series] = self.counters.get(series, 0) + value

    def register(self, handler: Handler, body: Any) -> None:
        """An engine offers its memory."""
        if not fake.fault("NOT_REGISTERED"):
            self.engines[body["id"]] = body["model"]
        handler.reply({"chunk_size": self.chunk_size})

    def unregister(self, handler: Handler, body: Any) -> None:
        """An engine leaves in good order."""
        self.engines.pop(body["id"], None)
        handler.reply({})

    def lookup(self, handler: Handler, body: Any) -> None:
        """How many of these chunks are here, from the first one on."""
        found = {"l1": 0, "l2": 0}
        with self.lock:
            for chunk in body["chunks"]:
                filed = self.disk and self.file(chunk, body["salt"]).exists()
                tier = "l1" if chunk in self.l1 else "l2" if filed else ""
                if not tier:
                    break
                found[tier] += 1
                self.l1.add(chunk)
            self.count("lookups_requests", 1, body["salt"])
            self.count("lookup_requested_tokens", len(body["chunks"]) * self.chunk_size, body["salt"])
            for tier, count in found.items():
                self.count(f"lookup_hit_{tier}_tokens", count * self.chunk_size, body["salt"])
                self.count("lookup_hit_tokens", count * self.chunk_size, body["salt"])
            self.count("num_finished_retrieves", any(found.values()))
        handler.reply({"found": sum(found.values())})

    def file(self, chunk: str, salt: str) -> Path:
        """Where a chunk is in L2."""
        return (self.disk or Path()) / f"fake@{chunk}@{salt}.data"

    def store(self, handler: Handler, body: Any) -> None:
        """Keep these chunks."""
        with self.lock:
            self.count("num_submitted_stores", 1)

        def finish() -> None:
            with self.lock:
                self.count("l1_write_chunks", len(set(body["chunks"]) - self.l1))
                self.l1.update(body["chunks"])
                for chunk in body["chunks"] if self.disk else ():
                    self.file(chunk, body["salt"]).touch()
                self.count("num_finished_stores", 1)

        if delay := fake.number("STORE_DELAY_S", 0):
            threading.Timer(delay, finish).start()
        else:
            finish()
        handler.reply({})

    def clear(self, handler: Handler, _: Any) -> None:
        """Empty L1."""
        with self.lock:
            self.l1.clear()
        handler.reply({"status": "success"})

    def status(self, handler: Handler, _: Any) -> None:
        """The part of ``/status`` that kvdemo reads."""
        size = len(self.l1) * self.chunk_size * BYTES_PER_TOKEN
        layout = {"cache_size_per_token": BYTES_PER_TOKEN}
        meta = {str(i): {"model_name": m, "world_size": 1, "kv_cache_layout": layout} for i, m in self.engines.items()}
        handler.reply(
            {
                "is_healthy": True,
                "chunk_size": self.chunk_size,
                "registered_gpu_ids": list(self.engines),
                "cache_context_meta": meta,
                "storage_manager": {
                    "num_l2_adapters": 1 if self.disk else 0,
                    "l1_manager": {
                        "memory_used_bytes": size,
                        "memory_total_bytes": self.l1_size,
                        "total_object_count": len(self.l1),
                    },
                },
            }
        )

    def metrics(self, handler: Handler, _: Any) -> None:
        """Prometheus text."""
        held = len(self.l1) * self.chunk_size * BYTES_PER_TOKEN
        rows = {name: float(value) for name, value in self.counters.items()}
        rows |= {"l1_memory_usage_bytes": float(held), "l1_usage_ratio": held / self.l1_size}
        if self.disk:
            files = len(list(self.disk.glob("fake@*.data")))
            rows['l2_usage_bytes{l2_name="fs_native"}'] = float(files * self.chunk_size * BYTES_PER_TOKEN)
        handler.reply("".join(f"lmcache_mp_{name} {value}\n" for name, value in rows.items()))


def _health(handler: Handler, _: Any) -> None:
    if fake.healthy():
        handler.reply({"status": "healthy"})
    else:
        handler.fail(503, "starting")


def main() -> None:
    """Serve until SIGTERM."""
    given = fake.flags(sys.argv[1:])
    fake.begin()
    disk = json.loads(given.get("l2-adapter", "{}")).get("base_path")
    l1_size = int(float(given.get("l1-size-gb", "1")) * 1024**3)
    cache = Cache(int(given.get("chunk-size", "256")), l1_size, Path(disk) if disk else None)
    host = given.get("host", "127.0.0.1")
    engines = {
        "POST /fake/register": cache.register,
        "POST /fake/unregister": cache.unregister,
        "POST /fake/lookup": cache.lookup,
        "POST /fake/store": cache.store,
    }
    http = {
        "GET /healthcheck": _health,
        "GET /status": cache.status,
        "GET /metrics": cache.metrics,
        "POST /cache/clear": cache.clear,
    }
    outer = given.get("http-host", host)
    servers = [fake.Server(host, int(given["port"]), engines), fake.Server(outer, int(given["http-port"]), http)]
    fake.serve(servers)


if __name__ == "__main__":
    main()
