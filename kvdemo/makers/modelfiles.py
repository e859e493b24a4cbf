"""A model's directory on disk: written whole or not at all, its weights in bfloat16."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def bfloat16(values: Any) -> Any:
    """Finite float32 numbers as the 16 bits of bfloat16, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")


def write_weights(path: Path, shapes: Mapping[str, tuple[int, ...]], bits: Iterable[Any]) -> int:
    """Write a safetensors file: 8 bytes of length, a JSON header, the tensors one after another.

    Args:
        path: the file to write.
        shapes: name and dimensions of each tensor, in the order of ``bits``.
        bits: the bfloat16 bits of each tensor; one is in memory at a time.

    Returns:
        The number of parameters.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dimensions in shapes.items():
        start, end = end, end + 2 * int(np.prod(dimensions))
        header[name] = {"dtype": "BF16", "shape": list(dimensions), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for tensor in bits:
            file.write(tensor.tobytes())
    return end // 2


def write_json(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Write each document under its name."""
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new directory beside ``out`` that takes its place when the block ends well; no moment shows half of one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        scratch.chmod(0o755)
        yield scratch
        _replace(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace(new: Path, out: Path) -> None:
    if not out.exists():
        new.rename(out)
        return
    old = new.with_name(new.name + ".old")
    out.rename(old)
    new.rename(out)
    shutil.rmtree(old)
