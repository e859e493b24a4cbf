"""``kvdemo load --what-if``: the queue of ``load.queueing`` instead of engines, with the times of a saved run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kvdemo import units
from kvdemo.errors import UsageError

if TYPE_CHECKING:
    from kvdemo.load.experiment import Options
    from kvdemo.load.queueing import Service

REUSES = (1.0, 0.9, 2 / 3, 0.5, 0.0)
"""Shares of requests on documents that were read before, for which the gain is told beside the one asked for."""


def simulate(path: Path, settings: Options, l1: str, *, as_json: bool) -> None:
    """Print what a queue with this run's times would serve within the limit. Raises UsageError for another file."""
    from kvdemo.judge.traffic import Limit
    from kvdemo.load import queueing, schedule

    conditions, service = times(path)
    limit = Limit(settings.slo_ttft or float(f"{2 * service.cold:.2g}"), settings.slo_share)
    engines, room = settings.engines or 2, shelf(conditions, l1)
    documents_in_l1 = settings.documents if room is None else room
    traffic = schedule.Traffic(
        settings.documents, settings.reuse, settings.popularity, settings.turns, engines, settings.seed
    )
    rows = []
    for reuse in dict.fromkeys((settings.reuse, *REUSES)):
        one = replace(traffic, reuse=reuse)
        requests = max(2000, 20 * engines)
        plain = queueing.capacity(limit, one, service, queueing.Caches(own=1), requests)
        shared = queueing.capacity(limit, one, service, queueing.Caches(own=1, shared=documents_in_l1), requests)
        gain = shared / plain if plain and shared else None
        rows.append({"reuse": reuse, "plain": plain, "shared": shared, "gain": gain})
    if as_json:
        about = {"engines": engines, "documents": settings.documents, "l1_documents": room}
        limits = {"slo_ttft": limit.ttft, "slo_share": limit.share}
        typer.echo(json.dumps({"mode": "what-if", **about, **limits, "rows": rows}))
        return
    fits = "holds all of them" if documents_in_l1 >= settings.documents else f"holds {documents_in_l1:,} of them"
    if room is None and not l1:
        fits = "is taken to hold all of them (the run does not tell its size)"
    typer.echo(
        f"Simulated, not measured: {units.count(engines, 'engine')}, {units.count(settings.documents, 'document')}, L1 "
        f"{fits}, an engine's own cache the last one; single requests take {service.cold:.3g} s cold, "
        f"{service.shared:.3g} s shared, {service.local:.3g} s local (from {path.name}); first token within "
        f"{limit.ttft:.3g} s for {limit.share:.0%}."
    )
    for row in rows:
        words = [_rate(row["plain"]), _rate(row["shared"]), "-" if row["gain"] is None else units.ratio(row["gain"])]
        typer.echo(
            f"  {row['reuse']:>4.0%} on known documents: without sharing {words[0]}, with it {words[1]}: {words[2]}"
        )


def _rate(value: float | None) -> str:
    return "none within the limit" if value is None else f"{units.digits(value)} requests/s"


def times(path: Path) -> tuple[Mapping[str, Any], Service]:
    """Conditions and unloaded times (s) of a saved run of ``load`` or ``bench``. Raises UsageError for another file."""
    from kvdemo.judge import trafficfile
    from kvdemo.judge.traffic import PLAIN
    from kvdemo.load.queueing import Service
    from kvdemo.report import savedrun

    hint = "give a run of `kvdemo bench` or `kvdemo load` that measured them"
    if trafficfile.is_traffic(path):
        conditions = trafficfile.read(path).conditions
        single: Mapping[str, Mapping[str, float]] = conditions.get("single_ttft") or {}
        plain, sides = single.get(PLAIN, {}), conditions.get("sides") or {}
        # One engine alone has what it stored in its own cache: what a load takes was not measured there.
        sharing = (one for side, one in single.items() if side != PLAIN and len(sides.get(side, ())) != 1)
        shared = next(sharing, {}).get("shared")
        if (cold := plain.get("cold")) and (local := plain.get("local")) and shared:
            return conditions, Service(cold, local, shared)
        raise UsageError(
            f"{path}: holds no times of single requests, of a plain side and one of two engines on a cache", hint
        )
    conditions = json.loads(savedrun.run(path).to_json())
    median = {row["arm"]: row.get("median_ttft_ms") for row in conditions["rows"]}
    values = [median.get(arm) for arm in ("cold", "again", "reuse")]
    proved = [value / 1000 for value in values if isinstance(value, int | float) and math.isfinite(value) and value > 0]
    if len(proved) < len(values):
        raise UsageError(f"{path}: holds no proved times of cold, again and reuse", hint)
    return conditions, Service(*proved)


def shelf(conditions: Mapping[str, Any], l1: str) -> int | None:
    """How many documents L1 holds: of the size asked for, else that of the run; None: all, or nobody knows."""
    from kvdemo.commands import against

    per_token, saved = conditions.get("kv_bytes_per_token"), conditions.get("l1_bytes")
    tokens = conditions.get("document_tokens") or conditions.get("prompt_tokens")
    room = None
    if l1:
        room = against.size(l1, "--l1", per_token, "say it in tokens: --l1 130944tokens")
    elif per_token and isinstance(saved, dict) and saved:
        room = int(next(iter(saved.values())) // per_token)
    return None if room is None or not tokens else room // tokens
