"""The story ``bench``: ask plain and cached engines about one document; yield every sample as it comes.

Nothing is judged here: verdicts, medians and ratios are made from the saved samples.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from kvdemo.bench import modes, pace, workload
from kvdemo.bench.client import Reply
from kvdemo.bench.events import Doing, Estimate
from kvdemo.bench.measure import Meter
from kvdemo.bench.modes.mode import Mode, Work
from kvdemo.bench.session import Session
from kvdemo.judge.sample import Sample
from kvdemo.planning.plan import ServiceSpec

WARM_UP_CHARACTERS = 16000


def check(session: Session) -> None:
    """Raises UsageError for what the chosen modes cannot measure with this prompt."""
    for mode in modes.chosen(session.options):
        mode.check(session)


def run(session: Session) -> Generator[Doing | Estimate | Sample]:
    """Yield all requests in order. Failures are samples too; the run goes on.

    Raises ReplacedError when an engine is no longer the process that it was.
    """
    picked = modes.chosen(session.options)
    yield from _warm_up(session, picked)
    for mode in picked:
        yield from mode.samples(session)


def _warm_up(session: Session, picked: Sequence[Mode]) -> Generator[Doing | Estimate]:
    """Throwaways; the first of them shows how fast this machine is, and so how long the run will take."""
    engines = list(dict.fromkeys(engine.name for mode in picked for engine in mode.engines(session)))
    estimated = False
    for number, name in enumerate(engines):
        engine = session.plan.service(name)
        yield Doing(f"warming up {name}", engine=name)
        options = session.options
        reply = warm_up(session.meter, engine, options.system, session.document, session.salt("warm"), options.asked)
        rate = pace.of(reply)
        if rate and not estimated:
            estimated = True
            work = sum((mode.work(session) for mode in picked), Work())
            left = len(engines) - number - 1
            estimate = pace.estimate(rate, work, options.max_tokens, left * (reply.e2el or 0.0))
            if estimate.seconds > pace.WORTH_SAYING:
                yield estimate


def warm_up(
    meter: Meter, engine: ServiceSpec, system: str, document: str, salt: str, question: str = "Ready?"
) -> Reply:
    """A throwaway on other text: first requests pay for shapes, allocations and the connector's handshake."""
    text = " ".join(reversed(document[:WARM_UP_CHARACTERS].split()))
    prompt = {"messages": workload.messages(system, text, question)}
    body = workload.body(engine.model, prompt, max_tokens=4, salt=salt)
    return meter.client(engine).stream("/v1/chat/completions", body)
