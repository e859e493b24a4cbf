"""Times of single requests, for ``kvdemo estimate --from``: a saved run of bench or load, or what doctor predicted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvdemo.errors import UsageError
from kvdemo.estimate.savings import Times
from kvdemo.judge import document, trafficfile
from kvdemo.report import savedrun

HINT = (
    "give a run of `kvdemo bench` that proved cold, reuse and again, one of `kvdemo load`, or what `kvdemo doctor "
    "PROFILE --json` printed"
)
PROVED = {"cold": "COLD", "again": "LOCAL", "reuse": "SHARED"}


def times(path: Path, digest: str, chunk: int) -> Times:
    """The times in this file; ``digest`` is that of the model, empty if its weights are not here.

    Raises UsageError if it holds none, or those of another model.
    """
    if trafficfile.is_traffic(path):
        measurement, measured = _of_traffic(path, chunk)
    else:
        predicted = _prediction(path)
        measurement, measured = _of_bench(path) if predicted is None else _of_doctor(path, predicted)
    if digest and measured and measured != digest:
        raise UsageError(f"{path}: measured with another model than the one of this estimate", "name its own: --model")
    if not (digest and measured):
        return replace(measurement, basis=f"{measurement.basis}, whose model was not compared with this one")
    return measurement


def _prediction(path: Path) -> Any:
    """What ``doctor --json`` predicted, if this is its document; else None. Nothing is an empty one."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return saved["prediction"] or {} if isinstance(saved, dict) and "prediction" in saved else None


def _of_doctor(path: Path, predicted: Any) -> tuple[Times, str]:
    try:
        tiers = {tier["name"]: float(tier["reuse"]) for tier in predicted["tiers"]}
        name = "memory" if "memory" in tiers else next(iter(tiers))
        single = predicted["times"]
        hit = int(predicted["hit"])
        timing = Times(
            int(predicted["tokens"]),
            hit,
            hit,
            float(single["cold"]),
            float(single["local"]),
            tiers[name],
            f"predicted by doctor in {path.name} for a load from {name} ({single['basis']})",
            "the host that doctor looked at",
        )
    except (KeyError, TypeError, ValueError, OverflowError, StopIteration):
        raise UsageError(f"{path}: doctor predicted no times there", HINT) from None
    return timing, ""


def _of_traffic(path: Path, chunk: int) -> tuple[Times, str]:
    from kvdemo.commands import whatif  # noqa: PLC0415 (it brings the simulation along)

    about, service = whatif.times(path)
    tokens = int(about["document_tokens"])
    hit = (tokens - 1) // chunk * chunk
    basis = f"single requests of {tokens:,} tokens in {path.name}"
    measurement = Times(tokens, hit, hit, service.cold, service.local, service.shared, basis, str(about.get("device")))
    if hit <= 0:
        raise UsageError(f"{path}: its documents are shorter than one chunk", HINT)
    return measurement, str(about.get("model_digest") or "")


def _of_bench(path: Path) -> tuple[Times, str]:
    run = savedrun.any_result(path)
    if not isinstance(run, savedrun.SavedRun):
        raise UsageError(f"{path}: holds no times of cold, again and reuse", HINT)
    about = document.to_json(run.result)
    rows = {}
    for row in about["rows"]:
        if row["verdict"] == PROVED.get(row["arm"]) and (row["arm"] != "cold" or row["engine"] == about["baseline"]):
            rows[row["arm"]] = row
    medians = [rows.get(arm, {}).get("median_ttft_ms") for arm in ("cold", "again", "reuse")]
    seconds = [one / 1000 for one in medians if isinstance(one, int | float) and math.isfinite(one) and one > 0]
    if len(seconds) < len(medians):
        raise UsageError(f"{path}: holds no proved times of cold, again and reuse", HINT)
    cold, again, reuse = seconds
    trials = rows["reuse"].get("n_ttft")
    measurement = Times(
        int(about["prompt_tokens"]),
        int(rows["again"].get("local_cached_tokens") or 0),
        int(rows["reuse"].get("external_cached_tokens") or 0),
        cold,
        again,
        reuse,
        f"medians of {trials} trials of {about['prompt_tokens']:,} tokens in {path.name}",
        str(about["device"]),
    )
    return measurement, str(about.get("model_digest") or "")
