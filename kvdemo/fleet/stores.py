"""L2 of a cache: directories of KV files, or a Redis or Valkey server; whose KV each holds, and its deletion.

``ROOT/.kvdemo-store`` marks a directory that kvdemo made; below it lies one directory per fingerprint of model,
weights, flags and versions, because a backend's own key knows none of them and would load wrong KV silently. A project
remembers the stores that it used, so that ``down -v`` finds them after a plain ``down`` too.

A server has no directories, so it is claimed: one key for each model says of which fingerprint its KV is, and a fleet
of another one is refused. Limit: who writes there without kvdemo is seen only while that key is not there.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kvdemo import backends
from kvdemo.backends.store import server
from kvdemo.errors import PreflightError
from kvdemo.planning.services import ServiceSpec

if TYPE_CHECKING:
    from redis import Redis

MARK = ".kvdemo-store"


def make(store: Path, about: dict[str, str], memory: Path) -> None:
    """Create a store's directory, mark it with what its KV belongs to, and remember it in the file ``memory``.

    Raises PreflightError if it cannot be created.
    """
    try:
        fresh = not store.parent.exists()
        store.mkdir(parents=True, exist_ok=True)
        if fresh:
            (store.parent / MARK).write_text("made by kvdemo; `kvdemo down -v` deletes it\n")
        (store / MARK).write_text(json.dumps(about, indent=1, sort_keys=True))
        if str(store) not in used_stores(memory):
            with memory.open("a", encoding="utf-8") as stream:
                stream.write(f"{json.dumps(str(store))}\n")
    except OSError as error:
        raise PreflightError(
            f"KV store {store}: {error.strerror}", "set caches.*.l2 to a directory you can write, with space left"
        ) from None


def used_stores(memory: Path) -> list[str]:
    """The stores that a project used and did not delete."""
    try:
        records = [json.loads(line) for line in memory.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return [store for store in records if isinstance(store, str)]


def delete(memory: Path) -> dict[str, int]:
    """Delete the remembered stores that are marked, and the directory above one if kvdemo made it.

    How many stores there were, and how many bytes of KV in them.
    """
    deleted = {"stores": 0, "kv_bytes": 0}
    for store in map(Path, used_stores(memory)):
        if (store / MARK).is_file():
            deleted["stores"] += 1
            deleted["kv_bytes"] += sum(file.stat().st_size for file in _kv_files(store))
            shutil.rmtree(store)
        _delete_root(store.parent)
    memory.unlink(missing_ok=True)
    return deleted


def prune(memory: Path) -> None:
    """Delete the remembered stores in which nothing was ever kept, as an interrupted start leaves them."""
    remaining = []
    for store in used_stores(memory):
        if (Path(store) / MARK).is_file() and not any(_kv_files(Path(store))):
            shutil.rmtree(store, ignore_errors=True)
            _delete_root(Path(store).parent)
        else:
            remaining.append(store)
    with suppress(OSError):
        if remaining:
            memory.write_text("".join(f"{json.dumps(store)}\n" for store in remaining), encoding="utf-8")
        else:
            memory.unlink(missing_ok=True)


def _kv_files(store: Path) -> Iterator[Path]:
    return (file for file in store.rglob("*") if file.is_file() and file.name != MARK)


def _delete_root(root: Path) -> None:
    if (root / MARK).is_file() and {entry.name for entry in root.iterdir()} == {MARK}:
        (root / MARK).unlink()
        root.rmdir()


CLAIM = "kvdemo-kin:"
BATCH = 1000


@contextlib.contextmanager
def _connect(cache: ServiceSpec, environ: Mapping[str, str]) -> Iterator[Redis]:
    """A connection; name and password as the cache server takes them. Raises PreflightError if the server refuses."""
    store, backend = cache.store, backends.of(cache.backend)
    try:
        import redis  # noqa: PLC0415 (only who has such a store needs it)
    except ImportError:
        raise PreflightError(f"L2 {store}: the package redis is missing", "pip install 'kvdemo[redis]'") from None
    host, port = server(store)
    client = redis.Redis(
        host,
        port,
        username=environ.get(backend.user) or None,
        password=environ.get(backend.password) or None,
        socket_timeout=10,
        socket_connect_timeout=3,
        decode_responses=True,
    )
    try:
        with client:
            yield client
    except redis.RedisError as error:
        hint = f"is it running, and does its password stand in {backend.password}, named under secrets?"
        raise PreflightError(f"L2 {store}: {error}", hint) from None


def claim(cache: ServiceSpec, environ: Mapping[str, str]) -> None:
    """Make its server the L2 of this cache's fingerprints. Raises PreflightError if it is that of others."""
    pattern = backends.of(cache.backend).keys_of_model
    with _connect(cache, environ) as client:
        for model, fingerprint in cache.kin.items():
            key = f"{CLAIM}{model}"
            owner = client.get(key)
            # A server short of memory may have dropped the claim and kept KV.
            if owner is None and next(client.scan_iter(pattern(_literal(model)), BATCH), None) is not None:
                owner = "unknown"
            if owner is None and not client.set(key, fingerprint, nx=True):
                owner = client.get(key)
            if owner not in (None, fingerprint):
                raise PreflightError(
                    f"L2 {cache.store} holds KV of {model} by other weights, flags or versions ({owner!s}, not "
                    f"{fingerprint}): it would silently be wrong here",
                    "use another server, or empty this one (redis-cli FLUSHALL) once nobody needs what is in it",
                )


def keys(cache: ServiceSpec, salts: str, environ: Mapping[str, str]) -> list[str]:
    """The keys of KV whose salt matches this pattern."""
    with _connect(cache, environ) as client:
        return list(client.scan_iter(backends.of(cache.backend).keys(salts), BATCH))


def forget(cache: ServiceSpec, salts: str, environ: Mapping[str, str]) -> None:
    """Delete the KV under these salts."""
    with _connect(cache, environ) as client:
        if keys := list(client.scan_iter(backends.of(cache.backend).keys(salts), BATCH)):
            client.unlink(*keys)


def _literal(text: str) -> str:
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)
