"""Profile + facts -> Plan: what will run, in order, exactly. Pure, and the only place that refuses a combination.

``up``, ``plan`` and every export read the same Plan, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from kvdemo import backends
from kvdemo.backends.backend import Address, Wiring
from kvdemo.backends.store import is_server
from kvdemo.config import flags, parallel
from kvdemo.planning import budget, caches, compatibility, demand, engines, repositories, sums, window
from kvdemo.planning.facts import SERVER, Facts, Model
from kvdemo.planning.problems import Problem
from kvdemo.planning.services import Node, ServiceSpec, reachable

if TYPE_CHECKING:
    from kvdemo.config.profile import Cache, Engine, Profile

__all__ = ["Node", "Plan", "ServiceSpec", "make", "wanted_ports"]


@dataclass(frozen=True)
class Plan:
    """All services of a profile in start order (caches first), and what stands in the way on this machine.

    ``problems`` stand in the way of ``up`` if they are hard; ``sums`` are what it needs of each GPU, of memory and
    disk. ``fetch`` are Hugging Face models that ``up`` downloads first. ``on`` says where services run if that is
    not this machine: ``address`` of a Ray cluster, ``groups`` that hold its GPUs; ``nodes`` are those that are used.
    ``stamps`` change with the files of each interpreter's packages.
    """

    project: str
    profile: str
    services: tuple[ServiceSpec, ...]
    problems: tuple[Problem, ...] = ()
    sums: tuple[str, ...] = field(default=(), compare=False)
    fetch: tuple[str, ...] = ()
    bench: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    on: Mapping[str, Any] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()
    stamps: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def missing(self) -> tuple[str, ...]:
        """What must be mended before ``up``, each as one sentence."""
        return tuple(str(problem) for problem in self.problems if problem.hard)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What need not be mended."""
        return tuple(str(problem) for problem in self.problems if not problem.hard)

    def service(self, name: str) -> ServiceSpec:
        """The service of that name, or what stands for a cache without a process; KeyError if there is neither."""
        services = {spec.name: spec for spec in self.services}
        services |= {spec.cache: spec.own_cache for spec in self.engines if spec.cache and not spec.server}
        return services[name]

    @property
    def engines(self) -> tuple[ServiceSpec, ...]:
        """The engines among the services."""
        return tuple(spec for spec in self.services if spec.kind == "engine")

    def versions_of(self, spec: ServiceSpec) -> Mapping[str, str]:
        """The versions in the interpreter of this service; empty if unknown."""
        return self.versions.get(f"{spec.node}:{spec.python}" if spec.node else spec.python, {})

    @property
    def attached(self) -> bool:
        """Whether something else started it: nothing of it is on this machine, or ours to change."""
        return any(spec.address for spec in self.services)

    def to_json(self) -> dict[str, Any]:
        """As a JSON document, which ``from_json`` reads back; ``missing``, ``warnings``: sentences of problems."""
        return asdict(self) | {"missing": list(self.missing), "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Plan:
        """Read a document of ``to_json``; KeyError or TypeError if it is none."""
        services = tuple(ServiceSpec(**_tuples(ServiceSpec, _with_python(entry))) for entry in document["services"])
        nodes = tuple(Node(**entry) for entry in document.get("nodes", ()))
        problems = tuple(Problem(**entry) for entry in document.get("problems", ()))
        return cls(**_tuples(cls, {**document, "services": services, "nodes": nodes, "problems": problems}))


def _with_python(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A service as it was saved; those of earlier versions name no interpreter beside their command."""
    return {"python": next(iter(entry.get("argv", ())), ""), **entry}


def _tuples(cls: type[Any], document: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in document.items() if k in cls.__dataclass_fields__}


Fingerprints = Mapping[str, Mapping[str, str]]
"""For each cache the fingerprint of each model whose KV it holds."""


def wanted_ports(profile: Profile) -> dict[str, int | None]:
    """Every port the services bind; None = choose one.

    ``NAME`` is an engine's API, or a cache's for engines, ``NAME.http`` a cache's for HTTP; its further ports are
    ``NAME.`` and what its backend calls them.
    """
    ports: dict[str, int | None] = {}
    for name, cache in profile.caches.items():
        if not backends.of(cache.kind).serves:
            continue
        ports |= {name: cache.port, f"{name}.http": cache.http_port}
        ports |= {f"{name}.{more}": None for more in backends.of(cache.kind).more_ports}
    return ports | {name: engine.port for name, engine in profile.engines.items()}


def make(profile: Profile, facts: Facts, fingerprints: Fingerprints | None = None) -> Plan:
    """Plan the fleet of one machine. Raises ProfileError for combinations that could never run right anywhere.

    ``fingerprints`` say for each cache whose KV it holds, if more than this machine's engines share it.
    """
    assignments = budget.assign(profile, facts)
    fingerprints = fingerprints or {
        name: compatibility.fingerprints_of(profile, name, facts) for name in profile.caches
    }
    specs = [
        _cache(profile, name, facts, assignments, fingerprints[name])
        for name, cache in profile.caches.items()
        if backends.of(cache.kind).serves
    ]
    specs += [_engine(profile, name, facts, assignments[name], fingerprints) for name in profile.engines]
    interpreters = {compatibility.python_of(profile, spec.name, facts) for spec in specs}
    fetch = sorted({repository.name for repository in compatibility.absent(profile, facts)})
    rows = list(sums.sums(profile, facts, assignments))
    problems = [*_problems(profile, facts, assignments, bool(fetch)), *(one.problem for one in rows if not one.fits)]
    return Plan(
        project=profile.name,
        profile=str(profile.path),
        services=tuple(specs),
        problems=tuple(dict.fromkeys(problems)),
        sums=tuple(str(s) for s in rows if s.fits),
        fetch=tuple(fetch),
        bench=profile.bench.model_dump(mode="json"),
        versions={p: dict(facts.interpreters[p].versions) for p in sorted(interpreters) if p in facts.interpreters},
        stamps={p: facts.interpreters[p].stamp for p in sorted(interpreters) if p in facts.interpreters},
        models={name: model.digest for name, model in facts.models.items()},
    )


def _problems(
    profile: Profile, facts: Facts, assignments: Mapping[str, budget.Assignment], fetching: bool
) -> Iterator[Problem]:
    for name in (*profile.caches, *profile.engines):
        interpreter = facts.interpreters.get(compatibility.python_of(profile, name, facts))
        if interpreter and interpreter.problem:
            yield Problem("interpreter", f"{name}: {interpreter.problem}", interpreter.fix, name, interpreter.python)
    yield from _of_backends(profile, facts)
    for name, engine in profile.engines.items():
        yield from _of_model(name, engine, compatibility.model_of(engine, facts), len(assignments[name].gpus), facts)
        for flag, path in repositories.files(engine):
            if path in facts.absent:
                yield Problem("file", f"{name}: {flag} names {path}, which is not there", "", name, path)
    for secret in profile.secrets:
        # The Hugging Face token serves the download only: a model that is here does not need it.
        if secret not in facts.secrets and (secret != "HF_TOKEN" or fetching):  # noqa: S105
            text = f"secret {secret} is not set, neither in the environment nor in .env beside the profile"
            yield Problem("secret", text, place=secret)
    for key, port in facts.ports.items():
        if port in facts.busy:
            owner = key.partition(".")[0]
            yield Problem("port", f"port {port} ({owner}) is taken: {facts.busy[port]}", "", owner, f"port {port}")
    yield from budget.absent(profile, facts, assignments)
    yield from sums.too_small(profile, facts, assignments)


def _of_backends(profile: Profile, facts: Facts) -> Iterator[Problem]:
    """What a cache's backend needs and lacks, and how it can be reached by others."""
    for name, cache in profile.caches.items():
        backend = backends.of(cache.kind)
        for service in (name, *(one for one, engine in profile.engines.items() if engine.cache == name)):
            entry = facts.interpreters.get(compatibility.python_of(profile, service, facts))
            if entry and entry.versions and not entry.problem and backend.package not in entry.versions:
                text = f"{service}: {backend.package} not installed for {entry.python}"
                yield Problem("interpreter", text, backend.install, service, entry.python)
        for one, engine in profile.engines.items() if backend.needs_gpu else ():
            if engine.cache == name and engine.gpus == ():
                yield Problem("gpu", f"{one}: {backend.needs_gpu}", "give it GPUs, or another kind of cache", one)
        if backend.exposed:
            yield Problem(
                "exposed", f"{name}: {backend.exposed}", "use it in a network that you trust", name, hard=False
            )


def _of_model(name: str, engine: Engine, model: Model, gpus: int, facts: Facts) -> Iterator[Problem]:
    """What an engine asks of its model that the model's files do not give."""
    if model.problem:
        yield Problem("model", f"model {engine.model}: {model.problem}", model.fix, place=engine.model)
    longest, most = window.of_engine(engine, model), model.limit or model.context
    if longest and most and longest > most and not (facts.any_length or window.overridden(engine)):
        text = f"{name}: max_model_len {longest} is more than the {most} of {engine.model}"
        fix = "lower it or, if the model can, give `hf-overrides` with its rope scaling in args"
        yield Problem("context", text, fix, name)
    tensor = parallel.of(engines.normalize(engine.args), gpus).tensor
    if model.shape and model.shape.heads % tensor:
        counts = " or ".join(str(count) for count in range(1, gpus + 1) if model.shape.heads % count == 0)
        text = (
            f"{name}: the {model.shape.heads} attention heads of {engine.model} cannot be divided among {tensor} "
            "tensor-parallel ranks"
        )
        fix = f"use {counts} GPUs for it, or divide its layers: pipeline-parallel-size in args"
        yield Problem("parallel", text, fix, name)


def _cache(
    profile: Profile, name: str, facts: Facts, assignments: Mapping[str, budget.Assignment], prints: Mapping[str, str]
) -> ServiceSpec:
    cache, inner = profile.caches[name], _inner(profile, name)
    backend = backends.of(cache.kind)
    store = compatibility.store_of(cache.l2, prints)
    users = [assignments[engine] for engine, settings in profile.engines.items() if settings.cache == name]
    gpus = {gpu: device for user in users for gpu, device in zip(user.gpus, user.devices, strict=True)}
    ports = (facts.ports[name], *(facts.ports[f"{name}.{each}"] for each in ("http", *backend.more_ports)))
    python = compatibility.python_of(profile, name, facts)
    interpreter = facts.interpreters.get(python)
    command = caches.command(cache, python)
    options = caches.options(
        cache,
        version=interpreter.versions.get(backend.package, "") if interpreter else "",
        ports=ports,
        inner=inner,
        engines=len(users),
        on_gpu=bool(gpus),
        store=store,
        node=facts.node,
    )
    return ServiceSpec(
        name=name,
        kind="cache",
        backend=cache.kind,
        argv=(*command, *flags.words(options)),
        command=command,
        options=options,
        env=caches.env(cache, devices=[gpus[gpu] for gpu in sorted(gpus)]),
        secrets=tuple(secret for secret in profile.secrets if secret.startswith(backend.secrets)),
        host=cache.host,
        inner=inner,
        port=ports[1],
        ports=ports,
        gpus=tuple(sorted(gpus)),
        chunk_size=cache.chunk_size,
        store=store,
        kin={model: compatibility.digest(text) for model, text in prints.items()},
        node=facts.node,
        pool=name.removesuffix(f"-{facts.node}"),
        start_timeout=profile.start_timeout,
        stop_timeout=profile.stop_timeout,
        python=python,
        l1=cache.l1,
        budget=f"L1 {cache.l1 / engines.GIB:g} GiB"
        + (f", L2 {'server' if is_server(store) else 'files'}" if store else ""),
    )


def _inner(profile: Profile, cache: str) -> str:
    """Where a cache listens for its engines. On a cluster they are on its node: nobody else can reach KV by it."""
    return "127.0.0.1" if profile.on.ray else profile.caches[cache].host


def _wiring(profile: Profile, name: str, facts: Facts, fingerprints: Mapping[str, str]) -> Wiring:
    """What the backend of its cache gives this engine, whose KV is right for those of the same fingerprint."""
    engine = profile.engines[name]
    if not engine.cache:
        return engines.UNWIRED
    cache = profile.caches[engine.cache]
    address = Address(
        reachable(_inner(profile, engine.cache)),
        facts.ports.get(engine.cache, 0),
        chunk_size=cache.chunk_size,
        l1=cache.l1,
        store=_store(cache, fingerprints),
        adapter=cache.l2_adapter,
        own_port=facts.ports[name],
        sockets=facts.sockets,
        fingerprint=compatibility.digest(fingerprints[engine.model]),
    )
    return backends.of(cache.kind).wiring(address)


def _memory(engine: Engine, assignment: budget.Assignment) -> str:
    """What it takes of its GPU, for people."""
    if engine.kv_cache:
        return f"KV {engine.kv_cache / engines.GIB:g} GiB"
    return f"{assignment.memory:.0%} of GPU" if assignment.memory else ""


def _env(profile: Profile, name: str, facts: Facts, assignment: budget.Assignment, wiring: Wiring) -> dict[str, str]:
    engine = profile.engines[name]
    return engines.env(
        engine,
        devices=assignment.devices,
        offline=compatibility.complete(engine, facts),
        sockets=facts.sockets,
        start_timeout=profile.start_timeout,
        wiring=wiring,
    )


def _secrets(profile: Profile) -> tuple[str, ...]:
    """Those of an engine: all but what is for cache servers."""
    return tuple(secret for secret in profile.secrets if not secret.startswith(backends.secrets()))


def _store(cache: Cache, fingerprints: Mapping[str, str]) -> str:
    return compatibility.store_of(cache.l2, fingerprints)


def _by_cache(cache: Cache | None, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What is known of an engine by its cache; also what it keeps itself where that has no process."""
    if cache is None:
        return {}
    own = {} if backends.of(cache.kind).serves else {"l1": cache.l1, "store": _store(cache, fingerprints)}
    return {"chunk_size": cache.chunk_size, **own}


def _server(python: str, facts: Facts) -> tuple[str, ...]:
    """The words that start vLLM's server in this interpreter."""
    return (python, "-m", facts.interpreters[python].server if python in facts.interpreters else SERVER)


def _engine(profile: Profile, name: str, facts: Facts, share: budget.Assignment, prints: Fingerprints) -> ServiceSpec:
    engine, model = profile.engines[name], compatibility.model_of(profile.engines[name], facts)
    if dtype := compatibility.dtype_of(engine, facts):
        engine = engine.model_copy(update={"args": {"dtype": dtype} | engines.normalize(engine.args)})
    served = engine.served_model_name or (engine.model.rstrip("/").rsplit("/", 1)[-1] if model.path else engine.model,)
    pool, wiring = engine.cache or "", _wiring(profile, name, facts, prints.get(engine.cache or "", {}))
    cache, command = profile.caches.get(pool), _server(compatibility.python_of(profile, name, facts), facts)
    options = engines.options(
        engine,
        model_names=served,
        port=facts.ports[name],
        devices=len(share.gpus),
        memory=share.memory,
        wiring=wiring,
        stop_timeout=profile.stop_timeout,
    )
    return ServiceSpec(
        name=name,
        kind="engine",
        argv=(*command, *flags.words(options)),
        command=command,
        options=options,
        env=_env(profile, name, facts, share, wiring),
        files=wiring.files,
        secrets=_secrets(profile),
        host=engine.host,
        port=facts.ports[name],
        ports=(facts.ports[name],),
        gpus=share.gpus,
        uuids=share.uuids,
        cache=pool,
        backend=cache.kind if cache else "",
        node=facts.node,
        pool=pool.removesuffix(f"-{facts.node}"),
        model=served[0],
        weights=model.digest,
        context=window.of_engine(engine, model),
        **_by_cache(cache, prints.get(engine.cache or "", {})),
        kv_bytes_per_token=demand.kv_bytes_per_token(engine, model),
        start_timeout=profile.start_timeout,
        stop_timeout=profile.stop_timeout,
        budget=_memory(engine, share),
        python=command[0],
        source=engine.model,
        tokenizer=str(engines.normalize(engine.args).get("tokenizer") or ""),
        measures=bool(share.gpus) and not engine.kv_cache,
        paths=repositories.paths(engine),
        repositories=tuple(one.name for one in repositories.auxiliary(engine)),
    )
