"""Logs of the services: which ones, which lines, in which order; secrets blanked before anything leaves here."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

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
    offsets: dict[str, tuple[int, int]] = {}
    for service, path in files.items():
        text, offsets[service] = _read(path, 0)
        rows = text.splitlines()
        for row in rows if tail is None else rows[max(0, len(rows) - tail) :]:
            yield service, diagnose.redact(row, secrets)
    while follow and not previous:
        for service, path in files.items():
            inode, offset = offsets[service]
            try:
                if path.stat().st_ino != inode:
                    offset = 0
            except FileNotFoundError:
                continue
            text, offsets[service] = _read(path, offset, whole_lines=True)
            for row in text.splitlines():
                yield service, diagnose.redact(row, secrets)
        time.sleep(POLL)


def _read(path: Path, offset: int, *, whole_lines: bool = False) -> tuple[str, tuple[int, int]]:
    try:
        with path.open("rb") as stream:
            inode = os.fstat(stream.fileno()).st_ino
            stream.seek(offset)
            data = stream.read()
    except FileNotFoundError:
        return "", (0, 0)
    if whole_lines:
        data = data[: data.rfind(b"\n") + 1]
    return data.decode(errors="replace"), (inode, offset + len(data))
