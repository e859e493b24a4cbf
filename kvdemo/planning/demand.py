"""How much GPU memory one engine needs, before it starts: weights + KV cache + what vLLM needs besides. Pure.

An estimate, meant to be right within a GiB: weights from the model's files (or its shape, while there are none), KV
from its config, the rest as ``peak`` derives it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvdemo.config import parallel
from kvdemo.config.parallel import Parallel
from kvdemo.planning import peak, window
from kvdemo.planning.engines import normalize
from kvdemo.planning.facts import Gpu, Model

if TYPE_CHECKING:
    from kvdemo.config.profile import Engine

BLOCK = 16
"""Tokens of a KV block on a GPU, unless ``block-size`` says otherwise."""

CPU_BLOCK = 128
"""The same of vLLM's CPU build."""


KV_WIDTHS = {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1, "bfloat16": 2, "float16": 2, "half": 2}
"""Bytes of a value for ``kv-cache-dtype``. Others keep scales beside their values: not known here."""


@dataclass(frozen=True)
class Demand:
    """Bytes on each GPU of an engine. ``context`` is its longest sequence, ``per_token`` the KV of one token.

    What is not known is None; ``exact`` is whether a context really takes ``per_token`` for each of its tokens, and
    ``minimum`` what one takes at least if it does not. ``overhead`` is what the process needs whatever it does;
    ``batch`` tokens are computed at once, which take ``per_batched`` bytes each. ``block`` are the tokens of a KV
    block.
    """

    weights: int | None
    per_token: int | None
    context: int | None
    exact: bool
    overhead: int = peak.PROCESS + peak.GRAPHS
    batch: int = peak.SMALL_BATCH
    per_batched: int | None = None
    block: int = BLOCK
    minimum: int = 0

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
        return self.fixed + (self.kv or self.minimum)

    def tokens(self, kv: int) -> int | None:
        """The longest context, in whole blocks, for which this much KV cache is enough; None if not known."""
        if not (self.exact and self.per_token):
            return None
        return max(0, (kv // (self.block * self.per_token) - 1) * self.block)

    def smaller_batch(self) -> Demand:
        """The same with the smallest batch that vLLM itself would take."""
        return replace(self, batch=min(self.batch, peak.SMALL_BATCH))


def of(engine: Engine, model: Model, gpus: int, gpu: Gpu | None = None) -> Demand:
    """What this engine needs on each of its ``gpus`` GPUs, which are like ``gpu``."""
    arguments = normalize(engine.args)
    spread = parallel.of(arguments, gpus)
    shape, longest = model.shape, window.of_engine(engine, model)
    kv = _Kv.of(model, kv_width(engine, model), spread)
    logits = peak.logits_bytes(shape, peak.sequences(engine, gpu)) // spread.tensor if shape else 0
    return Demand(
        weights=_weights(model, spread),
        per_token=kv.per_token,
        context=longest,
        exact=kv.uniform(longest),
        overhead=peak.process_bytes(engine, gpu) + logits,
        batch=peak.batched_tokens(engine, gpu, longest),
        per_batched=peak.activation_bytes(shape, spread.tensor, model.width) if shape else None,
        block=peak.number(arguments.get("block-size")) or (CPU_BLOCK if engine.gpus == () else BLOCK),
        minimum=kv.at_least(longest),
    )


def kv_width(engine: Engine, model: Model) -> int | None:
    """Bytes of a value in this engine's KV cache; None if its dtype is of a kind that is not known here.

    What the profile says wins over what the checkpoint asks for, and that over the engine's dtype.
    """
    dtype = str(normalize(engine.args).get("kv-cache-dtype") or "auto")
    if dtype == "auto":
        dtype = model.kv_dtype
    return KV_WIDTHS.get(dtype) if dtype else model.width


def kv_bytes_per_token(engine: Engine, model: Model) -> int | None:
    """KV of one token in all layers and on all ranks together, in this engine's dtype; None if it is not known."""
    return _Kv.of(model, kv_width(engine, model), Parallel()).per_token


@dataclass(frozen=True)
class _Kv:
    # The KV of one rank: what each layer keeps, or as much as is known.
    model: Model
    width: int | None
    spread: Parallel

    @classmethod
    def of(cls, model: Model, width: int | None, spread: Parallel) -> _Kv:
        return cls(model, width, spread)

    @property
    def per_token(self) -> int | None:
        if self.width is None:
            return None
        if self.model.layers:
            return self._stage(self.model.layers.values(self.spread.tensor)) * self.width
        whole, dtype = self.model.kv_bytes_per_token, KV_WIDTHS.get(self.model.kv_dtype, self.model.width)
        return -(-self._stage(whole) // self.spread.tensor) * self.width // dtype if whole else None

    def at_least(self, context: int | None) -> int:
        if self.width is None or context is None or self.model.layers is None:
            return 0
        return self.model.layers.at_least(context, self.spread.tensor) // self.spread.pipeline * self.width

    def uniform(self, context: int | None) -> bool:
        layers = self.model.layers
        return layers is not None and context is not None and layers.uniform(context)

    def _stage(self, values: int) -> int:
        """The part of a pipeline stage: of layers that do not divide evenly the larger part."""
        stages, count = self.spread.pipeline, len(self.model.layers.attending) if self.model.layers else 0
        return values * -(-count // stages) // count if count and stages > 1 else -(-values // stages)


def _weights(model: Model, spread: Parallel) -> int | None:
    """Weights of one rank: divided among tensor and pipeline ranks, whole for each data-parallel one."""
    weights, shape = model.weight_bytes, model.shape
    if weights is None and shape and not model.partial:
        weights = shape.parameters * model.width
    if not weights:
        return None
    if spread.pipeline > 1 and shape:
        # The first stage has the embedding besides its layers.
        outer = weights * shape.outer // shape.parameters
        stage = (weights - outer) * -(-shape.layers // spread.pipeline) // shape.layers
        return (stage + weights * shape.vocabulary * shape.hidden // shape.parameters) // spread.tensor
    return weights // (spread.tensor * spread.pipeline)
