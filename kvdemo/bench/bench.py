"""The story ``bench``: ask plain and cached engines about one document; yield every sample as it comes.

Nothing is judged here: verdicts, medians and ratios are made from the saved samples.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

from kvdemo import units
from kvdemo.bench import cacheserver, modes, pace, trials
from kvdemo.bench.events import Doing, Estimate
from kvdemo.bench.measure import Meter
from kvdemo.bench.modes.mode import Mode, Work
from kvdemo.bench.session import Session
from kvdemo.errors import ServiceError
from kvdemo.judge.sample import Sample
from kvdemo.planning.plan import ServiceSpec


def shorten(session: Session) -> str:
    """Cut a document that nobody chose to a length that this machine reads in comfort; a sentence that says so.

    Raises ServiceError if the engine does not answer.
    """
    engine, options, text = session.roles.baseline, session.options, session.document
    # A character is at most a token in nearly all texts: so many fit into the window.
    reply = trials.warm_up(session.meter, engine, options.system, text[: session.window], session.salt("pace"))
    rate = pace.of(reply)
    if rate is None:
        raise ServiceError(f"{engine.name} does not answer: {reply.error or 'its usage has no prompt tokens'}")
    whole = session.make_prompt(text).tokens
    limits = [whole + pace.ROOM, session.window, room_in_cache(session.meter, session.roles.reader)]
    target = pace.document_tokens(rate, session.chunk, min(filter(None, limits)))
    session.document = pace.beginning(text, whole, target)
    tokens = session.make_prompt(session.document).tokens
    seconds = units.approximate_duration(tokens * rate.prefill)
    what = f"{tokens:,} tokens of the shipped handbook"
    return f"No document was chosen: {what}, which {engine.name} reads in about {seconds}."


def room_in_cache(meter: Meter, reader: ServiceSpec) -> int | None:
    """Tokens whose KV fills half of the memory of the reader's cache server; None if nobody knows."""
    memory = meter.plan.service(reader.cache).l1
    size = cacheserver.kv_bytes_per_token(meter.cache(reader)) or reader.kv_bytes_per_token
    return memory // 2 // size if memory and size else None


def check(session: Session) -> None:
    """Raises UsageError for what the chosen modes cannot measure with this prompt."""
    for mode in modes.select(session.options):
        mode.check(session)


def run(session: Session) -> Generator[Doing | Estimate | Sample]:
    """Yield all requests in order. Failures are samples too; the run goes on.

    Raises ReplacedError when an engine is no longer the process that it was.
    """
    run_modes = modes.select(session.options)
    work = sum((mode.work(session) for mode in run_modes), Work())
    first_estimate = yield from _warm_up(session, run_modes, work)
    for mode in run_modes:
        for event in mode.samples(session):
            yield event
            if first_estimate and isinstance(event, Sample) and (rate := pace.of_sample(event)):
                # The warm-up paid for what comes once: the first prompt that is computed shows the pace without that.
                estimate = pace.estimate(rate, work, session.options.max_tokens)
                if abs(estimate.seconds - first_estimate) > pace.OTHERWISE * first_estimate:
                    yield estimate
                first_estimate = 0.0


def _warm_up(session: Session, run_modes: Sequence[Mode], work: Work) -> Generator[Doing | Estimate, None, float]:
    """Throwaways; the first of them shows how fast this machine is, and so how long the run will take.

    Returns the seconds that were announced; 0 if the run is too short to be announced.
    """
    engines = list(dict.fromkeys(engine.name for mode in run_modes for engine in mode.engines(session)))
    seconds, options = 0.0, session.options
    for number, name in enumerate(engines):
        engine = session.plan.service(name)
        yield Doing(f"warming up {name}", engine=name)
        reply = trials.warm_up(
            session.meter, engine, options.system, session.document, session.salt("warm"), options.asked_question
        )
        if number == 0 and (rate := pace.of(reply)):
            left = (len(engines) - 1) * (reply.e2el or 0.0)
            estimate = replace(pace.estimate(rate, work, options.max_tokens, left), first=True)
            if estimate.seconds > pace.WORTH_SAYING:
                seconds = estimate.seconds
                yield estimate
    return seconds
