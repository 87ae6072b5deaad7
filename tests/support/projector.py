"""A vision projector of 30 kB: gives the scripted model eyes, so that images run on a real server.

A tiny CLIP tower under LLaVA's projector, with random weights. It turns an image into `PATCHES`
embeddings; the scripted model answers as ever, because its next token hangs on the last one alone.
So what can be shown is that images are taken, and that each costs exactly `PATCHES` tokens.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from tests.support.scripted import WIDTH

EMBEDDING, INNER, LAYERS, HEADS = 32, 64, 2, 2
SIDE, PATCH = 28, 14
PATCHES = (SIDE // PATCH) ** 2
"""Tokens of any image: the server scales it to `SIDE` squared."""


def write_projector(path: Path) -> Path:
    """Write the projector as a GGUF file, for `--mmproj` or a second FROM in a Modelfile."""
    import gguf
    import numpy as np

    out = gguf.GGUFWriter(str(path), "clip")
    out.add_type("mmproj")
    out.add_name("tiny eyes")
    out.add_bool("clip.has_vision_encoder", True)
    out.add_bool("clip.use_gelu", True)
    out.add_string("clip.projector_type", "mlp")
    numbers = {
        "embedding_length": EMBEDDING,
        "feed_forward_length": INNER,
        "block_count": LAYERS,
        "projection_dim": WIDTH,
        "image_size": SIDE,
        "patch_size": PATCH,
        "attention.head_count": HEADS,
    }
    for name, number in numbers.items():
        out.add_uint32(f"clip.vision.{name}", number)
    out.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    out.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    out.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])

    seeded = np.random.default_rng(1)

    def tensor(name: str, *shape: int) -> None:
        out.add_tensor(name, (seeded.standard_normal(shape) * 0.05).astype(np.float32))

    def linear(name: str, to: int, *of: int) -> None:
        tensor(f"{name}.weight", to, *of)
        tensor(f"{name}.bias", to)

    tensor("v.patch_embd.weight", EMBEDDING, 3, PATCH, PATCH)
    tensor("v.class_embd", EMBEDDING)
    tensor("v.position_embd.weight", PATCHES + 1, EMBEDDING)
    linear("v.pre_ln", EMBEDDING)
    linear("v.post_ln", EMBEDDING)
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            linear(f"v.blk.{layer}.{part}", EMBEDDING, EMBEDDING)
        linear(f"v.blk.{layer}.ffn_up", INNER, EMBEDDING)
        linear(f"v.blk.{layer}.ffn_down", EMBEDDING, INNER)
        linear(f"v.blk.{layer}.ln1", EMBEDDING)
        linear(f"v.blk.{layer}.ln2", EMBEDDING)
    linear("mm.0", WIDTH, EMBEDDING)
    linear("mm.2", WIDTH, WIDTH)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def png(width: int = 8, height: int = 8, colour: tuple[int, int, int] = (255, 0, 0)) -> bytes:
    """A picture of one colour."""
    rows = b"".join(b"\0" + bytes(colour) * width for _ in range(height))

    def part(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
