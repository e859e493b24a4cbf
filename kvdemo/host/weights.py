"""How many bytes a model's weights take once they are loaded: read from the headers of its safetensors files.

A checkpoint keeps each tensor in a dtype of its own, and vLLM loads numbers of floating point in the engine's dtype:
files in float32 take half of their size on a GPU. Quantized weights stay as they are.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LARGEST_HEADER = 100_000_000
"""safetensors itself refuses a longer one."""

NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def header(file: Path) -> dict[str, Any] | None:
    """Name, dtype and shape of each tensor in a safetensors file; None if it is none."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= LARGEST_HEADER:
                return None
            entries = json.loads(stream.read(length))
    except (OSError, ValueError):
        return None
    return entries if isinstance(entries, dict) else None


def tensors(files: Iterable[Path]) -> list[dict[str, Any]] | None:
    """The tensors of all files; None if one of them cannot be read as safetensors."""
    entries: list[dict[str, Any]] = []
    for file in files:
        head = header(file) if file.suffix == ".safetensors" else None
        if head is None:
            return None
        entries += [entry for name, entry in head.items() if name != "__metadata__" and isinstance(entry, dict)]
    return entries


def dtype(entries: Iterable[Mapping[str, Any]]) -> str:
    """The floating-point dtype in which most numbers are kept; empty if there is none."""
    numbers: Counter[str] = Counter()
    for entry in entries:
        if entry.get("dtype") in NAMES:
            numbers[NAMES[entry["dtype"]]] += math.prod(entry.get("shape", ()))
    return numbers.most_common(1)[0][0] if numbers else ""


def loaded_bytes(entries: Iterable[Mapping[str, Any]], width: int, *, quantized: bool) -> int:
    """Bytes of these tensors when numbers of floating point take ``width`` bytes each; as they are if quantized."""
    total = 0
    for entry in entries:
        start, end = entry.get("data_offsets", (0, 0))
        convert = entry.get("dtype") in NAMES and not quantized
        total += math.prod(entry.get("shape", ())) * width if convert else end - start
    return total
