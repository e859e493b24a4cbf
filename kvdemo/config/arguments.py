"""Checks of ``args`` and ``env``: flags and variables under one name each, values that can be words of a command line.

Paths in them are relative to the profile, as in every key: an engine runs in another directory. A word counts as a path
if it begins with ``./`` or ``../`` (in ``args`` with ``~/`` too), wherever it stands: alone, in a list, in JSON, behind
``NAME=``; and whatever a flag takes that takes nothing but paths (``flags.PATHS``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationInfo

from kvdemo.config import flags
from kvdemo.config.values import VARIABLE, absolute_path, describe, mapping, refuse

_FLAG = r"[A-Za-z0-9][A-Za-z0-9-]*(\.[\w-]+)*\+?"
_LEVEL = re.compile(r"-*O=?([0-3])")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_PATH = re.compile(r"\.{1,2}(/.*)?", re.S)
_NUMBER = re.compile(r"-?[0-9.]+(e-?[0-9]+)?")

Resolve = Callable[[str], str]


def args(value: Any, info: ValidationInfo) -> dict[str, Any]:
    """Flags and values, every flag as in ``max-num-seqs``, every ``no-`` form as False, every path absolute."""
    result: dict[str, Any] = {}
    for key, item in mapping(value).items():
        flag, setting = _plain(key, item)
        if not re.fullmatch(_FLAG, flag):
            refuse("not a flag: write it as max-num-seqs or max_num_seqs", key, key=True)
        if flag in result:
            refuse(f"the flag --{flag} is given twice", key, key=True)
        _check(key, flag, setting)
        result[flag] = _located(flag, setting, lambda text: absolute_path(text, info))
    return result


def env(value: Any, info: ValidationInfo) -> dict[str, str]:
    """Names and texts of environment variables; paths that begin with ``./`` or ``../`` are absolute."""
    variables = {}
    for name, item in mapping(value).items():
        if not re.fullmatch(VARIABLE, name):
            refuse("not the name of a variable: use letters, digits and '_'", name, key=True)
        if not isinstance(item, str):
            refuse(
                f"expected text, got {describe(item)}" + (' (write "" for an empty value)' if item is None else ""),
                name,
            )
        parts = item.split(":") if name.endswith("PATH") else [item]
        variables[name] = ":".join(absolute_path(part, info) if _PATH.fullmatch(part) else part for part in parts)
    return variables


def adapter(value: Any, info: ValidationInfo) -> dict[str, Any]:
    """Fields of an L2 adapter, except the one that kvdemo gives it."""
    result = mapping(value)
    for directory in {"base_path", "root_dir"} & result.keys():
        refuse("kvdemo makes the directory: write 'l2', beside l2_adapter", directory, key=True)
    if not isinstance(result.get("type", ""), str):
        refuse(f"expected text such as fs, got {describe(result['type'])}", "type")
    located: dict[str, Any] = _inside(result, lambda text: absolute_path(text, info))
    return located


def _plain(key: str, item: Any) -> tuple[str, Any]:
    """The flag's long name and its value: ``no-enforce-eager: true`` is ``enforce-eager: false``, "true" is true."""
    if (level := _LEVEL.fullmatch(key)) and item in (None, True):
        return "optimization-level", int(level[1])
    flag = flags.canonical(key)
    if isinstance(item, str) and item.lower() in ("true", "false"):
        item = item.lower() == "true"
    if flag.startswith("no-") and isinstance(item, bool):
        return flag.removeprefix("no-"), not item
    return flag, item


def _check(key: str, flag: str, item: Any) -> None:
    """Refuse what cannot be a flag's value."""
    if not isinstance(item, list):
        return
    if not item and flag not in flags.JSON_LISTS:
        refuse("the list is empty; leave the flag out", key)
    for index, word in enumerate(item):
        if word is None or isinstance(word, list):
            refuse(f"expected text, a number or a mapping, got {describe(word)}", key, index)
        if isinstance(word, str) and word.startswith("-") and not _NUMBER.fullmatch(word):
            refuse(f"{describe(word)} would be read as a flag; every flag is a key of its own", key, index)


def _located(flag: str, item: Any, resolve: Resolve) -> Any:
    """The flag's value with every path in it absolute."""
    if flag not in flags.PATHS:
        return _inside(item, resolve)
    if isinstance(item, list):
        return [_located(flag, word, resolve) for word in item]
    # A template may be written out, and a list of directories be JSON.
    return resolve(item) if isinstance(item, str) and item and not re.search(r"[{}\[\n]|://", item) else item


def _inside(item: Any, resolve: Resolve) -> Any:
    if isinstance(item, Mapping):
        return {key: _inside(part, resolve) for key, part in item.items()}
    if isinstance(item, list):
        return [_inside(part, resolve) for part in item]
    if not isinstance(item, str):
        return item
    if item.lstrip()[:1] in ("{", "["):
        return _QUOTED.sub(lambda quoted: f'"{_word(quoted[0][1:-1], resolve)}"', item)
    name, equals, path = item.partition("=")
    if equals and re.fullmatch(r"[\w.-]+", name) and _is_path(path):
        return f"{name}={resolve(path)}"
    return _word(item, resolve)


def _word(text: str, resolve: Resolve) -> str:
    return resolve(text) if _is_path(text) else text


def _is_path(text: str) -> bool:
    return bool(_PATH.fullmatch(text)) or text.startswith("~/")
