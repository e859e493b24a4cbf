"""Read a GGUF file: metadata, and tensors as float32.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the blocks of the quantized types:
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. Only what SmolLM2's file holds is read: version 3,
little endian, tensors in F32, Q8_0 and Q4_1.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MAGIC, VERSION = b"GGUF", 3
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Value types of the metadata by their number, as formats of ``struct``."""
BLOCK = 32
"""Values in a block of Q8_0 and Q4_1."""


class GgufError(ValueError):
    """The file is no GGUF file, ends too early, or holds what this module does not read."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor is and how it is stored; ``shape`` is (rows, columns) as numpy counts, GGUF's reversed."""

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class File:
    """The parts of a GGUF file."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    data: bytes

    def read(self, name: str) -> Any:
        """The tensor of this name, dequantized: float32 of its shape.

        Raises:
            Malformed: it is missing, cut off, or stored in a type that is not read here.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise GgufError(f"there is no tensor {name}")
        if tensor.kind not in KINDS:
            raise GgufError(f"tensor {name} has the type {tensor.kind}; read are {sorted(KINDS)}")
        record, values, decode = KINDS[tensor.kind]
        count, rest = divmod(math.prod(tensor.shape), values)
        if rest or tensor.start + count * record.itemsize > len(self.data):
            raise GgufError(f"tensor {name} does not end within the file")
        blocks = np.frombuffer(self.data, record, count, tensor.start)
        return np.ascontiguousarray(decode(blocks).reshape(tensor.shape))


def _q8_0(blocks: Any) -> Any:
    return blocks["scale"].astype(np.float32)[:, None] * blocks["codes"]


def _q4_1(blocks: Any) -> Any:
    """Each byte holds the codes of values i (low half) and i + 16 (high half); value = code * scale + minimum."""
    codes = np.concatenate([blocks["codes"] & 15, blocks["codes"] >> 4], axis=1).astype(np.float32)
    return codes * blocks["scale"].astype(np.float32)[:, None] + blocks["minimum"].astype(np.float32)[:, None]


KINDS: dict[int, tuple[Any, int, Callable[[Any], Any]]] = {
    0: (np.dtype("<f4"), 1, lambda values: values),
    3: (np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("codes", "u1", BLOCK // 2)]), BLOCK, _q4_1),
    8: (np.dtype([("scale", "<f2"), ("codes", "i1", BLOCK)]), BLOCK, _q8_0),
}
"""Number of a type (F32, Q4_1, Q8_0): the record it is stored in, how many values that holds, and which they are."""


class _Reader:
    """A position in the header."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, size: int) -> bytes:
        part = self.data[self.position : self.position + size]
        if len(part) != size:
            raise GgufError("the file ends within its header")
        self.position += size
        return part

    def scalar(self, form: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            element, count = self.scalar("I"), self.scalar("Q")
            return [self.value(element) for _ in range(count)]
        if kind not in SCALARS:
            raise GgufError(f"the metadata has a value of the unknown type {kind}")
        return self.scalar(SCALARS[kind])


def parse(data: bytes) -> File:
    """Read header and metadata.

    Raises:
        Malformed: what is there is no GGUF file of this version, or only the beginning of one.
    """
    reader = _Reader(data)
    if reader.take(4) != MAGIC:
        raise GgufError("it does not begin as a GGUF file does")
    if (version := reader.scalar("I")) != VERSION:
        raise GgufError(f"it is GGUF version {version}; this reads version {VERSION}")
    tensor_count, metadata_count = reader.scalar("Q"), reader.scalar("Q")
    metadata = {}
    for _ in range(metadata_count):
        key = reader.string()
        metadata[key] = reader.value(reader.scalar("I"))
    places = [_place(reader) for _ in range(tensor_count)]
    alignment = int(metadata.get("general.alignment", 32))
    begin = -(-reader.position // alignment) * alignment
    tensors = {name: Tensor(shape, kind, begin + offset) for name, shape, kind, offset in places}
    return File(metadata, tensors, data)


def _place(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name, dimensions = reader.string(), reader.scalar("I")
    shape = tuple(reader.scalar("Q") for _ in range(dimensions))
    return name, shape[::-1], reader.scalar("I"), reader.scalar("Q")
