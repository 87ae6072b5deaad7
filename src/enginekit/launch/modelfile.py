"""Is this GGUF file whole, and of a kind llama.cpp loads? Asked before any server starts.

The header itself is read by `enginekit.catalog.gguf`; here is what a launcher makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from enginekit.errors import ModelFileError

READ_FROM = "2026.10.11549"
"""The xllamacpp version whose architectures `architectures.txt` holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a launcher needs of a GGUF header."""

    architecture: str
    size: int = 0
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)

    def number(self, key: str) -> int | None:
        """An integer of this architecture, such as `context_length`; the largest of a list."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, tuple) and value:
            value = max(value)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def trained_context(self) -> int | None:
        """Tokens the model was trained for."""
        return self.number("context_length")

    @property
    def kv_bytes_per_token(self) -> int | None:
        """Bytes of an f16 KV cache for one token of one sequence; None when the header does not say.

        Keys and values of every layer: an upper bound for sliding-window and hybrid models.
        """
        layers, heads = self.number("block_count"), self.number("attention.head_count")
        width = self.number("embedding_length")
        if not layers or not heads or not width:
            return None
        kv_heads = self.number("attention.head_count_kv") or heads
        key = self.number("attention.key_length") or width // heads
        value = self.number("attention.value_length") or width // heads
        return layers * kv_heads * (key + value) * 2


def check(path: Path, *, installed: str | None = None) -> Header:
    """Read and check the header of a file, or of all parts of a split one.

    Args:
        installed: version of the xllamacpp that is to load it; a newer one than `READ_FROM` may
            know more architectures than we do, so then an unknown one is left to it.

    Raises:
        ModelFileError: not a GGUF, truncated, malformed, or of an architecture nobody loads; names
            the file, the field and the offset.
    """
    from enginekit.catalog import gguf

    try:
        header = gguf.read_file(path)
    except ModelFileError as error:
        if error.hint:
            raise
        hint = _mistaken(path) or "the file is cut off or damaged: fetch it again"
        raise ModelFileError(error.message, hint=hint, field=error.field) from error
    if header.missing:
        raise ModelFileError(
            f"{path} is truncated: its tensors end at byte {header.end}, "
            f"the file has {header.size}",
            hint="fetch it again: the download or the copy was cut off",
            field="tensor data",
        )
    if not header.little_endian:
        raise ModelFileError(
            f"{path} is big-endian; llama.cpp here reads little-endian files",
            hint="fetch the little-endian file of the same model",
            field="magic",
        )
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ModelFileError(f"{path} names no architecture", field="general.architecture")
    _check_architecture(path, name, installed)
    return Header(architecture=name, size=header.size or 0, metadata=dict(header.metadata))


def _check_architecture(path: Path, name: str, installed: str | None) -> None:
    if name == "clip":
        raise ModelFileError(
            f"{path} is a projector for images, not a language model",
            hint="give the model's own GGUF file",
            field="general.architecture",
        )
    if name in architectures() or (installed and _newer(installed, READ_FROM)):
        return
    raise ModelFileError(
        f"{path} is of the architecture {name!r}, which llama.cpp does not know",
        hint="pip install --upgrade xllamacpp    (may bring a llama.cpp that does)",
        field="general.architecture",
    )


@cache
def architectures() -> frozenset[str]:
    """The architectures llama.cpp loads, as of `READ_FROM`."""
    text = files("enginekit.launch").joinpath("architectures.txt").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return frozenset(word for line in lines for word in line.split())


def _mistaken(path: Path) -> str | None:
    """What people hand over instead of a GGUF, and what to do then."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError:
        return None
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: run `git lfs pull`"
    if start.lstrip()[:1] == b"<":
        return "it is a web page: use the file's download link"
    if start.startswith(b"PK"):
        return "it is a zip archive or a PyTorch checkpoint: convert it to GGUF first"
    if start[8:9] == b"{":
        return "it is a safetensors file: convert it to GGUF first"
    return None


def _newer(version: str, than: str) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(".") if part.isdigit()]

    return numbers(version) > numbers(than)
