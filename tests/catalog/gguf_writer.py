"""A GGUF header written byte by byte, so that tests can also write the wrong bytes.

Independent of the code under test: it shares no constants with it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from enginekit.facts.model import ModelSpec
from enginekit.sizing.tensors import blueprint

TYPES = {"F32": 0, "F16": 1, "Q8_0": 8, "Q4_K": 12}
_BLOCK = {"F32": (1, 4), "F16": (1, 2), "Q8_0": (32, 34), "Q4_K": (256, 144)}

Tensor = tuple[str, Sequence[int], str]


def text(value: str | bytes, order: str = "<") -> bytes:
    """A length and bytes."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack(order + "Q", len(raw)) + raw


def value(item: Any, order: str = "<") -> bytes:
    """A typed value: bool, int (u32 or u64), float, str, or a list of one of them."""
    if isinstance(item, bool):
        return struct.pack(order + "I?", 7, item)
    if isinstance(item, int):
        wide = not 0 <= item < 1 << 32
        return struct.pack(order + ("IQ" if wide else "II"), 10 if wide else 4, item)
    if isinstance(item, float):
        return struct.pack(order + "If", 6, item)
    if isinstance(item, str):
        return struct.pack(order + "I", 8) + text(item, order)
    head = struct.pack(order + "I", 9)
    if item and isinstance(item[0], str):
        return (
            head + struct.pack(order + "IQ", 8, len(item)) + b"".join(text(x, order) for x in item)
        )
    if item and isinstance(item[0], bool):
        return head + struct.pack(f"{order}IQ{len(item)}?", 7, len(item), *item)
    if item and isinstance(item[0], float):
        return head + struct.pack(f"{order}IQ{len(item)}f", 6, len(item), *item)
    return head + struct.pack(f"{order}IQ{len(item)}i", 5, len(item), *item)


def header(
    metadata: Mapping[str, Any],
    tensors: Sequence[Tensor] = (),
    *,
    version: int = 3,
    order: str = "<",
    alignment: int = 32,
) -> bytes:
    """Everything before the data section, padded."""
    out = bytearray(b"GGUF")
    out += struct.pack(order + "IQQ", version, len(tensors), len(metadata))
    for key, item in metadata.items():
        out += text(key, order) + value(item, order)
    offset = 0
    for name, shape, kind in tensors:
        out += text(name, order) + struct.pack(order + "I", len(shape))
        out += struct.pack(f"{order}{len(shape)}Q", *shape)
        out += struct.pack(order + "IQ", TYPES[kind], offset)
        elements = 1
        for size in shape:
            elements *= size
        block, size = _BLOCK[kind]
        offset += -(-elements // block) * size
        offset += -offset % alignment
    out += bytes(-len(out) % alignment)
    return bytes(out)


def tensors_of(spec: ModelSpec, kind: str = "F16") -> list[Tensor]:
    """The tensor table that a GGUF of this model has."""
    found: list[Tensor] = []
    for shape in blueprint(spec):
        for layer in shape.layers:
            prefix = f"blk.{layer}." if layer >= 0 else ""
            if shape.role == "norm":
                name, dims = f"{prefix}{shape.name}_norm.weight", (shape.row,)
            else:
                name = f"{prefix}{shape.name}.weight"
                dims = (shape.row, shape.rows, shape.matrices)
                while dims[-1] == 1 and len(dims) > 2:
                    dims = dims[:-1]
            found.append((name, dims, shape.fixed or kind))
    return found
