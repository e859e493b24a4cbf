"""The page's requests as a file that ``kvdemo report`` reads: conditions and samples, as ``bench`` saves them; pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kvdemo.bench import workload
from kvdemo.errors import UsageError
from kvdemo.judge.sample import Sample
from kvdemo.planning.plan import Plan


def jsonl(plan: Plan, samples: Sequence[Sample], details: Mapping[str, Any]) -> str:
    """One line of conditions, one for each sample. A turn of the page is no trial: it has a prompt of its own."""
    engine = plan.engines[0]
    try:
        roles = workload.roles(plan)
        parts = {"baseline": roles.baseline.name, "writer": roles.writer.name, "reader": roles.reader.name}
        engine = roles.reader
    except UsageError:
        parts = dict.fromkeys(("baseline", "writer", "reader"), engine.name)
    conditions = {
        "project": plan.project,
        "backend": "openai-chat",
        "model_id": engine.model,
        "model_digest": engine.weights,
        "versions": dict(plan.versions_of(engine)),
        "history": True,
        "num_trials": len({sample.trial for sample in samples}),
        "prompt_tokens": max((sample.prompt_tokens or 0 for sample in samples), default=0),
        "chunk_size": max((spec.chunk_size or 0 for spec in plan.engines), default=0),
        **parts,
        **details,
    }
    lines = [{"kind": "run", **conditions}, *({"kind": "sample", **json.loads(s.to_json())} for s in samples)]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
