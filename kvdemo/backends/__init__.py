"""What carries KV between engines: one module for each backend, and the list of them here.

Read ``backend`` (what every backend says), then one of them; a new one is a module here and its entry in ``BACKENDS``,
and ``tests/test_backends.py`` asks it what it asks all. Nothing outside knows a backend by its name but what
installs it, exports it and reads its logs.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvdemo.backends.backend import Backend
from kvdemo.backends.lmcache import LMCache
from kvdemo.backends.mooncake import Mooncake
from kvdemo.backends.native import Native
from kvdemo.backends.other import Other

DEFAULT: Backend = LMCache()
"""The backend of a cache that names none."""

BACKENDS: Mapping[str, Backend] = {one.kind: one for one in (DEFAULT, Native(), Mooncake())}
"""Every backend, by its kind."""


OTHER: Backend = Other()
"""Of a connector that a profile gives an engine verbatim; no cache is of this kind."""


def of(kind: str) -> Backend:
    """The backend of this kind; the default for nobody's (a plan that an earlier version saved names none)."""
    return {**BACKENDS, OTHER.kind: OTHER}[kind] if kind else DEFAULT


def quiet() -> dict[str, str]:
    """The variables that keep every backend quiet: an engine may import one that it does not use."""
    return {name: value for one in BACKENDS.values() for name, value in one.quiet.items()}


def secrets() -> tuple[str, ...]:
    """How the names of secrets begin that are for cache servers, and for no engine."""
    return tuple(prefix for one in BACKENDS.values() for prefix in one.secrets)


def pools() -> tuple[str, ...]:
    """How the names of all backends' shared memory begin."""
    return tuple(pool for one in BACKENDS.values() for pool in one.pools)


def prefixes() -> tuple[str, ...]:
    """How the names of all backends' Prometheus series begin."""
    return tuple(prefix for one in BACKENDS.values() for prefix in one.prefixes)
