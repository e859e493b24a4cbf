"""Checks of single values of a profile: each returns the value as the program wants it, or refuses in plain words.

They run before pydantic looks at a value, so that its own words reach nobody. A number may also be written as text,
since ``"${PORT:-8000}"`` in quotes is text. A relative path becomes absolute below ``base`` of the validation context.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationInfo
from pydantic_core import PydanticCustomError

from kvdemo import backends, units

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
    if not 0 < result <= units.LONGEST:
        refuse(f"expected a duration above zero and of at most {units.LONGEST / 3600:g}h, got {describe(value)}")
    return float(result)


LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


def slug(text: str) -> str:
    """The nearest DNS label to this text; empty if there is none."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-")


def plain_text(value: Any) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value:
        quotes = " (put it in quotes)" if isinstance(value, bool | int | float) else ""
        refuse(f"expected text, got {describe(value)}{quotes}")
    return value


def word(value: Any) -> str:
    """Text of one line that no command line takes for a flag."""
    text = plain_text(value)
    if text != text.strip() or "\n" in text:
        refuse(f"expected text of one line without blanks around it, got {describe(text)}")
    if text.startswith("-"):
        refuse(f"{describe(text)} would be read as a flag: begin with another character")
    return text


def served_names(value: Any) -> tuple[str, ...]:
    """One name or several; none for nothing."""
    if value is None or value == "":
        return ()
    if not isinstance(value, list | tuple):
        return (word(value),)
    if not value:
        refuse("the list is empty; expected at least one name")
    for index, item in enumerate(value):
        if item in value[:index]:
            refuse(f"{describe(item)} is named twice", index)
        try:
            word(item)
        except PydanticCustomError as error:
            refuse(str(error), index)
    return tuple(value)


def version(value: Any) -> int:
    """The version of the file format."""
    if isinstance(value, bool) or number(value) != 1:
        refuse(f"expected 1, the version of the file format, got {describe(value)}")
    return 1


def optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Nothing, or the empty text that an unset ``${NAME:-}`` leaves, is None; else ``check`` decides."""

    def checked(value: Any) -> Any:
        return None if value is None or value == "" else check(value)

    return checked


def label(value: Any) -> str:
    """A DNS label."""
    text = plain_text(value)
    if not re.fullmatch(LABEL, text):
        nearest = slug(text)
        refuse(
            f"{describe(text)} is not a name: use lower-case letters, digits and '-', at most 63"
            + (f" (such as '{nearest}')" if nearest else "")
        )
    return text


def host(value: Any) -> str:
    """An IP address or a host name."""
    text = plain_text(value)
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", text) or re.fullmatch(r"[0-9.]+", text):
            refuse(f"expected an address without scheme or port, such as 127.0.0.1 or 0.0.0.0, got {describe(text)}")
    return text


def absolute_path(text: str, info: ValidationInfo) -> str:
    """A path as the profile writes it, absolute: relative to the profile, ``~`` the user's home."""
    context = info.context or {}
    if text == "~" or text.startswith("~/"):
        text = context.get("home", "~") + text[1:]
    # normpath and not resolve(): the links of a virtual environment must stay.
    return os.path.normpath(Path(context.get("base", "."), os.path.expanduser(text)))  # noqa: PTH111


def path(value: Any, info: ValidationInfo) -> str | None:
    """A path, absolute; None for nothing."""
    text: str | None = optional(plain_text)(value)
    return absolute_path(text, info) if text else None


_SERVER = re.compile(r"(?:redis|valkey)://(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+)(?::([0-9]{1,6}))?(?:/([0-9]*))?")
_WRITTEN = (
    "a password does not belong in a profile: name LMCACHE_RESP_PASSWORD (and LMCACHE_RESP_USERNAME) under secrets, "
    "and write redis://HOST:PORT"
)
_NO_TLS = (
    "LMCache's adapter for Redis and Valkey speaks no TLS: run a tunnel such as stunnel on this machine, and write "
    "redis://127.0.0.1:PORT of the tunnel"
)
_NO_SOCKET = (
    "LMCache reaches Redis and Valkey by host and port only: let the server listen on 127.0.0.1, and write "
    + ("redis://127.0.0.1:PORT")
)


def store(value: Any, info: ValidationInfo) -> str | None:
    """A directory, absolute, or the URL of a Redis or Valkey server as ``redis://HOST:PORT``; None for nothing."""
    text: str | None = optional(plain_text)(value)
    if text is None or "://" not in text:
        return path(text, info)
    scheme = text.partition("://")[0].lower()
    if "@" in text:
        refuse(_WRITTEN)
    if scheme in ("rediss", "valkeys"):
        refuse(_NO_TLS)
    if scheme in ("unix", "redis+socket", "redis+unix", "valkey+unix"):
        refuse(_NO_SOCKET)
    parts = _SERVER.fullmatch(text)
    if not parts:
        refuse(f"expected a directory, or a server as redis://HOST:PORT, got {describe(text)}")
    port = int(parts[2] or 6379)
    if not 1 <= port <= 65535:
        refuse(f"expected a port from 1 to 65535, got {port}")
    if parts[3] not in (None, "", "0"):
        refuse(f"LMCache uses database 0 of the server, not {parts[3]}: write redis://{parts[1]}:{port}")
    return f"redis://{parts[1]}:{port}"


def launcher(value: Any) -> dict[str, Any]:
    """Where services run: nothing or ``local`` is this machine, ``ray`` a cluster with every default."""
    return {} if value == "local" else {"ray": {}} if value == "ray" else mapping(value)


def backend(value: Any) -> str:
    """What carries the KV of a cache."""
    if not isinstance(value, str) or value not in backends.BACKENDS:
        refuse(f"expected {' or '.join(backends.BACKENDS)}, got {describe(value)}")
    return value


def placement(value: Any) -> str:
    """How engines are put on nodes."""
    if value not in ("spread", "pack"):
        refuse(
            f"expected spread (engines on different nodes as far as possible) or pack (on few), got {describe(value)}"
        )
    return str(value)


def ray_address(value: Any) -> str:
    """``auto`` or HOST:PORT."""
    text = plain_text(value)
    address = re.fullmatch(r"[A-Za-z0-9.-]+:([0-9]{1,6})", text)
    if text != "auto" and not (address and 1 <= int(address[1]) <= 65535):
        refuse(f"expected auto (the cluster that this machine is a node of) or HOST:PORT, got {describe(text)}")
    return text


_REPOSITORY = r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?"


def model(value: Any, info: ValidationInfo) -> str | None:
    """A model directory, absolute, or a Hugging Face id as it is; None for nothing."""
    text: str | None = optional(plain_text)(value)
    if text and (text.lower().endswith(".gguf") or re.fullmatch(rf"{_REPOSITORY}:[A-Za-z0-9_]+", text)):
        refuse(
            "GGUF is not supported: kvdemo reads a model's sizes from config.json and safetensors; name the repository "
            "that this file was made from"
        )
    if text and (text.startswith(("./", "../", "/", "~")) or text in (".", "..")):
        return absolute_path(text, info)
    if text and not re.fullmatch(_REPOSITORY, text):
        page = re.fullmatch(rf"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)({_REPOSITORY})(/.*)?", text)
        hint = f" (is {page[1]} meant?)" if page else ""
        refuse(f"expected a Hugging Face id, or a directory beginning with ./ ../ / or ~, got {describe(text)}{hint}")
    return text


def python(value: Any, info: ValidationInfo) -> str | None:
    """A path of an interpreter, absolute, or the name of a command as it is; None for nothing."""
    text: str | None = optional(plain_text)(value)
    return absolute_path(text, info) if text and ("/" in text or text == "~") else text


def gpus(value: Any) -> Any:
    """Indices and UUIDs as a tuple, or ``auto``; a number of GPUs as so many times ``auto``."""
    count = number(value)
    if isinstance(count, int) and not isinstance(count, bool) and 0 < count < 1024:
        return ("auto",) * count
    if value == "auto":
        return value
    if not isinstance(value, list):
        refuse(f"expected a list such as [0] or [0, 1], [] for none, or auto, got {describe(value)}")
    gpus = [number(item) for item in value]
    for index, gpu in enumerate(gpus):
        is_uuid = isinstance(gpu, str) and re.fullmatch(r"(GPU|MIG)-[-/0-9A-Za-z]+", gpu)
        if not is_uuid and (isinstance(gpu, bool) or not isinstance(gpu, int) or not 0 <= gpu < 1024):
            refuse(f"expected the index of a GPU (from 0), or its UUID (GPU-...), got {describe(gpu)}", index)
        if gpu in gpus[:index]:
            refuse(f"GPU {gpu} is named twice", index)
    return tuple(gpus)


def mapping(value: Any) -> dict[str, Any]:
    """A mapping as it is, nothing as an empty one; everything else is refused."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        refuse(f"expected 'key: value' lines (a mapping), got {describe(value)}")
    return value


def texts(value: Any) -> list[str]:
    """One text or more."""
    if not isinstance(value, list):
        refuse(f"expected a list of texts, got {describe(value)}")
    if not value:
        refuse("the list is empty; expected at least one text")
    for index, item in enumerate(value):
        if not isinstance(item, str) or not item:
            refuse(f"expected text, got {describe(item)}", index)
    return value


def variables(value: Any) -> list[str]:
    """Names of variables; the list may be empty. A wrong one is not repeated: it may be a secret's value."""
    if value is None:
        return []
    if not isinstance(value, list):
        refuse("expected a list of names of variables, such as [HF_TOKEN]")
    for index, item in enumerate(value):
        if not isinstance(item, str) or not re.fullmatch(VARIABLE, item):
            refuse("expected the name of a variable, such as HF_TOKEN, never its value", index)
    return value
