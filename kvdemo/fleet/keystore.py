"""L2 on a Redis or Valkey server: whose KV it holds, and the keys of a benchmark's own requests.

The backend knows the keys: they name the model and the request's salt, and nothing in them tells other weights of the
same name apart. So a server is claimed: one key for each model says of which fingerprint its KV is, and a fleet of
another one is refused. Limit: who writes there without kvdemo is seen only while that key is not there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from kvdemo import backends
from kvdemo.backends.store import server
from kvdemo.errors import PreflightError
from kvdemo.planning.services import ServiceSpec

if TYPE_CHECKING:
    from redis import Redis

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
