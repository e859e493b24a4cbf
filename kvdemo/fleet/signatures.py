"""Known causes: how each is printed by vLLM, PyTorch, LMCache, NCCL, Hugging Face or a compiler, and what to do.

A pattern is held against the *beginning* of an exception's message, or of a line that a tool printed below it; never
against a whole log. Remedies speak in the keys of a profile. The strings were read in the sources of vLLM 0.26 to 0.32,
LMCache 0.5.3 to 0.5.6, PyTorch 2.13, transformers 5 and huggingface_hub 2, or are in public reports.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvdemo.fleet import hardware, software
from kvdemo.fleet.hardware import SHM_REMEDY
from kvdemo.fleet.signature import KILLED, SHM, Signature

SIGNATURES: tuple[Signature, ...] = (
    *hardware.GPU,
    *hardware.PORTS,
    *software.CACHE,
    *hardware.HOST,
    *software.PYTHON,
    *hardware.NETWORK,
    *software.MODEL,
    *software.ARGUMENTS,
    *software.LAST,
)
"""In this order; a general one gives way to any other."""


LONGEST_LINE = 1000
"""Characters of a line that are held against the patterns."""


_INSIDE = re.compile(r"(?:Value error|Assertion failed), |(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception): ")
"""What stands before the message of another exception that an exception repeats."""


def find(name: str, message: str, more: tuple[str, ...] = (), frame: str = "") -> Iterator[tuple[Signature, str]]:
    """The signatures of an exception with the line that bears each: its message, or what a tool printed below it."""
    short = name.rpartition(".")[2]
    texts = [_inside(line.strip()[:LONGEST_LINE]) for line in (message, *more)]
    for signature in SIGNATURES:
        for position, text in enumerate(texts):
            if (
                (text or not position)
                and signature.matches(short, text, frame)
                and not (position and not signature.pattern)
            ):
                yield signature, text
                break


def _inside(text: str) -> str:
    match = _INSIDE.match(text)
    return text[match.end() :] if match else text


SIGNALS: dict[int, tuple[str, str, str]] = {
    4: (
        "illegal-instruction",
        "an illegal instruction",
        "this build of vLLM needs a newer processor (AVX-512 or AVX2)",
    ),
    6: ("aborted", "an abort", "the lines before it in the log say why: kvdemo logs {name}"),
    7: (SHM, "a bus error", f"/dev/shm is too small: {SHM_REMEDY}"),
    9: (
        KILLED,
        "SIGKILL",
        "killed: most often by the kernel for want of host memory (dmesg tells), or by somebody; lower l1, kv_cache or "
        "the number of engines",
    ),
    11: (
        "segfault",
        "a segmentation fault",
        "a crash in native code: try another version of vllm, torch or the driver",
    ),
    15: ("stopped", "SIGTERM", "somebody, or the system, asked it to stop"),
}
"""What ended a process, by the number of the signal: code, words, remedy."""
