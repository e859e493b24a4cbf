"""The keys of a profile: what each means, its unit and its default, and the JSON Schema that tells editors the same.

The docstring under a key is what users read in their editor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic.json_schema import GenerateJsonSchema

from kvdemo import backends
from kvdemo.config import fields, values
from kvdemo.config.benchmark import Bench
from kvdemo.config.part import Part

GIB = 1024**3


class Runtime(Part):
    """The Python installation that runs a service."""

    python: fields.Python = None
    """Interpreter that holds vLLM and LMCache: a path, or a command on PATH. Default: the one that runs kvdemo."""


class _Service(Part):
    # What an engine and a cache have in common.
    host: fields.Host = "127.0.0.1"
    """Address to listen on. Default: the profile's host."""
    args: fields.Args = {}
    env: fields.Env = {}
    """Variables of this service's environment, on top of the profile's env."""
    runtime: Runtime = Runtime()
    """The Python installation that runs this service. Default: the profile's runtime."""


class Engine(_Service):
    """One vLLM OpenAI server: plain, or sharing its KV if it names a cache."""

    model: fields.ModelName = ""
    """Hugging Face id, or directory (beginning with ./ ../ / or ~). Default: the profile's model."""
    served_model_name: fields.ServedNames = ()
    """Name under which clients ask for the model, or a list of names. Default: the profile's, else the model."""
    gpus: fields.Gpus = "auto"
    """GPUs by index or UUID, such as [0]; on a cluster how many, such as 2; [] for none (vLLM's CPU build). Default:
    auto, the least used GPU."""
    port: fields.Port = None
    """Port of the HTTP API, 1024 to 65535. Default: a free one."""
    cache: fields.OptionalWord = None
    """Name of the cache through which this engine shares its KV. Default: none (a plain engine, the baseline)."""
    max_model_len: fields.Context = None
    """Longest prompt plus answer, in tokens as `vllm serve` counts them (32768, 32k is 32,000, 32K is 32,768), or auto:
    the longest that fits. Default: what the model supports."""
    memory: fields.Memory = None
    """Share of each GPU as a fraction up to 1.0, or as a size such as 20GiB. Default: vLLM's, divided among sharers."""
    kv_cache: fields.OptionalSize = None
    """Size of the engine's own KV cache, in bytes or such as 4GiB. Default: what is left of memory (CPU: 1GiB)."""
    args: fields.Args = {}
    """Further flags of `vllm serve`, verbatim: true is a bare flag, false its --no- form, a mapping becomes JSON."""


class Cache(_Service):
    """One cache server, through which engines share their KV."""

    kind: fields.Kind = backends.DEFAULT.kind
    """What carries the KV: lmcache, a server of LMCache; mooncake, a Mooncake store; vllm, vLLM's own
    tiers, without a process, which need GPUs and l2. Default: lmcache."""
    l1: fields.Size = 2 * GIB
    """Host memory for KV, in bytes or such as 8GiB. Default: 2GiB."""
    l2: fields.Store = None
    """Directory for KV on disk, relative to the profile, or a Redis or Valkey server as redis://HOST:PORT; on a cluster
    a directory that every node mounts. Default: none (host memory only)."""
    l2_adapter: fields.Adapter = {}
    """Fields of LMCache's L2 adapter, such as {type: fs, use_odirect: true}, or of vLLM's secondary tier, such as
    {n_read_threads: 32}. Default: files, by native threads."""
    chunk_size: fields.Chunk = 256
    """Tokens per stored chunk, at least 16; only whole chunks are shared. Mooncake's chunk is the engine's KV block,
    which gets this size. Default: 256."""
    port: fields.Port = None
    """Port on which engines reach it, 1024 to 65535. Default: a free one."""
    http_port: fields.Port = None
    """Port of its HTTP status API, 1024 to 65535. Default: a free one."""
    args: fields.Args = {}
    """Further flags of `lmcache server` or `mooncake_master`, verbatim, as in an engine's args."""


class Ray(Part):
    """A running Ray cluster."""

    address: fields.Address = "auto"
    """HOST:PORT of its head. Default: auto, the cluster that this machine is a node of."""
    placement: fields.Placement = "spread"
    """spread puts engines on different nodes as far as possible, pack on as few as possible. Default: spread."""


class On(Part):
    """Where services run."""

    ray: Ray | None = None
    """On the nodes of a Ray cluster."""


class Defaults(Part):
    """Values that services have unless they say otherwise themselves; args and env are merged key by key."""

    engine: Engine = Engine()
    """Defaults of every engine."""
    cache: Cache = Cache()
    """Defaults of every cache."""


class Settings(Part):
    """A fleet of vLLM engines and cache servers, and what to measure on it."""

    version: fields.Version = 1
    """Version of this file format. Default: 1."""
    name: fields.Label = "kvdemo"
    """Name of the fleet: lower-case letters, digits and '-'. Default: the name of the file."""
    env: fields.Env = {}
    """Environment variables of every service."""
    secrets: fields.Names = ()
    """Names of variables that engines get from your environment; their values are never written anywhere."""
    runtime: Runtime = Runtime()
    """The Python installation that runs the services. Default: the one that runs kvdemo."""
    on: Annotated[On, BeforeValidator(values.launcher)] = On()
    """Where services run: local, ray, or {ray: {address: ..., placement: ...}}. Default: local, this machine."""
    model: fields.OptionalModel = None
    """Model of every engine: a Hugging Face id, or a directory (beginning with ./ ../ / or ~)."""
    served_model_name: fields.ServedNames = ()
    """Name under which clients ask for the model, or a list of names. Default: the model."""
    host: fields.Host = "127.0.0.1"
    """Address every service listens on. Default: 127.0.0.1, reachable from this machine only."""
    start_timeout: fields.Seconds = 900.0
    """Longest wait until a service is ready, in seconds or such as 15m. Default: 15m."""
    stop_timeout: fields.Seconds = 30.0
    """Longest wait until a service has stopped by itself, in seconds or such as 30s. Default: 30s."""
    defaults: Defaults = Defaults()
    """Values that services have unless they say otherwise themselves."""
    caches: Annotated[dict[fields.Label, Cache], BeforeValidator(values.mapping)] = {}
    """Cache servers by name."""
    engines: Annotated[dict[fields.Label, Engine], BeforeValidator(values.mapping)] = {}
    """vLLM engines by name, at least one."""
    bench: Bench = Bench()
    """What `kvdemo bench` asks, and how often."""


class Profile(Settings):
    """Settings of which everything is resolved: defaults merged, variables merged, paths absolute."""

    path: Path
    """The file itself."""


def schema() -> dict[str, Any]:
    """JSON Schema of the file as a user writes it; a number may also be text with a variable in it."""
    document = _with_variables(Settings.model_json_schema())
    for part in document["$defs"].values():
        part["type"] = ["object", "null"]
    for name in ("caches", "engines"):
        document["properties"][name] |= {"type": ["object", "null"], "propertyNames": {"pattern": values.LABEL}}
    on = document["properties"]["on"]
    document["properties"]["on"] = {"description": on.pop("description"), "anyOf": [{"enum": ["local", "ray"]}, on]}
    document["properties"]["engines"] |= {"type": "object", "minProperties": 1}
    document["patternProperties"] = {"^x-": {"description": "Ignored; a place for YAML anchors."}}
    document["required"] = ["engines"]
    return {"$schema": GenerateJsonSchema.schema_dialect, **document, "title": "kvdemo profile"}


def _with_variables(part: Any) -> Any:
    if isinstance(part, list):
        return [_with_variables(item) for item in part]
    if not isinstance(part, dict):
        return part
    # The key and its description say already what a title and a default would.
    part = {
        k: v if k == "propertyNames" else _with_variables(v) for k, v in part.items() if k not in ("title", "default")
    }
    kind = part.get("type")
    if kind in ("integer", "number", "boolean") or (kind == "string" and "pattern" in part) or "const" in part:
        outer = {"description": part.pop("description")} if "description" in part else {}
        return outer | {"anyOf": [part, {"type": "string", "pattern": r"\$\{"}]}
    return part
