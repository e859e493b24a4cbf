"""What the user wants: a YAML file read into a frozen ``Profile``, with every default in it and every path absolute.

All mistakes are told at once, each with its line. Limits: nothing is looked up on this machine; whether the GPUs, the
ports and the model are there is the plan's question.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from kvdemo.backends import BACKENDS
from kvdemo.config import values
from kvdemo.config.benchmark import Bench
from kvdemo.config.consistency import check
from kvdemo.config.decisions import own_keys
from kvdemo.config.findings import Keys, failure, is_stream, place, read
from kvdemo.config.part import Part
from kvdemo.config.settings import Cache, Defaults, Engine, On, Profile, Ray, Runtime, Settings, schema
from kvdemo.config.variables import dotenv
from kvdemo.config.yamlfile import Document, parse

__all__ = ["Bench", "Cache", "Defaults", "Engine", "Profile", "Ray", "Runtime", "load", "schema"]

_MOST_ROUNDS = 40
_PLACES: dict[type[Part], str] = {
    Settings: "at the top",
    Engine: "in an engine",
    Cache: "in a cache",
    Bench: "under 'bench'",
}
_PARTS: dict[Keys, type[Part]] = {(): Settings, ("defaults",): Defaults, ("on",): On, ("on", "ray"): Ray}

_Service = TypeVar("_Service", Engine, Cache)


def load(path: Path, environ: Mapping[str, str]) -> Profile:
    """Read a profile; variables come from ``environ``, then from a ``.env`` file beside the profile.

    Raises ProfileError with every finding.
    """
    source = read(path)
    stream = is_stream(path)
    base = place(path)
    variables, findings = dotenv(base.parent / ".env")
    document = parse(source, {**variables, **environ}, as_text=_is_env)
    context = {"base": base.parent, "home": environ.get("HOME", "~")}
    settings = _validate(document, context)
    engines = {name: _merge(engine, settings.defaults.engine, settings) for name, engine in settings.engines.items()}
    caches = {name: _merge(cache, settings.defaults.cache, settings) for name, cache in settings.caches.items()}
    own = {"engines": engines, "caches": caches, "path": path if stream else base}
    if ("name",) not in document.keys:
        own["name"] = ("" if stream else values.slug(path.stem)) or "kvdemo"
    profile = Profile.model_construct(**{name: getattr(settings, name) for name in Settings.model_fields} | own)
    check(document, settings, profile)
    if findings or document.findings:
        raise failure(findings + document.findings)
    return profile


def _is_env(keys: Keys) -> bool:
    return (keys[0] == "env" and len(keys) == 2) or (len(keys) == 4 and keys[2] == "env")


def _validate(document: Document, context: Mapping[str, Any]) -> Settings:
    """The settings without their wrong values, so that what is right is checked further in the same run."""
    value = document.value
    for _ in range(_MOST_ROUNDS):
        try:
            return Settings.model_validate(value, context=dict(context))
        except ValidationError as error:
            for entry in error.errors(include_url=False, include_input=False):
                _drop(value, _add_finding(document, entry))
    raise failure(document.findings)


def _add_finding(document: Document, entry: Any) -> Keys:
    """Add the finding for this error of pydantic; the way to the value that it is about."""
    context = entry.get("ctx", {})
    keys: Keys = ()
    for key in (*entry["loc"], *context.get("at", ())):
        # pydantic names branches of a union on the way, too.
        keys = (*keys, key) if (*keys, key) in document.values else keys
    document.broken.add(keys)
    if entry["type"] == "extra_forbidden":
        close = _closest_key(keys)
        # Whoever misspelt a key must not be told that the right one is missing.
        document.broken.add((*keys[:-1], close))
        remedy = f"did you mean '{close}'?" if close else _where_it_belongs(keys)
        document.find(keys, f"unknown key '{keys[-1]}' ({remedy})", at_key=True, about=keys[:-1])
    elif "[key]" in entry["loc"]:
        document.find(keys, context["message"], at_key=True, about=keys[:-1])
    else:
        document.find(keys, context.get("message", entry["msg"]), at_key=context.get("key", False))
    return keys


def _drop(value: dict[str, Any], keys: Keys) -> None:
    """Remove this value; of a list the whole."""
    parent: Any = value
    for depth, key in enumerate(keys):
        last = depth + 1 == len(keys) or not isinstance(parent.get(key), dict)
        if last:
            parent.pop(key, None)
            return
        parent = parent[key]
    value.clear()


def _part(keys: Keys) -> type[Part]:
    match keys:
        case (*_, "runtime"):
            return Runtime
        case ("engines", _) | ("defaults", "engine"):
            return Engine
        case ("caches", _) | ("defaults", "cache"):
            return Cache
    return _PARTS.get(keys, Bench)


def _closest_key(keys: Keys) -> str:
    """The known key that is most like this one; empty if none is."""
    part, flag = _part(keys[:-1]), str(keys[-1]).lower().replace("_", "-")
    names = {name.replace("_", "-"): name for name in part.model_fields} | dict(own_keys(part))
    close = difflib.get_close_matches(flag, names, 1, 0.6)
    return names[close[0]] if close else ""


def _where_it_belongs(keys: Keys) -> str:
    """Where a key may belong that is none here."""
    part = _part(keys[:-1])
    for other, where in _PLACES.items():
        if keys[-1] in other.model_fields:
            return f"it belongs {where}"
    if part is Engine:
        return "a flag of vLLM goes under 'args'"
    if part is Cache:
        return f"a flag of {' or '.join(one.title for one in BACKENDS.values())} goes under 'args'"
    return f"known here: {', '.join(part.model_fields)}"


def _merge(service: _Service, base: _Service, top: Settings) -> _Service:
    """The service with its defaults: its own values, then ``defaults``, then those of the profile."""
    values = {name: getattr(part, name) for part in (base, service) for name in part.model_fields_set}
    values["args"] = {**base.args, **service.args}
    values["env"] = {**top.env, **base.env, **service.env}
    values["runtime"] = Runtime(python=service.runtime.python or base.runtime.python or top.runtime.python)
    values.setdefault("host", top.host)
    if isinstance(service, Engine):
        values["model"] = service.model or top.defaults.engine.model or top.model or ""
        values["served_model_name"] = values.get("served_model_name") or top.served_model_name
    return service.model_copy(update=values)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
