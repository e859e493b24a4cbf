"""``kvdemo doctor`` from arguments to output: show each check as it comes, then say what must be mended."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from kvdemo.commands import doctor, scope
from kvdemo.commands.checks import Check, Level
from kvdemo.errors import PreflightError
from kvdemo.report import terminal

STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "bold red"}


def run(profile: Path | None, project_name: str, *, as_json: bool) -> None:
    """Check this machine, or all that a profile needs. Raises PreflightError if a check failed."""
    if profile is None:
        _show(doctor.of_machine(sys.executable, os.environ, Path.cwd()), as_json=as_json)
    else:
        checks_done = Path("results")  # where `bench` saves them unless told otherwise
        project = scope.project_of(profile, project_name)
        _show(doctor.of_profile(scope.profile_of(profile, project), project, os.environ, checks_done), as_json=as_json)


def _show(checks: Generator[Check], *, as_json: bool) -> None:
    checks_done: list[Check] = []
    with closing(checks) as stream:
        for check in stream:
            checks_done.append(check)
            if not as_json:
                terminal.out.print(_line(check))
    failed = [check for check in checks_done if check.level is Level.FAILURE]
    if as_json:
        predicted = next((check.values for check in checks_done if check.name == "prediction" and check.values), None)
        document = {"ok": not failed, "checks": [asdict(check) for check in checks_done], "prediction": predicted}
        terminal.out.out(json.dumps(document), highlight=False)
    if failed:
        names = ", ".join(dict.fromkeys(check.name for check in failed))
        raise PreflightError(f"{len(failed)} of {len(checks_done)} checks failed: {names}", "mend them in this order")
    if not as_json:
        warnings = sum(check.level is Level.WARNING for check in checks_done)
        rest = f", {warnings} with a warning" if warnings else ""
        terminal.out.print(f"{len(checks_done)} checks, none failed{rest}.")


def _line(check: Check) -> Text:
    line = Text(f"{check.level.value:<8}", style=STYLES[check.level])
    line.append(f" {check.name:<14} {check.text}", style="not bold default")
    if check.fix:
        line.append(f"\n{'':<24}fix: {check.fix}", style="not bold default")
    return line
