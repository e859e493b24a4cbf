"""The command and environment of one cache server: pure functions, as in ``engines``; its backend knows the flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvdemo import backends
from kvdemo.backends.backend import Server
from kvdemo.config import flags
from kvdemo.planning.engines import QUIET, normalize, visible

if TYPE_CHECKING:
    from kvdemo.config.profile import Cache


def argv(cache: Cache, *, python: str, **values: Any) -> tuple[str, ...]:
    """The command that runs this cache server."""
    return (*command(cache, python), *flags.words(options(cache, **values)))


def command(cache: Cache, python: str) -> tuple[str, ...]:
    """The words that start this cache server in this interpreter."""
    return (python, *backends.of(cache.kind).command)


def options(
    cache: Cache,
    *,
    ports: Sequence[int],
    inner: str,
    engines: int,
    on_gpu: bool,
    store: str | None,
    version: str = "",
    node: str = "",
) -> dict[str, Any]:
    """Every flag of this cache server for ``engines`` engines, its L2 in ``store``, and its value.

    ``ports`` are for engines, for HTTP and what else its backend asks for, ``inner`` is the address on which engines
    reach it; ``version`` and ``node`` are those of ``Server``.
    """
    port, http_port, *more = ports
    backend = backends.of(cache.kind)
    arguments = backend.options(
        Server(
            host=cache.host,
            inner=inner,
            port=port,
            http_port=http_port,
            l1=cache.l1,
            chunk_size=cache.chunk_size,
            engines=engines,
            on_gpu=on_gpu,
            store=store or "",
            adapter=cache.l2_adapter,
            version=version,
            node=node,
            more=dict(zip(backend.more_ports, more, strict=True)),
        )
    )
    return arguments | normalize(cache.args)


def env(cache: Cache, *, devices: Sequence[str]) -> dict[str, str]:
    """The variables this server gets on top of the user's own: it must see every GPU of its engines."""
    quiet = QUIET | dict(backends.of(cache.kind).server_variables)
    return quiet | (visible(devices) if devices else {"CUDA_VISIBLE_DEVICES": ""}) | dict(cache.env)
