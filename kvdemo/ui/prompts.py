"""Which prompts each cache has been given, and so how much of the next one should come from where; pure.

An engine's own prefix cache and a cache server remember token prefixes under a salt. What should be found again is a
whole number of chunks of the longest prefix that they have seen; what really came is the engine's to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

PROMPTS_PER_KEY = 32
"""Prompts remembered per cache and salt: a conversation's prompts are each other's prefixes, the latest say all."""


class PromptHistory:
    """Prompts by who has seen them (any name that changes when it starts anew) and under which salt."""

    def __init__(self) -> None:
        self.by_holder: dict[tuple[str, str], list[tuple[int, ...]]] = defaultdict(list)

    def note(self, holder: str, salt: str, tokens: Sequence[int]) -> None:
        """This holder has the KV of all of these tokens."""
        prompts = self.by_holder[holder, salt]
        prompts.append(tuple(tokens))
        del prompts[:-PROMPTS_PER_KEY]

    def expected(self, holder: str, salt: str, tokens: Sequence[int], chunk: int) -> int:
        """How many of these tokens the holder should provide, in whole chunks; the last one is always computed."""
        longest = max((common(prompt, tokens[:-1]) for prompt in self.by_holder.get((holder, salt), ())), default=0)
        return longest // chunk * chunk


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of their common prefix."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if tuple(one[low:middle]) == tuple(other[low:middle]):
            low = middle
        else:
            high = middle - 1
    return low
