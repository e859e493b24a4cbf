"""How an engine spreads over its GPUs: tensor x pipeline x data parallel. Pure.

Without flags all of an engine's GPUs are one tensor-parallel group. Flags in ``args`` divide them otherwise; what they
ask for must come to the number of GPUs, or vLLM starts with fewer of them, or does not start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TENSOR, PIPELINE, DATA = "tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size"
PREFILL = "prefill-context-parallel-size"
LOCAL = "data-parallel-size-local"

SIZES = (TENSOR, PIPELINE, DATA, PREFILL)

ELSEWHERE = ("data-parallel-address", "data-parallel-rank", "data-parallel-start-rank", "nnodes", "node-rank")
"""Flags of an engine that other nodes are a part of: the GPUs here are not all of it."""


@dataclass(frozen=True)
class Parallel:
    """Ranks of each kind. ``prefill`` is prefill context parallelism, whose ranks hold whole weights."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    prefill: int = 1

    @property
    def gpus(self) -> int:
        """GPUs that this takes."""
        return self.tensor * self.pipeline * self.data * self.prefill


def size(args: Mapping[str, Any], flag: str) -> int | None:
    """The number that this flag asks for, None if it is not given; ValueError if it is no number from 1 on."""
    value = args.get(flag)
    if value is None:
        return None
    if isinstance(value, bool) or not str(value).isdecimal() or int(value) < 1:
        raise ValueError(flag)
    return int(value)


def of(args: Mapping[str, Any], gpus: int) -> Parallel:
    """How an engine with these flags uses this number of GPUs (0: vLLM's CPU build).

    What no flag asks for is 1, but for tensor parallelism: it takes what the others leave. Raises ValueError if a size
    is no number.
    """
    pipeline, data, prefill = size(args, PIPELINE) or 1, size(args, LOCAL) or size(args, DATA) or 1, size(args, PREFILL)
    others = pipeline * data * (prefill or 1)
    return Parallel(size(args, TENSOR) or max(1, gpus // others), pipeline, data, prefill or 1)


def problem(args: Mapping[str, Any], gpus: int) -> tuple[str, str]:
    """The flag that does not go with this number of GPUs, and why; two empty texts if all is well."""
    for flag in (*SIZES, LOCAL):
        try:
            size(args, flag)
        except ValueError:
            return flag, f"expected a whole number of at least 1, got {args[flag]!r}"
    flags = [flag for flag in (TENSOR, PIPELINE, DATA, PREFILL) if flag in args]
    layout = of(args, gpus)
    if not flags or not gpus or layout.gpus == gpus or any(flag in args for flag in ELSEWHERE):
        return "", ""
    terms = {TENSOR: layout.tensor, PIPELINE: layout.pipeline, DATA: layout.data, PREFILL: layout.prefill}
    product = " x ".join(f"{flag.removesuffix('-size')} {number}" for flag, number in terms.items() if flag in flags)
    problem = f"this engine has {gpus} GPU{'' if gpus == 1 else 's'}"
    if TENSOR not in flags:
        return flags[
            -1
        ], f"{problem}, which {product} does not divide; give it a multiple of {layout.gpus // layout.tensor}"
    return flags[-1], f"{product} takes {layout.gpus} GPU{'' if layout.gpus == 1 else 's'}, but {problem}"
