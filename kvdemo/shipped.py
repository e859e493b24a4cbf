"""Where the profiles and documents that come with kvdemo lie: in the wheel, or beside the package in a checkout."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def directory() -> Path:
    """The directory of the shipped profiles; one of a checkout is preferred, so that edits there count."""
    beside = _HERE.parent / "profiles"
    return beside if (beside / "handbook.txt").is_file() else _HERE / "profiles"
