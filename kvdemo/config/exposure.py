"""Secrets that a profile writes down: each is told where it stands, with the way to give it without writing it.

A value of ``args`` would be in a command line that every user of the machine can read, one of ``env`` in kvdemo's state
and in what `plan` and `export` print.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from kvdemo.config import flags, secrecy
from kvdemo.config.findings import Keys
from kvdemo.config.yamlfile import Document

_SECTIONS = ("args", "env", "l2_adapter")
_VARIABLE_OF = {"api-key": "VLLM_API_KEY", "hf-token": "HF_TOKEN"}
_WAY = "and set it in your environment or in .env beside the profile"


def check(document: Document, secrets: Collection[str]) -> None:
    """Add a finding for every secret in the document; ``secrets`` are the names that it lists (if they are right)."""
    if any(keys[:1] == ("secrets",) for keys in document.broken):
        return
    for keys, value in _leaves((), document.value):
        section = next((at for at, key in enumerate(keys) if key in _SECTIONS), None)
        if keys[:1] == ("secrets",):
            if isinstance(value, str) and secrecy.is_secret(value):
                document.find(keys, "expected the name of a variable, such as HF_TOKEN, never its value")
        elif section is not None and _by_name(keys, section, value) and keys[-1] not in secrets:
            document.find(_finding_keys(keys), _advice(keys, section), at_key=True)
        elif isinstance(value, str) and secrecy.is_secret(value) and not _already_reported(document, keys):
            document.find(_finding_keys(keys), f"a secret does not belong in a profile: {_ADVICE}")


_ADVICE = f"name its variable under secrets, {_WAY}"


def _advice(keys: Keys, section: int) -> str:
    name, kind = str(keys[-1]), keys[section]
    if kind == "env":
        return f"a secret does not belong in a profile: name {name} under secrets, {_WAY}"
    if kind == "l2_adapter":
        way = "leave this field out and name LMCACHE_RESP_PASSWORD under secrets"
        return f"a secret does not belong in a profile: {way}, {_WAY}"
    if variable := _VARIABLE_OF.get(flags.canonical(str(keys[section + 1]))):
        return f"a secret does not belong in a profile: name {variable} under secrets, {_WAY}; leave this flag out"
    return f"a secret does not belong on a command line: {_ADVICE}, if what uses it reads one"


_TOKEN = re.compile(r"token$", re.I)
_OF_ACCESS = re.compile(
    r"(^|[-_])(access|api|auth|bearer|github|hf|id|refresh|security|session)[-_]token$|^token$", re.I
)
"""Tokens by which somebody is let in; models have others (``eos_token``)."""


def _by_name(keys: Keys, section: int, value: Any) -> bool:
    """Whether this value's name, or one around it, is that of a secret; what only says yes or no is none."""
    names = [flags.canonical(key) for key in keys[section + 1 :] if isinstance(key, str)]
    if value is None or (secrecy.is_switch(value) and names[:1] != ["api-key"]):
        return False
    secret = [name for name in names if secrecy.is_name(name)]
    return any(keys[section] == "env" or not _TOKEN.search(name) or _OF_ACCESS.search(name) for name in secret)


def _finding_keys(keys: Keys) -> Keys:
    """The way without a last number: a list of secrets is one finding."""
    return keys[:-1] if keys and isinstance(keys[-1], int) else keys


def _already_reported(document: Document, keys: Keys) -> bool:
    return any(keys[:end] in document.broken for end in range(1, len(keys) + 1))


def _leaves(keys: Keys, value: Any) -> Iterator[tuple[Keys, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves((*keys, key), part)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _leaves((*keys, index), part)
    elif isinstance(value, str) and value.lstrip()[:1] in ("{", "[") and (inner := _parse(value)):
        yield from _leaves(keys, inner)
    else:
        yield keys, value


def _parse(text: str) -> Any:
    """JSON in a text; nothing if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
