"""Numbers, sizes and durations of a profile, and how a check refuses a value: in plain words.

A number may also be written as text, since ``"${PORT:-8000}"`` in quotes is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from pydantic_core import PydanticCustomError

SMALLEST_SIZE = 1 << 20

_UNITS = {"b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", 1)
    for suffix, base in (("b", 1000), ("i", 1024), ("ib", 1024))
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", re.I)
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h)\s*")


def refuse(message: str, *at: str | int, key: bool = False) -> NoReturn:
    """Refuse a value (or the part of it at ``at``; there its key) with this sentence."""
    raise PydanticCustomError("kvdemo", "{message}", {"message": message, "at": at, "key": key})


def describe(value: Any) -> str:
    """A value as a user would call it: ``'abc'``, ``80``, ``true``, ``a list``, ``nothing``."""
    if value is None or value == "":
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else str(value)


def number(value: Any) -> Any:
    """A number for the text of one; everything else as it is."""
    if isinstance(value, str):
        if re.fullmatch(r"[0-9]{1,18}", value):
            return int(value)
        if re.fullmatch(r"[0-9]{0,18}\.[0-9]{1,18}", value):
            return float(value)
    return value


def between(low: int, high: int, what: str = "a whole number") -> Callable[[Any], int]:
    """A check for whole numbers between these limits."""

    def checked(value: Any) -> int:
        result = number(value)
        if isinstance(result, bool) or not isinstance(result, int) or not low <= result <= high:
            limits = f" from {low} to {high}" if high < 2**31 else f" of at least {low}"
            refuse(f"expected {what}{limits}, got {describe(value)}")
        return result

    return checked


def size(value: Any) -> int:
    """Bytes, from a number or text with a unit."""
    result = number(value)
    if isinstance(result, str) and (match := _SIZE.fullmatch(result.strip())):
        amount, unit = float(match[1]), match[2].lower()
        if unit in _UNITS and amount * _UNITS[unit] < 2**63:
            result = int(amount * _UNITS[unit])
        elif unit and unit in "kmgt":
            refuse(f"'{result}' can mean two sizes: write {match[1]}{unit.upper()}iB or {match[1]}{unit.upper()}B")
    if isinstance(result, bool) or not isinstance(result, int) or not 0 <= result < 2**63:
        refuse(f"expected a size such as 8GiB, 512MiB or 1.5GB, got {describe(value)}")
    if result < SMALLEST_SIZE:
        hint = f"; is {result}GiB meant?" if 0 < result <= 4096 else ", which is too small"
        refuse(f"{describe(value)} means {result} bytes{hint}")
    return result


def context(value: Any) -> int | str:
    """Tokens as vLLM counts them (16k is 16,000, 16K is 16,384), or ``auto`` for the longest sequence that fits."""
    result = number(value)
    if result == -1 or (isinstance(result, str) and result.strip().lower() in ("auto", "-1")):
        return "auto"
    if isinstance(result, str) and (
        match := re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)([kKmMgG])", result.strip())
    ):
        base, power = (1000 if match[2].islower() else 1024), "kmg".index(match[2].lower()) + 1
        if base == 1024 and "." in match[1]:
            remedy = f"{match[1]}{match[2].lower()} does"
            refuse(f"{describe(value)}: {match[2]} counts in 1,024 and takes no decimals; {remedy}")
        result = int(float(match[1]) * base**power)
    if isinstance(result, bool) or not isinstance(result, int) or not 1 <= result < 2**31:
        refuse(f"expected a number of tokens such as 32768 or 32k, or auto, got {describe(value)}")
    return result


def memory(value: Any) -> float | int:
    """A fraction of a GPU (float, up to 1.0) or bytes (int)."""
    result = number(value)
    if isinstance(result, int | float) and not isinstance(result, bool):
        if 0 < result <= 1:
            return float(result)
        if result < SMALLEST_SIZE:
            hint = f" (is {result}GiB meant?)" if 1 < result <= 4096 else ""
            refuse(f"expected a fraction of the GPU up to 1.0, or a size such as 20GiB, got {result}{hint}")
    elif not isinstance(result, str) or not _SIZE.fullmatch(result.strip()):
        refuse(f"expected a fraction of the GPU such as 0.6, or a size such as 20GiB, got {describe(value)}")
    return size(value)


def seconds(value: Any) -> float:
    """Seconds, from a number or text with units."""
    result = number(value)
    if isinstance(result, str) and re.fullmatch(rf"(?:{_DURATION.pattern})+", result.strip()):
        result = sum(float(amount) * _SECONDS[unit] for amount, unit in _DURATION.findall(result))
    if isinstance(result, bool) or not isinstance(result, int | float):
        refuse(f"expected a duration such as 90s, 15m or 2h, got {describe(value)}")
    if not 0 < result < 1e9:
        refuse(f"expected a duration above zero, got {describe(value)}")
    return float(result)
