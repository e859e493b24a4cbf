"""When a line of a log was written, as it says itself, and the time that ``--since`` names; pure.

vLLM stamps month, day and time, LMCache the year too, both in the local time of the machine. A line without a stamp
(a traceback, an access log) is as old as the last line with one before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from kvdemo.errors import UsageError

STAMP = re.compile(r"(?:(\d{4})-)?(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,6}))?")

NEAR = 80
"""Characters at the beginning of a line in which its stamp stands, behind process and level."""


UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(text: str, now: datetime) -> datetime:
    """The local time that ``--since`` names: an age (1h30m), a time (ISO 8601), or Unix seconds.

    Raises UsageError for anything else.
    """
    try:
        if re.fullmatch(r"(\d+(\.\d+)?(ms|[smhd]))+", text):
            parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", text)
            return now - sum((timedelta(**{UNITS[unit]: float(n)}) for n, unit in parts), timedelta())
        if re.fullmatch(r"\d{9,}(\.\d+)?", text):
            return datetime.fromtimestamp(float(text))
        return datetime.fromisoformat(text).astimezone().replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"--since {text}: no age and no time", "5m, 1h30m, 2026-11-30T07:15:00") from None


def stamp(line: str, now: datetime) -> datetime | None:
    """The local time that a line begins with; one without a year is of the year that ends with ``now``."""
    for match in STAMP.finditer(line[:NEAR]):
        year, *parts, fraction = match.groups()
        month, day, hour, minute, second = map(int, parts)
        micro = int((fraction or "").ljust(6, "0"))
        try:
            time = datetime(int(year or now.year), month, day, hour, minute, second, micro)
        except ValueError:
            continue
        if not year and time > now + timedelta(days=1):
            time = time.replace(year=now.year - 1) if (month, day) != (2, 29) else time
        return time
    return None


def since(lines: Iterable[str], begin: datetime, now: datetime) -> Iterator[str]:
    """The lines from this time on, by the second: many stamps say no less. What nothing dates is not hidden."""
    begin = begin.replace(microsecond=0)
    undated: list[str] = []
    late: bool | None = None
    for line in lines:
        if (time := stamp(line, now)) is not None:
            late = time >= begin
            if undated and late:
                yield from undated
            undated = []
        if late is None:
            undated.append(line)
        elif late:
            yield line
    yield from undated
