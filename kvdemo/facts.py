"""What is known about this machine before anything starts: plain data, gathered by the edges, read by ``plan``.

Sizes are bytes. An unknown value is None (or empty), never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Gpu:
    """One GPU that this process may use.

    ``index`` counts the *visible* GPUs (as a CUDA program would), ``device`` is what CUDA_VISIBLE_DEVICES must say.
    """

    index: int
    device: str
    uuid: str
    name: str
    total: int
    free: int
    holders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interpreter:
    """A Python interpreter that is to run engines, and the versions of what it holds."""

    python: str
    versions: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Model:
    """What a model's own files say. ``digest`` identifies config and weights; it is empty while they are not here."""

    name: str
    path: str | None = None
    digest: str = ""
    dtype: str = ""
    context: int | None = None
    kv_bytes_per_token: int | None = None
    weight_bytes: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class Facts:
    """Everything ``plan`` may depend on besides the profile."""

    default_python: str
    gpus: tuple[Gpu, ...] = ()
    interpreters: Mapping[str, Interpreter] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    """Port of each key of ``plan.wanted_ports``."""
    busy: Mapping[int, str] = field(default_factory=dict)
    """Who holds a wanted port already."""
    secrets: frozenset[str] = frozenset()
    """Names of the profile's secrets that are set in the environment."""
    memory: int | None = None
    shm: int | None = None
    sockets: str = "/tmp"
    """Short private directory for the engines' ZMQ sockets (their paths may not exceed 107 characters)."""
