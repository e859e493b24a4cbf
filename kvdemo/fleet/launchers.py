"""Which launcher a project has: that of this machine, or of the cluster that its plan names."""

from __future__ import annotations

from kvdemo.host.launcher import Launcher
from kvdemo.host.local import Local
from kvdemo.host.state import Project
from kvdemo.planning.plan import Plan


def of(project: Project, saved: Plan | None, lock_fd: int | None = None, plan: Plan | None = None) -> Launcher:
    """The launcher of what runs by the ``saved`` plan and of what shall run by ``plan``.

    ``lock_fd`` is the descriptor of the project's lock, if the caller holds it.
    """
    if not any(one.on for one in (plan, saved) if one):
        return Local(project, lock_fd)
    from kvdemo.cluster.remote import Remote  # noqa: PLC0415 (nothing of a cluster is imported for one machine)

    return Remote(project, saved, plan)
