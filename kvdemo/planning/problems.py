"""What stands in the way of a plan, as records.

``up``, ``plan``, ``doctor`` and the exports set their words; nobody reads anything back out of a sentence. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and what to do about it.

    ``kind`` is its code: interpreter, model, context, parallel, secret, file, port, gpu, gpu-memory, kv-cache,
    host-memory, shm, disk, limit, weights (of a cluster's nodes). ``text`` says what is wrong in one sentence, ``fix``
    what to do about it, empty if nobody can say. ``service`` is the one that it is about; ``place`` is a GPU, a port,
    a node, a path.
    ``hard`` is whether the fleet cannot start like this.
    """

    kind: str
    text: str
    fix: str = ""
    service: str = ""
    place: str = ""
    hard: bool = True

    def __str__(self) -> str:
        return self.text + (f"; {self.fix}" if self.fix else "")

    def of_node(self, node: str) -> Problem:
        """The same, on this node of a cluster."""
        return replace(self, text=f"{node}: {self.text}", place=node)
