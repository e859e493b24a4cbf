"""Before anything starts: packages that do not load together are refused, with what to install."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from kvdemo.errors import PreflightError
from kvdemo.host import imports
from kvdemo.host.imports import Question
from kvdemo.planning.plan import Plan


def questions(plan: Plan, names: Collection[str], environ: Mapping[str, str]) -> Iterator[Question]:
    """What is not known yet of the interpreters of these services (all if none is named).

    Nothing of a cluster's: its nodes are asked while it is planned.
    """
    if plan.on or plan.attached:
        return
    chosen = set(names) or {spec.name for spec in plan.services}
    chosen |= {spec.cache for spec in plan.services if spec.name in chosen}
    yield from imports.questions([spec for spec in plan.services if spec.name in chosen], plan.stamps, environ)


def refuse(question: Question) -> str:
    """Ask, and say what could not be learnt; nothing if all is well.

    Raises PreflightError if something does not load, with what to install.
    """
    bad, answered = question.doubt()
    if bad is None:
        return ""
    if not answered:
        return f"it could not be checked whether the packages of {question.python} load together: {bad.text}"
    text = f"the packages of {question.python} do not load together\n  load {bad.step}: {bad.text}"
    raise PreflightError(text, bad.fix)
