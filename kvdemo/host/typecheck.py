"""Does a value read from a file have the type that its dataclass declares? Damaged state is refused as a whole.

Knows what a plan consists of: dataclasses, tuples, mappings, unions, literals, plain types; ``Any`` fits everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_PLAIN: dict[Any, tuple[type, ...]] = {float: (int, float), int: (int,)}


def fits(value: Any, kind: Any) -> bool:
    """Whether this value is of this type, down to the last element."""
    if kind is Any:
        return True
    if isinstance(kind, type) and is_dataclass(kind):
        return isinstance(value, kind) and _fields_fit(value, kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    if origin:
        return _elements_fit(value, origin, arguments)
    return isinstance(value, _PLAIN.get(kind, (kind,))) and (kind is bool or not isinstance(value, bool))


def _elements_fit(value: Any, origin: Any, kinds: tuple[Any, ...]) -> bool:
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(one, kinds[0]) for one in value)
    return isinstance(value, Mapping) and all(fits(k, kinds[0]) and fits(v, kinds[1]) for k, v in value.items())


def _fields_fit(value: Any, kind: type) -> bool:
    return all(fits(getattr(value, name), hint) for name, hint in _hints(kind).items())


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, localns={"Mapping": Mapping})
