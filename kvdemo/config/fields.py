"""The types of a profile's keys: the check of each value (from ``values``) and what a JSON Schema says about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema

from kvdemo import backends
from kvdemo.config import arguments, values
from kvdemo.config.values import LABEL, VARIABLE


def _schema(*kinds: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema(kinds[0] if len(kinds) == 1 else {"anyOf": list(kinds)})


def _model_or_empty(value: Any, info: ValidationInfo) -> str:
    return values.model(value, info) or ""


_NULL = {"type": "null"}
_TEXT = {"type": "string", "minLength": 1}
_SIZES = (
    {"type": "integer", "minimum": values.SMALLEST_SIZE},
    {"type": "string", "pattern": r"^[0-9.]+ *([KMGTkmgt][Ii]?)?[Bb]?$"},
)
_DURATIONS = (
    {"type": "number", "exclusiveMinimum": 0},
    {"type": "string", "pattern": r"^[0-9.]+$|^([0-9.]+ *(ms|s|m|h) *)+$"},
)
_LIMITS = {"type": "integer", "minimum": 1024, "maximum": 65535}
_GPU = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^(GPU|MIG)-|^[0-9]+$"}]}
_TEXTS = {"type": "array", "items": _TEXT, "minItems": 1}
_NAMES = {"type": "array", "items": {"type": "string", "pattern": VARIABLE}}
_VALUES = {"type": ["string", "number", "boolean"]}
_MAPPING = {"type": ["object", "null"]}

Text = Annotated[str, BeforeValidator(values.plain_text), _schema(_TEXT)]
ServedNames = Annotated[
    tuple[str, ...],
    BeforeValidator(values.served_names),
    _schema({"type": ["string", "null"]}, {"type": "array", "items": _TEXT, "minItems": 1}),
]
OptionalWord = Annotated[
    str | None, BeforeValidator(values.optional(values.word)), _schema({"type": ["string", "null"]})
]
Texts = Annotated[tuple[str, ...], BeforeValidator(values.texts), _schema(_TEXTS)]
Names = Annotated[tuple[str, ...], BeforeValidator(values.variables), _schema(_NAMES, _NULL)]
Label = Annotated[str, BeforeValidator(values.label), _schema({"type": "string", "pattern": LABEL})]
Host = Annotated[str, BeforeValidator(values.host), _schema(_TEXT)]
Port = Annotated[
    int | None, BeforeValidator(values.optional(values.between(1024, 65535, "a port"))), _schema(_LIMITS, _NULL)
]
Count = Annotated[int, BeforeValidator(values.between(1, 2**31)), _schema({"type": "integer", "minimum": 1})]
Context = Annotated[
    int | Literal["auto"] | None,
    BeforeValidator(values.optional(values.context)),
    _schema(
        {"type": "integer", "minimum": 1},
        {"const": -1},
        {"type": "string", "pattern": r"^([aA][uU][tT][oO]|-1|[0-9.]+[kKmMgG]?)$"},
        _NULL,
    ),
]
Version = Annotated[Literal[1], BeforeValidator(values.version), _schema({"const": 1, "type": "integer"})]
Chunk = Annotated[int, BeforeValidator(values.between(16, 2**31)), _schema({"type": "integer", "minimum": 16})]
Size = Annotated[int, BeforeValidator(values.size), _schema(*_SIZES)]
OptionalSize = Annotated[int | None, BeforeValidator(values.optional(values.size)), _schema(*_SIZES, _NULL)]
Memory = Annotated[
    float | int | None,
    BeforeValidator(values.optional(values.memory)),
    _schema({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, *_SIZES, _NULL),
]
Seconds = Annotated[float, BeforeValidator(values.seconds), _schema(*_DURATIONS)]
OptionalPath = Annotated[Path | None, BeforeValidator(values.path), _schema({"type": ["string", "null"]})]
Store = Annotated[str | None, BeforeValidator(values.store), _schema({"type": ["string", "null"]})]
Address = Annotated[str, BeforeValidator(values.ray_address), _schema(_TEXT)]
Kind = Annotated[str, BeforeValidator(values.backend), _schema({"enum": list(backends.BACKENDS)})]
Placement = Annotated[str, BeforeValidator(values.placement), _schema({"enum": ["spread", "pack"]})]
ModelName = Annotated[str, BeforeValidator(_model_or_empty), _schema(_TEXT)]
OptionalModel = Annotated[str | None, BeforeValidator(values.model), _schema({"type": ["string", "null"]})]
Python = Annotated[str | None, BeforeValidator(values.python), _schema({"type": ["string", "null"]})]
Gpus = Annotated[
    tuple[int | str, ...] | Literal["auto"],
    BeforeValidator(values.gpus),
    _schema({"const": "auto"}, {"type": "integer", "minimum": 1}, {"type": "array", "items": _GPU}),
]
Env = Annotated[
    dict[str, str],
    BeforeValidator(arguments.env),
    _schema(_MAPPING | {"propertyNames": {"pattern": VARIABLE}, "additionalProperties": _VALUES}),
]
Args = Annotated[dict[str, Any], BeforeValidator(arguments.args), _schema(_MAPPING)]
Adapter = Annotated[dict[str, Any], BeforeValidator(arguments.adapter), _schema(_MAPPING)]
