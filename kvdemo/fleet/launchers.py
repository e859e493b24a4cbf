"""Which launcher a project has: that of this machine, or of the cluster that its plan names."""

from __future__ import annotations

from kvdemo.host.launcher import Launcher
from kvdemo.host.local import Local
from kvdemo.host.state import Project
from kvdemo.host.survey import saved_plan
from kvdemo.planning.plan import Plan


def of(project: Project, lock_fd: int | None = None, plan: Plan | None = None) -> Launcher:
    """The launcher of what runs and of what shall run by ``plan``; ``lock_fd`` is the project's lock, if it is held."""
    before = saved_plan(project)
    if not any(one.on for one in (plan, before) if one):
        return Local(project, lock_fd)
    from kvdemo.cluster.remote import Remote  # noqa: PLC0415 (nothing of a cluster is imported for one machine)

    return Remote(project, before, plan)
