"""Which launcher a project has."""

from __future__ import annotations

from kvdemo.launcher import Launcher
from kvdemo.local import Local
from kvdemo.state import Project


def of(project: Project, lock_fd: int | None = None) -> Launcher:
    """The launcher of this project's services; ``lock_fd`` is the project's lock, if it is held."""
    return Local(project, lock_fd)
