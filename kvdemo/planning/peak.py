"""GPU memory of an engine beside weights and KV cache, at its peak: while it computes a long prompt. Pure.

    peak        = process + CUDA graphs + activations + logits
    activations = tokens at once x values of one token x bytes of a value
    values      = 2 hidden + (heads + 2 KV heads) head + heads head + MLP
    logits      = sequences at once x vocabulary x 10 bytes

A prompt is computed in pieces of ``max-num-batched-tokens``. One piece passes the layers one after the other, and each
layer uses the buffers of the one before: residual and hidden state; queries, keys and values; the attention's output;
and the MLP's buffers (gate, up and their product). torch's allocator keeps a buffer of each size, so the sizes add up.
vLLM returns these buffers after its own trial at start (``torch.accelerator.empty_cache`` after capturing its graphs):
an engine that has just become ready uses less than it will with its first long prompt. Logits are held in the model's
dtype and in float32, and as probabilities in float32, of at most one token of each sequence.

Held against one H100 (vLLM 0.32.0, Mistral-7B's shape, ``max-num-seqs: 16``): 120 KiB a token, so 0.94 GiB for 8,192
tokens; an engine with a KV cache of 4.5 GiB grew from 19.2 to 20.3 GiB with its first long prompt (the sum: 20.3).
With 2,048 tokens at once and a KV cache of 4.25 GiB four engines and their cache used 78.4 GiB under load; the sum is
77.9, and 0.5 GiB of such a GPU are in use before anything starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvdemo.planning.engines import GIB, normalize
from kvdemo.planning.shape import Shape

if TYPE_CHECKING:
    from kvdemo.config.profile import Engine
    from kvdemo.planning.facts import Gpu

PROCESS = int(1.35 * GIB)
"""CUDA context, kernels, workspaces and few CUDA graphs: the 20.3 GiB of one engine on an H100 at its peak without
weights (13.5), KV cache (4.5) and activations (0.94)."""

GRAPHS = int(0.9 * GIB)
"""CUDA graphs for more than ``FEW`` sequences: 1.2 GiB more an engine on an H200 (vLLM 0.26), of which 0.3 are logits
of 1,024 sequences."""

FEW = 32
"""Up to so many sequences at once the graphs are few (measured with 16)."""

BYTES_OF_A_LOGIT = 2 + 4 + 4

SMALL_BATCH = 2048
"""The least that vLLM takes by itself for ``max-num-batched-tokens`` of a server on a GPU."""


def number(value: Any) -> int | None:
    """A count as vLLM reads it: 8192, "8192", "8k" (8,000) or "8K" (8,192); None if it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip()
    units = {"k": 1000, "m": 1000**2, "g": 1000**3, "K": 1024, "M": 1024**2, "G": 1024**3}
    try:
        return int(float(text[:-1]) * units[text[-1]]) if text[-1:] in units else int(text)
    except ValueError:
        return None


def sequences(engine: Engine, gpu: Gpu | None) -> int:
    """How many sequences are computed at once (``max-num-seqs``), by vLLM's default for this GPU unless it is given.

    The default is that of ``EngineArgs.get_batch_defaults`` for a server: 1,024 from 70 GiB on but for an A100, else
    256 (vLLM 0.32).
    """
    value = number(normalize(engine.args).get("max-num-seqs"))
    return value or (1024 if _large(gpu) else 256)


def batched_tokens(engine: Engine, gpu: Gpu | None, context: int | None) -> int:
    """How many tokens are computed at once (``max-num-batched-tokens``), by vLLM's default unless it is given.

    The default is that of ``EngineArgs.get_batch_defaults`` for a server: 16,384 from 160 GiB on, 8,192 from 70 GiB on
    but for an A100, else 2,048 (vLLM 0.32); doubled by ``performance-mode: throughput``, at least one whole context
    without chunked prefill, and never more than all sequences hold.
    """
    arguments = normalize(engine.args)
    if value := number(arguments.get("max-num-batched-tokens")):
        return value
    tokens = 16384 if gpu and gpu.total >= 160 * GIB else 8192 if _large(gpu) else SMALL_BATCH
    if arguments.get("performance-mode") == "throughput":
        tokens *= 2
    if context is None:
        return tokens
    if arguments.get("enable-chunked-prefill") is False:
        tokens = max(tokens, context)
    return min(tokens, sequences(engine, gpu) * context)


def _large(gpu: Gpu | None) -> bool:
    return gpu is not None and gpu.total >= 70 * GIB and "a100" not in gpu.name.lower()


def activation_bytes(shape: Shape, tensor: int, width: int = 2) -> int:
    """Bytes that one token of a batch takes while it is computed, on one of ``tensor`` tensor-parallel ranks."""
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head
    return width * (2 * shape.hidden + (attention + shape.mlp) // tensor)


def process_bytes(engine: Engine, gpu: Gpu | None) -> int:
    """Bytes of the process itself and its CUDA graphs."""
    eager = normalize(engine.args).get("enforce-eager") is True
    return PROCESS + (0 if eager or sequences(engine, gpu) <= FEW else GRAPHS)


def logits_bytes(shape: Shape, sequences_at_once: int) -> int:
    """Bytes of the logits of one token of each sequence, with what the sampler makes of them."""
    return sequences_at_once * shape.vocabulary * BYTES_OF_A_LOGIT
