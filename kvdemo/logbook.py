"""Logs of the services: which ones, which lines, in which order; secrets blanked before anything leaves here."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from kvdemo import diagnose
from kvdemo.errors import UsageError
from kvdemo.state import Project
from kvdemo.survey import saved_plan

POLL = 0.2
"""Seconds between two looks at the files while following: reading a growing file gives no event to wait for."""


def select(project: Project, names: Collection[str], *, previous: bool = False) -> dict[str, Path]:
    """The log file of each service asked for (all if none is named). Raises UsageError for one that has none."""
    suffix = ".1" if previous else ""
    there = {path.name.removesuffix(f".log{suffix}"): path for path in project.dir.glob(f"logs/*.log{suffix}")}
    for name in names:
        if name not in there:
            what = "previous log" if previous else "log"
            raise UsageError(
                f"service {name} has no {what} in project {project.name}",
                f"there are: {', '.join(sorted(there)) or 'none'}",
            )
    return {name: path for name, path in sorted(there.items()) if not names or name in names}


def lines(
    project: Project,
    files: Mapping[str, Path],
    environ: Mapping[str, str],
    *,
    tail: int | None = None,
    follow: bool = False,
    previous: bool = False,
) -> Iterator[tuple[str, str]]:
    """(service, line) of each file in turn, then, with ``follow``, whatever is added, a new start's file included."""
    plan = saved_plan(project)
    secrets = {
        name: environ[name] for spec in (plan.services if plan else ()) for name in spec.secrets if name in environ
    }
    books = {service: _Book(path) for service, path in files.items()}
    for service, book in books.items():
        rows = book.read_on() if follow else book.read()
        for row in rows if tail is None else rows[max(0, len(rows) - tail) :]:
            yield service, diagnose.redact(row, secrets)
    while follow and not previous:
        for service, book in books.items():
            for row in book.read_on():
                yield service, diagnose.redact(row, secrets)
        time.sleep(POLL)


class _Book:
    """One service's log, held open: its last lines can be read when a new start has put it aside."""

    def __init__(self, path: Path) -> None:
        self.path, self.rest = path, b""
        self.stream: BinaryIO | None = None

    def read(self) -> list[str]:
        """Every line there is, the last one whole or not."""
        rows = self.read_on()
        if self.rest:
            rows.append(self.rest.decode(errors="replace"))
            self.rest = b""
        return rows

    def read_on(self) -> list[str]:
        """The whole lines since the last call, of the file read so far and then of the one that took its place."""
        data = self.rest + (self.stream.read() if self.stream else b"")
        if fresh := self._fresh():
            data += fresh.read()
            if self.stream:
                self.stream.close()
            self.stream = fresh
        whole, newline, self.rest = data.rpartition(b"\n")
        return (whole + newline).decode(errors="replace").splitlines()

    def _fresh(self) -> BinaryIO | None:
        """The file at the path, if it is not the one that is open."""
        try:
            found = self.path.stat().st_ino
            if self.stream and os.fstat(self.stream.fileno()).st_ino == found:
                return None
            return self.path.open("rb")
        except FileNotFoundError:
            return None
