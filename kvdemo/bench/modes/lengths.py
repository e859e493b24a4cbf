"""The sweep: trials of prefixes of the document, one length after another."""

from __future__ import annotations

from collections.abc import Generator

from kvdemo.bench import trials
from kvdemo.bench.events import Doing
from kvdemo.bench.modes import latency
from kvdemo.bench.modes.mode import Mode, Work
from kvdemo.bench.session import Session
from kvdemo.errors import UsageError
from kvdemo.judge.sample import Sample


class Lengths(Mode):
    """Cold, reuse and floor over the length of the prompt."""

    option = "lengths"
    section = "lengths"

    def check(self, session: Session) -> None:
        """Each length must hold more than a chunk, and no more than the document."""
        for length in session.options.lengths:
            if not session.chunk < length <= session.prompt.tokens:
                raise UsageError(
                    f"--lengths: {length:,} tokens cannot be measured: a chunk is {session.chunk}, "
                    f"the context {session.prompt.tokens:,}",
                    "leave that length out, or give a longer --context",
                )

    def work(self, session: Session) -> Work:
        """The work of each length."""
        return sum((latency.work(session, length) for length in session.options.lengths), Work())

    def samples(self, session: Session) -> Generator[Doing | Sample]:
        """The trials for prefixes of the document of about these many tokens, each length once."""
        document = session.document
        per_token = len(document) / session.prompt.tokens
        measured: set[int] = set()
        lengths = sorted(session.options.lengths)
        for index, length in enumerate(lengths):
            prompt = session.make_prompt(document[: int(length * per_token)])
            if prompt.tokens not in measured:
                measured.add(prompt.tokens)
                yield from trials.run(session, prompt, prompt.tokens, (index, len(lengths)))
                yield from trials.control(session, prompt, prompt.tokens, (index + 1) / len(lengths))
