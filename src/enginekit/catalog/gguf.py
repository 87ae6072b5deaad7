"""A GGUF header reader that trusts nothing in the file.

Reads version 2 and 3 in both byte orders from anything that can hand out ranges of bytes: a local
file, an HTTP server. Tensor data is never read; the tokenizer's arrays, which make up most of a
header, are walked over and counted. Every length and count is checked against the file and against
a limit before anything is allocated, so a hostile file costs an error, not memory.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

from enginekit.errors import ModelFileError
from enginekit.sizing.quantization import BLOCKS_BY_ID

Read = Callable[[int, int], bytes]
"""`read(offset, length)`: at most `length` bytes from `offset`; fewer only at the end."""

Value = int | float | bool | str | tuple[int | float | bool, ...]

MAX_PAIRS: Final = 1 << 16
MAX_TENSORS: Final = 1 << 18
MAX_STRINGS: Final = 1 << 22
"""Strings in one array: 4 million; the largest vocabularies have 0.3 million."""
MAX_KEY: Final = 1 << 16
MAX_NAME: Final = 256
MAX_TEXT: Final = 1 << 22
"""Longest string value that is kept (chat templates); longer ones are an error."""
MAX_KEPT: Final = 8192
"""Longest numeric array that is kept: per-layer values, not token scores."""
MAX_KEPT_BYTES: Final = 64 << 20
"""All keys and values that are kept, as they take memory here; real headers keep under 1 MiB."""
MAX_ALIGNMENT: Final = 1 << 20
MAX_HEADER: Final = 1 << 29

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Final = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_SPLIT: Final = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One row of the tensor table."""

    name: str
    shape: tuple[int, ...]
    """Row length first."""
    type: str
    offset: int
    """From the start of the data section."""
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What the header of one GGUF file, or of all parts of a split one, says."""

    source: str
    version: int
    little_endian: bool
    metadata: Mapping[str, Value]
    """Scalars, strings and short numeric arrays."""
    counts: Mapping[str, int]
    """Length of every array, kept or not."""
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    """Where tensor data starts (in the first part)."""
    data_bytes: int
    """Tensor bytes without padding."""
    end: int
    """Bytes that the file must have at least, over all parts, for all tensors to be there."""
    size: int | None
    """Bytes it has; None if the source cannot say."""
    parts: int = 1

    @property
    def missing(self) -> int:
        """Bytes that a file lacks which is shorter than its own table: a cut download."""
        return max(self.end - self.size, 0) if self.size is not None else 0


class _Cursor:
    """Reads forward through a window of the file; knows how to complain with offset and field."""

    def __init__(self, read: Read, size: int | None, source: str, window: int) -> None:
        self.read = read
        self.size = size
        self.source = source
        self.window = window
        self.base = 0
        self.buffer = b""
        self.at = 0
        self.order = "<"
        self.kept = 0
        self.strings = 0
        self.u32 = struct.Struct("<I")
        self.u64 = struct.Struct("<Q")

    @property
    def offset(self) -> int:
        return self.base + self.at

    def fail(self, field: str, problem: str) -> NoReturn:
        raise ModelFileError(
            f"{self.source}: {field} at byte {self.offset}: {problem}", field=field
        )

    def set_order(self, order: str) -> None:
        self.order = order
        self.u32 = struct.Struct(order + "I")
        self.u64 = struct.Struct(order + "Q")

    def keep(self, size: int, field: str) -> None:
        """Account for memory that a value takes for good."""
        self.kept += size
        if self.kept > MAX_KEPT_BYTES:
            self.fail(field, f"keys and values of more than {MAX_KEPT_BYTES >> 20} MiB")

    def need(self, length: int, field: str) -> None:
        """Make the next `length` bytes available in the buffer."""
        if len(self.buffer) - self.at >= length:
            return
        offset = self.offset
        if self.size is not None and length > self.size - offset:
            self.fail(
                field, f"needs {length} bytes, but only {max(self.size - offset, 0)} are left"
            )
        if offset + length > MAX_HEADER:
            self.fail(field, f"the header is longer than {MAX_HEADER >> 20} MiB")
        wanted = max(length, self.window)
        data = self.read(offset, wanted)
        if len(data) < length:
            self.fail(field, f"the file ends after {len(data)} of {length} bytes")
        self.base, self.at, self.buffer = offset, 0, data

    def skip(self, length: int, field: str) -> None:
        """Step over bytes without reading those that are not in the window."""
        if self.size is not None and length > self.size - self.offset:
            left = max(self.size - self.offset, 0)
            self.fail(field, f"needs {length} bytes, but only {left} are left")
        if self.offset + length > MAX_HEADER:
            self.fail(field, f"the header is longer than {MAX_HEADER >> 20} MiB")
        if self.at + length <= len(self.buffer):
            self.at += length
        else:
            self.base, self.at, self.buffer = self.offset + length, 0, b""

    def number(self, field: str, *, wide: bool = True) -> int:
        packer = self.u64 if wide else self.u32
        self.need(packer.size, field)
        value: int = packer.unpack_from(self.buffer, self.at)[0]
        self.at += packer.size
        return value

    def text(self, field: str, limit: int) -> str:
        length = self.number(field)
        if length > limit:
            self.fail(field, f"a string of {length} bytes, more than the {limit} allowed")
        self.keep(4 * length, field)
        self.need(length, field)
        raw = self.buffer[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            if limit == MAX_TEXT:
                return raw.decode("utf-8", "replace")
            self.fail(field, "not UTF-8")

    def skip_strings(self, count: int, field: str) -> None:
        """Walk over an array of strings: the hot loop, since it is most of every header."""
        unpack = self.u64.unpack_from
        while count:
            self.need(8, field)
            buffer, at, end = self.buffer, self.at, len(self.buffer) - 8
            while count and at <= end:
                following = at + 8 + unpack(buffer, at)[0]
                if following > end + 8:
                    break
                at = following
                count -= 1
            self.at = at
            if count and at <= end:
                length = self.number(field)
                self.skip(length, field)
                count -= 1


def parse(
    read: Read, *, size: int | None = None, source: str = "GGUF", window: int = 1 << 20
) -> GgufHeader:
    """Read the header of one file.

    Args:
        read: hands out ranges of bytes; called with growing offsets only.
        size: length of the file, if known; lengths are then checked against it before reading.
        source: how errors name the file.
        window: bytes per call of `read`.

    Raises:
        ModelFileError: truncated, hostile or not GGUF; names the field and the offset.
    """
    cursor = _Cursor(read, size, source, window)
    version = _preamble(cursor)
    tensor_count = cursor.number("tensor_count")
    pair_count = cursor.number("metadata_kv_count")
    # The smallest tensor row is 8 + 1 + 4 + 8 + 4 + 8 bytes, the smallest pair 8 + 1 + 4 + 1.
    _check_count(cursor, "tensor_count", tensor_count, MAX_TENSORS, 33)
    _check_count(cursor, "metadata_kv_count", pair_count, MAX_PAIRS, 14)
    metadata: dict[str, Value] = {}
    counts: dict[str, int] = {}
    for index in range(pair_count):
        key = cursor.text(f"key {index}", MAX_KEY - 1)
        if not key:
            cursor.fail(f"key {index}", "is empty")
        if key in metadata or key in counts:
            cursor.fail(key, "the key occurs twice")
        _pair(cursor, key, metadata, counts)
    tensors = tuple(_tensors(cursor, tensor_count))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        cursor.fail("general.alignment", f"{_shown(alignment)} is not a power of two")
    if alignment > MAX_ALIGNMENT:
        cursor.fail("general.alignment", f"{alignment} is more than the {MAX_ALIGNMENT} allowed")
    _apart(cursor, tensors, alignment)
    data_offset = -(-cursor.offset // alignment) * alignment
    return GgufHeader(
        source=source,
        version=version,
        little_endian=cursor.order == "<",
        metadata=MappingProxyType(metadata),
        counts=MappingProxyType(counts),
        tensors=tensors,
        data_offset=data_offset,
        data_bytes=sum(tensor.bytes for tensor in tensors),
        end=data_offset + max((t.offset + t.bytes for t in tensors), default=0),
        size=size,
    )


def _shown(value: object) -> str:
    return repr(value) if not isinstance(value, tuple | str) else f"{repr(value)[:60]}…"


def _apart(cursor: _Cursor, tensors: tuple[TensorInfo, ...], alignment: int) -> None:
    """Refuse tensors that share bytes or begin off the alignment, as llama.cpp does."""
    last, before = 0, ""
    for tensor in sorted(tensors, key=lambda each: each.offset):
        field = f"tensor {tensor.name}"
        if tensor.offset % alignment:
            cursor.fail(field, f"its offset {tensor.offset} is no multiple of {alignment}")
        if tensor.offset < last:
            cursor.fail(
                field, f"its offset {tensor.offset} is inside {before}, which ends at {last}"
            )
        last, before = tensor.offset + tensor.bytes, tensor.name


_SMALLEST = 24
"""Bytes of a GGUF with no metadata and no tensors: magic, version and two counts."""


def _preamble(cursor: _Cursor) -> int:
    if cursor.size is not None and cursor.size < _SMALLEST:
        what = "empty" if cursor.size == 0 else f"only {cursor.size} bytes long"
        cursor.fail("magic", f"not a GGUF file: it is {what}")
    cursor.need(8, "magic")
    magic = cursor.buffer[:4]
    if magic != b"GGUF":
        hint = {b"PK\x03\x04": " (a zip or PyTorch file)", b"ggml": " (GGML, before GGUF)"}
        cursor.fail(
            "magic", f"not a GGUF file: it begins with {magic!r}, not b'GGUF'{hint.get(magic, '')}"
        )
    cursor.at = 4
    version = cursor.number("version", wide=False)
    if version & 0xFFFF == 0:
        cursor.set_order(">")
        cursor.at = 4
        version = cursor.number("version", wide=False)
    if version not in (2, 3):
        cursor.fail("version", f"{version} is not supported (2 and 3 are)")
    return version


def _check_count(cursor: _Cursor, field: str, count: int, limit: int, least: int) -> None:
    if count > limit:
        cursor.fail(field, f"{count} is more than the {limit} allowed")
    if cursor.size is not None and count * least > cursor.size - cursor.offset:
        cursor.fail(field, f"{count} entries cannot fit into {cursor.size} bytes")


def _pair(cursor: _Cursor, key: str, metadata: dict[str, Value], counts: dict[str, int]) -> None:
    kind = cursor.number(key, wide=False)
    if kind == _STRING:
        metadata[key] = cursor.text(key, MAX_TEXT)
    elif kind == _ARRAY:
        inner = cursor.number(key, wide=False)
        count = cursor.number(key)
        counts[key] = count
        kept = _array(cursor, key, inner, count)
        if kept is not None:
            metadata[key] = kept
    elif kind in _SCALARS:
        metadata[key] = _numbers(cursor, key, kind, 1)[0]
    else:
        cursor.fail(key, f"value type {kind} does not exist")


def _array(
    cursor: _Cursor, key: str, inner: int, count: int
) -> tuple[int | float | bool, ...] | None:
    if inner == _STRING:
        cursor.strings += count
        _check_count(cursor, key, max(count, cursor.strings), MAX_STRINGS, 0)
        _check_count(cursor, key, count, MAX_STRINGS, 8)
        cursor.skip_strings(count, key)
        return None
    if inner == _ARRAY:
        cursor.fail(key, "an array of arrays")
    if inner not in _SCALARS:
        cursor.fail(key, f"array type {inner} does not exist")
    if count <= MAX_KEPT:
        return _numbers(cursor, key, inner, count)
    cursor.skip(count * struct.calcsize("<" + _SCALARS[inner]), key)
    return None


def _numbers(cursor: _Cursor, key: str, kind: int, count: int) -> tuple[int | float | bool, ...]:
    layout = struct.Struct(f"{cursor.order}{count}{_SCALARS[kind]}")
    cursor.keep(40 * count, key)
    cursor.need(layout.size, key)
    values: tuple[int | float | bool, ...] = layout.unpack_from(cursor.buffer, cursor.at)
    cursor.at += layout.size
    return values


def _tensors(cursor: _Cursor, count: int) -> Iterator[TensorInfo]:
    seen: set[str] = set()
    for index in range(count):
        field = f"tensor {index}"
        name = cursor.text(field, MAX_NAME)
        if not name or name in seen:
            cursor.fail(field, f"the name {name!r} is empty or occurs twice")
        seen.add(name)
        field = f"tensor {index} ({name})"
        rank = cursor.number(field, wide=False)
        if not 1 <= rank <= 4:
            cursor.fail(field, f"{rank} dimensions; 1 to 4 are possible")
        shape = tuple(cursor.number(field) for _ in range(rank))
        kind = cursor.number(field, wide=False)
        offset = cursor.number(field)
        block = BLOCKS_BY_ID.get(kind)
        if block is None:
            cursor.fail(field, f"storage type {kind} does not exist")
        elements = 1
        for size in shape:
            elements *= size
        if not 0 < elements < 1 << 62 or offset >= 1 << 62:
            cursor.fail(field, f"the shape {shape} or the offset {offset} is absurd")
        if shape[0] % block.elements:
            cursor.fail(field, f"rows of {shape[0]} are no whole {block.name} blocks")
        yield TensorInfo(
            name=name,
            shape=shape,
            type=block.name,
            offset=offset,
            elements=elements,
            bytes=elements // block.elements * block.bytes,
        )


def read_file(path: str | os.PathLike[str]) -> GgufHeader:
    """Read the header of a local file; of a split one, the headers of all parts.

    Raises:
        ModelFileError: unreadable, broken, or a part is missing.
    """
    first = Path(path)
    parts = [_read_part(first.with_name(name)) for name in split_names(first.name)]
    if len(parts) > 1:
        return join(parts, str(first))
    declared = parts[0].metadata.get("split.count", 1)
    if isinstance(declared, int) and declared > 1:
        raise ModelFileError(
            f"{path}: this is one of {declared} parts, but its name does not say which",
            field="split.count",
            hint=f"name the parts NAME-00001-of-{declared:05d}.gguf, as llama.cpp expects them",
        )
    return parts[0]


def split_names(name: str) -> list[str]:
    """All parts of a split file, given the name of any one; the name itself if it is not split.

    Raises:
        ModelFileError: the name claims more parts than are possible.
    """
    match = _SPLIT.match(name)
    if match is None:
        return [name]
    count = int(match["count"])
    if not 1 <= count <= 1000:
        raise ModelFileError(f"{name}: {count} parts are not possible", field="split.count")
    return [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def _read_part(path: Path) -> GgufHeader:
    try:
        # Opening a pipe would wait for ever for somebody to write to it.
        if not stat.S_ISREG(path.stat().st_mode):
            what = "a folder" if path.is_dir() else "no regular file"
            raise ModelFileError(f"{path}: is {what}", field="path")
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            return parse(read, size=size, source=str(path))
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{path}: the file does not exist", field="path", hint="check the path or download it"
        ) from error
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}", field="path") from error


def join(parts: list[GgufHeader], source: str) -> GgufHeader:
    """One header from those of all parts of a split file, the first one first.

    Raises:
        ModelFileError: a tensor is in two parts, or the parts disagree on their number.
    """
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors):
        raise ModelFileError(f"{source}: the parts hold the same tensor twice", field="tensors")
    declared = parts[0].metadata.get("split.count")
    if isinstance(declared, int) and declared != len(parts):
        raise ModelFileError(
            f"{source}: split.count is {declared}, but there are {len(parts)} parts",
            field="split.count",
        )
    sizes = [part.size for part in parts]
    first = parts[0]
    return GgufHeader(
        source=source,
        version=first.version,
        little_endian=first.little_endian,
        metadata=first.metadata,
        counts=first.counts,
        tensors=tensors,
        data_offset=first.data_offset,
        data_bytes=sum(part.data_bytes for part in parts),
        end=sum(part.end for part in parts),
        size=sum(size for size in sizes if size is not None) if None not in sizes else None,
        parts=len(parts),
    )
