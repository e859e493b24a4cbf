"""Mistakes that only show between the parts of a profile: names, models, ports, shares of one GPU, flags with a key.

A part that is wrong by itself is left out, so that no mistake is told as two.
"""

from __future__ import annotations

import difflib

from kvdemo import backends
from kvdemo.backends.store import is_server
from kvdemo.config import decisions, exposure, flags, parallel
from kvdemo.config.findings import Keys
from kvdemo.config.settings import Cache, Engine, Profile, Settings
from kvdemo.config.yamlfile import Document


def check(document: Document, settings: Settings, profile: Profile) -> None:
    """Add every finding to the document: ``settings`` are as written, ``profile`` with defaults merged."""
    _check_names(document, profile)
    _check_models(document, profile)
    _check_ports(document, profile)
    _check_fractions(document, profile)
    _check_secrets(document, settings)
    _check_wiring(document, profile)
    _check_adapters(document, profile)
    _check_cluster(document, profile)
    _check_parallel(document, profile)
    _check_variables(document, settings)
    for keys, part in _parts(settings):
        _check_flags(document, keys, part)
    exposure.check(document, settings.secrets)


def _nearest(document: Document, kind: str, name: str, key: str) -> Keys:
    """Where a service's value is said: by itself, else in the defaults, else nowhere (the service then)."""
    ways: tuple[Keys, ...] = (kind, name, key), ("defaults", kind.removesuffix("s"), key)
    return next((keys for keys in ways if keys in document.values), (kind, name))


def _check_names(document: Document, profile: Profile) -> None:
    if not profile.engines and not any(keys[:1] == ("engines",) for keys in document.broken):
        about = ("engines",) if ("engines",) in document.values else ()
        document.find(("engines",), "at least one engine is needed, such as 'engines: {vllm-a: {}}'", about=about)
    for name in document.value.get("engines") or {}:
        if name in profile.caches:
            document.find(("engines", name), f"a cache is called '{name}', too", at_key=True)
    caches = [keys[1] for keys in document.values if len(keys) == 2 and keys[0] == "caches"]
    for name, engine in profile.engines.items():
        if engine.cache and engine.cache not in caches and ("caches",) not in document.broken:
            matches = difflib.get_close_matches(engine.cache, [str(cache) for cache in caches], 1, 0.5)
            existing = f"there is: {', '.join(map(str, caches))}" if caches else "there is none"
            remedy = f"did you mean '{matches[0]}'?" if matches else existing
            document.find(
                _nearest(document, "engines", name, "cache"), f"no cache is called '{engine.cache}' ({remedy})"
            )


def _check_models(document: Document, profile: Profile) -> None:
    ways = {("model",), ("defaults", "engine", "model"), ("defaults", "engine"), ("defaults",)} & document.broken
    without = [
        name
        for name, engine in profile.engines.items()
        if not engine.model and not ways and ("engines", name, "model") not in document.broken
    ]
    if without:
        message = "no model: give 'model' here, under defaults.engine or at the top"
        others = f" (nor for {', '.join(without[1:])})" if without[1:] else ""
        document.find(("engines", without[0]), message + others, at_key=True)


def _check_ports(document: Document, profile: Profile) -> None:
    used: dict[int, str] = {}
    every = [("caches", name, key) for name in profile.caches for key in ("port", "http_port")]
    for kind, name, key in every + [("engines", name, "port") for name in profile.engines]:
        port = getattr(getattr(profile, kind)[name], key)
        me = f"{kind}.{name}.{key}"
        if port is not None and used.setdefault(port, me) != me:
            about: Keys = (kind, name, key)
            document.find(
                _nearest(document, kind, name, key), f"port {port} is used twice: {used[port]} has it, too", about=about
            )


def _check_fractions(document: Document, profile: Profile) -> None:
    """Fractions of a GPU that is named; what ``auto`` shares is not known before the plan."""
    users: dict[int | str, dict[str, float]] = {}
    for name, engine in profile.engines.items():
        for gpu in engine.gpus if "auto" not in engine.gpus else ():
            if isinstance(engine.memory, float):
                users.setdefault(gpu, {})[name] = engine.memory
    for gpu, shares in users.items():
        total = sum(shares.values())
        if total > 1 + 1e-9:
            last = list(shares)[-1]
            terms = " + ".join(f"{name} {share:g}" for name, share in shares.items())
            keys = ("engines", last, "memory")
            message = f"GPU {gpu} is given away more than once: {terms} = {total:g} of 1.0"
            document.find(
                keys if keys in document.values else ("engines", last, "gpus"), message, about=("engines", last)
            )


def _check_wiring(document: Document, profile: Profile) -> None:
    """What an engine with a cache must not be told, and one without."""
    for name, engine in profile.engines.items():
        cache = profile.caches.get(engine.cache or "")
        for flag, value in engine.args.items():
            for text in decisions.of_engine(flag, value, cached=engine.cache is not None):
                document.find(_place_of_flag(document, name, flag), text, at_key=True)
        if cache and (text := decisions.block_size(engine, cache)):
            document.find(_place_of_flag(document, name, "block-size"), text)


def _place_of_flag(document: Document, engine: str, flag: str) -> Keys:
    """Where a flag of an engine stands, in whatever spelling: in its own args, or in those of the defaults."""
    for part in (("engines", engine), ("defaults", "engine")):
        for where in document.keys:
            if where[:-1] == (*part, "args") and flags.canonical(str(where[-1])).removeprefix("no-") == flag:
                return where
    return ("engines", engine)


def _check_adapters(document: Document, profile: Profile) -> None:
    """An adapter's fields mean nothing without the place that it is for; a backend may have no such place at all."""
    for name, cache in profile.caches.items():
        for key in backends.of(cache.kind).lacks:
            if text := decisions.lacking(cache, key):
                document.find(_nearest(document, "caches", name, key), text)
        backend = backends.of(cache.kind)
        if backend.lacks.get("l2"):
            continue
        if backend.needs_l2 and not cache.l2:
            document.find(("caches", name), backend.needs_l2, at_key=True)
        if backend.l2_server and is_server(cache.l2 or ""):
            document.find(_nearest(document, "caches", name, "l2"), backend.l2_server)
        keys = _nearest(document, "caches", name, "l2_adapter")
        if cache.l2_adapter and not cache.l2 and (*keys[:-1], "l2") not in document.broken:
            document.find(keys, "these fields are for L2: write 'l2', a directory or redis://HOST:PORT, beside them")


def _check_cluster(document: Document, profile: Profile) -> None:
    """What means something on one machine only, or on a cluster only."""
    for name, engine in profile.engines.items():
        numbered, keys = "auto" in engine.gpus, _nearest(document, "engines", name, "gpus")
        if profile.on.ray and engine.gpus and not numbered:
            document.find(keys, f"on a cluster GPUs are counted, not named: write {len(engine.gpus)}")
        if not profile.on.ray and numbered and engine.gpus != "auto":
            document.find(
                keys, "a number of GPUs is for a cluster; on one machine name them, such as [0], or write auto"
            )
    if not profile.on.ray:
        return
    for name, cache in profile.caches.items():
        if backends.of(cache.kind).one_machine:
            text = f"{backends.of(cache.kind).title} serves the engines of one machine here: leave 'on: ray' out"
            document.find(_nearest(document, "caches", name, "kind"), text)
    for keys in [keys for keys in document.values if keys[-1:] == ("host",) and "args" not in keys]:
        document.find(keys, "on a cluster every service listens on its node's address; leave host out")


def _check_parallel(document: Document, profile: Profile) -> None:
    """Flags that say how many GPUs an engine uses, against the GPUs that it has."""
    for name, engine in profile.engines.items():
        arguments = {flags.canonical(flag): value for flag, value in engine.args.items()}
        gpus = 1 if engine.gpus == "auto" else len(engine.gpus)
        flag, text = parallel.problem(arguments, gpus)
        if flag:
            ways: tuple[Keys, ...] = ("engines", name, "args"), ("defaults", "engine", "args")
            keys_of_flag = [keys for way in ways for keys in document.keys if keys[:-1] == way and _is(flag, keys)]
            document.find(
                keys_of_flag[0] if keys_of_flag else ("engines", name), text, at_key=True, about=("engines", name)
            )


def _is(flag: str, keys: Keys) -> bool:
    return flags.canonical(str(keys[-1])) == flag


def _parts(settings: Settings) -> list[tuple[Keys, Engine | Cache]]:
    return [
        (("defaults", "engine"), settings.defaults.engine),
        (("defaults", "cache"), settings.defaults.cache),
        *((("engines", name), engine) for name, engine in settings.engines.items()),
        *((("caches", name), cache) for name, cache in settings.caches.items()),
    ]


def _check_secrets(document: Document, settings: Settings) -> None:
    for keys in [(), *(keys for keys, _ in _parts(settings))]:
        for name in settings.secrets:
            if (where := (*keys, "env", name)) in document.values:
                message = "is under 'secrets': engines get it from your environment; remove it here"
                document.find(where, message, at_key=True)


def _check_variables(document: Document, settings: Settings) -> None:
    for keys in [(), *(keys for keys, _ in _parts(settings))]:
        for where in [where for where in document.keys if where[:-1] == (*keys, "env")]:
            if text := decisions.of_variable(str(where[-1])):
                document.find(where, text, at_key=True)


def _check_flags(document: Document, keys: Keys, part: Engine | Cache) -> None:
    for where in [where for where in document.keys if where[:-1] == (*keys, "args")]:
        flag = flags.canonical(str(where[-1]))
        plain = flag.removeprefix("no-") if flag not in part.args else flag
        value = part.args.get(plain, True)
        texts = (
            decisions.of_cache(plain, value, part.kind)
            if isinstance(part, Cache)
            else decisions.of_engine(plain, value, cached=None)
        )
        for text in texts:
            document.find(where, text, at_key=True)
