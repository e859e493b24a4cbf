"""HTML and SVG as strings that cannot be broken into: what is not Markup is text, and text is always escaped. Pure."""

from __future__ import annotations

import html
import json
import math
from typing import Any

Attribute = str | float | bool | None


class Markup(str):
    """A piece of finished markup. Only this module's functions, and constants, should make one."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Any value as text: markup in it loses its meaning, and what no file can hold (lone surrogates, NUL) is replaced.

    Markup stays as it is.
    """
    if isinstance(value, Markup):
        return value
    clean = str(value).encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    return Markup(html.escape(clean))


def tag(name: str, /, *children: object, **attributes: Attribute) -> Markup:
    """One element. ``class_`` is class, ``data_x`` is data-x; None and False leave an attribute out, True is bare."""
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.rstrip("_").replace("_", "-")
        content = f"{value:.6g}" if isinstance(value, float) else value
        parts.append(label if value is True else f'{label}="{text(content)}"')
    opening = " ".join(parts)
    return Markup(f"<{opening}>" if name == "meta" else f"<{opening}>{join(*children)}</{name}>")


def join(*children: object) -> Markup:
    """These pieces one after the other; None and empty ones are left out."""
    return Markup("".join(text(child) for child in children if child is not None))


def data(document: Any) -> Markup:
    """JSON for a ``<script type="application/json">``: strict (NaN becomes null), and nothing in it can end it."""
    text = json.dumps(_finite(document), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
