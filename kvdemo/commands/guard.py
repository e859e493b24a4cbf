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
    names_to_check = set(names) or {spec.name for spec in plan.services}
    names_to_check |= {spec.cache for spec in plan.services if spec.name in names_to_check}
    yield from imports.questions([spec for spec in plan.services if spec.name in names_to_check], plan.stamps, environ)


def refuse(question: Question) -> str:
    """Ask, and say what could not be learnt; nothing if all is well.

    Raises PreflightError if something does not load, with what to install.
    """
    outcomes, answered = question.doubt()
    if outcomes is None:
        return ""
    if not answered:
        return f"it could not be checked whether the packages of {question.python} load together: {outcomes.text}"
    text = f"the packages of {question.python} do not load together\n  load {outcomes.step}: {outcomes.text}"
    raise PreflightError(text, outcomes.fix)
