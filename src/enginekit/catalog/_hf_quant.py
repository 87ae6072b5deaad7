"""The quantization of a Hugging Face checkpoint, in one word.

The words are those of `enginekit.sizing.quantization.FORMATS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "F32"}


def quantization_label(
    config: Mapping[str, Any], quant_config: Mapping[str, Any] | None = None
) -> str:
    """`fp8-block`, `awq-int4-g128`, `mlx-4bit`, …, or the data type of unquantized weights.

    Args:
        config: config.json, whole.
        quant_config: modelopt's hf_quant_config.json.
    """
    for place in (config, config.get("text_config"), config.get("llm_config")):
        if not isinstance(place, Mapping):
            continue
        found = place.get("quantization_config")
        if isinstance(found, Mapping):
            return _from_method(found)
        mlx = place.get("quantization")
        if isinstance(mlx, Mapping) and "bits" in mlx:
            return _mlx(mlx)
    if isinstance(quant_config, Mapping):
        inner = quant_config.get("quantization")
        return _modelopt(inner if isinstance(inner, Mapping) else quant_config)
    for place in (config, config.get("text_config"), config.get("llm_config")):
        if isinstance(place, Mapping):
            dtype = place.get("torch_dtype") or place.get("dtype")
            if isinstance(dtype, str):
                return _DTYPES.get(dtype, "bf16")
    return "bf16"


def _int(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _group(value: object, default: int = 128) -> int:
    size = _int(value, default)
    return size if size in (32, 64, 128) else default


def _from_method(found: Mapping[str, Any]) -> str:
    method = str(found.get("quant_method", "")).lower()
    bits = _int(found.get("bits"), 4)
    group = _group(found.get("group_size"))
    if method == "fp8" or method.endswith("_fp8"):
        return "fp8-block" if found.get("weight_block_size") else "fp8"
    if method in ("awq", "gptq"):
        return f"{method}-int{bits}-g{group}"
    if method == "auto-round":
        return f"gptq-int{bits}-g{group}"
    if method == "mxfp4":
        return "mxfp4"
    if method in ("bitsandbytes", "bnb"):
        if found.get("load_in_8bit") or found.get("_load_in_8bit"):
            return "bnb-int8"
        return "bnb-nf4-double" if found.get("bnb_4bit_use_double_quant") else "bnb-nf4"
    if method == "compressed-tensors":
        return _compressed(found)
    if method == "modelopt":
        return _modelopt(found)
    if "bits" in found and not method:
        return _mlx(found)
    return "bf16"


def _mlx(found: Mapping[str, Any]) -> str:
    bits, group = _int(found.get("bits"), 4), _group(found.get("group_size"), 64)
    return f"mlx-{bits}bit" if group == 64 else f"mlx-{bits}bit-g{group}"


def _modelopt(found: Mapping[str, Any]) -> str:
    algorithm = str(found.get("quant_algo", found.get("quant_method", ""))).upper()
    if "NVFP4" in algorithm or "FP4" in algorithm:
        return "nvfp4"
    if "FP8" in algorithm:
        return "fp8-block" if "BLOCK" in algorithm else "fp8"
    if "W4A16" in algorithm or "AWQ" in algorithm:
        return f"awq-int4-g{_group(found.get('group_size'))}"
    return "bf16"


def _compressed(found: Mapping[str, Any]) -> str:
    if "nvfp4" in str(found.get("format", "")):
        return "nvfp4"
    groups = found.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            continue
        bits = _int(weights.get("num_bits"), 8)
        if str(weights.get("type")) == "float":
            if bits == 4:
                return "nvfp4" if _int(weights.get("group_size"), 16) == 16 else "mxfp4"
            return "fp8-block" if weights.get("strategy") == "block" else "fp8"
        if bits == 4:
            return f"w4a16-g{_group(weights.get('group_size'))}"
        inputs = group.get("input_activations")
        return "int8" if isinstance(inputs, Mapping) else "w8a16"
    return "bf16"
