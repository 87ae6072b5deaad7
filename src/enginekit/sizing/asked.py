"""What a plan is asked for, checked before anything is computed.

A misspelt word or an absurd number must be an error: arithmetic would make a plausible plan of it.
"""

from __future__ import annotations

import difflib
import re
from typing import Final

from enginekit.sizing.policy import Policy
from enginekit.sizing.quantization import FORMATS, GGUF_LABELS, gguf_label, weight_format

MOST_TOKENS: Final = 2**31 - 1
"""Engines count the tokens of a context in 32 bits."""
MOST_ROWS: Final = 2**20
"""Users, sequences and rows of a batch; far more than any engine serves."""

_SAME_CACHE: Final = {"fp16": "f16", "fp32": "f32"}


def number(name: str, value: int, most: int) -> None:
    """Raise ValueError for what is no number of anything, or more than there can be."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, not {value}")


def quantization(name: str) -> str:
    """The quantization, a llama.cpp label in its own capitals.

    Raises:
        ValueError: there is none of that name; names the nearest.
    """
    if name in FORMATS:
        return name
    label = gguf_label(name)
    if label == name.upper():
        return label
    if label or weight_format(name) is not None:
        return name
    known = {re.sub(r"[^a-z0-9]", "", each.lower()): each for each in (*GGUF_LABELS, *FORMATS)}
    bare = re.sub(r"[^a-z0-9]", "", name.lower())
    near = difflib.get_close_matches(bare, list(known), n=3, cutoff=0.6)
    meant = f"did you mean {', '.join(known[each] for each in near)}? Else " if near else ""
    raise ValueError(
        f"unknown quantization {name!r}: {meant}use a llama.cpp label such as Q4_K_M, or bf16, fp8, "
        "fp8-block, awq, gptq-int4-g128, nvfp4, mxfp4, mlx-4bit, q4f16_1"
    )


def cache_type(name: str, policy: Policy) -> str:
    """The cache type as the engine spells it.

    Raises:
        ValueError: the engine cannot keep its cache so; names those that it can.
    """
    wanted = name.lower()
    types = (*policy.cache_types, *policy.more_cache_types)
    for spelling in (wanted, _SAME_CACHE.get(wanted, "")):
        if spelling in types:
            return spelling
    near = difflib.get_close_matches(wanted, types, n=1, cutoff=0.6)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"unknown cache type {name!r}{meant}{' It' if meant else ': the engine'} has {', '.join(types)}"
    )
