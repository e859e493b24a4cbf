"""The modes of a benchmark, one module each; a new one is a module here and its line in ``MODES``.

Of the modes that stand alone exactly one runs: the one that the options choose, else the last. Those beside it follow.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvdemo.bench.modes.decode import Decode
from kvdemo.bench.modes.latency import Latency
from kvdemo.bench.modes.lengths import Lengths
from kvdemo.bench.modes.matrix import Matrix
from kvdemo.bench.modes.mode import Mode
from kvdemo.bench.modes.retention import Evicted, Restarted
from kvdemo.config.benchmark import Bench, flag
from kvdemo.errors import UsageError

MODES: tuple[Mode, ...] = (Matrix(), Lengths(), Evicted(), Restarted(), Decode(), Latency())


def select(options: Bench) -> Sequence[Mode]:
    """The modes of a run, in the order in which they run.

    Raises UsageError for options that contradict each other.
    """
    options.check_combination()
    selection = [mode for mode in MODES if mode.applies_to(options)]
    for mode in selection:
        mode.refuse(options)
    alone = [mode for mode in selection if not mode.beside] or [MODES[-1]]
    if len(alone) > 1:
        raise UsageError(f"{flag(alone[0].option)} cannot be combined with {flag(alone[1].option)}")
    return [alone[0], *(mode for mode in selection if mode.beside)]
