"""What `kvdemo top` and the page's strip say of a fleet: headings, cells, bars, sentences, from one Frame. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from kvdemo import units
from kvdemo.backends.backend import Usage
from kvdemo.judge.frame import Cache, Engine, Frame, PromptsSeen, Service
from kvdemo.judge.rates import Prompts, Quantile, Ttft
from kvdemo.words.tones import Piece, Tone

UNKNOWN = "?"
"""In a cell: it exists, and nobody tells. A "-" is a value that there cannot be, as the hit rate of no prompt."""

GIB = 1024**3


One = TypeVar("One", Engine, Cache)


@dataclass(frozen=True)
class Gauge(Generic[One]):
    """A column of numbers; ``about`` is its explanation."""

    heading: str
    about: str
    cell: Callable[[One], Piece]


@dataclass(frozen=True)
class Source:
    """Where tokens come from; ``key`` is its name in JSON."""

    key: str
    name: str
    tone: Tone


SOURCES = (
    Source("computed", "computed", Tone.COMPUTED),
    Source("local", "local (own prefix cache)", Tone.LOCAL),
    Source("shared", "shared (cache server)", Tone.SHARED),
)
"""Of an engine's prompt tokens."""

TIERS = (Source("l1", "L1", Tone.SHARED), Source("l2", "L2", Tone.SHARED))
"""Of what a cache server's lookups hit."""


@dataclass(frozen=True)
class Part:
    """A part of a bar: so many tokens a second from one source."""

    source: Source
    rate: float


def parts(one: Service) -> list[Part]:
    """The bar of a service; empty if nobody tells."""
    if isinstance(one, Engine) and (tokens := one.rates.tokens) and one.rates.window:
        counts = (tokens.computed, tokens.local, tokens.shared)
        return [Part(source, count / one.rates.window) for source, count in zip(SOURCES, counts, strict=True)]
    if isinstance(one, Cache) and one.rates.tiers is not None and one.rates.window:
        return [Part(tier, one.rates.tiers.get(tier.key, 0) / one.rates.window) for tier in TIERS]
    return []


def most(services: Sequence[Service]) -> float:
    """The highest rate among them: as long as a whole bar."""
    return max((sum(part.rate for part in parts(one)) for one in services), default=0.0)


def share(value: float) -> str:
    """A share in percent: what is not all does not read as all, and what is something not as nothing."""
    percent = round(100 * value)
    if percent == 100 and value < 1:
        return ">99%"
    return "<1%" if percent == 0 and value > 0 else f"{percent}%"


def _share(value: float | None, empty: bool = False) -> Piece:
    if value is None:
        return Piece(units.NO_VALUE if empty else UNKNOWN, Tone.DIM)
    return Piece(share(value))


def _count(value: int | None) -> Piece:
    return Piece(UNKNOWN, Tone.DIM) if value is None else Piece(f"{value:,}", Tone.PLAIN if value else Tone.DIM)


def _rate(one: Service) -> Piece:
    bar = parts(one)
    return Piece(units.digits(sum(part.rate for part in bar))) if bar else Piece(UNKNOWN, Tone.DIM)


def size(value: int | None) -> str:
    """Bytes: 71.2G, 512M."""
    if value is None:
        return UNKNOWN
    if value >= 1000 * GIB:
        return f"{value / 1024**4:.1f}T"
    return f"{value / GIB:.1f}G" if value >= GIB else f"{value / 1024**2:.0f}M"


def _ttft(one: Engine, pick: Callable[[Ttft], Quantile | None]) -> Piece:
    times = one.rates.ttft
    if times is None:
        return Piece(UNKNOWN, Tone.DIM)
    if (value := pick(times)) is None:
        return Piece(UNKNOWN if times.n else units.NO_VALUE, Tone.DIM)
    return Piece(("> " if value.at_least else "") + units.duration(value.seconds * 1000))


def _quiet(one: Engine | Cache) -> bool:
    """Whether there was nothing in the window whose share could be told."""
    if isinstance(one, Engine):
        return one.rates.tokens is not None and one.rates.tokens.total == 0
    return one.rates.requested == 0


def _memory(one: Service) -> Piece:
    if isinstance(one, Engine) and one.gpus:
        return Piece(size(sum(gpu.used for gpu in one.gpus)))
    return Piece(size(one.memory), Tone.DIM if one.memory is None else Tone.PLAIN)


def _l2(usage: Usage) -> Piece:
    if usage.has_l2 is False:
        return Piece(units.NO_VALUE, Tone.DIM)
    return Piece(size(usage.l2), Tone.DIM if usage.l2 is None else Tone.PLAIN)


def _busy(one: Engine) -> Piece:
    if not one.gpus:
        return Piece(UNKNOWN, Tone.DIM)
    shares = [gpu.utilization for gpu in one.gpus if gpu.utilization is not None]
    if len(shares) < len(one.gpus):
        return Piece(UNKNOWN, Tone.DIM)
    low, high = min(shares), max(shares)
    return Piece(f"{high:.0%}" if low == high else f"{100 * low:.0f}-{high:.0%}")


ENGINE_GAUGES: tuple[Gauge[Engine], ...] = (
    Gauge("RUN", "requests running", lambda one: _count(one.rates.running)),
    Gauge("WAIT", "requests waiting", lambda one: _count(one.rates.waiting)),
    Gauge("TOK/S", "prompt tokens a second, counted when the first token of the answer comes", _rate),
    Gauge(
        "HIT",
        "share of the window's prompt tokens that was not computed",
        lambda one: _share(one.rates.hit_rate, _quiet(one)),
    ),
    Gauge(
        "EVER",
        "the same since the engine's start",
        lambda one: _share(one.rates.hit_rate_ever, one.rates.tokens_ever == 0),
    ),
    Gauge(
        "TTFT50",
        "median time to first token in the window, interpolated in the buckets of the engine's histogram as "
        "histogram_quantile of Prometheus does",
        lambda one: _ttft(one, lambda times: times.p50),
    ),
    Gauge(
        "TTFT90",
        "the 90th percentile of the same",
        lambda one: _ttft(one, lambda times: times.p90),
    ),
    Gauge("N", "first tokens in the window", lambda one: _count(one.rates.ttft.n if one.rates.ttft else None)),
    Gauge("KV", "share of the engine's KV blocks in use", lambda one: _share(one.rates.kv_usage)),
    Gauge("MEM", "memory: of its GPUs with all their processes, or of its own processes", _memory),
)
GPU_GAUGE: Gauge[Engine] = Gauge("GPU", "how busy its GPUs are, with all their processes", _busy)
CACHE_GAUGES: tuple[Gauge[Cache], ...] = (
    Gauge("TOK/S", "tokens a second that its lookups hit, also those that the engine then had itself", _rate),
    Gauge(
        "HIT",
        "share of the tokens asked for in the window that it had",
        lambda one: _share(one.rates.hit_rate, _quiet(one)),
    ),
    Gauge(
        "EVER", "the same since its start", lambda one: _share(one.rates.hit_rate_ever, one.rates.requested_ever == 0)
    ),
    Gauge("L1", "bytes in L1 (host memory)", lambda one: Piece(size(one.rates.usage.l1))),
    Gauge("OF", "size of L1", lambda one: Piece(size(one.rates.usage.l1_size))),
    Gauge("L2", "bytes that it counts in L2", lambda one: _l2(one.rates.usage)),
    Gauge("ENGINES", "engines registered with it", lambda one: _count(one.rates.usage.engines)),
    Gauge("MEM", "memory of its own processes", _memory),
)


def engine_gauges(engines: Sequence[Engine]) -> tuple[Gauge[Engine], ...]:
    """The columns of engines; that of the GPUs only where there are any."""
    return (*ENGINE_GAUGES, GPU_GAUGE) if any(one.gpus for one in engines) else ENGINE_GAUGES


def window(frame: Frame) -> str:
    """Over which time the rates are."""
    covered = frame.covered
    if covered is None:
        return "no rates yet: they need two readings"
    rest = "" if covered >= frame.length else f" of {frame.length:g} s so far"
    return f"rates over {units.digits(covered)} s{rest}"


def total(frame: Frame) -> list[Part]:
    """The bars of all engines as one."""
    bars = [parts(one) for one in frame.engines]
    return [Part(source, sum(bar[n].rate for bar in bars if bar)) for n, source in enumerate(SOURCES)]


def summary(frame: Frame) -> str:
    """The whole fleet in one line."""
    bar = total(frame)
    rate = sum(part.rate for part in bar)
    silent = sum(not parts(one) for one in frame.engines)
    unknown = f" (unknown of {units.count(silent, 'engine')})" if silent and frame.covered is not None else ""
    hit = f", {share((rate - bar[0].rate) / rate)} of them from caches" if rate else ""
    if frame.covered is None:
        return window(frame)
    return f"{units.digits(rate)} prompt tokens a second{hit}{unknown}; {window(frame)}"


def rates(bar: Sequence[Part]) -> str:
    """A bar in words: 50.0 computed + 120 shared tokens a second."""
    rates_text = " + ".join(f"{units.digits(part.rate)} {part.source.name}" for part in bar if part.rate)
    return f"{rates_text or 'no'} tokens a second" if bar else "unknown"


def complaints(frame: Frame) -> list[Piece]:
    """What is wrong with services, one sentence each."""
    lines = []
    for one in frame.services:
        if one.problem:
            since = f" (for {one.silent:.0f} s)" if one.silent >= 1 else ""
            lines.append(Piece(f"{one.name}: {one.problem}{since}", Tone.BAD))
        if one.restarted:
            how = "was restarted" if one.broken == "restarted" else f"{one.broken}: it was restarted, or reset"
            lines.append(Piece(f"{one.name}: {how}; seen at {one.restarted:%H:%M:%S}, counted anew since", Tone.WARN))
    return lines


def recent(frame: Frame) -> list[tuple[Piece, ...]]:
    """The last prompts, newest first."""
    return [_prompts(times) for times in frame.recent]


def _prompts(times: PromptsSeen) -> tuple[Piece, ...]:
    one = times.prompts
    head = Piece(f"{times.at:%H:%M:%S} {one.engine}: ", Tone.DIM)
    tokens = f"{one.tokens:,} tokens" if one.tokens is not None else "tokens unknown"
    if one.n > 1:
        return head, Piece(f"{one.n:,} prompts, together {tokens}; sources of each unknown")
    took = f", TTFT {units.duration(one.ttft * 1000)}" if one.ttft is not None else ""
    if one.sources is None:
        return head, Piece(f"{tokens}, sources unknown{took}")
    cells = [
        (one.sources.computed, "computed", Tone.COMPUTED),
        (one.sources.local, "local", Tone.LOCAL),
        (one.sources.shared, f"shared{_tiers(one)}", Tone.SHARED),
    ]
    pieces = [Piece(f"{count:,} {name}", tone) for count, name, tone in cells if count]
    between = [piece for part in pieces for piece in (Piece(" + "), part)][1:]
    return head, Piece(f"{tokens} = "), *between, Piece(took)


def _tiers(one: Prompts) -> str:
    """In which tiers the cache server had it, where that is known."""
    names = [tier.name for tier in TIERS if (one.tiers or {}).get(tier.key)]
    return f" ({', '.join(names)})" if names else ""


def legend(frame: Frame) -> str:
    """What "?" means, if it is shown anywhere."""
    columns = engine_gauges(frame.engines)
    cells = [gauge.cell(one) for one in frame.engines if not one.problem for gauge in columns]
    cells += [gauge.cell(one) for one in frame.caches if not one.problem for gauge in CACHE_GAUGES]
    return f"{UNKNOWN} = unknown: nobody tells" if UNKNOWN in map(str, cells) else ""
