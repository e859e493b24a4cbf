"""What became of the services while a benchmark measured: replaced by another process, or ended, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from kvdemo.bench.measure import ReplacedError
from kvdemo.fleet import fleet
from kvdemo.host.state import Project
from kvdemo.planning.plan import Plan


@dataclass
class Liveness:
    """The processes of a fleet at the beginning of a run; ``restarting`` are those whose restart was cut short."""

    project: Project
    plan: Plan
    environ: Mapping[str, str]
    leaders: Mapping[str, object]
    restarting: Sequence[str] = ()

    @classmethod
    def of(cls, project: Project, plan: Plan, environ: Mapping[str, str]) -> Liveness:
        """Remember them."""
        return cls(project, plan, environ, _leaders(project))

    def restart(self, names: Sequence[str]) -> None:
        """Restart services, and wait until they are ready; they are those of the run from then on.

        Raises what ``fleet.restart`` does, and LockedError while another command changes the fleet.
        """
        self.restarting = names
        with (
            self.project.lock("bench") as lock,
            closing(fleet.restart(self.project, self.environ, lock, names)) as all_of,
        ):
            for _ in all_of:
                pass
        self.restarting = ()
        self.leaders = _leaders(self.project)

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
