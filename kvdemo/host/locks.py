"""Who holds the lock of a project, in words; and the end of those who would hold it for ever.

A guardian inherits the lock until its service's record is complete. One that was stopped (SIGSTOP) in between can
neither let it go nor hear a signal that asks it to end: it is killed, and its service, which never ran, with it.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from kvdemo.host import marks, procfs, shim

FILE = "project.lock"


def stamp(verb: str) -> str:
    """What the holder writes into the lock file: its pid, verb, the time, and its start in clock ticks."""
    entry = shim.stat(os.getpid())
    return f"{os.getpid()} {verb} {time.time():.0f} {entry.starttime if entry else 0}\n"


def holder(project: str, run_dir: Path, stamp: str) -> tuple[str, str]:
    """Who has the project, since when, and what to do about it, from what the lock file says."""
    words = stamp.split()
    pid = int(words[0]) if words and words[0].isdigit() else 0
    entry = shim.stat(pid) if pid else None
    if len(words) < 2 or entry is None or entry.dead or (len(words) > 3 and str(entry.starttime) != words[3]):
        by = ", ".join(_process_name(pid) for pid in keepers(run_dir)) or "a process that cannot be seen from here"
        return f"project {project} is in use by {by}", "wait a moment, then try again"
    verb = words[1] if words[1].isalpha() else "?"
    what = f"project {project} is in use by `kvdemo {verb}` (pid {pid}{_since(words)})"
    if entry.stopped:
        return (
            f"{what}, which was stopped (SIGSTOP or Ctrl-Z)",
            f"let it go on: kill -CONT {pid}; or end it: kill -KILL {pid}, then kvdemo down -p {project}",
        )
    undoes = " (it stops what it started)" if verb in ("up", "restart", "start") else ""
    return what, f"wait for it, or end it: kill {pid}{undoes}"


def _since(words: list[str]) -> str:
    if len(words) < 3 or not words[2].isdigit():
        return ""
    began = int(words[2])
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began))
    return f", since {clock}, {max(0, time.time() - began):.0f} s ago"


def holder_stopped(stamp: str) -> bool:
    """Whether the command that holds the project was stopped: waiting for it is in vain."""
    pid = stamp.partition(" ")[0]
    entry = shim.stat(int(pid)) if pid.isdigit() else None
    return entry is not None and entry.stopped


def end_stopped(run_dir: Path) -> str:
    """Kill what was stopped in the middle of starting a service, and keeps the lock so; what that was, or ""."""
    starting: dict[marks.Mark, list[shim.Stat]] = {}
    for entry in shim.table().values():
        mark = marks.guardian_of(procfs.command_line(entry.pid))
        if mark and mark.run_dir == str(run_dir) and procfs.uid_of(entry.pid) == os.getuid():
            starting.setdefault(mark, []).append(entry)
    sentences = [
        f"the guardian of service {mark.service} (pid {entry.pid}) was stopped (SIGSTOP) while it started it: ended"
        for mark, entries in starting.items()
        if any(_keeps(entry.pid, run_dir) for entry in entries)
        for entry in entries
        if entry.stopped and shim.send([entry], signal.SIGKILL)
    ]
    return "; ".join(sentences)


def keepers(run_dir: Path) -> list[int]:
    """The other processes of this user that have the lock file open."""
    return sorted(pid for pid in shim.table() if pid != os.getpid() and _keeps(pid, run_dir))


def _process_name(pid: int) -> str:
    words = procfs.command_line(pid)
    if mark := marks.guardian_of(words):
        return f"the guardian that starts service {mark.service} (pid {pid})"
    return f"pid {pid} ({b' '.join(words).decode(errors='replace')[:60]})"


def _keeps(pid: int, run_dir: Path) -> bool:
    """Whether this process has the lock file open."""
    try:
        return any(_target(link) == run_dir / FILE for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _target(link: Path) -> Path | None:
    try:
        return link.readlink()
    except OSError:
        return None
