"""What ``kvdemo estimate`` replays a trace against: options, else the profile, else defaults."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvdemo import backends, units
from kvdemo.errors import UsageError

if TYPE_CHECKING:
    from kvdemo.config.profile import Cache, Engine
    from kvdemo.planning.demand import Demand
    from kvdemo.planning.facts import Facts, Model

BLOCK = 16
ENGINES = 2
UNLIMITED = "unlimited"


@dataclass(frozen=True)
class Against:
    """See the module. ``own`` and ``shared`` are tokens of one engine's cache and of the shared one, None: no limit.

    ``context`` is the longest sequence of an engine. ``tokenizer`` is empty if nobody says whose it is; ``environ`` is
    the engine's. ``notes`` say what the caches' sizes are made of.
    """

    engines: int = ENGINES
    block: int = BLOCK
    chunk: int = backends.DEFAULT.chunk_size
    backend: str = backends.DEFAULT.kind
    own: int | None = None
    shared: int | None = None
    per_token: int | None = None
    context: int | None = None
    gpus: int = 0
    model: Model | None = None
    tokenizer: str = ""
    template: str = ""
    trust: bool = False
    python: str = sys.executable
    environ: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wishes:
    """What the command line says of it; empty or None is nothing."""

    model: str = ""
    engines: int | None = None
    block_size: int | None = None
    chunk_size: int | None = None
    engine_cache: str = ""
    shared_cache: str = ""
    kv_bytes_per_token: int | None = None


def of(path: Path | None, wishes: Wishes) -> Against:
    """What the options and the profile say. Raises UsageError for a size that nobody knows, ProfileError."""
    if not path and not wishes.engine_cache:
        hint = "its log says it (GPU KV cache size: N tokens): --engine-cache Ntokens, 20GiB or unlimited; or PROFILE"
        raise UsageError("how large is an engine's own prefix cache?", hint)
    base = _of_profile(path, wishes) if path else _of_model(wishes)
    base = replace(
        base,
        engines=wishes.engines or base.engines,
        per_token=wishes.kv_bytes_per_token or base.per_token,
        block=wishes.block_size or base.block,
        chunk=wishes.chunk_size or base.chunk,
    )
    if wishes.engine_cache:
        # vLLM keeps one block of its cache back, and writes to one that is not whole and not in the cache yet.
        tokens = size(wishes.engine_cache, "--engine-cache", base.per_token)
        base = replace(base, own=None if tokens is None else max(0, tokens // base.block - 2) * base.block)
    if wishes.shared_cache:
        tokens = size(wishes.shared_cache, "--shared-cache", base.per_token)
        base = replace(base, shared=tokens, notes=())
    return base


KV_HINT = (
    "name PROFILE or --model with a model that is on this machine (none is downloaded), say --kv-bytes-per-token N, "
    "or the size in tokens: 130944tokens"
)


def size(text: str, option: str, per_token: float | None, hint: str = KV_HINT) -> int | None:
    """The tokens that a cache of this size holds: 20GiB, 130,944 tokens, unlimited (None). Raises UsageError."""
    from kvdemo.config import values

    if text.strip().lower() == UNLIMITED:
        return None
    if match := re.fullmatch(r"([0-9][0-9_,]*)\s*tok(?:ens?)?", text.strip()):
        return int(re.sub("[_,]", "", match[1]))
    try:
        size = values.size(text)
    except ValueError as error:
        raise UsageError(
            f"{option}: {error}", f"or in tokens, or none: {option} 130944tokens, {option} {UNLIMITED}"
        ) from None
    if not per_token:
        raise UsageError(f"{option}: how many bytes of KV a token has is not known", hint)
    return int(size // per_token)


def _of_model(wishes: Wishes) -> Against:
    """Without a profile: only a model, or not even that."""
    from kvdemo.host import runtime

    if not wishes.model:
        return Against()
    name = str(Path(wishes.model).resolve()) if Path(wishes.model).is_dir() else wishes.model
    model = runtime.model(name, os.environ)
    return Against(
        model=model, per_token=model.kv_bytes_per_token, tokenizer=model.path or name, environ=dict(os.environ)
    )


def _of_profile(path: Path, wishes: Wishes) -> Against:
    from kvdemo.commands import scope
    from kvdemo.host import survey
    from kvdemo.planning import compatibility, demand
    from kvdemo.planning.engines import normalize

    project = scope.project_of(path, "")
    profile = scope.profile_of(path, project)
    name = next((n for n, one in profile.engines.items() if one.cache), next(iter(profile.engines)))
    engine = profile.engines[name]
    if wishes.model:
        model_name = str(Path(wishes.model).resolve()) if Path(wishes.model).is_dir() else wishes.model
        engine = engine.model_copy(update={"model": model_name})
        profile = profile.model_copy(update={"engines": {**profile.engines, name: engine}})
    facts = survey.survey(profile, project, os.environ)
    model = compatibility.model_of(engine, facts)
    cache = profile.caches.get(engine.cache or "")
    gpus = engine.gpus if isinstance(engine.gpus, tuple) else (0,)
    gpu = min(facts.gpus, key=lambda one: one.total, default=None)
    need = demand.of(engine, model, max(1, len(gpus)), gpu if gpus else None)
    if cache and backends.of(cache.kind).chunk_is_block:
        need = replace(need, block=cache.chunk_size)
    arguments = normalize(engine.args)
    per_token = wishes.kv_bytes_per_token or demand.kv_bytes_per_token(engine, model)
    shared, notes = _shared(cache, per_token, wishes)
    return Against(
        engines=sum(one.cache == engine.cache for one in profile.engines.values()) if cache else ENGINES,
        block=need.block,
        backend=cache.kind if cache else backends.DEFAULT.kind,
        chunk=cache.chunk_size if cache else backends.DEFAULT.chunk_size,
        own=None if wishes.engine_cache else _own(name, engine, need, facts),
        shared=shared,
        per_token=per_token,
        context=need.context,
        gpus=len(gpus),
        model=model,
        tokenizer=str(arguments.get("tokenizer") or model.path or engine.model),
        template=str(arguments.get("chat-template") or ""),
        trust=bool(arguments.get("trust-remote-code")),
        python=compatibility.python_of(profile, name, facts),
        environ={**os.environ, **engine.env},
        notes=notes,
    )


def _own(name: str, engine: Engine, need: Demand, facts: Facts) -> int:
    """Tokens that the engine's own cache holds. Raises UsageError if nobody can know before it runs."""
    from kvdemo.planning.engines import GIB
    from kvdemo.planning.sums import VLLM_MEMORY

    gpu = min(facts.gpus, key=lambda one: one.total, default=None)
    kv = engine.kv_cache
    if engine.gpus == ():
        kv = -(-(kv or GIB) // GIB) * GIB  # vLLM's CPU build counts whole GiB
    elif kv is None and gpu and gpu.total and need.weights:
        memory = VLLM_MEMORY if engine.memory is None else engine.memory
        kv = (memory if isinstance(memory, int) else int(memory * gpu.total)) - need.fixed
    tokens = need.tokens(kv) if kv else None
    if tokens is None:
        hint = "vLLM's log says it (GPU KV cache size: N tokens): --engine-cache Ntokens, or 20GiB, or unlimited"
        raise UsageError(f"how many tokens the KV cache of {name} holds is not known", hint)
    return max(0, tokens - need.block)


def _shared(cache: Cache | None, per_token: int | None, wishes: Wishes) -> tuple[int | None, tuple[str, ...]]:
    """Tokens that the profile's shared cache holds, None if it has no limit; and what that is made of."""
    from kvdemo.planning.engines import normalize

    if wishes.shared_cache:
        return None, ()
    if cache is None:
        raise UsageError("the profile has no cache: how large would a shared one be?", "say it: --shared-cache 64GiB")
    if cache.l2:
        return None, ("The profile's L2 has no limit of its own: the shared cache is taken to hold everything.",)
    if not per_token:
        raise UsageError("how many bytes of KV a token has is not known", "say it: --kv-bytes-per-token N")
    share = backends.of(cache.kind).share_kept(normalize(cache.args))
    note = f"The server evicts before its {units.size(cache.l1)} are full: {share:.0%} count, as it holds on average."
    return int(cache.l1 * share) // per_token, (note,) if share < 1 else ()


def flags_of(options: Any) -> Wishes:
    """The part of the command's options that is about this."""
    return Wishes(**{name: getattr(options, name) for name in Wishes.__dataclass_fields__})
