"""What of a log may be shown: without secrets, without what would command a terminal."""

from __future__ import annotations

import re

from kvdemo.fleet import logtext

LINE = 400
"""Characters of an excerpt."""

_SECRETS = (
    (re.compile(r"\b(hf_|sk-|ghp_|xox[abp]-|AKIA|nvapi-)[A-Za-z0-9_-]{12,}"), r"\1***"),
    (re.compile(r"(?i)(\bBearer )\S+"), r"\1***"),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+@"), r"\1***@"),
    (
        re.compile(
            r"(?i)((?:api[_-]?key|token|passw(?:or)?d|secret|credential)s?['\"]?\s*[=:]\s*['\"]?)(?!None|null|\$)"
            r"[^\s'\",;)}\]]{4,}"
        ),
        r"\1***",
    ),
    (re.compile(r"(?i)(--[\w-]*(?:api-key|token|password|secret)[ =])\S+"), r"\1***"),
)


def excerpt(text: str) -> str:
    """A line of a log that may be shown: one line, short, without control characters and what looks like a secret."""
    text = " ".join(logtext.plain(text).split())
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text if len(text) <= LINE else f"{text[: LINE - 3]}..."


def redact(text: str, secrets: dict[str, str]) -> str:
    """Replace secret values, and whatever looks like a token of Hugging Face or OpenAI, by their names."""
    for name, value in secrets.items():
        if len(value) >= 4:
            text = text.replace(value, f"${{{name}}}")
    return re.sub(r"\b(hf_|sk-)[A-Za-z0-9_-]{16,}", r"\1***", text)
