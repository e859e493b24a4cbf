"""``kvdemo bench`` as a process of its own: the terminal's command, which a page can neither slow nor alter.

Its lines of progress, its table and the files that it saved are what the page shows.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from kvdemo.judge import document
from kvdemo.judge.result import Result
from kvdemo.ui.conversation import Bell

TRIAL = re.compile(r"trial (\d+) of (\d+)")
SAVED = re.compile(r"^Saved: (.+)\.json \(samples", re.MULTILINE)


class BenchRun:
    """One run; ``share`` is how far it is, ``code`` its exit code once it has ended."""

    def __init__(self, project: str, options: Sequence[str], environ: Mapping[str, str], arms: int, bell: Bell) -> None:
        self.argv = [sys.executable, "-m", "kvdemo", "bench", "-p", project, *options]
        self.environ = {**environ, "COLUMNS": "160", "NO_COLOR": "1"}
        self.arms, self.bell = max(arms, 1), bell
        self.doing, self.table, self.complaint = "starting", "", ""
        self.share = 0.0
        self.code: int | None = None
        self.result: Result | None = None
        self.report: Path | None = None
        self.task: asyncio.Task[None] | None = None
        self.process: asyncio.subprocess.Process | None = None

    @property
    def command(self) -> str:
        """What a person would type."""
        return " ".join(["kvdemo", *self.argv[3:]])

    async def run(self) -> None:
        """To its end."""
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            *self.argv, env=self.environ, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        assert self.process.stdout  # noqa: S101 (what PIPE makes)
        out, _ = await asyncio.gather(self.process.stdout.read(), self._follow())
        self.code = await self.process.wait()
        self.table = out.decode(errors="replace").strip("\n")
        if found := SAVED.search(self.table):
            self.result = document.from_json_text(Path(f"{found[1]}.json").read_text(encoding="utf-8"))
            self.report = Path(f"{found[1]}.html")
        self.bell.ring()

    async def _follow(self) -> None:
        """Its progress, line by line; from ``error:`` on, its complaint."""
        steps, latest = 0, ""
        assert self.process  # noqa: S101 (run has just started it)
        assert self.process.stderr  # noqa: S101
        async for line in self.process.stderr:
            said = line.decode(errors="replace").rstrip()
            if self.complaint or said.startswith("error: "):
                self.complaint += f"{said}\n"
            else:
                self.doing = said
            if trial := TRIAL.search(said):
                steps = steps + 1 if trial[0] == latest else 0
                latest = trial[0]
                self.share = min(1.0, (int(trial[1]) - 1 + steps / self.arms) / int(trial[2]))
            self.bell.ring()

    def stop(self) -> None:
        """As Ctrl-C: it saves what it has."""
        if self.process and self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGINT)
