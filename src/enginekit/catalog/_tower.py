"""How many parameters see and hear, counted from the blocks of a config.json.

Only where no header says it: a repository's config is known before its weights are. The counts are
those of the transformers classes, biases and norms left out: within 0.2 per cent of eleven checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_GATED: Final = frozenset({"qwen2_5_vl", "pixtral", "mistral3", "gemma4", "glm4v", "glm4v_moe"})
"""Model types whose vision layers have a third feed-forward matrix."""

_PLAIN_PROJECTION: Final = frozenset({"gemma3", "gemma4", "paligemma"})
"""Those with one matrix between the tower and the text model."""

_MERGED: Final = frozenset(
    {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "kimi_k25"}
)
"""Those that join 2 x 2 patches into one vector and map it by two matrices."""

_ROTARY: Final = frozenset({"qwen2_vl", "qwen2_5_vl", "pixtral", "mistral3"})
"""Those whose places are angles and no table."""

_LIMIT: Final = 1 << 20


def _number(block: Mapping[str, Any], *names: str) -> int:
    """The first of several fields that is a sensible whole number, else 0."""
    for name in names:
        value = block.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _LIMIT:
            return value
    return 0


def vision(block: Mapping[str, Any], model_type: str, hidden: int) -> int:
    """Parameters of a vision tower with what maps it to the text model; 0 if the block says too little.

    Args:
        block: `vision_config`.
        model_type: the whole model's.
        hidden: width of the text model.
    """
    width = _number(block, "vt_hidden_size", "embed_dim", "hidden_size")
    if model_type.startswith("qwen2_5_vl"):
        # Here `hidden_size` is the tower's and `out_hidden_size` the text model's.
        width = _number(block, "hidden_size")
    count = _number(block, "vt_num_hidden_layers", "depth", "num_hidden_layers")
    inner = _number(block, "vt_intermediate_size", "intermediate_size")
    ratio = block.get("mlp_ratio")
    if not inner and isinstance(ratio, int | float) and 0 < ratio < 64:
        inner = int(ratio * width)
    if not (width and count and inner):
        return 0
    patch = _number(block, "patch_size") or 14
    layers = count * (4 * width * width + (3 if model_type in _GATED else 2) * width * inner)
    frames = _number(block, "temporal_patch_size") or (2 if model_type in _MERGED else 1)
    if model_type == "kimi_k25":
        frames = 1
    patches = 3 * patch * patch * frames * width
    places = _number(block, "num_position_embeddings", "position_embedding_size")
    if model_type == "gemma4":
        places = 2 * (places or 10240)
    elif model_type == "kimi_k25":
        places = (_number(block, "init_pos_emb_height") or 64) ** 2
    elif model_type not in _ROTARY:
        places = places or (_number(block, "image_size") // patch) ** 2
    between = _between(block, model_type, width, inner, hidden)
    return layers + patches + places * width + between


def _between(block: Mapping[str, Any], model_type: str, width: int, inner: int, hidden: int) -> int:
    """What maps the tower's vectors to the text model's."""
    if model_type in _PLAIN_PROJECTION:
        return width * hidden
    if model_type in _MERGED:
        merge = _number(block, "spatial_merge_size") or 2
        joined = merge * merge * width
        deep = block.get("deepstack_visual_indexes")
        times = 1 + (len(deep) if isinstance(deep, list) and len(deep) < 64 else 0)
        return times * (joined * joined + joined * hidden)
    if model_type in ("pixtral", "mistral3"):
        return 4 * width * width + width * hidden + hidden * hidden
    if model_type == "llama4":
        between = _number(block, "projector_output_dim") or 4096
        return between * (inner + between + hidden)
    return width * hidden + hidden * hidden


def audio(block: Mapping[str, Any], model_type: str, hidden: int) -> int:
    """Parameters of a conformer that hears (Gemma 4), with what maps it to the text model; else 0."""
    width, count = _number(block, "hidden_size"), _number(block, "num_hidden_layers")
    out = _number(block, "output_proj_dims")
    if model_type != "gemma4" or not (width and count):
        return 0
    # Two feed-forward blocks of four times the width, five matrices that attend, three that convolve.
    return count * 24 * width * width + width * width + (out or 1536) * (width + hidden)
