"""What a run means, as types: everything that any medium shows is a field here, and a wrong name is a type error.

Times are milliseconds in fields that end in ``_ms`` and in ``Times``; ratios are plain factors. None means unknown or
not measured. ``document`` writes a Result as JSON and reads it back; nothing else sees it as a mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from kvdemo.judge.sample import Amount, Arm, Count, Finite, Positive
from kvdemo.judge.verdict import Verdict

ABSENT = {"absent": True}
"""Marks a field whose key the JSON does not have while its value is None."""


@dataclass(frozen=True)
class ClientOverhead:
    """What this client adds to each TTFT, measured ``n`` times against a server that answers at once."""

    n: Count
    prompt_bytes: Count
    p50_ms: Finite
    p90_ms: Finite


@dataclass(frozen=True)
class Contender:
    """One of several caches of a run: its name in the profile, its backend for people, who writes and reads."""

    cache: str
    title: str
    writer: str
    reader: str
    chunk_size: Count | None = None


@dataclass(frozen=True)
class Conditions:
    """Under what a run was measured. ``everything`` is what its file holds, these fields and others, as it was saved.

    Bandwidths are bytes a second, ``kv_bytes_per_token`` bytes; ``nodes`` is empty on one machine. A
    ``history`` is what people asked a page: requests, but no trials of one prompt. With ``random_weights`` the words
    of the answers mean nothing.
    """

    model_id: str
    prompt_tokens: Count
    num_trials: Count
    device: str
    baseline: str
    writer: str
    reader: str
    max_concurrency: Count = 1
    tier: str = "any"
    question: str = ""
    date: str = ""
    project: str = ""
    run_id: str = ""
    kvdemo_version: str = ""
    chunk_size: Count | None = None
    kv_bytes_per_token: Amount | None = None
    memory_bandwidth: Amount | None = None
    disk_bandwidth: Amount | None = None
    nodes: Mapping[str, str] = Field(default_factory=dict)
    flags: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    nice: Mapping[str, int] = Field(default_factory=dict)
    interrupted: bool = False
    history: bool = False
    random_weights: bool = False
    client_overhead: ClientOverhead | None = None
    contenders: tuple[Contender, ...] = ()
    everything: Mapping[str, Any] = Field(default_factory=dict, exclude=True)


@dataclass(frozen=True)
class Ratio:
    """Paired ratios of ``n`` trials: median and range, and the interval where n carries one."""

    n: Count
    median: Positive
    min: Positive
    max: Positive
    low: Positive | None = field(default=None, metadata=ABSENT)
    high: Positive | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True)
class Times:
    """``n`` times in ms; p90 and p99 only where n carries them."""

    n: Count
    median: Finite
    mean: Finite
    std: Finite
    min: Finite
    max: Finite
    p90: Finite | None = field(default=None, metadata=ABSENT)
    p99: Finite | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True)
class Waterfall:
    """Medians in ms of what a TTFT is made of.

    The queue is the time until the engine schedules the request: one that loads KV first counts the load there.
    """

    client_http_ms: Finite
    queue_and_load_ms: Finite
    prefill_ms: Finite


@dataclass(frozen=True)
class Exclusion:
    """A sample that takes no part in any ratio."""

    trial: Count
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class Row:
    """One arm on one engine: the worst verdict of its samples, their times, and how many times faster than cold.

    Token counts are those of the first sample that counts. ``speedup`` is None where the verdict carries no ratio.
    A field of times says in ``seconds`` which times of a sample it sums up.
    """

    engine: str
    arm: Arm
    verdict: Verdict
    verdicts: Mapping[Verdict, Count]
    why: str
    dropped: tuple[Exclusion, ...]
    prompt_tokens: Count | None
    expected_cached_tokens: Count
    cached_tokens: Count | None
    local_cached_tokens: Count | None
    external_cached_tokens: Count | None
    tiers: Mapping[str, Count] | None
    ttft: Times | None = field(metadata={"seconds": lambda sample: (sample.ttft,)})
    itl: Times | None = field(metadata={"seconds": lambda sample: sample.itl})
    e2el: Times | None = field(metadata={"seconds": lambda sample: (sample.e2el,)})
    waterfall: Waterfall | None
    speedup: Ratio | None


@dataclass(frozen=True)
class Answer:
    """Whether reuse gave the same answer as computing; None where nothing could be compared, and why."""

    same: bool | None
    text: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What sharing costs those who gain nothing from it: median, range, and the interval where n carries one."""

    n: Count
    median: Finite
    min: Finite | None = field(default=None, metadata=ABSENT)
    max: Finite | None = field(default=None, metadata=ABSENT)
    low: Finite | None = field(default=None, metadata=ABSENT)
    high: Finite | None = field(default=None, metadata=ABSENT)
    unit: str
    text: str


@dataclass(frozen=True)
class LimitLine:
    """One figure of the limit's arithmetic."""

    name: str
    value: Finite
    unit: str


@dataclass(frozen=True)
class Limit:
    """How far the reuse is from what this machine could do; ``efficiency`` is floor over measured, near 1 at best."""

    tier: str
    text: str
    efficiency: Finite
    rows: tuple[LimitLine, ...]


@dataclass(frozen=True)
class Point:
    """Median TTFTs at one length of the prompt."""

    prompt_tokens: Count
    cold_ms: Positive
    reuse_ms: Positive
    floor_ms: Positive | None
    speedup: Ratio | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True)
class Lengths:
    """The sweep, and the prompt tokens from which reuse is faster (None: at none of these lengths)."""

    points: tuple[Point, ...]
    break_even_tokens: Count | None


@dataclass(frozen=True)
class Cell:
    """One writer and reader of the matrix; ``expected`` is the verdict that the fleet's wiring promises."""

    writer: str
    reader: str
    n: Count
    verdict: Verdict
    expected: Verdict
    why: str
    cached_tokens: Count | None
    median_ttft_ms: Finite | None
    speedup: Positive | None
    where: str | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True)
class Gain:
    """The median speed-up of the pairs on one node, or on different ones."""

    where: str
    pairs: Count
    median_speedup: Finite


@dataclass(frozen=True)
class Matrix:
    """Who can reuse what whom computed; ``reuse`` on a cluster only."""

    engines: tuple[str, ...]
    cells: tuple[Cell, ...]
    reuse: tuple[Gain, ...] | None = field(default=None, metadata=ABSENT)
    text: str | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True)
class Side:
    """What was found of one cache; its fields are as those of a result."""

    contender: Contender
    speedup: Ratio | None
    answer: Answer
    valid: bool
    costs: Mapping[str, Cost] | None = field(default=None, metadata=ABSENT)
    limit: Limit | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True)
class Between:
    """How many times faster (TTFT) reuse through ``cache`` was than through ``other``, trial by trial."""

    cache: str
    other: str
    ratio: Ratio


@dataclass(frozen=True)
class Contest:
    """Several caches, measured in the same trials; ``between`` holds each two whose reuse is proved, faster first."""

    sides: tuple[Side, ...]
    between: tuple[Between, ...]


@dataclass(frozen=True)
class Result:
    """The whole run. ``speedup`` is the reuse row's, ``noise_floor`` cold against cold of two plain engines.

    Of several caches these, the answer apart, are those of the first; ``contest`` has those of each.

    With ``mixed_prompts`` its requests are no trials of one prompt: there are no ratios.
    """

    conditions: Conditions
    trials_run: int
    completed: int
    failed: int
    prompt_tokens: Count
    mixed_prompts: bool | None = field(default=None, metadata=ABSENT, kw_only=True)
    rows: tuple[Row, ...]
    speedup: Ratio | None
    noise_floor: Ratio | None
    answer: Answer
    costs: Mapping[str, Cost] | None = field(default=None, metadata=ABSENT)
    limit: Limit | None = field(default=None, metadata=ABSENT)
    lengths: Lengths | None = field(default=None, metadata=ABSENT)
    matrix: Matrix | None = field(default=None, metadata=ABSENT)
    contest: Contest | None = field(default=None, metadata=ABSENT)
    valid: bool = False

    def row(self, arm: Arm) -> Row | None:
        """The first row of this arm."""
        return next((row for row in self.rows if row.arm == arm), None)
