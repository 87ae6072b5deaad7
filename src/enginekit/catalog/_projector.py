"""Which projector file llama.cpp takes of those that lie beside a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from enginekit.sizing.projector import bits

_PART: Final = re.compile(r"-\d{5}-of-\d{5}$")
_LABEL: Final = re.compile(r"[-.]([A-Za-z0-9_]+)$")


def projector_beside(model: str, paths: Sequence[str]) -> str:
    """The projector that `llama-server -hf` loads with a model; empty if there is none.

    Those in the model's own folder or above it count; the deepest, then the one whose label has the
    nearest number of bits, then the first of the listing (`find_best_sibling` in llama.cpp's
    common/download.cpp). Not the most exact one: a Q8_0 beside a 4-bit model wins over an F16.

    Args:
        model: path of the model's file in the repository or folder.
        paths: all paths, in the order in which they are listed.
    """
    folder = model.split("/")[:-1]
    best, key = "", (0, 0)
    for path in paths:
        above = path.split("/")[:-1]
        if "mmproj" not in path.lower() or not path.endswith(".gguf"):
            continue
        if folder[: len(above)] != above:
            continue
        found = (-len(above), abs(_bits(path) - _bits(model)))
        if not best or found < key:
            best, key = path, found
    return best


def _bits(path: str) -> int:
    stem = _PART.sub("", path.removesuffix(".gguf"))
    label = _LABEL.search(stem)
    return bits(label[1]) if label else 0
