"""Which repository an engine of safetensors is told to load, and in which format it then is."""

from __future__ import annotations

from typing import Final

from enginekit.facts.model import ModelSpec
from enginekit.sizing.policy import Policy
from enginekit.sizing.quantization import is_gguf, weight_format

_WIDE: Final = ("", "bf16", "fp16")


def held(model: ModelSpec) -> str:
    """What the repository `model.names.hf`, or the checkpoint looked at, holds; "" is 16 bits."""
    looked_at = model.format in ("safetensors", "pytorch")
    label = model.quantization if looked_at else model.native_format
    label = model.names.hf_quantization or label
    return "" if _same(label, "") else label


def _same(one: str, other: str) -> bool:
    if one.lower() == other.lower():
        return True
    names = [found.name if (found := weight_format(label)) else label for label in (one, other)]
    wide = all(name in _WIDE for name in names)
    # A block-wise FP8 checkpoint is what an engine loads for "fp8".
    return wide or names[0] == names[1] or all(name.startswith("fp8") for name in names)


def conversion(policy: Policy, model: ModelSpec, label: str) -> str:
    """The flag by which an engine makes the format while it loads 16 bits; "" if there is none."""
    if model.format == "gguf" or held(model):
        return ""
    return policy.quantize.get(label, "")


def placeholder(policy: Policy, model: ModelSpec, label: str) -> str:
    """A name in place of a checkpoint that nobody has named; "" if the model's own is the one.

    Only for engines that take names of the Hub's checkpoints.
    """
    if policy.names != "hf":
        return ""
    known = model.format != "gguf" or bool(model.names.hf)
    if known and (_same(label, held(model)) or conversion(policy, model, label)):
        return ""
    base = (model.names.hf or model.name).rstrip("/").rsplit("/", 1)[-1]
    base = base.removesuffix(".gguf").removesuffix("-GGUF").removesuffix("-gguf")
    base = _without_format(base) or "MODEL"
    word = label if is_gguf(label) else label.split("-")[0].upper()
    return f"OWNER/{base}" if _same(label, "") else f"OWNER/{base}-{word}"


def _without_format(base: str) -> str:
    """`Qwen3-8B` of `Qwen3-8B-FP8` and of `Qwen3-8B-GPTQ-Int8`: the format planned is another one."""
    stem, _, tail = base.rpartition("-")
    return _without_format(stem) if stem and weight_format(tail) else base


def said(policy: Policy, model: ModelSpec, label: str) -> str:
    """The note about a command that names a placeholder; "" without one."""
    shown = placeholder(policy, model, label)
    if not shown or not policy.command:
        return ""
    if _same(label, "") and model.format == "gguf":
        return (
            f"planned as the publisher's checkpoint in 16 bits, not as a GGUF file: {shown} stands "
            "for its repository"
        )
    written = "16 bits" if _same(label, "") else label
    return f"{shown} stands for a checkpoint in {written}: bring one, its name is not known"
