"""A connector that a profile gives an engine verbatim, in ``args``: kvdemo knows nothing of what it does.

The engines' own counters still prove what came from outside. Its unit is taken to be the engine's KV block; how to know
that something is stored, tiers, and why something is missing stay unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvdemo.backends.backend import Address, Backend, Wiring

FLAG = "kv-transfer-config"
"""By it vLLM takes a connector."""


class Other(Backend):
    """See the module. No cache of a profile is of this kind."""

    kind = "foreign"
    title = "another connector"
    command = ()
    package = "vllm"
    connector = ""
    serves = False
    chunk_is_block = True

    def wiring(self, server: Address) -> Wiring:
        """The profile wires it."""
        del server
        return Wiring()


def connector(options: Mapping[str, Any]) -> str:
    """The name of the connector in an engine's flags; empty if there is none."""
    config = options.get(FLAG)
    name = config.get("kv_connector") if isinstance(config, Mapping) else config
    return str(name or "")
