"""``kvdemo bench`` from the page: started, followed, its table and its report stand in place. One run at a time."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path

from fastapi import HTTPException
from fastapi.responses import FileResponse
from nicegui import app, ui

from kvdemo.bench import workload
from kvdemo.config import benchmark
from kvdemo.errors import UsageError
from kvdemo.report import tables
from kvdemo.ui.benchrun import BenchRun
from kvdemo.ui.conversation import Conversation
from kvdemo.ui.engines import Stage
from kvdemo.ui.parts import box, button, change, text

RUNS: list[BenchRun] = []
"""The runs that this page has started, for all browsers."""


class Bench:
    """The panel."""

    def __init__(self, stage: Stage, conversation: Conversation, result_dir: Path) -> None:
        self.stage, self.conversation, self.result_dir = stage, conversation, result_dir
        self.current = ""
        with box("section", "card stack", aria_label="Bench"):
            text("Measure with proof", "question", "h2")
            self.about = text("", "dim")
            with box("div", "bits"):
                self.trials = ui.number(
                    "Trials", value=benchmark.saved(stage.plan.bench).trials, min=1, max=99, precision=0
                )
                self.trials.props("outlined dense").style("width: 7rem")
                self.go = button("Start", self._start, "go", id="bench-start")
                self.halt = button("Stop", self._stop, "plain", id="bench-stop")
            self.command = text("", "dim small wrap")
            with box("div", "bar", role="progressbar", aria_valuemin="0", aria_valuemax="100") as self.progress:
                self.bar = box("div")
            self.doing = text("", "note", "p")
            self.complaint = text("", "bad wrap", "p").style("white-space: pre-wrap")
            self.table = ui.html("", sanitize=True).classes("out")
            with box("div", "bits") as self.links:
                self.link = ui.link("Open the report in a tab of its own", "", new_tab=True)
            self.frame = box("iframe", "report", title="Report of the run", sandbox="allow-scripts allow-downloads")
        self.show()

    def show(self) -> None:
        """Show what has changed."""
        document = self.conversation.document
        which = f"{document.name} ({document.tokens:,} tokens)" if document.text else "The profile's document"
        self.about.text = (
            f"{which} under fresh salts, cold, stored, shared and local, in paired trials: the same command as in the "
            "terminal."
        )
        run = RUNS[-1] if RUNS else None
        running = run is not None and run.code is None
        change(self.go, disabled=running or None)
        change(self.halt, disabled=not running or None)
        share = 0.0 if run is None else run.share if running else 1.0
        self.bar.style(f"width: {100 * share:.1f}%")
        change(self.progress, aria_valuenow=f"{100 * share:.0f}")
        if run is not None:
            self.command.text = run.command
            state = run.doing if running else f"ended with exit code {run.code}"
            self.doing.text = " ".join([*run.notices, state])
            self.complaint.text = "" if running else run.complaint
        self.table.set_content("" if run is None or run.result is None else tables.as_html(run.result))
        self.table.set_visibility(bool(self.table.content))
        report = f"/bench/{len(RUNS) - 1}" if run is not None and run.report else ""
        self.links.set_visibility(bool(report))
        self.frame.set_visibility(bool(report))
        if report != self.current:
            self.current = report
            change(self.frame, src=report or None)
            change(self.link, href=report)

    async def _start(self) -> None:
        try:
            self.stage.reserve()
        except UsageError as error:
            ui.notify(str(error), type="warning")
            return
        scratch = tempfile.TemporaryDirectory(prefix="kvdemo-")
        try:
            workload.roles(self.stage.plan)
            options = ["--trials", str(int(self.trials.value or 1)), "--result-dir", str(self.result_dir)]
            options += self._context(Path(scratch.name))
            if question := self.conversation.question.strip():
                options += [f"--question={question}"]
            project, environ = self.stage.project.name, self.stage.environ
            run = BenchRun(project, options, environ, self.stage.bell)
        except UsageError as error:
            scratch.cleanup()
            self.stage.release()
            ui.notify(str(error), type="warning")
            return
        RUNS.append(run)
        self.stage.bell.ring()
        run.task = asyncio.create_task(run.run())
        run.task.add_done_callback(lambda _: self.stage.release())
        run.task.add_done_callback(lambda _: scratch.cleanup())

    def _context(self, scratch: Path) -> list[str]:
        """The options for this tab's document; none for the profile's, which the command finds by itself."""
        document, first = self.conversation.document, self.stage.first
        if not document.text or (first and document.text == first.text):
            return []
        path = scratch / (re.sub(r"[^\w.-]+", "_", document.name)[-100:].lstrip(".") or "document")
        path.write_text(document.text, encoding="utf-8")
        return ["--context", str(path)]

    def _stop(self) -> None:
        if RUNS:
            RUNS[-1].stop()


@app.get("/bench/{number}")
def report(number: int) -> FileResponse:
    """The HTML report of a run of this page."""
    if not 0 <= number < len(RUNS) or (path := RUNS[number].report) is None or not path.exists():
        raise HTTPException(404, "no such report")
    return FileResponse(path, media_type="text/html")
