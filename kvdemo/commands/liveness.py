"""What became of the services while a benchmark measured: replaced by another process, or ended, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvdemo.bench.measure import ReplacedError
from kvdemo.fleet import fleet
from kvdemo.host.state import Project
from kvdemo.planning.plan import Plan


@dataclass(frozen=True)
class Liveness:
    """The processes of a fleet at the beginning of a run."""

    project: Project
    plan: Plan
    environ: Mapping[str, str]
    leaders: Mapping[str, object]

    @classmethod
    def of(cls, project: Project, plan: Plan, environ: Mapping[str, str]) -> Liveness:
        """Remember them."""
        return cls(project, plan, environ, _leaders(project))

    def check(self) -> None:
        """Raises ReplacedError if a service is another process now, whether or not its counters have shown it."""
        now = _leaders(self.project)
        for spec in self.plan.services:
            if now.get(spec.name, self.leaders.get(spec.name)) != self.leaders.get(spec.name):
                raise ReplacedError(spec.name)

    def death(self, service: str) -> str:
        """Why this service has ended, and what to do about it; empty while it lives."""
        return fleet.death(self.project, self.environ, service)


def _leaders(project: Project) -> dict[str, object]:
    return {name: record.leader for name, record in project.records().items()}
