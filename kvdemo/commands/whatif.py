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
    engines, documents_in_l1 = settings.engines or 2, shelf(conditions, settings, l1)
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
        typer.echo(json.dumps({"mode": "what-if", "slo_ttft": limit.ttft, "slo_share": limit.share, "rows": rows}))
        return
    fits = "all of them" if documents_in_l1 >= settings.documents else f"{documents_in_l1:,} of them"
    typer.echo(
        f"Simulated, not measured: {engines:,} engines, {settings.documents:,} documents, L1 holds {fits}, an engine's "
        f"own cache the last one; single requests take {service.cold:.3g} s cold, {service.shared:.3g} s shared, "
        f"{service.local:.3g} s local (from {path.name}); first token within {limit.ttft:.3g} s for {limit.share:.0%}."
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

    if trafficfile.is_traffic(path):
        conditions = trafficfile.read(path).conditions
        single = conditions["single_ttft"]
        shared = next((one for side, one in single.items() if side != PLAIN), None)
        if shared and PLAIN in single:
            return conditions, Service(single[PLAIN]["cold"], single[PLAIN]["local"], shared["shared"])
        raise UsageError(f"{path}: holds no times of a side with a cache and one without")
    conditions = json.loads(savedrun.run(path).to_json())
    median = {row["arm"]: row.get("median_ttft_ms") for row in conditions["rows"]}
    values = [median.get(arm) for arm in ("cold", "again", "reuse")]
    proved = [value / 1000 for value in values if isinstance(value, int | float) and math.isfinite(value) and value > 0]
    if len(proved) < len(values):
        hint = "give a run of `kvdemo bench` that proved them"
        raise UsageError(f"{path}: holds no times of cold, again and reuse", hint)
    return conditions, Service(*proved)


def shelf(conditions: Mapping[str, Any], settings: Options, l1: str) -> int:
    """How many documents L1 holds: of the size asked for, else that of the run; all of them if nobody knows."""
    from kvdemo.config.values import size

    per_token = conditions.get("kv_bytes_per_token")
    tokens = settings.document_tokens or conditions.get("document_tokens") or conditions.get("prompt_tokens")
    l1_bytes = conditions.get("l1_bytes")
    saved_size = next(iter(l1_bytes.values()), 0) if isinstance(l1_bytes, dict) else 0
    room = size(l1) if l1 else saved_size
    if l1 and not (per_token and tokens):
        raise UsageError("--l1: the run does not say how many bytes of KV a document has")
    return int(room / (per_token * tokens)) if room and per_token and tokens else settings.documents
