"""Small media files made here, in place of those that langchain-tests would download."""

from __future__ import annotations

import io
import struct
import wave
import zlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Downloaded:
    """As much of an httpx response as upstream's tests read."""

    content: bytes


def download(url: str, **_: Any) -> Downloaded:
    """A PNG, JPEG-named or not, for pictures; a WAV file for sounds. Nothing leaves the machine."""
    return Downloaded(wav() if url.endswith((".wav", ".mp3", ".ogg")) else png())


def png(size: int = 32) -> bytes:
    """A square picture of one red."""
    rows = b"".join(b"\0" + b"\xc0\x20\x20" * size for _ in range(size))

    def block(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + block(b"IHDR", head)
        + block(b"IDAT", zlib.compress(rows))
        + block(b"IEND", b"")
    )


def wav(seconds: float = 0.1, rate: int = 16000) -> bytes:
    """Silence."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"\0\0" * int(seconds * rate))
    return out.getvalue()
