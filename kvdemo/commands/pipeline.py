"""What a run of ``kvdemo bench`` leaves for CI: a summary, annotations, paths for later steps, a JUnit file."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from kvdemo.bench.events import Saved
from kvdemo.errors import GateError, KvdemoError, UsageError
from kvdemo.judge import effect
from kvdemo.judge.effect import Effect
from kvdemo.judge.result import Result
from kvdemo.words import findings, junit, markdown
from kvdemo.words.junit import Problem

SUMMARY, OUTPUT = "GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"


@dataclass
class Pipeline:
    """Notes what a run says, and writes it at the end; ``github`` and ``junit`` say in which forms."""

    environ: Mapping[str, str]
    github: bool = False
    junit: Path | None = None
    result: Result | None = None
    gain: float | None = None
    saved: Saved | None = None

    def check(self) -> None:
        """Raises UsageError before anything is measured if the JUnit file cannot be written."""
        if self.junit and (self.junit.is_dir() or not os.access(f"{self.junit.parent}/", os.W_OK)):
            raise UsageError(f"{self.junit} cannot be written", "name a file in a directory that is there")

    def note_result(self, result: Result, saved: Saved) -> None:
        """Note what the run means, and where it was saved."""
        self.result, self.saved = result, saved

    @contextmanager
    def around(self) -> Iterator[None]:
        """Write at the end of the run, whether it fails or not."""
        self.check()
        try:
            with self._no_commands():
                yield
        except (KvdemoError, KeyboardInterrupt) as error:
            try:
                self._write(_problem(error))
            except UsageError as other:  # the first failure is the one that counts
                typer.echo(f"warning: {other}", err=True)
            raise
        self._write(None)

    @contextmanager
    def _no_commands(self) -> Iterator[None]:
        """Keep the runner from obeying what is printed meanwhile: an answer of a model may look like a command."""
        token = secrets.token_hex(16)
        if self.github:
            typer.echo(f"::stop-commands::{token}")
        try:
            yield
        finally:
            if self.github:
                typer.echo(f"::{token}::")

    def _write(self, problem: Problem | None) -> None:
        if self.junit:
            cases = junit.cases(self.result, self.gain, problem)
            document = junit.xml(cases, self.result, time.strftime("%Y-%m-%dT%H:%M:%S"), socket.gethostname())
            _write(self.junit, document, "w")
        if self.github:
            self._annotate(problem)
            self._summarize(problem)
            self._output()

    def _annotate(self, problem: Problem | None) -> None:
        text = problem.message if problem else ""
        for complaint in findings.complaints(self.result) if self.result else ():
            if complaint not in text:
                typer.echo(markdown.annotation("warning", "kvdemo bench", complaint))
        if problem:
            message = "\n".join(filter(None, (problem.message, problem.hint)))
            typer.echo(markdown.annotation("error", "kvdemo bench", message))

    def _summarize(self, problem: Problem | None) -> None:
        document = markdown.summary(self.result) if self.result else ""
        document += markdown.failure(problem.message, problem.hint) if problem else ""
        if path := self.environ.get(SUMMARY):
            _write(Path(path), document, "a")
        else:
            typer.echo(document, nl=False)

    def _output(self) -> None:
        """Paths, and what a later step may decide by, as ``steps.ID.outputs.NAME``."""
        values = {"valid": str(bool(self.result and self.result.valid)).lower()}
        if self.saved:
            values |= {"result": self.saved.result, "samples": self.saved.samples, "report": self.saved.report}
        if self.junit:
            values["junit"] = str(self.junit)
        values["speedup"] = _speedup(self.result)
        if path := self.environ.get(OUTPUT):
            end = f"end-{secrets.token_hex(8)}"  # a value may hold anything, a line end too
            _write(Path(path), "".join(f"{name}<<{end}\n{value}\n{end}\n" for name, value in values.items()), "a")


def _speedup(result: Result | None) -> str:
    """How many times faster (TTFT) reuse is; empty if that is not proved, or not beyond the noise."""
    if result is None or result.speedup is None or effect.of(result.speedup, result.noise_floor) is Effect.NONE:
        return ""
    return f"{result.speedup.median:.4g}"


def _problem(error: KvdemoError | KeyboardInterrupt) -> Problem:
    if isinstance(error, KvdemoError):
        return Problem(str(error), error.hint, isinstance(error, GateError))
    return Problem("interrupted", "what was measured until then is saved")


def _write(path: Path, document: str, mode: Literal["a", "w"]) -> None:
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(document)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "name a file that can be") from None
