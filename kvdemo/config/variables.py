"""Variables in text as docker compose has them, except that an unset one without a default is a mistake.

``$NAME  ${NAME}  ${NAME:-default}  ${NAME-default}  ${NAME:?message}  ${NAME?message}  ${NAME:+other}  ${NAME+other}``
and ``$$`` for a dollar; with the colon, an empty variable counts as unset. Words may hold variables themselves.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvdemo.config import secrecy
from kvdemo.config.findings import LINE_BREAK, Finding, Source, place, read
from kvdemo.errors import ProfileError

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_VARIABLE = re.compile(rf"\$(?:(?P<dollar>\$)|(?P<bare>{_NAME})|\{{(?P<name>{_NAME})(?:(?P<op>:?[-?+])|(?P<end>\}})))")
_DEEPEST = 20


class Mistake(Exception):
    """A mistake in a text, and the piece of it that it is about."""

    def __init__(self, message: str, piece: str = "") -> None:
        super().__init__(message)
        self.piece = piece


@dataclass(frozen=True)
class Variables:
    """Values by name, and the names whose values must not get into any text."""

    values: Mapping[str, str]
    secrets: Collection[str] = ()

    def expand(self, text: str, depth: int = 0) -> str:
        """The text with its variables replaced. Raises Mistake."""
        if depth > _DEEPEST:
            raise Mistake("variables are nested too deeply")
        pieces, position = [], 0
        while (start := text.find("$", position)) >= 0:
            pieces.append(text[position:start])
            match = _VARIABLE.match(text, start)
            if match is None:
                raise Mistake("write '$$' for a dollar, ${NAME} or ${NAME:-default} for a variable", text[start:])
            if match["op"]:
                end = _closing(text, match)
                pieces.append(self._choice(match, text[match.end() : end], depth + 1))
                position = end + 1
            else:
                pieces.append("$" if match["dollar"] else self._require(match))
                position = match.end()
        return "".join(pieces) + text[position:]

    def _find(self, match: re.Match[str]) -> tuple[str, str | None]:
        name = match["name"] or match["bare"]
        if name in self.secrets:
            raise Mistake(
                f"{name} is under 'secrets' and must not become part of a value; engines get it from your environment",
                match[0],
            )
        value = self.values.get(name)
        if value and secrecy.is_name(name) and not secrecy.is_switch(value):
            raise Mistake(
                f"{name} is a secret by its name and must not become part of a value: name it under secrets; engines "
                "get it from your environment or from .env",
                match[0],
            )
        return name, value

    def _require(self, match: re.Match[str]) -> str:
        name, value = self._find(match)
        if value is None:
            raise Mistake(f"variable {name} is not set; set it, or give it a default: ${{{name}:-...}}", match[0])
        return value

    def _choice(self, match: re.Match[str], word: str, depth: int) -> str:
        name, value = self._find(match)
        if value == "" and match["op"][0] == ":":
            value = None
        if match["op"][-1] == "+":
            return "" if value is None else self.expand(word, depth)
        if value is not None:
            return value
        if match["op"][-1] == "?":
            raise Mistake(f"variable {name} is not set: {self.expand(word, depth) or 'it is required'}", match[0])
        return self.expand(word, depth)


def _closing(text: str, opening: re.Match[str]) -> int:
    """Where the brace stands that closes this one."""
    depth, position = 0, opening.end()
    while position < len(text):
        if text.startswith(("$$", "${"), position):
            depth += text[position + 1] == "{"
            position += 1
        elif text[position] == "}":
            if not depth:
                return position
            depth -= 1
        position += 1
    raise Mistake("this '${' is never closed", opening[0])


def values_beside(profile: Path) -> dict[str, str]:
    """The variables of the ``.env`` file of this profile; none if it cannot be read any more."""
    try:
        return dotenv(place(profile).parent / ".env")[0]
    except ProfileError:
        return {}


def dotenv(path: Path) -> tuple[dict[str, str], list[Finding]]:
    """The variables of a ``.env`` file (lines as a shell reads them, ``export`` allowed); none if it is not there."""
    variables: dict[str, str] = {}
    findings: list[Finding] = []
    source = read(path, private=True) if path.is_file() else Source(str(path), "")
    for start, line in zip(source.starts, LINE_BREAK.split(source.text), strict=True):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            findings.append(source.finding(start, "this quote is never closed"))
            continue
        for word in words[1:] if words[:1] == ["export"] else words:
            name, equals, value = word.partition("=")
            if equals and re.fullmatch(_NAME, name):
                variables[name] = value
            else:
                findings.append(source.finding(start, "expected NAME=value (a value with spaces needs quotes)"))
                break
    return variables, findings
