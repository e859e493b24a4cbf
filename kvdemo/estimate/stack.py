"""One prefix cache that evicts the least recently used block first, of every size at once. Pure.

Blocks form chains: a block's name stands for all tokens up to its end, so a request touches a chain from the first
block on. LRU is a stack algorithm (Mattson et al., 1970): a cache of C blocks holds just the C blocks that were touched
last, so the *distance* of a block (how many others were touched since, plus one) tells for all sizes whether it is
there. vLLM and LMCache evict a prompt's later blocks first: of one request the first block counts as touched last.

What one request touched last stays one *run* of neighbours in its chain, which later requests shorten from its
beginning. There are never more runs than requests, each is found by the name of its first block, and a Fenwick tree
over requests counts the blocks above a run. So a request costs O(log requests), however many blocks its prompt has.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """Blocks ``first`` (inclusive) to ``end`` (exclusive) of a request's chain that were touched before.

    ``above`` is how many blocks were touched after all of them. ``below`` is how many blocks there are behind ``end``
    that were touched with them and that this request does not touch.
    """

    above: int
    first: int
    end: int
    below: int


class Stack:
    """The blocks of one cache in the order of their last use.

    ``names`` holds the chains of all requests, one after the other; at most ``requests`` are touched here.
    """

    def __init__(self, names: array[int], requests: int) -> None:
        self._names = memoryview(names)  # slices of it are compared without a copy
        self._requests = requests
        self._count = 0
        self._total = 0
        self._tree = array("q", bytes(8 * (requests + 1)))
        self._begin = array("q")  # of what is left of each request's run, in names
        self._left = array("q")
        self._run_of: dict[int, int] = {}  # the first name of each run -> its request

    def touch(self, begin: int, length: int, unnamed: int = 0) -> list[Run]:
        """Use the chain ``names[begin:begin+length]``; what of it was touched before, from the first block on.

        ``unnamed`` further blocks at its end take room, and nobody can ever ask for them.
        """
        names, run_of, now, at = self._names, self._run_of, self._count, 0
        runs: list[Run] = []
        while at < length:
            before = run_of.pop(names[begin + at], None)
            if before is None:
                break
            left, position = self._left[before], self._begin[before]
            same = self._common(begin + at, position, min(length - at, left))
            # What was passed already was touched later than this run, and is not in the tree now.
            runs.append(Run(at + self._above(before), at, at + same, left - same))
            # That run is shorter now: its first blocks belong to this request.
            self._add(before, -same)
            self._begin[before] = position + same
            self._left[before] = left - same
            if same < left:
                run_of[names[position + same]] = before
            at += same  # what another request made of this chain begins a run of its own
        self._add(now, length + unnamed)
        self._begin.append(begin)
        self._left.append(length)
        if length:
            run_of[names[begin]] = now
        self._count += 1
        return runs

    def _common(self, one: int, other: int, most: int) -> int:
        """How many names two chains have in common from here on, at most so many; the first is."""
        names = self._names
        if names[one : one + most] == names[other : other + most]:
            return most
        low, high = 1, most  # the first `low` are equal, the first `high` are not
        while high - low > 1:
            middle = (low + high) // 2
            if names[one + low : one + middle] == names[other + low : other + middle]:
                low = middle
            else:
                high = middle
        return low

    def _add(self, request: int, blocks: int) -> None:
        tree, size, at = self._tree, self._requests, request + 1
        self._total += blocks
        while at <= size:
            tree[at] += blocks
            at += at & -at

    def _above(self, request: int) -> int:
        """Blocks whose last use came after this request."""
        tree, at, sum_ = self._tree, request + 1, 0
        while at:
            sum_ += tree[at]
            at &= at - 1
        return self._total - sum_


def held_tokens(runs: Sequence[Run], size: int) -> int:
    """How many blocks of a chain, from the first on, a cache of ``size`` blocks still had."""
    end = 0
    for run in runs:
        room = size - run.above
        if room < run.end - run.first:
            return run.first + max(0, room)
        end = run.end
    return end
