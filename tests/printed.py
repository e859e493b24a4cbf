"""Logs as vLLM, Python and LMCache print them, for tests that read them."""

from __future__ import annotations

CHAINED = "\nThe above exception was the direct cause of the following exception:\n\n"
DURING = "\nDuring handling of the above exception, another exception occurred:\n\n"
READY = "INFO:     Application startup complete.\n"
POINTER = (
    "(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
)


def traceback(exception: str, *frames: str, prefix: str = "") -> str:
    """A traceback as Python prints it; a frame is "file.py:9 source"."""
    rows = ["Traceback (most recent call last):"]
    for frame in frames:
        place, _, source = frame.partition(" ")
        file, _, number = place.partition(":")
        rows += [f'  File "/venv/{file}", line {number}, in f', f"    {source}", "    ^^^^^"]
    return each(prefix, "\n".join([*rows, *exception.split("\n")]))


def each(prefix: str, text: str) -> str:
    """Every line behind the same prefix, as vLLM writes a record of several lines."""
    return "".join(f"{prefix}{row}\n" for row in text.rstrip("\n").split("\n"))
