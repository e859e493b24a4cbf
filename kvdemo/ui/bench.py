"""``kvdemo bench`` and ``load`` from the page: started, followed, with the report in place. One at a time."""

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
from kvdemo.load import experiment
from kvdemo.ui.conversation import Conversation
from kvdemo.ui.engines import EnginePool
from kvdemo.ui.parts import box, button, change, text
from kvdemo.ui.run import Run

RUNS: list[Run] = []
"""The runs that this page has started, for all browsers."""


class Panel:
    """One verb's part of the page: how it is asked, how far it is, and what it found.

    ``means`` says what it does with a document.
    """

    verb = ""
    title = ""
    means = ""

    def __init__(self, pool: EnginePool, conversation: Conversation, result_dir: Path) -> None:
        self.pool, self.conversation, self.result_dir = pool, conversation, result_dir
        self.current = ""
        with box("section", "card stack", aria_label=self.verb.capitalize()):
            text(self.title, "question", "h2")
            self.about = text("", "dim")
            with box("div", "bits"):
                self.fields()
                self.go = button("Start", self._start, "go", id=f"{self.verb}-start")
                self.halt = button("Stop", self._stop, "plain", id=f"{self.verb}-stop")
            self.command = text("", "dim small wrap")
            with box("div", "bar", role="progressbar", aria_valuemin="0", aria_valuemax="100") as self.progress:
                self.bar = box("div")
            self.doing = text("", "note", "p")
            self.complaint = text("", "bad wrap", "p").style("white-space: pre-wrap")
            with box("div", "bits") as self.links:
                self.link = ui.link("Open the report in a tab of its own", "", new_tab=True)
            self.frame = box("iframe", "report", title="Report of the run", sandbox="allow-scripts allow-downloads")
        self.show()

    def fields(self) -> None:
        """What may be chosen before the start."""

    def options(self) -> list[str]:
        """The command's options by these fields. Raises UsageError for a fleet or field that it could not take."""
        raise NotImplementedError

    def show(self) -> None:
        """Show what has changed."""
        document = self.conversation.document
        which = f"{document.name} ({document.tokens:,} tokens)" if document.text else "the profile's document"
        self.about.text = f"{self.means.format(which)} Start runs “kvdemo {self.verb}”."
        numbers = [number for number, run in enumerate(RUNS) if run.verb == self.verb]
        run = RUNS[numbers[-1]] if numbers else None
        busy = bool(RUNS) and RUNS[-1].code is None
        running = run is not None and run.code is None
        change(self.go, disabled=busy or None)
        change(self.halt, disabled=not running or None)
        # Load does not tell how far it is: no bar is better than one that stands still.
        self.progress.set_visibility(run is not None and running and run.share > 0)
        if run is not None:
            self.bar.style(f"width: {100 * run.share:.1f}%")
            change(self.progress, aria_valuenow=f"{100 * run.share:.0f}")
            self.command.text = run.command
            state = [run.estimate, f"Now: {run.doing}."] if running else [f"It ended with exit code {run.code}."]
            self.doing.text = " ".join(filter(None, [*run.notices, *state]))
            self.complaint.text = "" if running else run.complaint
        for label in (self.command, self.doing, self.complaint):
            label.set_visibility(bool(label.text))
        report = f"/bench/{numbers[-1]}" if run is not None and run.saved else ""
        self.links.set_visibility(bool(report))
        self.frame.set_visibility(bool(report))
        if report != self.current:
            self.current = report
            change(self.frame, src=report or None)
            change(self.link, href=report)

    async def _start(self) -> None:
        try:
            self.pool.reserve()
        except UsageError as error:
            ui.notify(str(error), type="warning")
            return
        scratch = tempfile.TemporaryDirectory(prefix="kvdemo-")
        try:
            options = ["--result-dir", str(self.result_dir), *self.options(), *self._context(Path(scratch.name))]
            run = Run(self.verb, self.pool.project.name, options, self.pool.environ, self.pool.bell)
        except UsageError as error:
            scratch.cleanup()
            self.pool.release()
            ui.notify(str(error), type="warning")
            return
        RUNS.append(run)
        self.pool.bell.ring()
        run.task = asyncio.create_task(run.run())
        run.task.add_done_callback(lambda _: self.pool.release())
        run.task.add_done_callback(lambda _: scratch.cleanup())

    def _context(self, scratch: Path) -> list[str]:
        """The options for this tab's document; none for the profile's, which the command finds by itself."""
        document, first = self.conversation.document, self.pool.first
        if not document.text or (self.pool.plan.bench.get("context") and first and document.text == first.text):
            return []
        path = scratch / (re.sub(r"[^\w.-]+", "_", document.name)[-100:].lstrip(".") or "document")
        path.write_text(document.text, encoding="utf-8")
        return ["--context", str(path)]

    def _stop(self) -> None:
        if RUNS:
            RUNS[-1].stop()


class Bench(Panel):
    """Latency, one request at a time."""

    verb = "bench"
    title = "How much faster is the first token?"
    means = (
        "In every trial {} is cold: each plain engine computes it; of each cache one engine computes and stores it, "
        "another one loads it and is asked once more."
    )

    def fields(self) -> None:
        """The number of trials."""
        trials = benchmark.of_saved_plan(self.pool.plan.bench).trials
        self.trials = ui.number("Trials", value=trials, min=1, max=99, precision=0)
        self.trials.props("outlined dense").style("width: 7rem")

    def options(self) -> list[str]:
        """Trials, and the question of this tab."""
        workload.roles(self.pool.plan)
        question = self.conversation.question.strip()
        return ["--trials", str(int(self.trials.value or 1)), *([f"--question={question}"] if question else [])]


class Load(Panel):
    """Capacity: many requests, at rates that rise."""

    verb = "load"
    title = "How many requests a second?"
    means = (
        "Several documents made of {} are read once, then asked about at random times and rising rates: how many "
        "requests a second do plain engines answer in time, and how many those that share a cache?"
    )

    def fields(self) -> None:
        """The limit on TTFT, the rates and how long each is kept up, and how many documents there are."""
        self.limit = ui.input("First token within", placeholder="2x cold TTFT")
        self.rates = ui.input("Requests a second", placeholder="searched for")
        self.duration = ui.input("Each rate for", placeholder="30 requests' time")
        for field in (self.limit, self.rates, self.duration):
            field.props("outlined dense stack-label").style("width: 10rem")
        self.documents = ui.number("Documents", value=10, min=1, max=999, precision=0)
        self.documents.props("outlined dense").style("width: 7rem")

    def options(self) -> list[str]:
        """What the fields hold; an empty one leaves the command's default."""
        experiment.sides(self.pool.plan)
        typed = {"slo-ttft": self.limit.value, "rate": self.rates.value, "duration": self.duration.value}
        options = [f"--{name}={value.strip()}" for name, value in typed.items() if value and value.strip()]
        return ["--documents", str(int(self.documents.value or 1)), *options]


@app.get("/bench/{number}")
def report(number: int) -> FileResponse:
    """The HTML report of a run of this page."""
    saved = RUNS[number].saved if 0 <= number < len(RUNS) else None
    if saved is None or not Path(saved.report).exists():
        raise HTTPException(404, "no such report")
    return FileResponse(saved.report, media_type="text/html")
