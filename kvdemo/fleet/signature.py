"""What one signature of a cause is, and the codes that kvdemo itself decides by."""

from __future__ import annotations

import re
from dataclasses import dataclass

CACHE_UNREACHABLE = "cache-unreachable"
PORT_TAKEN = "port-taken"
INTERNAL_PORT = "internal-port"
OFFLINE = "hub-offline"
GPU_MEMORY = "gpu-memory"
KILLED = "killed"
SHM = "shm-too-small"


@dataclass(frozen=True)
class Signature:
    """One cause: its code, the pattern of its message, the remedy.

    ``exception`` limits it to exceptions of these names, ``frame`` to those raised by source code with these words.
    ``title`` says it in plain words where the line itself does not. ``general`` gives way to any other signature of the
    same chain of exceptions. ``~`` in a pattern stands for anything before a quotation mark: what a message quotes (a
    prompt, a request) is not the message. In a remedy ``{cache}`` stands for the service's cache server.
    """

    code: str
    pattern: str
    remedy: str
    exception: str = ""
    frame: str = ""
    title: str = ""
    general: bool = False

    def matches(self, name: str, text: str, frame: str = "") -> bool:
        """Whether this exception (its name without modules), this line and the source code that raised it are it."""
        if self.frame and not re.search(self.frame, frame):
            return False
        pattern = self.pattern.replace("~", "[^'\"]*?")
        return bool((not self.exception or re.fullmatch(self.exception, name)) and re.match(pattern, text))
