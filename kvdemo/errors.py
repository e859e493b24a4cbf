"""Every way kvdemo can fail, and the exit code each one ends with.

KvdemoError
├── ServiceError            a service or a request failed                    1
├── UsageError              an argument or an input file is wrong            2
├── GateError               a result missed the gate it was held against     3
├── ProfileError            the profile is invalid (all findings at once)    4
├── PreflightError          this machine cannot run the plan                 5
├── StartTimeoutError       a service was not ready in time                  6
├── NotReadyError           the fleet is not (fully) up                      7
├── DownIncompleteError     something survived ``down``                      8
└── LockedError             another kvdemo works on this project             9

Only ``commands.frame`` catches them; it prints the message, then the hint, and exits with the code.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a kvdemo command says to the shell."""

    OK = 0
    FAILED = 1
    USAGE = 2
    GATE = 3
    PROFILE = 4
    PREFLIGHT = 5
    TIMEOUT = 6
    NOT_READY = 7
    DOWN_INCOMPLETE = 8
    LOCKED = 9
    INTERRUPTED = 130


class KvdemoError(Exception):
    """What happened (``str(error)``) and what to do next (``error.hint``, may be empty)."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ServiceError(KvdemoError):
    """A service or a request failed."""


class UsageError(KvdemoError):
    """An argument or an input file is wrong."""

    exit_code = ExitCode.USAGE


class GateError(KvdemoError):
    """A result missed the gate it was held against."""

    exit_code = ExitCode.GATE


class ProfileError(KvdemoError):
    """The profile is invalid."""

    exit_code = ExitCode.PROFILE


class PreflightError(KvdemoError):
    """This machine cannot run the plan."""

    exit_code = ExitCode.PREFLIGHT


class StartTimeoutError(KvdemoError):
    """A service was not ready in time."""

    exit_code = ExitCode.TIMEOUT


class NotReadyError(KvdemoError):
    """The fleet is not (fully) up."""

    exit_code = ExitCode.NOT_READY


class DownIncompleteError(KvdemoError):
    """Something survived ``down``."""

    exit_code = ExitCode.DOWN_INCOMPLETE


class LockedError(KvdemoError):
    """Another kvdemo works on this project."""

    exit_code = ExitCode.LOCKED
