"""``kvdemo bench`` or ``load`` as a process of its own: the terminal's command, which a page cannot slow or alter.

It is asked for ``--progress json``: its events and the files that it saved are what the page shows, never its words.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from kvdemo.bench.events import Estimate, Saved
from kvdemo.ui.conversation import Bell
from kvdemo.words import forecast

LONGEST_LINE = 1 << 20
"""Characters of an event; the longest words are those of an engine's error."""


class Run:
    """One run of a verb; ``share`` is how far it is, ``code`` its exit code once it has ended.

    ``notices`` are what it announced, ``estimate`` how long it will take, ``saved`` its files once it was judged.
    """

    def __init__(self, verb: str, project: str, options: Sequence[str], environ: Mapping[str, str], bell: Bell) -> None:
        self.verb = verb
        self.words = [verb, "-p", project, *options]
        self.environ, self.bell = {**environ, "NO_COLOR": "1"}, bell
        self.doing, self.estimate, self.complaint, self.notices = "starting", "", "", list[str]()
        self.share = 0.0
        self.failed = False
        self.code: int | None = None
        self.saved: Saved | None = None
        self.task: asyncio.Task[None] | None = None
        self.process: asyncio.subprocess.Process | None = None

    @property
    def command(self) -> str:
        """What a person would type."""
        return shlex.join(["kvdemo", *self.words])

    async def run(self) -> None:
        """To its end."""
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kvdemo", *self.words, "--progress", "json"),
            env=self.environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
        )
        assert self.process.stderr  # noqa: S101 (what PIPE makes)
        async for line in self.process.stderr:
            self._follow(line.decode(errors="replace").rstrip())
            self.bell.ring()
        self.code = await self.process.wait()
        self.bell.ring()

    def _follow(self, line: str) -> None:
        """Take one event; a line that is none is of a failure before there were events, such as a wrong option."""
        try:
            event: dict[str, Any] = json.loads(line)
            kind = event.pop("event")
        except (ValueError, TypeError, KeyError):
            self.complaint += "" if self.failed else f"{line}\n"
            return
        if kind == "doing":
            self.doing, self.share = event["text"], event["share"]
        elif kind == "estimate":
            self.estimate = forecast.sentence(Estimate(**event))
        elif kind == "notice":
            self.notices.append(event["text"])
        elif kind == "saved":
            self.saved = Saved(**event)
        elif kind == "failure":
            self.failed, self.complaint = True, f"{event['message']}\n{event['hint']}".strip()

    def stop(self) -> None:
        """As Ctrl-C: it saves what it has."""
        if self.process and self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGINT)
