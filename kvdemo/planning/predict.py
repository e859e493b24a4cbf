"""What reuse could buy here, before anything runs: time to compute a prompt, time to load its KV from each tier. Pure.

    prefill = matrix products / rate of matrix products + attention / rate of attention
    cold    = tokenizing + prefill of the prompt
    reuse   = tokenizing + prefill of the last, incomplete chunk + KV bytes / bandwidth of the tier

Rates are measured in the engines' interpreter, with torch's own kernels; or a saved result of the same model on the
same device takes their place. Limits: queueing, HTTP, sampling and LMCache's own work are not counted, so reuse comes
out as it would be at best.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kvdemo import units
from kvdemo.planning import ceiling
from kvdemo.planning.shape import Shape


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second: FLOPs, and seconds for tokenizing the prompt."""

    matmul: float
    attention: float
    tokenizing: float = 0.0


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
        for tier, found in zip(document["tiers"], self.tiers, strict=True):
            tier["wins"] = found.wins
        return document


def prefill(shape: Shape, rates: Rates, tokens: int, context: int) -> float:
    """Seconds to compute the last ``tokens`` of a prompt of ``context`` tokens."""
    attention = shape.attention_flops(context) - shape.attention_flops(context - tokens)
    return shape.linear_flops(tokens) / rates.matmul + attention / rates.attention


def from_rates(shape: Shape, rates: Rates, tokens: int, chunk: int) -> Times:
    """Times from measured rates."""
    rest = tokens % chunk or chunk
    basis = (
        f"{rates.matmul / 1e12:.3g} TFLOP/s in matrix products and {rates.attention / 1e12:.3g} in attention, "
        "measured with torch"
    )
    cold = prefill(shape, rates, tokens, tokens)
    return Times(rates.tokenizing + cold, rates.tokenizing + prefill(shape, rates, rest, tokens), basis)


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
    _, name, cold, local, there = max(fits)
    work = [shape.linear_flops(n) + shape.attention_flops(n) for n in (tokens, there)]
    scaled = f", scaled from {there:,} tokens" if there != tokens else ""
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
        load = kv_bytes / bandwidth
        found = ceiling.limit(kv_bytes, bandwidth, times.local, times.local + load, times.cold)
        tiers.append(Tier(name, bandwidth, load, found.floor, times.cold / found.floor, found.needed))
    return Prediction(tokens, hit, kv_bytes, times, tuple(tiers))


def sentence(tier: Tier, cold: float) -> str:
    """What to expect of one tier, in plain words."""
    speed = f"{tier.name}: {tier.bandwidth / 1e9:.3g} GB/s, loading takes {units.duration(tier.load * 1000)}"
    if not tier.wins:
        return (
            f"{speed}: reuse cannot beat computing ({units.duration(cold * 1000)}); {tier.needed / 1e9:.2g} GB/s would"
        )
    first, gain = units.duration(tier.reuse * 1000), units.ratio(tier.speedup)
    return f"{speed}: first token after {first} at best, {gain} faster (TTFT) than computing"
