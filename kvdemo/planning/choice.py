"""Which shipped profile fits a machine, and what of it must be changed. Pure.

The figures of Mistral-7B's shape were measured with vLLM 0.32.0 on one H100 and one H200 (docs/gpu.md): four engines
take 88 GiB while all compute, 78.4 GiB with a smaller KV cache and shorter pieces of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kvdemo.planning.facts import Gpu

GIB = 1024**3
ENGINES = 4
"""Engines of the profiles for GPUs."""
ROOMY, TIGHT = 22.0 * GIB, 19.6 * GIB
"""GPU memory of one engine of a model of 7B: as the profile says, and with the smaller figures beside it."""
SHARE = 0.6
"""Share of a GPU that an engine of demo4.yaml takes."""

GATED = "mistralai/Mistral-7B-Instruct-v0.2"
OPEN = "Qwen/Qwen2.5-7B-Instruct"
SMALL = ""
"""The models, best first: the one of LMCache's demo4, an open one of its size (Apache-2.0), SmolLM2 (made here)."""

TOO_SMALL = (
    "on an H200 the prompt of so small a model was computed about as fast as its KV was loaded: it shows that sharing "
    "works, hardly a speed-up"
)
"""Of SmolLM2 beside engines on a GPU: 26 and 28 ms cold, 37 and 44 ms with reuse (two hosts, docs/results)."""

Kind = Literal["cpu", "smoke", "one-gpu", "demo4"]


@dataclass(frozen=True)
class Choice:
    """A shipped profile, the model it gets (``SMALL``: SmolLM2-135M-Instruct), what to replace in its text, and why."""

    kind: Kind
    model: str
    edits: Mapping[str, str]
    reasons: tuple[str, ...]


def model_of(access: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The first model that can be had, and what is said about those before it.

    Args:
        access: for each model of Hugging Face that was asked for, why it cannot be had ("": it can).
    """
    refused: list[str] = []
    for name in (GATED, OPEN):
        if not access.get(name, "was not asked for"):
            return name, (*refused, f"model {name}")
        refused.append(f"not {name}: it {access.get(name, 'was not asked for')}")
    return SMALL, (*refused, f"model SmolLM2-135M-Instruct, which needs no Hugging Face; {TOO_SMALL}")


def choose(gpus: Sequence[Gpu], access: Mapping[str, str], kind: Kind | None = None) -> Choice:
    """The profile for this machine, or the named one with what must be changed in it.

    Args:
        gpus: the visible GPUs, with their free memory in bytes.
        access: as of ``model_of``; only read where there are GPUs.
        kind: the profile that the user named.
    """
    if kind in {"cpu", "smoke"} or (not gpus and kind is None):
        why = (
            "no GPU is visible: engines run on the processor" if not gpus else "engines run on the processor, as asked"
        )
        return Choice(kind or "cpu", SMALL, {}, (why,))
    model, reasons = model_of(access)
    if kind == "demo4" or (kind is None and len(gpus) >= ENGINES):
        return _one_each(gpus, model, reasons)
    return _spread(gpus[:1] if kind == "one-gpu" else gpus, model, reasons)


def _one_each(gpus: Sequence[Gpu], model: str, reasons: tuple[str, ...]) -> Choice:
    """demo4.yaml, on the GPUs with most memory free."""
    best = sorted(sorted(gpus, key=lambda gpu: (-gpu.free, gpu.index))[:ENGINES], key=lambda gpu: gpu.index)
    least = min((gpu.free for gpu in best), default=0)
    edits = {f"gpus: [{n}]": f"gpus: [{gpu.index}]" for n, gpu in enumerate(best) if gpu.index != n}
    share = SHARE
    if least and least * share < ROOMY <= least * 0.9:
        share = 0.9
        edits["memory: 0.6 "] = "memory: 0.9 "
    if least and least * share < ROOMY:
        model, reasons = _smaller(model, reasons, f"{least / GIB:.0f} GiB are free of the smallest GPU")
    indices = ", ".join(str(gpu.index) for gpu in best) or "0, 1, 2, 3 (none is visible here)"
    return Choice("demo4", model, edits, (f"an engine on each of the GPUs {indices}", *reasons))


def _spread(gpus: Sequence[Gpu], model: str, reasons: tuple[str, ...]) -> Choice:
    """one-gpu.yaml: four engines on fewer GPUs."""
    edits: dict[str, str] = {}
    if len(gpus) > 1:
        edits["gpus: [0] "] = "gpus: auto "
    sharers = -(-ENGINES // max(len(gpus), 1))
    least = min((gpu.free for gpu in gpus), default=0)
    if least and least < sharers * ROOMY:
        if least >= sharers * TIGHT:
            edits |= {"KV_CACHE:-6GiB": "KV_CACHE:-4352MiB", "BATCHED_TOKENS:-8192": "BATCHED_TOKENS:-2048"}
        else:
            model, reasons = _smaller(model, reasons, f"{least / GIB:.0f} GiB are free for {sharers} engines on a GPU")
    where = (
        f"four engines on {len(gpus)} GPU{'s' * (len(gpus) > 1)}" if gpus else "four engines on one GPU (none is here)"
    )
    return Choice("one-gpu", model, edits, (where, *reasons))


def _smaller(model: str, reasons: tuple[str, ...], why: str) -> tuple[str, tuple[str, ...]]:
    if model == SMALL:
        return model, reasons
    remaining = tuple(reason for reason in reasons if reason != f"model {model}")
    return SMALL, (*remaining, f"not {model}: {why}", f"model SmolLM2-135M-Instruct; {TOO_SMALL}")
