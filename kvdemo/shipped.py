"""Where the profiles that come with kvdemo lie: beside the package in a checkout, else where pip put them."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

MARK = "kvdemo.schema.json"

HANDBOOK = "handbook.txt"
"""The document that is shortened to what a machine reads in comfort when nobody chose one."""


def directory() -> Path:
    """The directory of the shipped profiles.

    Raises:
        FileNotFoundError: the package was copied without them.
    """
    checkout = Path(__file__).resolve().parent.parent / "profiles"
    if (checkout / MARK).is_file():
        return checkout
    for file in metadata.files("kvdemo") or ():
        if file.name == MARK:
            return Path(str(file.locate())).resolve().parent
    raise FileNotFoundError("kvdemo was installed without its profiles; install its wheel with pip")
