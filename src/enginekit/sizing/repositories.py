"""Which files the known repositories of a model hold, and so what an engine can be told to load."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

from enginekit.facts.model import ModelSpec
from enginekit.sizing import gguf_names
from enginekit.sizing.policy import Policy
from enginekit.sizing.quantization import is_gguf, weight_format
from enginekit.sizing.quoting import quoted

_SAME_IN_GGUF: Final = MappingProxyType({"mxfp4": "MXFP4_MOE"})
"""Published formats that GGUF files of the model keep."""

_PROJECTOR: Final = "mmproj.gguf"
"""Stands in commands for the projector file that a person has to bring."""

_COMPILED: Final = re.compile(r"-(q\d+b?f\d+(?:_\d+)?)-MLC$", re.IGNORECASE)
"""The quantization in the name of a repository of weights for MLC LLM."""


def compiled_quantization(repository: str) -> str:
    """What a repository of MLC weights holds, from its name; "" if the name does not say."""
    found = _COMPILED.search(repository)
    return found[1] if found else ""


def tag_quantization(model: ModelSpec, policy: Policy) -> str:
    """What an engine loads that is given the model's name alone."""
    names = model.names
    if policy.tags and names.ollama_quantization:
        return names.ollama_quantization
    if policy.made_by:
        return compiled_quantization(names.mlc) or policy.default_quantization
    native = weight_format(model.native_format) if model.native_format else None
    if native is not None and native.format in policy.formats:
        return model.native_format
    if "gguf" in policy.formats and model.native_format in _SAME_IN_GGUF:
        return _SAME_IN_GGUF[model.native_format]
    if "gguf" in policy.formats and not (policy.tags and names.ollama):
        return _held(names.gguf_labels, policy.default_quantization)
    return policy.default_quantization


def _held(labels: tuple[str, ...], usual: str) -> str:
    """The usual label, or of a repository without it the one of fewest bits."""
    return usual if not labels or usual in labels else labels[0]


def to_convert(model: ModelSpec, policy: Policy, label: str, source: str) -> bool:
    """Whether weights must be made before the engine can be started with them.

    Args:
        model: facts of the model.
        policy: how the engine takes models.
        label: the planned quantization.
        source: the local file or folder, if there is one.
    """
    checkpoint = model.format in ("safetensors", "pytorch")
    if "gguf" in policy.formats:
        return checkpoint
    if not policy.made_by:
        return False
    if source:
        return model.format not in policy.formats
    return not model.names.mlc or compiled_quantization(model.names.mlc) not in ("", label)


def lacks(model: ModelSpec, policy: Policy, label: str) -> str:
    """The GGUF repository that the engine would be told, if it has no file of that label; else ""."""
    names = model.names
    labels = names.gguf_labels
    if "gguf" not in policy.formats or not labels or label in labels or not is_gguf(label):
        return ""
    by_tag = policy.tags and names.ollama and label == tag_quantization(model, policy)
    return "" if by_tag else names.gguf


def _brought(policy: Policy, model: ModelSpec, label: str) -> str:
    """The GGUF file that a person has to bring; "" if the engine gets it by a name."""
    names = model.names
    if gguf_names.looked_at(policy, model, label):
        return gguf_names.base(model) if names.revision else ""
    if lacks(model, policy, label):
        name = names.gguf.rsplit("/", 1)[-1]
        return f"{name.removesuffix('-GGUF').removesuffix('-gguf')}-{label}.gguf"
    known = getattr(names, policy.names) or (policy.tags and names.gguf)
    if not known and (policy.names == "gguf" or to_convert(model, policy, label, "")):
        if model.native_format == "mxfp4":
            label = policy.labels.get(label, label)
        return f"{model.name.rsplit('/', 1)[-1]}-{label}.gguf"
    return ""


def by_name(policy: Policy, model: ModelSpec, label: str, sees: bool = False) -> str:
    """The model by the name that the engine knows, with nothing invented where it knows none.

    Args:
        policy: how the engine takes models.
        model: facts of the model.
        label: the planned quantization.
        sees: whether a projector is planned. By a name it comes with the model, beside a file not.
    """
    brought = _brought(policy, model, label)
    file = quoted(brought) if brought else ""
    if file and sees and policy.pair_option:
        return policy.pair_option.format(file, _PROJECTOR)
    if file:
        return policy.file_option.format(file)
    if gguf_names.looked_at(policy, model, label):
        return gguf_names.exact(policy, model, label)
    names = model.names
    name: str = getattr(names, policy.names)
    if policy.tags and names.gguf and not (name and label == tag_quantization(model, policy)):
        return policy.other_option.format(name=names.gguf, quantization=label)
    if model.native_format == "mxfp4":
        label = policy.labels.get(label, label)
    return policy.repo_option.format(name=name or model.name, quantization=label)


def notes(
    model: ModelSpec, policy: Policy, label: str, source: str, start: str, sees: bool = False
) -> Iterator[str]:
    """What must be made before the command runs, and how.

    Args:
        model: facts of the model.
        policy: how the engine takes models.
        label: the planned quantization.
        source: the local file or folder, if there is one.
        start: the command that starts the engine with a folder `DIR` of converted weights.
        sees: whether a projector is planned.
    """
    short = model.name.rsplit("/", 1)[-1]
    lacking = "" if source else lacks(model, policy, label)
    if lacking:
        held = ", ".join(model.names.gguf_labels)
        yield (
            f"{lacking} has no {label} file but {held}: take one of those, another repository, or "
            "make it (llama-quantize of llama.cpp)"
        )
    converted = to_convert(model, policy, label, source)
    named = policy.command and policy.pair_option and (converted or not source)
    if sees and named and _brought(policy, model, label):
        where = f"an mmproj file of {model.names.gguf}" if model.names.gguf else (
            "made by convert_hf_to_gguf.py --mmproj"
        )  # fmt: skip
        yield f"{_PROJECTOR} stands for the projector that comes with the weights: {where}"
    if not converted:
        return
    if policy.made_by:
        folder = quoted(source) if source else "FOLDER"
        own = "" if source else compiled_quantization(model.names.mlc)
        why = f"{model.names.mlc} holds {own}" if own else f"no {label} weights for it are known"
        made = policy.made_by.format(folder=folder, label=label)
        yield f"{why}: make them from the publisher's checkpoint ({made}), then `{start}`"
    elif not model.names.gguf:
        yield (
            f"{short} holds no GGUF file: convert it first "
            "(convert_hf_to_gguf.py and llama-quantize of llama.cpp)"
        )
