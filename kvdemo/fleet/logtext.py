"""The text of a log as records and exceptions: what was written by which process, at which level, and what it raised.

vLLM puts "(EngineCore pid=7) ERROR 01-01 00:00:00 [core.py:9] " before every line of a record, LMCache only before the
first; uvicorn, Python's interpreter, NCCL, compilers and argparse have formats of their own. Lines of one process and
place are read as one stream, because processes write between each other's lines. Nothing is judged here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

TEXT_LIMIT = 4 * 1024**2
"""Characters of a log that are read, from its end."""

LINES_LIMIT = 20_000
"""Lines of it that are read, from its end."""

LINE_LIMIT = 4000
"""Characters of a line that are read, from its beginning."""

MORE_LIMIT = 60
"""Lines below an exception that belong to its message: what a compiler or NCCL printed."""

CHAIN_LIMIT = 30
"""Exceptions that are read as one chain."""

DUMPS = "dump_input.py"
"""Where vLLM writes down its configuration and the requests when it crashes: no line of them is an exception."""

LEVELS = "DEBUG|INFO|WARNING|ERROR|CRITICAL"

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,1000}(?:\x07|\x1b\\)|[@-Z\\-_])")
_PREFIX = re.compile(r"(?:\(([A-Za-z][\w ,.:/-]{0,60}?pid=\d+[^)]{0,80})\)|\[(rank\d+)\]:) ?")
_FORMATS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?P<level>{LEVELS}) +[\d-]+ [\d:.,]+ (?:\[(?P<where>[^\]]+)\]|(?P<old>[\w./-]+:\d+)\]) ?(?P<text>.*)",
        rf"\[[\d-]+ [\d:.,]+\] LMCache (?P<level>{LEVELS}): ?(?P<text>.*?)(?: \((?P<where>[\w.]+:\d+:[\w.]+)\))?$",
        rf"(?P<level>{LEVELS}): {{1,8}}(?P<text>\S.*)",
        rf"(?P<level>{LEVELS}):(?P<where>[\w.]+):(?P<text>.*)",
        rf"\d{{4}}-\d\d-\d\d[ T][\d:.,+Z]+[^\w]+(?P<level>{LEVELS})\b\W*(?P<text>.*)",
        r"\[?(?P<letter>[IWEF])(?:\d{4} [\d:.]+)? (?:\d+ )?(?P<where>[\w./-]+:\d+)\] ?(?P<text>.*)",
        r"\S+:\d+:\d+ \[\d+\] (?:\S+ )?NCCL (?P<nccl>INFO|WARN|TRACE) ?(?P<text>.*)",
        r"(?P<where>\S+:\d+): (?P<warning>\w*Warning): (?P<text>.*)",
    )
)
_LETTERS = {"I": "INFO", "W": "WARNING", "E": "ERROR", "F": "CRITICAL"}

_HEADER = re.compile(r"(?:Exception Group )?Traceback \(most recent call last\):")
_FILE = re.compile(r'\s+File "(?P<file>[^"]+)", line (?P<line>\d+)(?:, in (?P<where>.+))?')
_CARETS = re.compile(r"\s*[\^~]+\s*$")
_GROUP = re.compile(r"^\s+(?:\+-?\+?-*(?: \d+ -+)?|\|) ?")
_NAME = re.compile(r"(?P<name>(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)(?:\(\w+\))?(?::\s*(?P<message>.*))?$")
_RAISED = re.compile(
    r"(?P<name>(?:[A-Za-z_]\w*\.)*[A-Z_]\w*(?:Error|Exception|Exit|Interrupt|Timeout|Failure|Resources|ModeIsEnabled))"
    r"(?::\s*(?P<message>.*))?$"
)
_VALUE = re.compile(r"(?P<message>(?:Value error|Assertion failed), .+)$")
_LINKS = {
    "The above exception was the direct cause of the following exception:": "cause",
    "During handling of the above exception, another exception occurred:": "context",
}
_USAGE = re.compile(r"[\w.-]+(?: [\w-]+)*: (?P<message>error: .+)$")
_INTERPRETER = re.compile(r"\S*python[\d.]*: (?P<message>(?:No module named|can't open file|Error while finding).*)$")
_THROWN = re.compile(r"terminate called after throwing an instance of '(?P<name>[^']+)'")
_WHAT = re.compile(r"\s*what\(\):\s*(?P<message>.*)$")
_NATIVE = re.compile(
    r"(?P<message>Fatal Python error: .*|!+ *Segfault encountered.*|(?:Segmentation fault|Bus error|Illegal "
    r"instruction|Aborted|Killed)(?: \(core dumped\))?|double free or corruption.*|OMP: Error #.*|"
    r"\S+: error while loading shared libraries: .*|\S+: symbol lookup error: .*)$"
)


@dataclass(frozen=True)
class Line:
    """One line: ``process`` of its prefix, ``level`` and ``where`` of its record (empty: raw output), its text."""

    number: int
    process: str
    level: str
    where: str
    text: str
    own: bool = True
    """Whether its format stands before every line of a record (vLLM's does), so that raw text is not of a record."""


@dataclass(frozen=True)
class LoggedException:
    """One exception as it was printed: dotted name, message, the lines below it, and where it was raised.

    ``link`` says how it follows the one before it in a chain: "cause", "context", "next", or empty for the first.
    """

    name: str
    message: str
    output: tuple[str, ...] = ()
    frame: str = ""
    link: str = ""
    number: int = 0

    @property
    def short(self) -> str:
        """The name without its modules."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Fault:
    """Exceptions that were printed together; ``head`` is the line before.

    ``kind``: "traceback", "line" (without one), "usage" (a program refused its arguments), "native" (not Python).
    """

    kind: str
    chain: tuple[LoggedException, ...]
    process: str
    level: str
    head: str
    first: int
    last: int


@dataclass
class Log:
    """What ``parse`` returns: every line, and every fault in the order of its first line."""

    lines: list[Line] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def parse(text: str) -> Log:
    """The lines and exceptions of a log; of a long one only its last TEXT_LIMIT characters, from a line's beginning."""
    lines = list(_lines(_tail(text)))
    return Log(lines, sorted(_faults(lines), key=lambda fault: fault.first))


def plain(text: str) -> str:
    """Without escape sequences, control characters, and marks that turn the direction of writing."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]", "", _ANSI.sub("", text))


def _tail(text: str) -> str:
    if len(text) <= TEXT_LIMIT:
        return text
    begin = len(text) - TEXT_LIMIT
    newline = text.find("\n", begin)
    return text[newline + 1 if newline >= 0 else begin :]


def _lines(text: str) -> Iterator[Line]:
    rows = [part for row in text.split("\n")[-LINES_LIMIT:] for part in row.rstrip("\r").split("\r")[-LINES_LIMIT:]]
    for number, raw in enumerate(rows[-LINES_LIMIT:]):
        line = _line(number, plain(raw[:LINE_LIMIT]).rstrip())
        if line.text.strip():
            yield line


def _line(number: int, row: str) -> Line:
    process = ""
    while match := _PREFIX.match(row):
        process = match[1] or process
        row = row[match.end() :]
    for position, pattern in enumerate(_FORMATS):
        if match := pattern.match(row):
            parts = match.groupdict()
            level = parts.get("level") or _LETTERS.get(parts.get("letter") or "", "")
            if parts.get("nccl"):
                level = "NCCL" if parts["nccl"] == "WARN" else "INFO"
            where = parts.get("where") or parts.get("old") or ""
            return Line(number, process, level or "WARNING", where, parts["text"], own=position == 0)
    return Line(number, process, "", "", row)


def _faults(lines: Sequence[Line]) -> Iterator[Fault]:
    """Each stream for itself: the records of one place in one process, or a process's raw output."""
    streams: dict[tuple[str, str, str], list[tuple[Line, int]]] = {}
    segments: dict[str, int] = {}
    before: dict[str, Line] = {}
    heads: dict[int, Line | None] = {}
    for line in lines:
        if line.where.startswith(DUMPS):
            continue
        if line.level:
            segments[line.process] = segments.get(line.process, 0) + 1
        heads[line.number] = before.get(line.process)
        before[line.process] = line
        segment = 0 if line.level and line.own else segments.get(line.process, 0)
        key = (line.process, line.level, line.where) if line.own else (line.process, "", "")
        streams.setdefault(key, []).append((line, segment))
    for stream in streams.values():
        yield from _Stream(stream, heads).faults()


class _Stream:
    """Reads the exceptions of one stream; ``heads`` gives the line that its process wrote before each line."""

    def __init__(self, stream: list[tuple[Line, int]], heads: dict[int, Line | None]) -> None:
        self.stream, self.heads, self.at = stream, heads, 0

    def faults(self) -> Iterator[Fault]:
        """All of them, exceptions that follow each other as one chain."""
        while self.at < len(self.stream):
            begin, (line, _) = self.at, self.stream[self.at]
            kind, exception = self._next("")
            if not exception:
                self.at = begin + 1
                continue
            chain = [exception]
            while len(chain) < CHAIN_LIMIT and (following := self._next_of_chain()):
                chain.append(following)
            head, level = self._origin(line, kind)
            last = self.stream[self.at - 1][0].number
            yield Fault(kind, tuple(chain), line.process, level, head, line.number, last)

    def _text(self, at: int) -> str:
        return _GROUP.sub("", self.stream[at][0].text) if at < len(self.stream) else ""

    def _origin(self, line: Line, kind: str) -> tuple[str, str]:
        """The line before a fault, and the level of the record that it belongs to (empty: nobody's).

        Raw output below a record whose format stands before its first line only may be a part of it. A traceback is
        one if the record tells of trouble; a program that ends writes one below whatever it wrote before.
        """
        before = self.heads.get(line.number)
        if line.level or before is None:
            return (before.text if before and before.level == line.level else ""), line.level
        belongs = not before.own and (kind == "line" or before.level not in ("INFO", "DEBUG"))
        return before.text, before.level if belongs and kind in ("line", "traceback") else ""

    def _next_of_chain(self) -> LoggedException | None:
        """The next exception of the same chain, if one follows here."""
        begin, link = self.at, "next"
        if self._text(self.at).strip() in _LINKS:
            link = _LINKS[self._text(self.at).strip()]
            self.at += 1
        elif not _RAISED.match(self._text(self.at)) or self.stream[self.at][1] != self.stream[self.at - 1][1]:
            return None
        exception = self._next(link)[1] if self.at < len(self.stream) else None
        if exception is None:
            self.at = begin
        return exception

    def _next(self, link: str) -> tuple[str, LoggedException | None]:
        """The exception that begins at this line; moves behind it."""
        line, text = self.stream[self.at][0], self._text(self.at)
        if _HEADER.match(text.strip()):
            return "traceback", self._traceback(link)
        if line.level not in ("", "ERROR", "CRITICAL"):
            return "", None
        if match := _RAISED.match(text) or (line.level and _VALUE.match(text)):
            name = match.groupdict().get("name") or "ValueError"
            return "line", self._finish(name, match["message"] or "", "", link)
        if match := _USAGE.match(text) or _INTERPRETER.match(text):
            return "usage", self._finish("", match["message"], "", link)
        return "native", None if line.level else self._native(text, link)

    def _native(self, text: str, link: str) -> LoggedException | None:
        """The last words of what is not Python."""
        if match := _THROWN.match(text):
            what = _WHAT.match(self._text(self.at + 1))
            self.at += bool(what)
            return self._finish(match["name"].replace("::", "."), what["message"] if what else "", "", link)
        match = _NATIVE.match(text)
        return self._finish("", match["message"], "", link) if match else None

    def _traceback(self, link: str) -> LoggedException | None:
        """Frames are indented; the first line that is not names the exception."""
        frame, source, self.at = None, "", self.at + 1
        while self.at < len(self.stream):
            text = self._text(self.at)
            if match := _FILE.match(text):
                frame, source = match, ""
            elif not text.startswith((" ", "\t")):
                break
            elif not _CARETS.match(text):
                source = source or text.strip()
            self.at += 1
        match = _NAME.match(self._text(self.at)) if self.at < len(self.stream) else None
        if not match:
            return None
        where = f"{frame['file'].rpartition('/')[2]}:{frame['line']} {source or frame['where'] or ''}" if frame else ""
        return self._finish(match["name"], match["message"], where.strip(), link)

    def _finish(self, name: str, message: str | None, frame: str, link: str) -> LoggedException:
        """Take in the lines below, up to the next exception, record or chain; a message may begin there."""
        number, segment = self.stream[self.at][0].number, self.stream[self.at][1]
        self.at += 1
        more: list[str] = []
        while self.at < len(self.stream) and len(more) < MORE_LIMIT and self.stream[self.at][1] == segment:
            text = self._text(self.at)
            if _HEADER.match(text.strip()) or text.strip() in _LINKS or _RAISED.match(text):
                break
            more.append(text)
            self.at += 1
        if message == "":
            message = next((line.strip() for line in more if line.strip()), "")
        return LoggedException(name, message or "", tuple(more), frame, link, number)
