"""What may be a secret in a text: by the name in front of it, or by its own form; and the text with it blanked.

A profile may hold a secret that it should not. It must not get from there into a message, so whatever could be one is
covered, even at the price of covering too much. Limit: a secret of no known form under a name of its own is not seen.
"""

from __future__ import annotations

import re

COVER = "***"

_WORDS = "api[-_]?key|access[-_]?key|secret[-_]?key|private[-_]?key|token|password|passwd|passphrase|secret|credential"
_CAMEL = "ApiKey|AccessKey|SecretKey|PrivateKey|Token|Password|Passphrase|Secret|Credential"
_NAME = rf"(?:(?<![A-Za-z0-9])(?i:{_WORDS})|(?<=[a-z0-9])(?:{_CAMEL})|(?i:apikey))(?i:s?)"
_NAMES_WHOLE = re.compile(rf"{_NAME}$")
_COUNTS = re.compile(r"tokens$", re.I)
"""Tokens in the plural are counted (max_num_batched_tokens)."""

_IN_URL = re.compile(r"(?<=://)[^/@:\s'\"]{0,200}:[^/@\s'\"]{1,600}(?=@)")
"""User and password of a URL."""

_PERHAPS_IN_URL = re.compile(r"(?<=://)[^/@:\s'\"]{0,200}:[^\s'\"]{1,600}(?=@)")
"""The same where the password holds what no URL allows."""

_FORM = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AKIA[A-Z0-9]{16}"
    r"|nvapi-[A-Za-z0-9_-]{16,}|xox[abp]-[A-Za-z0-9-]{10,})"
)
"""Tokens of Hugging Face, OpenAI, GitHub, AWS, NVIDIA and Slack."""

_HEADER = re.compile(
    r"\bAuthorization['\"]?(?:=|\s*:\s*['\"]?(?:Bearer|Basic)\s)|\bBearer\s+(?=\S*\d)[A-Za-z0-9._~+/-]{8,}", re.I
)
"""A header that proves who asks."""

_BEFORE = re.compile(rf"{_NAME}['\"]?(?:\s*[:=]|\s)")
"""A name of a secret, and what parts it from the value."""


_GIVEN = re.compile(
    rf"({_NAME}=|\bAuthorization['\"]?\s*[=:]\s*['\"]?(?:(?:Bearer|Basic)\s+)?|\bBearer\s+)[^\s'\"]+", re.I
)
"""A value right behind the name of a secret, or in an HTTP header."""


def is_name(name: str) -> bool:
    """Whether a variable, flag or field of this name holds a secret, such as HF_TOKEN, api-key or redis_password."""
    return bool(_NAMES_WHOLE.search(name)) and not _COUNTS.search(name)


def is_switch(value: object) -> bool:
    """Whether a value only says yes or no."""
    return str(value).lower() in ("true", "false", "yes", "no", "0", "1")


def is_secret(text: str) -> bool:
    """Whether this text is or holds a secret by its form: a known service's token, a URL's password, an HTTP header."""
    return bool(_FORM.search(text) or _IN_URL.search(text) or _HEADER.search(text))


def blank_secrets(text: str) -> str:
    """The text without what has the form of a secret."""
    return _GIVEN.sub(rf"\1{COVER}", _FORM.sub(COVER, _PERHAPS_IN_URL.sub(COVER, text)))


def covered_key(text: str) -> str:
    """A key as it may be shown: whoever forgot the colon has the value in it."""
    end = _end_of_name(text)
    return text[:end] + COVER if end else blank_secrets(text)


def covered_line(lines: list[str], row: int) -> str:
    """One line of a file, without what may be a secret: by its form, or because a name of one stands before it.

    The name may stand on a line above: whatever is indented deeper than that line belongs to it.
    """
    line = lines[row]
    if end := _end_of_name(line):
        after = line[end:]
        return blank_secrets(line[: len(line) - len(after.lstrip())]) + (COVER if after.strip() else "")
    indent, item = _indent(line), line.lstrip().startswith("-")
    for above in reversed(lines[:row]):
        if above.strip() and _indent(above) < indent + (item and not above.lstrip().startswith("-")):
            if _end_of_name(above):
                return line[: _indent(line)] + COVER
            indent, item = _indent(above), False
        if not indent and not item:
            break
    return blank_secrets(line)


def _end_of_name(line: str) -> int:
    """Where the value begins that the name of a secret stands before; 0 if there is none."""
    ends = (match.end() for match in _BEFORE.finditer(line) if not _COUNTS.search(match[0].rstrip(" \t:=\"'")))
    return next(ends, 0)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))
