"""What is known about this machine before anything starts: plain data, gathered by the edges, read by ``plan``.

Sizes are bytes. An unknown value is None (or empty), never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kvdemo.planning.layers import Layers
from kvdemo.planning.shape import WIDTHS, Shape


@dataclass(frozen=True)
class Holder:
    """A process with memory on a GPU. ``service`` names it if it is kvdemo's own; unknown parts are empty."""

    pid: int
    memory: int | None = None
    command: str = ""
    service: str = ""

    def __str__(self) -> str:
        size = f" ({self.memory / 1024**3:.1f} GiB)" if self.memory else ""
        return f"pid {self.pid}{size}" + "".join(f" {part}" for part in (self.service, self.command) if part)


@dataclass(frozen=True)
class Link:
    """The PCIe link of a GPU now, and the best that card and slot can do."""

    generation: int
    width: int
    max_generation: int
    max_width: int

    def __str__(self) -> str:
        return f"PCIe {self.generation}.0 x{self.width} (at most {self.max_generation}.0 x{self.max_width})"


@dataclass(frozen=True)
class GpuLoad:
    """What a GPU is doing, with all of its processes: bytes in use, and the share of time in which it computed.

    ``utilization`` is None where the GPU does not tell, as an instance of one in MIG mode.
    """

    index: int
    used: int
    total: int
    utilization: float | None = None


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG instance of a GPU, that this process may use.

    ``index`` counts the *visible* GPUs (as a CUDA program would), ``device`` is what CUDA_VISIBLE_DEVICES must say.
    ``total`` is 0 where the driver does not tell (memory shared with the host). ``parent`` is the UUID of the GPU that
    a MIG instance is a part of.
    """

    index: int
    device: str
    uuid: str
    name: str
    total: int
    free: int
    holders: tuple[Holder, ...] = ()
    parent: str = ""
    numa: int | None = None
    link: Link | None = None


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver, and what NVML said if it cannot be used (``problem``). No driver at all is all empty."""

    version: str = ""
    cuda: str = ""
    problem: str = ""


SERVER = "vllm.entrypoints.openai.api_server"
"""The module that is vLLM's server in every version up to 0.33; newer ones have another, and call this deprecated."""


@dataclass(frozen=True)
class Interpreter:
    """A Python interpreter that is to run engines, and the versions of what it holds.

    ``server`` is the module that is vLLM's server there. ``stamp`` changes with the files of its packages. ``fix`` is
    what to do about its ``problem``.
    """

    python: str
    versions: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    server: str = SERVER
    stamp: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Model:
    """What a model's own files say. ``digest`` identifies config and weights; it is empty while they are not here.

    ``path`` is None while something must be downloaded; its config and the size of its weights may be known already.
    ``context`` is the longest sequence by default, ``limit`` the longest at all, in tokens.
    ``dtype`` is what vLLM computes in by itself, and weights and KV are counted in it. ``kv_dtype`` is the dtype of the
    KV cache that the checkpoint itself asks for, if it does. ``keeps`` is what each layer keeps of a sequence.
    ``partial``: the shape is that of the text part, and there are weights besides. ``fix`` is what to do about its
    ``problem``.
    """

    name: str
    path: str | None = None
    digest: str = ""
    dtype: str = ""
    context: int | None = None
    kv_bytes_per_token: int | None = None
    weight_bytes: int | None = None
    shape: Shape | None = None
    problem: str = ""
    quantized: bool = False
    kv_dtype: str = ""
    keeps: Layers | None = None
    partial: bool = False
    limit: int | None = None
    fix: str = ""

    @property
    def layers(self) -> Layers | None:
        """What each layer keeps of a sequence; None if that is not known."""
        return self.keeps or (self.shape.keeps if self.shape else None)

    @property
    def width(self) -> int:
        """Bytes of a number in the engine's dtype."""
        return WIDTHS.get(self.dtype, 2)

    def loaded_as(self, dtype: str) -> Model:
        """The model as an engine of this dtype has it: KV and weights (but quantized ones) get larger or smaller."""
        old, new = WIDTHS.get(self.dtype), WIDTHS.get(dtype)
        if not (old and new):
            return replace(self, dtype=dtype)
        kv, weights = (size and size * new // old for size in (self.kv_bytes_per_token, self.weight_bytes))
        weights = self.weight_bytes if self.quantized else weights
        kv = self.kv_bytes_per_token if self.kv_dtype else kv
        return replace(self, dtype=dtype, kv_bytes_per_token=kv, weight_bytes=weights)


@dataclass(frozen=True)
class Facts:
    """Everything ``plan`` may depend on besides the profile."""

    default_python: str
    gpus: tuple[Gpu, ...] = ()
    interpreters: Mapping[str, Interpreter] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    """Paths in the engines' args that are not there."""
    others: frozenset[str] = frozenset()
    """Keys of the repositories besides the models that are here complete."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """Port of each key of ``plan.wanted_ports``."""
    busy: Mapping[int, str] = field(default_factory=dict)
    """Who holds a wanted port already."""
    secrets: frozenset[str] = frozenset()
    """Names of the profile's secrets that are set in the environment."""
    memory: int | None = None
    shm: int | None = None
    wide: bool = True
    """Whether the processor has AVX-512, or is of a kind without it that does as well."""
    any_length: bool = False
    """Whether the user's environment lets engines take contexts that their model's config does not allow."""
    open_files: int | None = None
    """The hard limit of open files a process."""
    disks: Mapping[str, int] = field(default_factory=dict)
    """Free bytes where the L2 of each cache is or will be."""
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """GPUs of the engines that run already: `auto` must not move them."""
    node: str = ""
    """Name of the node of a cluster that these facts are of; empty for this machine."""
    sockets: str = "/tmp"
    """Short private directory for the engines' ZMQ sockets (their paths may not exceed 107 characters)."""
