"""What storing costs another engine that is answering: gaps between its tokens while the writer stores.

The same while a plain engine computes is the fair comparison: what is left of the difference is the storing, not the
load on the machine.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from kvdemo.bench import workload
from kvdemo.bench.events import Doing
from kvdemo.bench.modes.mode import Mode, Work
from kvdemo.bench.session import Session
from kvdemo.bench.workload import Roles, Step
from kvdemo.errors import UsageError
from kvdemo.judge.sample import Sample
from kvdemo.planning.plan import ServiceSpec

DECODE_TOKENS = 32


class Decode(Mode):
    """The tax on decoding."""

    option = "costs"
    section = "costs"
    beside = True

    def check(self, session: Session) -> None:
        """Somebody has to compute without storing, as near to the reader as the writer does."""
        if not busy(session.roles):
            text = f"no plain engine of this model is placed like the writer {session.roles.writer.name}"
            raise UsageError(f"--costs: {text}: nothing to compare its storing with", "leave --costs out")

    def work(self, session: Session) -> Work:
        """The document is computed once a trial by each engine that works meanwhile."""
        number = len(busy(session.roles))
        return Work(number, number, number * session.prompt.tokens).times(session.options.trials)

    def samples(self, session: Session) -> Generator[Doing | Sample]:
        """One sample for each engine that works meanwhile, with the gaps of all requests in that time."""
        most = session.options.trials
        for trial in range(1, most + 1):
            for other in busy(session.roles):
                reader = session.roles.reader
                text = f"decode {trial}: {reader.name} answers while {other.name} reads the document"
                yield Doing(text, 1.0, trial, most, reader.name, "decode")
                if sample := _while_busy(session, trial, other):
                    yield sample


def busy(roles: Roles) -> Sequence[ServiceSpec]:
    """A plain engine, and the writer, which are placed alike: on the same GPUs, else on as many, none the reader's.

    If one of them shared the reader's GPU and the other did not, the two could not be compared. None of them if there
    is no such pair.
    """
    writer = roles.writer
    near = [spec for spec in reversed(roles.plain) if spec.node == writer.node]
    alike = [spec for spec in near if spec.gpus == writer.gpus]
    if not _share_gpus(writer, roles.reader):
        apart = [spec for spec in near if not _share_gpus(spec, roles.reader)]
        alike += [spec for spec in apart if len(spec.gpus) == len(writer.gpus)]
    return (alike[0], writer) if alike else ()


def _share_gpus(one: ServiceSpec, other: ServiceSpec) -> bool:
    return one.node == other.node and bool(set(one.gpus) & set(other.gpus))


def _while_busy(session: Session, trial: int, other: ServiceSpec) -> Sample | None:
    """Short requests to the reader until the other engine has read the document."""
    reader, prompt, meter = session.roles.reader, session.prompt, session.meter
    salt = session.salt(f"decode-{trial}-{other.name}")
    step = Step(trial, "decode", reader, salt, 0, writer=other.name)
    short = {"prompt": "Once upon a time"}
    body = workload.body(reader.model, short, max_tokens=DECODE_TOKENS, salt=salt, logprobs=None)
    gaps: list[float] = []
    last: Sample | None = None
    with ThreadPoolExecutor(max_workers=1) as pool:
        busy = pool.submit(meter.client(other).stream, prompt.path, prompt.body(other, salt))
        while not busy.done():
            sample = meter.ask(step, "/v1/completions", body)
            if not busy.done() or last is None:
                gaps += sample.itl
                last = sample
    return replace(last, itl=tuple(gaps)) if last else None
