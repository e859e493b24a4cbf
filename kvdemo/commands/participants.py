"""Which services of a fleet a benchmark uses: those that are up, if they suffice for what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvdemo.bench import workload
from kvdemo.config.benchmark import Bench
from kvdemo.errors import NotReadyError, UsageError
from kvdemo.fleet.watch import Event, State
from kvdemo.planning.plan import Plan, ServiceSpec

DOWN = {State.ABSENT, State.EXITED}
"""States of a service that takes no part; one that is starting or unhealthy would disturb what is measured."""


def usable(plan: Plan, options: Bench, events: Sequence[Event]) -> tuple[Plan, str]:
    """The plan of the services that are up, and a sentence that names them; the plan itself and "" if all are.

    Raises NotReadyError for a service that is neither ready nor down, and for one that is down and needed.
    """
    down = {event.service for event in events if event.state in DOWN}
    unready = [event for event in events if event.state is not State.READY]
    if not unready:
        return plan, ""
    if {event.service for event in unready} - down or {options.writer, options.reader, options.baseline} & down:
        raise _not_ready(plan, unready)
    part = replace(plan, services=tuple(spec for spec in plan.services if not down & {spec.name, spec.cache}))
    try:
        roles = workload.roles(part, options.writer, options.reader, options.baseline)
    except UsageError as error:
        raise _not_ready(plan, unready) from error
    taking = part.engines if options.matrix else roles.engines
    return part, f"Measured with what is up: {_names(taking)}. Not up: {', '.join(sorted(down))}."


def _names(engines: Sequence[ServiceSpec]) -> str:
    return ", ".join(spec.name for spec in engines)


def _not_ready(plan: Plan, unready: Sequence[Event]) -> NotReadyError:
    names = ", ".join(
        f"{event.service} ({event.detail if event.cause or event.fix else event.state.value})" for event in unready
    )
    fixes = dict.fromkeys(event.fix for event in unready if event.fix)
    ways = f"kvdemo ps -p {plan.project}, then kvdemo up PROFILE"
    return NotReadyError(f"the fleet is not ready: {names}", "\n".join((*fixes, ways)))
