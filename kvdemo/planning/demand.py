"""How much GPU memory one engine needs, before it starts: weights + KV cache + what vLLM needs besides. Pure.

An estimate, meant to be right within a GiB: weights from the model's files (or its shape, while there are none), KV
from its config, the rest as it was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvdemo.planning.engines import GIB, normalized
from kvdemo.planning.facts import Model

if TYPE_CHECKING:
    from kvdemo.config.profile import Engine

OVERHEAD = int(2.4 * GIB)
"""GPU memory of an engine beside weights and KV cache: CUDA context, activations, CUDA graphs. Measured on one H200
with a model of Mistral-7B's shape (vLLM 0.26): 2.3 GiB each of four engines."""

FEW_GRAPHS = int(1.2 * GIB)
"""The same with CUDA graphs for at most ``FEW`` sequences: 1.1 GiB each of four engines."""

FEW = 32


@dataclass(frozen=True)
class Demand:
    """Bytes on each GPU of an engine. ``context`` is its longest sequence, ``per_token`` the KV of one token.

    What is not known is None; ``exact`` is whether a context really takes ``per_token`` for each of its tokens.
    """

    weights: int | None
    per_token: int | None
    context: int | None
    exact: bool
    overhead: int = OVERHEAD

    @property
    def kv(self) -> int | None:
        """KV cache of one sequence of the full context, which vLLM insists on; None if that is not known."""
        return self.per_token * self.context if self.exact and self.per_token and self.context else None

    @property
    def fixed(self) -> int:
        """What is needed besides KV cache, as far as it is known."""
        return (self.weights or 0) + self.overhead

    @property
    def least(self) -> int:
        """What the engine needs at least, as far as it is known."""
        return self.fixed + (self.kv or 0)

    def tokens(self, kv: int) -> int | None:
        """The longest context, in whole thousands, for which this much KV cache is enough; None if not known."""
        return kv // self.per_token // 1024 * 1024 if self.exact and self.per_token else None


def of(engine: Engine, model: Model, ranks: int) -> Demand:
    """What this engine needs on each of its ``ranks`` GPUs (tensor parallel)."""
    weights, shape = model.weight_bytes, model.shape
    if weights is None and shape:
        weights = shape.parameters * (4 if model.dtype == "float32" else 2)
    per_token = model.kv_bytes_per_token
    if per_token and str(normalized(engine.args).get("kv-cache-dtype", "")).startswith("fp8"):
        per_token //= 4 if model.dtype == "float32" else 2
    ranks = max(1, ranks)
    sequences = normalized(engine.args).get("max-num-seqs")
    # KV heads are divided among the ranks as far as they go, then repeated.
    share = min(ranks, shape.kv_heads) if shape else ranks
    return Demand(
        weights=weights // ranks if weights else None,
        per_token=-(-per_token // share) if per_token else None,
        context=engine.max_model_len or model.context,
        exact=shape is not None and not shape.windowed,
        overhead=FEW_GRAPHS if isinstance(sequences, int) and sequences <= FEW else OVERHEAD,
    )
