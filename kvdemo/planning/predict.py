"""What reuse could buy here, before anything runs: time to compute a prompt, time to load its KV from each tier. Pure.

    prefill = matrix products / rate of matrix products + attention / rate of attention
    server  = SERVER x tokenizing + REQUEST
    cold    = server + prefill of the prompt
    local   = server + prefill of the last, incomplete chunk
    reuse   = local + KV bytes / bandwidth of the tier + CONNECT

Rates are those of a layer that runs for seconds in the engines' interpreter, with torch's own kernels, and tokenizing
is that of the engine's own tokenizer, both measured on this machine; or a saved result of the same model on the same
device takes their place. What the API server, the engine's scheduler and LMCache's connector cost beside that was
measured once (below), and is taken to be the same here.

Not in it: queueing behind other requests, a busy processor, experts of a mixture (they count as one dense MLP of the
same size), communication between GPUs. Of an engine that runs on a processor REQUEST and CONNECT are unknown and
small beside computing; they count as on a GPU machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kvdemo import units
from kvdemo.planning.shape import Shape

SERVER = 2.4
"""What the API server and the engine's input take for a prompt, over what the tokenizer alone takes: tokenizing, the
prompt decoded again for the stream, hashes of its blocks, copies between processes. On H200 hosts 3.9 us a token (five
lengths from 1,000 to 24,000 tokens, n = 15) against 1.6 of the tokenizer (vLLM 0.26)."""

SERVER_ON_CPU = 1.2
"""The same beside engines on a processor: 1.1 to 1.3 on two cores (vLLM 0.32, 7,900 tokens, n = 4, a busy machine)."""

REQUEST = 0.023
"""Seconds of a request whatever its length: HTTP and hand-over between processes (6 ms), scheduling, one step of the
engine, sampling (17 ms). Same source: a local hit of 1,000 tokens."""

CONNECT = 0.022
"""Seconds that a load through LMCache's connector takes beside moving bytes: reuse less local hit less bytes at copy
speed. Median of ten pairs of medians on H200 and H100 hosts, from 1,000 to 32,000 tokens (3 to 39 ms, LMCache 0.5.3 and
0.5.6); that it grows with the chunks, from 3 to 123, cannot be seen in them."""


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second: FLOPs, and seconds for tokenizing the prompt.

    ``server`` is what the API server takes for a prompt, over tokenizing.
    """

    matmul: float
    attention: float
    tokenizing: float = 0.0
    server: float = SERVER


@dataclass(frozen=True)
class Times:
    """Seconds of a cold request and of a local hit; ``basis`` is where they come from."""

    cold: float
    local: float
    basis: str


@dataclass(frozen=True)
class Tier:
    """One tier: ``load`` and ``reuse`` in seconds; at the bandwidth ``needed`` reuse and computing take the same."""

    name: str
    bandwidth: float
    load: float
    reuse: float
    speedup: float
    needed: float

    @property
    def wins(self) -> bool:
        """Whether reuse from here can beat computing at all."""
        return self.bandwidth > self.needed


@dataclass(frozen=True)
class Prediction:
    """What a document of ``tokens`` costs; ``hit`` of them can be shared."""

    tokens: int
    hit: int
    kv_bytes: int
    times: Times
    tiers: tuple[Tier, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        document = asdict(self)
        for tier, tier_facts in zip(document["tiers"], self.tiers, strict=True):
            tier["wins"] = tier_facts.wins
        return document


def prefill(shape: Shape, rates: Rates, tokens: int, context: int) -> float:
    """Seconds to compute the last ``tokens`` of a prompt of ``context`` tokens."""
    attention = shape.attention_flops(context) - shape.attention_flops(context - tokens)
    return shape.linear_flops(tokens) / rates.matmul + attention / rates.attention


def from_rates(shape: Shape, rates: Rates, tokens: int, chunk: int) -> Times:
    """Times from measured rates."""
    rest = tokens % chunk or chunk
    server = rates.server * rates.tokenizing + REQUEST
    basis = (
        f"{rates.matmul / 1e12:.3g} TFLOP/s in matrix products and {rates.attention / 1e12:.3g} in attention, "
        f"measured with torch; API server and scheduler take {units.duration(1000 * server)} of each"
    )
    cold = prefill(shape, rates, tokens, tokens)
    return Times(server + cold, server + prefill(shape, rates, rest, tokens), basis)


def from_results(
    documents: Iterable[tuple[str, Mapping[str, Any]]], digest: str, device: str, shape: Shape, tokens: int
) -> Times | None:
    """Times from the newest saved result of this model on this device, scaled by the work of the prompt; else None."""
    fits = []
    for name, document in documents:
        if document.get("model_digest") != digest or document.get("device") != device:
            continue
        rows = {(row["engine"], row["arm"]): row["median_ttft_ms"] for row in document.get("rows", ())}
        cold = rows.get((document.get("baseline"), "cold")) or next((rows[k] for k in rows if k[1] == "cold"), None)
        local = rows.get((document.get("reader"), "again"))
        if cold and local and document.get("prompt_tokens"):
            fits.append((str(document["date"]), name, cold / 1000, local / 1000, int(document["prompt_tokens"])))
    if not fits:
        return None
    _, name, cold, local, tokens_measured = max(fits)
    work = [shape.linear_flops(n) + shape.attention_flops(n) for n in (tokens, tokens_measured)]
    scaled = f", scaled from {tokens_measured:,} tokens" if tokens_measured != tokens else ""
    return Times(local + (cold - local) * work[0] / work[1], local, f"measured in {name}{scaled}")


def predict(
    tokens: int, chunk: int, kv_bytes_per_token: int, times: Times, bandwidths: Mapping[str, float]
) -> Prediction:
    """Load time, time to first token and speed-up of each tier."""
    # A prompt that is a whole number of chunks keeps one token to compute.
    hit = (tokens - 1) // chunk * chunk
    kv_bytes = hit * kv_bytes_per_token
    tiers = []
    for name, bandwidth in bandwidths.items():
        load = kv_bytes / bandwidth + CONNECT
        reuse = times.local + load
        saved = times.cold - times.local - CONNECT
        needed = kv_bytes / saved if saved > 0 else float("inf")
        tiers.append(Tier(name, bandwidth, load, reuse, times.cold / reuse, needed))
    return Prediction(tokens, hit, kv_bytes, times, tuple(tiers))


def sentence(tier: Tier, cold: float) -> str:
    """What to expect of one tier, in plain words."""
    speed = f"{tier.name}: {tier.bandwidth / 1e9:.3g} GB/s, loading takes {units.duration(tier.load * 1000)}"
    if not tier.wins:
        remedy = f"; {tier.needed / 1e9:.2g} GB/s would" if tier.needed != float("inf") else ""
        return f"{speed}: reuse cannot beat computing ({units.duration(cold * 1000)}){remedy}"
    faster = f"{units.ratio(tier.speedup)} faster (TTFT) than computing"
    return f"{speed}: first token after {units.duration(tier.reuse * 1000)}, {faster}"
