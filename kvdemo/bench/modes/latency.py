"""The mode that runs when no other is chosen: trials of the whole document, then the control of the answers."""

from __future__ import annotations

from collections.abc import Generator

from kvdemo.bench import trials
from kvdemo.bench.events import Doing
from kvdemo.bench.modes.mode import Mode, Work
from kvdemo.bench.session import Session
from kvdemo.judge.sample import Sample


class Latency(Mode):
    """Time to first token of each arm."""

    section = "rows"

    def work(self, session: Session) -> Work:
        """Every plain engine and the writer compute the document, the reader does not."""
        return work(session, session.prompt.tokens)

    def samples(self, session: Session) -> Generator[Doing | Sample]:
        """Trials, then the control."""
        yield from trials.run(session, session.prompt)
        yield from trials.control(session, session.prompt)


def work(session: Session, tokens: int) -> Work:
    """The work of the trials of a prompt of this length, with the control."""
    options, plain = session.options, len(session.roles.plain)
    together = options.concurrency
    pairs = len(session.roles.pairs)
    each = Work(plain + pairs * (3 if together == 1 else 2), plain + pairs, (plain + pairs) * tokens).times(together)
    controls = 0 if together > 1 else len(trials.controls(session))
    return each.times(max(options.trials, options.max_trials)) + Work(2 * controls, controls, controls * tokens)
