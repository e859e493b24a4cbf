"""Before anything starts: do the packages of each interpreter load together? Asked once, remembered until they change.

What fails here fails silently later: LMCache without its CUDA extension logs one warning and goes on with torch's
operations, engines start, and every measurement is of the wrong thing. The answer is kept beside the projects' state,
one file for each interpreter and kind of device; only an answer that is good is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvdemo.commands import checks
from kvdemo.commands.checks import Check, Level
from kvdemo.errors import PreflightError
from kvdemo.host import bandwidth, gpus
from kvdemo.host.state import root
from kvdemo.planning import environment
from kvdemo.planning.plan import Plan

FOLDER = ".loaded"
"""Where answers are kept, beside the projects; no project can have this name."""

SEARCHED = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "VLLM_TARGET_DEVICE")
"""Variables that decide which packages and libraries an interpreter loads."""


@dataclass(frozen=True)
class Question:
    """An interpreter as its services run it, ``cached``: with what a cache needs.

    ``stamp`` changes with the files of its packages (``host.packages``); answers are kept in ``folder``.
    """

    python: str
    stamp: str
    environ: Mapping[str, str]
    gpu: bool
    cached: bool
    folder: Path

    @property
    def text(self) -> str:
        """What is being done, while it is."""
        what = "torch, vLLM and LMCache" if self.cached else "torch and vLLM"
        return f"Checking that {what} load together in {self.python} (once; again when they change) ..."

    def known(self) -> bool:
        """Whether this was asked before, of the same files, and the answer was good."""
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            return bool(kept["key"] == self._key and (kept["cached"] or not self.cached))
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def ask(self) -> tuple[list[Check], bool]:
        """The checks of ``doctor``, and whether the interpreter answered in time; a good answer is kept."""
        answer = bandwidth.ask(self.python, self.environ, "imports", gpu=self.gpu, cached=self.cached)
        found = list(checks.loaded(answer.findings, answer.code, answer.stderr, self.gpu))
        if found and all(check.level is Level.OK for check in found):
            self._keep()
        return found, answer.code is not None or any("error" in finding for finding in answer.findings)

    def _keep(self) -> None:
        """Write it down; where that cannot be done it is asked again."""
        document = {"key": self._key, "python": self.python, "gpu": self.gpu, "cached": self.cached}
        temporary = self._file.with_suffix(f".{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_text(json.dumps(document), encoding="utf-8")
            temporary.replace(self._file)

    @property
    def _file(self) -> Path:
        name = hashlib.sha256(f"{self.python} {self.gpu}".encode()).hexdigest()[:16]
        return self.folder / f"{name}.json"

    @property
    def _key(self) -> str:
        driver = gpus.driver().version if self.gpu else ""
        searched = {name: self.environ.get(name, "") for name in SEARCHED}
        text = json.dumps([self.stamp, driver, searched], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def questions(plan: Plan, names: Collection[str], environ: Mapping[str, str]) -> Iterator[Question]:
    """One for each interpreter and kind of device of these services (all if none is named) that is not known yet.

    None for a fleet of a cluster: its interpreters are on other machines.
    """
    if plan.on or plan.attached:
        return
    chosen = set(names) or {spec.name for spec in plan.services}
    chosen |= {spec.cache for spec in plan.services if spec.name in chosen}
    wanted = [spec for spec in plan.services if spec.name in chosen]
    for python, gpu in dict.fromkeys((spec.python, bool(spec.gpus)) for spec in wanted):
        users = [spec for spec in wanted if (spec.python, bool(spec.gpus)) == (python, gpu)]
        spec = next((spec for spec in users if spec.kind == "engine"), users[0])
        question = Question(
            python=python,
            stamp=plan.stamps.get(python, ""),
            environ=environment.of_service(environ, spec.env, ()),
            gpu=gpu,
            cached=any(spec.cache or spec.kind == "cache" for spec in users),
            folder=root(environ) / FOLDER,
        )
        if not question.known():
            yield question


def refuse(question: Question) -> str:
    """Ask, and say what could not be learnt; nothing if all is well.

    Raises PreflightError if something does not load, with what to install.
    """
    found, answered = question.ask()
    bad = next((check for check in found if check.level is Level.FAILURE), None)
    if bad is None:
        return ""
    if not answered:
        return f"it could not be checked whether the packages of {question.python} load together: {bad.text}"
    raise PreflightError(f"the packages of {question.python} do not load together\n  {bad.name}: {bad.text}", bad.fix)
