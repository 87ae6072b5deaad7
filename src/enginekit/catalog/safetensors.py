"""safetensors headers, and which files of a repository make one loadable copy.

A header is eight bytes of length and a JSON object; summing its offsets gives the exact weight of
any quantization, since scales are tensors too. Nothing after the header is read.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from enginekit.errors import ModelFileError
from enginekit.facts.model import Role, WeightGroup

Read = Callable[[int, int], bytes]

MAX_HEADER: Final = 16 << 20
"""The format allows 100 MB; the largest header seen is under 4 MB, and JSON may grow 25-fold."""
FIRST_READ: Final = 1 << 16
MAX_RANK: Final = 16

_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d{1,5})\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One entry of a safetensors header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


def parse(
    read: Read, *, size: int | None = None, source: str = "safetensors"
) -> tuple[StoredTensor, ...]:
    """Read the header of one file.

    Args:
        read: hands out ranges of bytes.
        size: length of the file, if known: offsets are then checked against it.
        source: how errors name the file.

    Raises:
        ModelFileError: truncated, hostile or not safetensors; names the tensor and what is wrong.
    """
    head = read(0, FIRST_READ)
    if len(head) < 8:
        raise ModelFileError(f"{source}: {len(head)} bytes are no safetensors file", field="size")
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER or (size is not None and length > size - 8):
        shown = "a GGUF file" if head[:4] == b"GGUF" else f"a header of {length} bytes"
        raise ModelFileError(
            f"{source}: byte 0: {shown}; at most {MAX_HEADER} bytes are allowed", field="length"
        )
    raw = head[8 : 8 + length]
    if len(raw) < length:
        raw += read(8 + len(raw), length - len(raw))
    if len(raw) < length:
        raise ModelFileError(
            f"{source}: the header ends after {len(raw)} of {length} bytes", field="header"
        )
    return _entries(_json(raw, source), None if size is None else size - 8 - length, source)


def _json(raw: bytes, source: str) -> dict[str, Any]:
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{source}: the header is no JSON: {error}", field="header") from error
    if not isinstance(header, dict):
        raise ModelFileError(f"{source}: the header is no JSON object", field="header")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _entries(header: dict[str, Any], data: int | None, source: str) -> tuple[StoredTensor, ...]:
    found: list[tuple[int, int, StoredTensor]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"{source}: tensor {name[:80]!r} lacks dtype, shape or data_offsets", field=name
            ) from error
        tensor = _checked(source, name, dtype, shape, begin, end)
        found.append((begin, end, tensor))
    found.sort(key=lambda row: row[:2])
    last = 0
    for begin, end, tensor in found:
        if begin < last and tensor.bytes:
            raise ModelFileError(
                f"{source}: tensor {tensor.name[:80]!r} begins at data byte {begin}, inside the "
                f"one before it that ends at {last}",
                field=tensor.name,
            )
        last = end
    if data is not None and last > data:
        raise ModelFileError(
            f"{source}: the tensors need {last} bytes, but only {max(data, 0)} follow the header",
            field="data_offsets",
            hint="the download is incomplete: fetch the file again",
        )
    return tuple(tensor for _, _, tensor in found)


def _checked(
    source: str, name: str, dtype: object, shape: object, begin: object, end: object
) -> StoredTensor:
    bits = _BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise ModelFileError(f"{source}: tensor {name[:80]!r} has dtype {dtype!r:.40}", field=name)
    # Products of a million sizes would take hours: no tensor has more than a few dimensions.
    listed = isinstance(shape, list) and len(shape) <= MAX_RANK
    sizes = tuple(map(_whole, shape)) if listed and isinstance(shape, list) else (-1,)
    first, last = _whole(begin), _whole(end)
    if min(*sizes, first, last) < 0:
        raise ModelFileError(
            f"{source}: tensor {name[:80]!r} has an absurd shape or offset", field=name
        )
    elements = 1
    for size in sizes:
        elements *= size
    if last < first or elements * bits != (last - first) * 8:
        raise ModelFileError(
            f"{source}: tensor {name[:80]!r} of shape {sizes} and type {dtype} cannot take "
            f"{last - first} bytes",
            field=name,
        )
    return StoredTensor(name=name, dtype=str(dtype), shape=sizes, bytes=last - first)


def _whole(value: object) -> int:
    """The value if it can be a size or an offset, else -1."""
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
    return value if fits and isinstance(value, int) else -1


def role_of(name: str, layer: int | None, layers: int) -> Role:
    """What a tensor of a Hugging Face checkpoint is for."""
    if name.startswith("mtp.") or ".mtp." in name or (layer is not None and layer >= layers > 0):
        return "mtp"
    if re.search(
        r"(^|\.)(visual|vision\w*|audio\w*|multi_modal_projector|mm_projector|vit)\.", name
    ):
        return "projector"
    if "embed_tokens_per_layer" in name:
        return "layer_embedding"
    if re.search(
        r"(embed_tokens|word_embeddings|\bwte|tok_embeddings|position_embeddings)\b", name
    ):
        return "embedding"
    if name.startswith(("lm_head", "output.", "model.lm_head", "language_model.lm_head")):
        return "output"
    if "shared_expert" in name or "shared_mlp" in name:
        return "shared_experts"
    if ".experts." in name or ".block_sparse_moe.input_linear" in name:
        return "experts"
    if re.search(r"\.(gate|router)\.(weight|bias|e_score|proj|scale)", name):
        return "router"
    if re.search(r"linear_attn|mamba|mixer\.(in_proj|out_proj|conv1d|A_log|D|dt)|\.conv\.", name):
        return "recurrent"
    if re.search(r"norm", name):
        return "norm"
    if re.search(r"attn|attention|mixer\.[qkvo]_proj", name):
        return "attention"
    return "ffn" if re.search(r"mlp|feed_forward|ffn|mixer", name) else "other"


def group(tensors: Iterable[StoredTensor], layers: int) -> tuple[WeightGroup, ...]:
    """Tensors of the same layer, role and type taken together: tens of thousands become hundreds.

    Args:
        tensors: entries of all headers of one copy.
        layers: blocks of the model; later ones count as multi-token prediction.
    """
    sums: dict[tuple[int | None, Role, str], list[int]] = {}
    for tensor in tensors:
        role: Role
        match = _LAYER.search(tensor.name)
        layer = int(match[1]) if match else None
        role = role_of(tensor.name, layer, layers)
        if role == "projector":
            layer = None
        total = sums.setdefault((layer, role, tensor.dtype), [0, 0, 0])
        elements = 1
        for size in tensor.shape:
            elements *= size
        total[0] += elements
        total[1] += tensor.bytes
        total[2] += 1
    return tuple(
        WeightGroup(
            name=role if layer is None else f"layers.{layer}.{role}",
            role=role,
            type=dtype,
            elements=elements,
            bytes=size,
            layer=layer,
            count=count,
        )
        for (layer, role, dtype), (elements, size, count) in sums.items()
    )


_DUPLICATE_FOLDERS: Final = ("original/", "metal/", "onnx/", "openvino/", "coreml/", "gguf/")
_SHARD: Final = re.compile(r"-(\d{5})-of-(\d{5})\.(safetensors|bin)$")


def one_copy(files: Sequence[str]) -> tuple[str, ...]:
    """The weight files of a repository that make one loadable copy, without duplicates.

    `model.safetensors` or its shards win over `consolidated*.safetensors`, any safetensors over
    `*.bin`, and folders with other copies (`original/`, `metal/`, `onnx/`) do not count. Adapters
    and optimizer states are no weights.
    """
    here = [f for f in files if not f.startswith(_DUPLICATE_FOLDERS)]
    tensors = [f for f in here if f.endswith(".safetensors") and not f.startswith("adapter")]
    top = [f for f in tensors if "/" not in f]
    tensors = top or tensors
    main = [f for f in tensors if not f.rsplit("/", 1)[-1].startswith("consolidated")]
    main = _one_set(main)
    sharded = [f for f in main if _SHARD.search(f)]
    # A repository may hold both the shards and the single file that they were cut from.
    single = [f for f in main if f == "model.safetensors"]
    chosen = single if single and sharded else main
    if chosen or tensors:
        return tuple(chosen or tensors)
    return tuple(
        f
        for f in here
        if f.startswith("pytorch_model") and f.endswith(".bin") and "optimizer" not in f
    )


def _one_set(files: Sequence[str]) -> list[str]:
    """The files without further sets of the same shards: `-of-00002` left beside `-of-00005`.

    Of several sets those that are whole count, and of these the one of most files.
    """
    sets: dict[str, dict[int, list[str]]] = {}
    for name in files:
        match = _SHARD.search(name)
        if match is not None:
            stem = name[: match.start()]
            sets.setdefault(stem, {}).setdefault(int(match[2]), []).append(name)
    dropped: set[str] = set()
    for found in sets.values():
        best = max(found, key=lambda count: (len(found[count]) == count, count))
        dropped.update(name for count in found if count != best for name in found[count])
    return [name for name in files if name not in dropped]


def read_folder(folder: str | os.PathLike[str]) -> tuple[tuple[StoredTensor, ...], int]:
    """Headers of one copy of the weights in a local folder, and its bytes on disk.

    Raises:
        ModelFileError: there are no safetensors files, or one is broken.
    """
    place = Path(folder)
    names = [
        str(path.relative_to(place)).replace(os.sep, "/") for path in place.rglob("*.safetensors")
    ]
    chosen = one_copy(sorted(names))
    if not chosen:
        raise ModelFileError(f"{place}: no safetensors files", field="files")
    tensors: list[StoredTensor] = []
    total = 0
    for name in chosen:
        path = place / name
        try:
            with path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size

                def read(offset: int, length: int, file: Any = file) -> bytes:
                    file.seek(offset)
                    data: bytes = file.read(length)
                    return data

                tensors.extend(parse(read, size=size, source=str(path)))
        except OSError as error:
            raise ModelFileError(f"{path}: {error.strerror or error}", field="path") from error
        total += size
    return tuple(tensors), total
