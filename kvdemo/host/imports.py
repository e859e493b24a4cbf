"""Do the packages of an interpreter load together? Asked once, before anything starts, remembered until they change.

What fails here fails silently later: LMCache without its CUDA extension logs one warning and goes on with torch's
operations, engines start, and every measurement is of the wrong thing. The answer is kept beside the projects' state,
one file for each interpreter and kind of device; only an answer that is good is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvdemo import backends
from kvdemo.host import bandwidth, gpus
from kvdemo.host.state import root
from kvdemo.planning import environment, pair
from kvdemo.planning.pair import Outcome
from kvdemo.planning.services import ServiceSpec

FOLDER = ".loaded"
"""Where answers are kept, beside the projects; no project can have this name."""

SEARCH_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "VLLM_TARGET_DEVICE")
"""Variables that decide which packages and libraries an interpreter loads."""


@dataclass(frozen=True)
class Question:
    """An interpreter as its services run it, with what the backends of these ``kinds`` need.

    ``stamp`` changes with the files of its packages (``host.packages``); answers are kept in ``folder``.
    """

    python: str
    stamp: str
    environ: Mapping[str, str]
    gpu: bool
    kinds: tuple[str, ...]
    folder: Path

    @property
    def text(self) -> str:
        """What is being done, while it is."""
        what = _joined(["torch", "vLLM", *self._titles])
        return f"Checking that {what} load together in {self.python} (once; again when they change) ..."

    def remembered(self) -> bool:
        """Whether this was asked before, of the same files, and the answer was good."""
        try:
            record = json.loads(self._file.read_text(encoding="utf-8"))
            return bool(record["key"] == self._key and {*self.kinds} <= {*record["kinds"]})
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def ask(self) -> tuple[list[Outcome], bool]:
        """How each step ended, and whether the interpreter answered in time; a good answer is kept."""
        answer = bandwidth.run_probe(self.python, self.environ, "imports", gpu=self.gpu, backends=self._steps)
        results = list(pair.outcomes(answer.findings, answer.code, answer.stderr, self.gpu))
        if results and not any(one.failed for one in results):
            self._keep()
        return results, answer.code is not None or any("error" in finding for finding in answer.findings)

    def doubt(self) -> tuple[Outcome | None, bool]:
        """The step that failed, if one did, and whether that is known: an interpreter that is silent proves nothing."""
        results, answered = self.ask()
        return next((one for one in results if one.failed), None), answered

    def _keep(self) -> None:
        """Write it down; where that cannot be done it is asked again."""
        document = {"key": self._key, "python": self.python, "gpu": self.gpu, "kinds": self.kinds}
        temporary = self._file.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_text(json.dumps(document), encoding="utf-8")
            temporary.replace(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    @property
    def _titles(self) -> list[str]:
        return [backends.of(kind).title for kind in self.kinds]

    @property
    def _steps(self) -> list[dict[str, Any]]:
        """What the probe is to load for each backend."""
        every = [backends.of(kind) for kind in self.kinds]
        return [{"package": one.package, "parts": one.parts, "connector": one.connector} for one in every]

    @property
    def _file(self) -> Path:
        name = hashlib.sha256(f"{self.python} {self.gpu}".encode()).hexdigest()[:16]
        return self.folder / f"{name}.json"

    @property
    def _key(self) -> str:
        driver = gpus.driver().version if self.gpu else ""
        searched = {name: self.environ.get(name, "") for name in SEARCH_VARIABLES}
        text = json.dumps([self.stamp, driver, searched], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def kinds(specs: Sequence[ServiceSpec]) -> tuple[str, ...]:
    """The backends of these services."""
    return tuple(dict.fromkeys(spec.backend for spec in specs if spec.backend))


def _joined(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def questions(
    specs: Sequence[ServiceSpec], stamps: Mapping[str, str], environ: Mapping[str, str]
) -> Iterator[Question]:
    """One for each interpreter and kind of device of these services that is not known yet.

    ``stamps`` are those of the interpreters (``host.packages``).
    """
    for python, gpu in dict.fromkeys((spec.python, bool(spec.gpus)) for spec in specs):
        users = [spec for spec in specs if (spec.python, bool(spec.gpus)) == (python, gpu)]
        spec = next((spec for spec in users if spec.kind == "engine"), users[0])
        question = Question(
            python=python,
            stamp=stamps.get(python, ""),
            environ=environment.of_service(environ, spec.env, ()),
            gpu=gpu,
            kinds=kinds(users),
            folder=root(environ) / FOLDER,
        )
        if not question.remembered():
            yield question
