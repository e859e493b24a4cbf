"""How much GPU memory one engine needs, before it starts: weights + KV cache + what vLLM needs besides. Pure.

An estimate, meant to be right within a GiB: weights from the model's files (or its shape, while there are none), KV
from its config, the rest as ``peak`` derives it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvdemo.planning import peak, window
from kvdemo.planning.engines import normalized
from kvdemo.planning.facts import Gpu, Model

if TYPE_CHECKING:
    from kvdemo.config.profile import Engine

BLOCK = 16
"""Tokens of a KV block on a GPU, unless ``block-size`` says otherwise."""

CPU_BLOCK = 128
"""The same of vLLM's CPU build."""


@dataclass(frozen=True)
class Demand:
    """Bytes on each GPU of an engine. ``context`` is its longest sequence, ``per_token`` the KV of one token.

    What is not known is None; ``exact`` is whether a context really takes ``per_token`` for each of its tokens.
    ``overhead`` is what the process needs whatever it does; ``batch`` tokens are computed at once, which take
    ``per_batched`` bytes each. ``block`` are the tokens of a KV block.
    """

    weights: int | None
    per_token: int | None
    context: int | None
    exact: bool
    overhead: int = peak.PROCESS + peak.GRAPHS
    batch: int = peak.SMALL_BATCH
    per_batched: int | None = None
    block: int = BLOCK

    @property
    def kv(self) -> int | None:
        """KV cache that vLLM insists on: one sequence of the full context; None if that is not known.

        Sequences take whole blocks, and one more block belongs to the pool itself: 4,096 MiB hold 32,752 tokens of
        128 KiB, not 32,768 (vLLM 0.32, ``BlockPool.null_block``).
        """
        if not (self.exact and self.per_token and self.context):
            return None
        return (-(-self.context // self.block) + 1) * self.block * self.per_token

    @property
    def activations(self) -> int:
        """What a batch takes while it is computed, as far as it is known."""
        return (self.per_batched or 0) * self.batch

    @property
    def fixed(self) -> int:
        """What is needed besides KV cache at the peak, as far as it is known."""
        return (self.weights or 0) + self.overhead + self.activations

    @property
    def least(self) -> int:
        """What the engine needs at least, as far as it is known."""
        return self.fixed + (self.kv or 0)

    def tokens(self, kv: int) -> int | None:
        """The longest context, in whole blocks, for which this much KV cache is enough; None if not known."""
        if not (self.exact and self.per_token):
            return None
        return max(0, (kv // (self.block * self.per_token) - 1) * self.block)

    def smaller_batch(self) -> Demand:
        """The same with the smallest batch that vLLM itself would take."""
        return replace(self, batch=min(self.batch, peak.SMALL_BATCH))


def of(engine: Engine, model: Model, ranks: int, gpu: Gpu | None = None) -> Demand:
    """What this engine needs on each of its ``ranks`` GPUs (tensor parallel), which are like ``gpu``."""
    arguments = normalized(engine.args)
    weights, shape = model.weight_bytes, model.shape
    if weights is None and shape:
        weights = shape.parameters * (4 if model.dtype == "float32" else 2)
    per_token = model.kv_bytes_per_token
    if per_token and str(arguments.get("kv-cache-dtype", "")).startswith("fp8"):
        per_token //= 4 if model.dtype == "float32" else 2
    ranks = max(1, ranks)
    context = window.of_engine(engine, model)
    # KV heads are divided among the ranks as far as they go, then repeated.
    share = min(ranks, shape.kv_heads) if shape else ranks
    logits = peak.logits_bytes(shape, peak.sequences(engine, gpu)) // ranks if shape else 0
    return Demand(
        weights=weights // ranks if weights else None,
        per_token=-(-per_token // share) if per_token else None,
        context=context,
        exact=shape is not None and not shape.windowed,
        overhead=peak.process_bytes(engine, gpu) + logits,
        batch=peak.batched_tokens(engine, gpu, context),
        per_batched=peak.activation_bytes(shape, ranks, 4 if model.dtype == "float32" else 2) if shape else None,
        block=peak.number(arguments.get("block-size")) or (CPU_BLOCK if engine.gpus == () else BLOCK),
    )
