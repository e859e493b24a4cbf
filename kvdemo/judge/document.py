"""Runs and results as JSON: the only place where they are mappings, and where damaged files are caught.

Keys follow ``vllm bench serve``: ``median_ttft_ms`` and friends in milliseconds, per-sample times in seconds. Unknown
keys of other versions are ignored. Every function that reads raises ValueError with the field and what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from kvdemo.judge.result import Conditions, Result, Row, Times
from kvdemo.judge.sample import Sample

SCHEMA_VERSION = 1
METRICS = tuple(field.name for field in fields(Row) if "seconds" in field.metadata)
RESULT_KEYS = ("schema_version", *(field.name for field in fields(Result) if field.name != "conditions"))


@dataclass(frozen=True)
class _Kind:
    kind: Literal["run", "sample"]


_KIND, _SAMPLE, _CONDITIONS = TypeAdapter(_Kind), TypeAdapter(Sample), TypeAdapter(Conditions)
_RESULT = TypeAdapter(Result)


def line(text: str) -> Conditions | Sample:
    """One line of a run's JSONL file."""
    try:
        if _KIND.validate_json(text).kind == "sample":
            return _SAMPLE.validate_json(text, strict=True)
        return conditions(text)
    except ValidationError as error:
        raise ValueError(fault(error)) from None


def conditions(text: str) -> Conditions:
    """The conditions of a run, from a JSON object."""
    try:
        run = _CONDITIONS.validate_json(text, strict=True)
        everything = from_json(text, allow_inf_nan=False)
    except ValidationError as error:
        raise ValueError(fault(error)) from None
    unjudged = {
        key: value for key, value in everything.items() if key not in {"kind", *RESULT_KEYS} - {"prompt_tokens"}
    }
    return replace(run, everything=unjudged)


def of_mapping(document: Mapping[str, Any]) -> Conditions:
    """The conditions that a run begins with."""
    return conditions(json.dumps(document))


def to_json(result: Result) -> dict[str, Any]:
    """The result document: the conditions, then what was found under them."""
    document = {"schema_version": SCHEMA_VERSION, **result.conditions.everything, **_plain(result)}
    del document["conditions"]
    return document


def from_json_text(text: str) -> Result:
    """The result in a summary that some version of kvdemo saved."""
    try:
        document = from_json(text, allow_inf_nan=False)
        if not (isinstance(document, dict) and isinstance(document.get("rows"), list)):
            raise ValueError("it has no rows")
        run = conditions(text)
        rows = [_unflatten(row) for row in document["rows"]]
        shaped = {"trials_run": 0, **document, "rows": rows, "conditions": run.everything}
        return replace(_RESULT.validate_json(json.dumps(shaped), strict=True), conditions=run)
    except ValidationError as error:
        raise ValueError(fault(error)) from None


def _plain(value: Any) -> Any:
    """Dataclasses as mappings, tuples as lists."""
    if is_dataclass(value):
        members: dict[str, Any] = {}
        for field in fields(value):
            member = getattr(value, field.name)
            if field.name in METRICS and (member is None or isinstance(member, Times)):
                members |= _flat(field.name, member)
            elif member is not None or not field.metadata.get("absent"):
                members[field.name] = _plain(member)
        return members
    if isinstance(value, Mapping):
        return {str(key): _plain(member) for key, member in value.items()}
    return [_plain(member) for member in value] if isinstance(value, tuple) else value


def _flat(name: str, times: Times | None) -> dict[str, Any]:
    if times is None:
        return {f"n_{name}": 0}
    values = _plain(times)
    return {f"n_{name}": values.pop("n")} | {f"{key}_{name}_ms": value for key, value in values.items()}


def _unflatten(row: Any) -> Any:
    """A row whose times are mappings again."""
    if not isinstance(row, dict):
        return row
    members = dict(row)
    for name in METRICS:
        keys = {field.name: f"{field.name}_{name}_ms" for field in fields(Times)} | {"n": f"n_{name}"}
        members[name] = {key: row[key_in_row] for key, key_in_row in keys.items() if key_in_row in row}
        if not members[name].get("n"):
            members[name] = None
    return members


def fault(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{where} is missing"
    if not where:
        return str(first["msg"])
    return f"{where} is {str(first['input'])[:60]!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
