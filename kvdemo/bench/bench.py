"""The story ``bench``: ask plain and cached engines about one document; yield every sample as it comes.

Nothing is judged here: verdicts, medians and ratios are made from the saved samples.
"""

from __future__ import annotations

from collections.abc import Generator

from kvdemo.bench import modes, workload
from kvdemo.bench.client import Reply
from kvdemo.bench.measure import Meter
from kvdemo.bench.rig import Rig
from kvdemo.judge.sample import Doing, Sample
from kvdemo.planning.plan import ServiceSpec

WARM_UP_CHARACTERS = 16000


def run(rig: Rig) -> Generator[Doing | Sample]:
    """All requests in order. Failures are samples too; the run goes on."""
    options = rig.options
    for engine in rig.plan.engines if options.matrix else rig.cast.engines:
        yield Doing(f"warming up {engine.name}")
        warm_up(rig.meter, engine, options.system, options.document, rig.salt("warm"), options.question)
    if options.matrix:
        yield from modes.matrix(rig)
    elif options.lengths:
        yield from modes.lengths(rig)
    else:
        yield from rig.trials(rig.prompt)
        yield from modes.control(rig, rig.prompt)
    if options.costs:
        yield from modes.decode_tax(rig)


def warm_up(
    meter: Meter, engine: ServiceSpec, system: str, document: str, salt: str, question: str = "Ready?"
) -> Reply:
    """A throwaway on other text: first requests pay for shapes, allocations and the connector's handshake."""
    text = " ".join(reversed(document[:WARM_UP_CHARACTERS].split()))
    prompt = {"messages": workload.messages(system, text, question)}
    body = workload.body(engine.model, prompt, max_tokens=4, salt=salt)
    return meter.client(engine).stream("/v1/chat/completions", body)
