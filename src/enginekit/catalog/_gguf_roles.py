"""What each tensor of a GGUF is for, told from its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from enginekit.catalog.gguf import TensorInfo
from enginekit.facts.model import Role, WeightGroup

_LEGACY_EXPERT: Final = re.compile(r"^ffn_(gate|up|down)\.\d+\.weight$")
"""Mixtral files of 2023 hold each expert by itself."""
_BLOCK: Final = re.compile(r"^blk\.(\d{1,5})\.(.+)$")


def weight_groups(
    tensors: Sequence[TensorInfo], count: int, recurrent: tuple[bool, ...] | None
) -> tuple[WeightGroup, ...]:
    """The tensor table with layers and roles.

    Args:
        tensors: rows of the table.
        count: blocks that always run; later ones are for multi-token prediction.
        recurrent: which layers hold state, if any.
    """
    groups = []
    for tensor in tensors:
        match = _BLOCK.match(tensor.name)
        layer = int(match[1]) if match else None
        state = bool(layer is not None and recurrent and layer < count and recurrent[layer])
        groups.append(
            WeightGroup(
                name=tensor.name,
                role="mtp"
                if layer is not None and layer >= count
                else role_of(match[2] if match else tensor.name, tensor.shape, state),
                type=tensor.type,
                elements=tensor.elements,
                bytes=tensor.bytes,
                layer=layer,
                shape=tensor.shape,
            )
        )
    return tuple(groups)


_OUTSIDE: Final[Mapping[str, Role]] = MappingProxyType(
    {
        "token_embd.weight": "embedding",
        "position_embd.weight": "embedding",
        "token_types.weight": "embedding",
        "per_layer_token_embd.weight": "layer_embedding",
        "output.weight": "output",
    }
)


def role_of(name: str, shape: tuple[int, ...], recurrent: bool) -> Role:
    """What a ggml tensor is for; `name` is without its block prefix."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    if name.startswith(("v.", "mm.", "a.", "resampler.")):
        return "projector"
    if name.startswith("nextn."):
        return "mtp"
    if "ffn_gate_inp" in name or "exp_probs" in name:
        return "router"
    if len(shape) == 1 or "_norm" in name:
        return "norm"
    if "_exps" in name or _LEGACY_EXPERT.match(name):
        return "experts"
    if "_shexp" in name or "_chexp" in name:
        return "shared_experts"
    if name.startswith(("ssm_", "shortconv", "time_mix")):
        return "recurrent"
    if name.startswith(("attn_", "indexer", "cross_attn", "attention")):
        return (
            "recurrent" if recurrent and name.startswith(("attn_qkv", "attn_gate")) else "attention"
        )
    if name.startswith(("ffn_", "channel_mix")):
        return "ffn"
    return "other"
