"""Numbers for people: three significant digits, zeros among them, and the same digits wherever a number is shown. Pure.

duration    3.62 ms, 264 ms, 12.7 s, 4 min 51 s, 1 h 21 min
ratio       310x, 21x, 4.3x, 0.85x
"""

from __future__ import annotations

import unicodedata

NO_VALUE = "-"
LONGEST = 864_000
"""Seconds that anything may be waited for, ten days: poll() counts milliseconds in 32 bits."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def digits(value: float) -> str:
    """Three significant digits: 1,291, 264, 51.9, 3.60, 0.0123."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e15 or size < 1e-6:
        return f"{value:.2e}"
    for least, decimals in ((99.95, 0), (9.995, 1), (0.9995, 2)):
        if size >= least:
            return f"{value:,.{decimals}f}"
    decimals = 3
    while size * 10**decimals < 99.95:
        decimals += 1
    return f"{value:.{decimals}f}"


def ratio(value: float) -> str:
    """A factor, as 310x, 21x, 4.3x, 1.02x, 0.85x."""
    if value >= 1e6 or 0 < value < 0.095:
        return f"{value:.2g}x"
    for least, decimals in ((19.95, 0), (1.495, 1)):
        if value >= least:
            return f"{value:,.{decimals}f}x"
    return f"{value:.2f}x"


def duration(milliseconds: float | None) -> str:
    """A time of so many milliseconds: 264 ms, 12.7 s, 4 min 51 s; None is "-"."""
    if milliseconds is None:
        return NO_VALUE
    if milliseconds < 999.5:
        return f"{digits(milliseconds)} ms"
    if milliseconds < 59_950:
        return f"{digits(milliseconds / 1000)} s"
    minutes, seconds = divmod(round(milliseconds / 1000), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(round(milliseconds / 60_000), 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def approximate_duration(seconds: float) -> str:
    """A time as exact as an estimate can be: 0 s, 8 s, 50 s, 4 min, 2 h 10 min; a part of a second is one."""
    if not seconds:
        return "0 s"
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"


def quantity(value: float, unit: str) -> str:
    """A value with its unit; ``x`` is a factor, ``ms`` a time, ``of ...`` a share."""
    if unit == "x":
        return ratio(value)
    if unit == "ms":
        return duration(value)
    if unit.startswith("of "):
        return f"{digits(100 * value)} % {unit}"
    return f"{digits(value)} {unit}".rstrip()


def size(value: float) -> str:
    """Bytes: 1.50 GiB, 512 MiB."""
    for name, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= factor:
            return f"{digits(value / factor)} {name}"
    return f"{digits(value)} B"


def printable(text: str) -> str:
    """Text for a terminal: what would move its cursor, colour it or turn the direction of writing is replaced."""
    if text.isprintable():
        return text
    characters = (c if c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" else REPLACEMENT for c in text)
    return "".join(characters)


def count(number: int, what: str) -> str:
    """So many of a thing: 1 trial, 3 trials."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
