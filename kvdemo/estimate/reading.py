"""From the lines of a file to a trace: its format, its requests, and which lines are none. Pure; others tokenize."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple, Protocol

from kvdemo.errors import UsageError
from kvdemo.estimate import formats
from kvdemo.estimate.formats import Blocks, Format, Request, Text
from kvdemo.estimate.trace import Trace, chain_of_names, chain_of_tokens


class Tokenize(Protocol):
    """Who makes tokens of text."""

    def __call__(self, texts: Sequence[Text], /) -> Sequence[array[int] | str]:
        """Token ids of each prompt (unsigned integers of 32 bits), or why there are none."""


BATCH = 256
"""Requests that are tokenized together."""
MOST_BROKEN = 10
"""Broken lines that are told one by one."""
LINES_OF_A_LOG = 100_000
"""A log may begin with so many lines without a request."""
HALF_A_YEAR = 183 * 86400.0


@dataclass(frozen=True)
class Broken:
    """A line that holds no request, and what was expected there."""

    line: int
    why: str


@dataclass
class Reading:
    """What was read. ``broken`` are the first lines that hold no request, ``skipped`` how many there are.

    ``timed`` is whether the requests have times; else their order is that of the file. ``cut`` is the length at which
    many prompts end together, as a log does that was told to cut them (0: none).
    """

    format: Format
    trace: Trace
    timed: bool = True
    skipped: int = 0
    broken: list[Broken] = field(default_factory=list)
    cut: int = 0


class Cut(NamedTuple):
    """How a prompt is cut into blocks: tokens of an engine's block, of a cache's chunk, and of a trace's own block."""

    block: int
    chunk: int
    trace_block: int = 512


def read(
    lines: Iterable[str], cut: Cut, tokenize: Tokenize, *, format: Format | None = None, skip: bool = False
) -> Reading:
    """Read all lines. Raises UsageError for a format that is not known, broken lines (without ``skip``), no request."""
    stream = iter(lines)
    formats_tried: list[str] = []
    if format is None:
        format = _format(stream, formats_tried)
    reader = _Reader(Reading(format, Trace(math.gcd(cut.block, cut.chunk))), cut, tokenize, skip)
    for number, line in enumerate(chain(formats_tried, stream), 1):
        reader.line(number, line)
        if reader.reading.skipped >= MOST_BROKEN and not skip:
            break
    reader.flush()
    reader.check()
    return reader.reading


def _format(stream: Iterator[str], lines: list[str]) -> Format:
    for line in stream:
        lines.append(line)
        if format := formats.detect(line):
            return format
        if len(lines) >= LINES_OF_A_LOG:
            break
    looks = "".join(f"\n  {formats.TITLES[each]}: {look}" for each, look in formats.LOOKS.items())
    raise UsageError(f"no line looks like a request; known are{looks}", "if it is one of them damaged, give --format")


class _Reader:
    def __init__(self, reading: Reading, cut: Cut, tokenize: Tokenize, skip: bool) -> None:
        self.reading, self.cut, self.tokenize, self.skip = reading, cut, tokenize, skip
        self.pending: list[tuple[int, Request]] = []
        self.last = -math.inf
        self.year = 0.0
        self.bare = 0

    def line(self, number: int, line: str) -> None:
        """One line, whose requests wait until enough are there."""
        if line.isspace() or not line:
            return
        try:
            requests = formats.parse(line, self.reading.format, self.cut.trace_block)
        except ValueError as error:
            self.broken(number, str(error))
            return
        if not requests and formats.BARE.search(line):
            self.bare += 1
        self.pending.extend((number, request) for request in requests)
        if len(self.pending) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Tokenize what waits, and take it into the trace."""
        texts = [request.prompt for _, request in self.pending if isinstance(request.prompt, Text)]
        iterator = iter(self.tokenize(texts) if texts else ())
        for number, request in self.pending:
            prompt = next(iterator) if isinstance(request.prompt, Text) else request.prompt
            if isinstance(prompt, str):
                self.broken(number, prompt)
                continue
            try:
                self._add(request, prompt)
            except ValueError as error:
                self.broken(number, str(error))
        self.pending.clear()

    def broken(self, number: int, why: str) -> None:
        """A line without a request that can be used."""
        self.reading.skipped += 1
        if len(self.reading.broken) < MOST_BROKEN:
            self.reading.broken.append(Broken(number, why))

    def _add(self, request: Request, prompt: Blocks | array[int]) -> None:
        trace, first = self.reading.trace, not len(self.reading.trace)
        if first:
            self.reading.timed = request.time is not None
        if (request.time is not None) != self.reading.timed:
            raise ValueError(f"a timestamp was {'expected' if self.reading.timed else 'not expected'}, as in the first")
        if isinstance(prompt, Blocks):
            if first:
                trace.block = prompt.size
            if prompt.size != trace.block:
                raise ValueError(f"blocks of {trace.block} tokens were expected, as in the first request")
            names, tokens = chain_of_names(prompt.names, request.seed), prompt.tokens
        else:
            if not prompt:
                raise ValueError("a prompt of at least one token was expected")
            names, tokens = chain_of_tokens(prompt, trace.block, request.seed), len(prompt)
        time = self._time(request.time)
        trace.add(names, tokens, time=time, answer=request.answer, session=request.session)

    def _time(self, time: float | None) -> float:
        """A log's stamps have no year: one that is half a year earlier than the one before is of the next."""
        if time is None:
            return 0.0
        if self.reading.format == "vllm":
            if time + self.year < self.last - HALF_A_YEAR:
                self.year += 366 * 86400.0
            time += self.year
            self.last = time
        return time

    def check(self) -> None:
        """Raises UsageError for broken lines that were not to be skipped, and if there is no request at all."""
        reading = self.reading
        if reading.skipped and (not self.skip or not len(reading.trace)):
            text = "".join(f"\n  line {one.line}: {one.why}" for one in reading.broken)
            more = " or more" if reading.skipped >= MOST_BROKEN and not self.skip else ""
            lines = f"{reading.skipped}{more} broken line{'s' * (reading.skipped > 1)}"
            title = formats.TITLES[reading.format]
            raise UsageError(f"{lines} in {title}:{text}", "mend them, or leave them out: --skip-broken")
        if not len(reading.trace) and self.bare:
            raise UsageError(
                f"the log names {self.bare:,} requests, but not their prompts",
                "vLLM logs prompts at the level DEBUG only: VLLM_LOGGING_LEVEL=DEBUG, --enable-log-requests",
            )
        if not len(reading.trace):
            raise UsageError("there is no request in it", f"expected: {formats.LOOKS[reading.format]}")
        if reading.format == "vllm":
            longest = max(reading.trace.tokens)
            many = reading.trace.tokens.count(longest)
            reading.cut = longest if many >= 3 and many * 10 >= len(reading.trace) else 0
