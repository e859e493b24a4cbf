"""The ports of a fleet as a scrape configuration for Prometheus, and what Grafana needs to show them. Pure."""

from __future__ import annotations

import shlex
from pathlib import PurePath
from typing import Any

from kvdemo import backends
from kvdemo.errors import UsageError
from kvdemo.export import grafana, promql
from kvdemo.export.yamltext import comment, dump
from kvdemo.planning.plan import Plan, ServiceSpec

URL = "http://127.0.0.1:9090"
"""Where Prometheus answers unless it is told otherwise."""

_HEAD = """\
What Prometheus reads of project {project}, made by `kvdemo export prometheus`. It needs Prometheus, not kvdemo:

    prometheus --config.file=FILE      on this machine: {where}

To add it to a Prometheus that runs: copy the entries of scrape_configs. Another port needs another export.
/metrics of an engine asks for no API key, so there is no secret here.
"""
_LOOPBACK = "services on 127.0.0.1 are reached from nowhere else"
_REACHED = "or on another that reaches the addresses below"

USE = (
    "prometheus --config.file={directory}/prometheus.yml reads the fleet, and a Grafana that is started with "
    "GF_PATHS_PROVISIONING={directory}/grafana/provisioning shows it at http://127.0.0.1:3000/d/{uid}"
)


def scrape(plan: Plan) -> str:
    """The configuration: a job for engines, one for caches; each target with the labels that the dashboard asks for.

    Raises UsageError for a service whose address nobody knows.
    """
    for spec in plan.services:
        if not spec.url or (plan.on and not spec.node):
            raise UsageError(
                f"{spec.name}: where it will listen is known once it runs",
                f"kvdemo up {plan.profile}, then kvdemo export prometheus -p {plan.project}",
            )
    pace = {"scrape_interval": promql.STEP, "scrape_timeout": promql.STEP}
    jobs = [
        {"job_name": f"{plan.project}-{kind}s", **pace, "static_configs": [_target(plan, spec) for spec in specs]}
        for kind in ("engine", "cache")
        if (specs := [spec for spec in plan.services if spec.kind == kind and _exposes(spec)])
    ]
    loopback = any(spec.url.startswith(("http://127.", "http://[::1]", "http://localhost")) for spec in plan.services)
    head = _HEAD.format(project=plan.project, where=_LOOPBACK if loopback else _REACHED)
    return comment(head) + dump({"scrape_configs": jobs})


def _exposes(spec: ServiceSpec) -> bool:
    return spec.kind == "engine" or bool(backends.of(spec.backend).charts)


def _target(plan: Plan, spec: ServiceSpec) -> dict[str, Any]:
    labels = {"project": plan.project, "service": spec.name, "kind": spec.kind, "cache": spec.cache, "node": spec.node}
    return {
        "targets": [spec.url.removeprefix("http://")],
        "labels": {name: value for name, value in labels.items() if value},
    }


def files(plan: Plan, directory: PurePath) -> dict[str, str]:
    """Everything, by path below this directory, which is absolute because Grafana is told it. Raises UsageError."""
    provisioning = "grafana/provisioning"
    return {
        "prometheus.yml": scrape(plan),
        f"grafana/dashboards/{plan.project}.json": grafana.dashboard(plan),
        f"{provisioning}/dashboards/kvdemo.yaml": dump(grafana.provider(str(directory / "grafana/dashboards"))),
        f"{provisioning}/datasources/kvdemo.yaml": dump(grafana.datasource(URL)),
    }


def use(plan: Plan, directory: PurePath) -> str:
    """How to use the files, in one sentence. The path is absolute: Grafana looks for others below its own home."""
    return USE.format(directory=shlex.quote(str(directory)), uid=grafana.uid(plan.project))
