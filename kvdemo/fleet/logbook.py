"""Logs of the services: which ones, which lines, in which order; secrets blanked before anything leaves here."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime

from kvdemo.errors import NotReadyError, UsageError
from kvdemo.fleet import excerpts, launchers, logtext, logtime
from kvdemo.host.launcher import BEGIN, Launcher
from kvdemo.host.state import Project
from kvdemo.host.survey import saved_plan

POLL = 0.2
"""Seconds between two looks at the files while following: reading a growing file gives no event to wait for."""


LONGEST = 64 * 1024
"""Bytes of one line that are shown."""


def select(project: Project, names: Collection[str], *, previous: bool = False) -> list[str]:
    """The services asked for (all if none is named). Raises UsageError for one that has no log.

    Raises NotReadyError if nothing of the project is there: with a misspelt name ``logs -f`` would wait for ever.
    """
    plan = saved_plan(project)
    launcher = launchers.of(project, plan)
    if not plan and not launcher.logs():
        raise NotReadyError(f"project {project.name} is not up and has no logs", "kvdemo ls lists those that are up")
    available = launcher.logs(previous=previous)
    if previous and not available:
        text = f"no service of project {project.name} has a log of an earlier start"
        raise UsageError(text, "leave --previous out for this one")
    for name in names:
        if name not in available:
            what = "previous log" if previous else "log"
            raise UsageError(
                f"service {name} has no {what} in project {project.name}",
                f"there are: {', '.join(available) or 'none'}",
            )
    return [name for name in available if not names or name in names]


def lines(
    project: Project,
    services: Collection[str],
    environ: Mapping[str, str],
    *,
    tail: int | None = None,
    follow: bool = False,
    previous: bool = False,
    since: datetime | None = None,
) -> Iterator[tuple[str, str]]:
    """(service, line) of each log in turn, then, with ``follow``, whatever is added, a new start's log included.

    With ``since``, a local time, only the lines that were written from then on.
    """
    plan = saved_plan(project)
    # The names outlive the plan: after `down` the logs are still there, and so is what engines wrote into them.
    names = {name for spec in (plan.services if plan else ()) for name in spec.secrets} | project.secrets()[0]
    secrets = {name: environ[name] for name in sorted(names) if environ.get(name)}
    launcher = launchers.of(project, plan)
    books = {service: _Book(launcher, service, previous) for service in services}
    for service, book in books.items():
        rows: Iterable[str] = book.read_on() if follow else book.read()
        rows = logtime.since(rows, since, datetime.now()) if since else rows
        for row in rows if tail is None else deque(rows, maxlen=tail):
            yield service, _printable(row, secrets)
    while follow and not previous:
        for service, book in books.items():
            for row in book.read_on():
                yield service, _printable(row, secrets)
        time.sleep(POLL)


def _printable(row: str, secrets: dict[str, str]) -> str:
    """A line as a terminal may get it: without secrets, and without what would command the terminal."""
    return logtext.plain(excerpts.redact(row, secrets))


class _Book:
    """One service's log and how far it was read; a last line without its end waits for it.

    Of a line longer than LONGEST only the beginning is kept, whatever its length, with a word about the rest.
    """

    def __init__(self, launcher: Launcher, service: str, previous: bool) -> None:
        self.launcher, self.service, self.previous = launcher, service, previous
        self.place, self.rest, self.dropped = BEGIN, b"", 0

    def read(self) -> Iterator[str]:
        """Every line there is, the last one whole or not."""
        yield from self.read_on()
        if self.rest:
            yield from self._rows(self.rest)
            self.rest, self.dropped = b"", 0

    def read_on(self) -> Iterator[str]:
        """The whole lines since the last call."""
        while True:
            self.place, piece = self.launcher.read_log(self.service, self.place, previous=self.previous)
            if not piece:
                return
            first, newline, others = piece.partition(b"\n")
            self._add(first)
            if newline:
                yield from self._rows(self.rest)
                whole, newline, last = others.rpartition(b"\n")
                self.rest, self.dropped = b"", 0
                for line in whole.split(b"\n") if newline else ():
                    self._add(line)
                    yield from self._rows(self.rest)
                    self.rest, self.dropped = b"", 0
                self._add(last)

    def _add(self, data: bytes) -> None:
        piece = data[: max(0, LONGEST - len(self.rest))]
        self.rest += piece
        self.dropped += len(data) - len(piece)

    def _rows(self, line: bytes) -> list[str]:
        """What is one line of the file may be several: a progress bar writes over itself."""
        more = f" ... ({self.dropped:,} more bytes in this line)" if self.dropped else ""
        return f"{line.decode(errors='replace')}{more}".splitlines() or [""]
