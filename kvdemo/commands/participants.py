"""Which services of a fleet a measurement uses: those that are up, if they suffice for what is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kvdemo.bench import workload
from kvdemo.config.benchmark import Bench
from kvdemo.errors import NotReadyError, UsageError
from kvdemo.fleet.watch import Event, State
from kvdemo.load import experiment
from kvdemo.planning.plan import Plan, ServiceSpec

DOWN = {State.ABSENT, State.EXITED}
"""States of a service that takes no part; one that is starting or unhealthy would disturb what is measured."""


def usable(plan: Plan, events: Sequence[Event], taking: Callable[[Plan], Sequence[ServiceSpec]]) -> tuple[Plan, str]:
    """The plan of the services that are up, and a sentence that names them; the plan itself and "" if all are.

    ``taking`` says which engines of a plan take part, or raises UsageError if they do not suffice. Raises that if even
    the whole plan does not, NotReadyError if what is up does not, and for a service that is neither ready nor down.
    """
    taking(plan)
    down = {event.service for event in events if event.state in DOWN}
    unready = [event for event in events if event.state is not State.READY]
    if not unready:
        return plan, ""
    if {event.service for event in unready} - down:
        raise _not_ready(plan, unready)
    part = replace(plan, services=tuple(spec for spec in plan.services if not down & {spec.name, spec.cache}))
    try:
        names = ", ".join(spec.name for spec in taking(part))
    except UsageError as error:
        raise _not_ready(plan, unready, f"; without them: {error}") from error
    return part, f"Measured with what is up: {names}. Not up: {', '.join(sorted(down))}."


def of_bench(plan: Plan, options: Bench) -> Sequence[ServiceSpec]:
    """The engines that ``kvdemo bench`` asks. Raises UsageError if they do not suffice for these options."""
    roles = workload.roles(plan, options.writer, options.reader, options.baseline)
    return plan.engines if options.matrix else roles.engines


def of_load(plan: Plan, engines: int) -> Sequence[ServiceSpec]:
    """Those that ``kvdemo load`` asks, so many on each side. Raises UsageError if there are not so many."""
    return [spec for side in experiment.sides(plan, engines).values() for spec in side]


def _not_ready(plan: Plan, unready: Sequence[Event], why: str = "") -> NotReadyError:
    names = ", ".join(
        f"{event.service} ({event.detail if event.cause or event.fix else event.state.value})" for event in unready
    )
    fixes = dict.fromkeys(event.fix for event in unready if event.fix)
    ways = f"kvdemo ps -p {plan.project}, then kvdemo up PROFILE"
    return NotReadyError(f"the fleet is not ready: {names}{why}", "\n".join((*fixes, ways)))
