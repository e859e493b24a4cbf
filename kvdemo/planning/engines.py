"""The command and environment of one vLLM engine: pure functions of the profile and of what the plan decided.

Engines start as a module, not through the ``vllm`` script: that script of the CPU build looks for a distribution
called vllm and fails. Flags are those of ``vllm serve``; whatever the profile says in ``args`` replaces a default here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvdemo import backends
from kvdemo.backends.backend import Wiring
from kvdemo.config import flags, parallel

if TYPE_CHECKING:
    from kvdemo.config.profile import Engine


GIB = 1024**3

# Telemetry off, output unbuffered and plain, the process environment kept readable (setproctitle blanks it otherwise,
# and with it the mark by which an orphan is found).
QUIET = {
    "DO_NOT_TRACK": "1",
    **backends.quiet(),
    "NO_COLOR": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONUNBUFFERED": "1",
    "SPT_NOENV": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


UNWIRED = Wiring()
"""A plain engine has no cache."""


def normalize(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments with every name in the form ``max-model-len``."""
    return {flags.canonical(name): value for name, value in arguments.items()}


def argv(engine: Engine, *, command: Sequence[str], **values: Any) -> tuple[str, ...]:
    """The command that runs this engine: the words that start vLLM's server, then its ``options``."""
    return (*command, *flags.words(options(engine, **values)))


def options(
    engine: Engine,
    *,
    model_names: Sequence[str],
    port: int,
    devices: int,
    memory: float | None,
    wiring: Wiring,
    stop_timeout: float,
) -> dict[str, Any]:
    """Every flag of this engine, and its value.

    ``model_names`` are the names towards clients, ``devices`` the number of GPUs (0: vLLM's CPU build), ``memory`` the
    fraction of each GPU it may use (None: vLLM's default), ``wiring`` what its cache's backend gives it.
    """
    arguments: dict[str, Any] = {
        "model": engine.model,
        "served-model-name": list(model_names),
        "host": engine.host,
        "port": port,
        "max-model-len": engine.max_model_len,
        "enable-prompt-tokens-details": True,
        "enable-per-request-metrics": True,
        # vLLM's default of 0 kills the engine core at once: its KV memory would stay behind, registered with its cache.
        "shutdown-timeout": max(1, int(stop_timeout / 2)),
    }
    if devices:
        tensor = parallel.of(normalize(engine.args), devices).tensor
        arguments |= {"tensor-parallel-size": tensor if tensor > 1 else None}
        arguments |= {"gpu-memory-utilization": memory, "kv-cache-memory-bytes": engine.kv_cache}
    else:
        arguments |= {"enforce-eager": True, "distributed-executor-backend": "uni"}
        arguments |= {"kv-cache-memory-bytes": engine.kv_cache or GIB}
    arguments |= dict(wiring.arguments)
    # A null leaves a default out; but GPUs that the engine was given must not stay empty.
    pairs = normalize(engine.args).items()
    return arguments | {name: value for name, value in pairs if value is not None or name != parallel.TENSOR}


def env(
    engine: Engine,
    *,
    devices: Sequence[str],
    offline: bool,
    sockets: str,
    start_timeout: float,
    wiring: Wiring = UNWIRED,
) -> dict[str, str]:
    """The variables this engine gets on top of the user's own."""
    variables = QUIET | dict(wiring.env)
    variables["VLLM_RPC_BASE_PATH"] = sockets
    variables["VLLM_ENGINE_READY_TIMEOUT_S"] = str(int(start_timeout))
    if offline:
        variables["HF_HUB_OFFLINE"] = "1"
    if devices:
        variables |= visible(devices)
    else:
        variables |= {
            "CUDA_VISIBLE_DEVICES": "",
            # By default a thread that waits for another one spins: on cores that other programs want, too, engines then
            # took nearly twice the processor time for a prompt (docs/cpu.md), and two to three times as long.
            "OMP_WAIT_POLICY": "PASSIVE",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
    return variables | dict(engine.env)


def visible(devices: Sequence[str]) -> dict[str, str]:
    """The variables that pin a process to these GPUs, counted as nvidia-smi counts them."""
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(devices)}
