"""The part of a model that sees or hears: what it takes, and where engines put it.

llama.cpp loads it from a GGUF file of its own (`mmproj`), which `-hf` fetches and loads unless told
`--no-mmproj`; `-m FILE` loads none by itself. Ollama starts the same server and always hands it the
projector that comes with a model. Engines of safetensors load the publisher's whole checkpoint.
"""

from __future__ import annotations

import re
from typing import Final

from enginekit.facts.model import ModelSpec
from enginekit.sizing.policy import MIB, Policy, Triple
from enginekit.sizing.quantization import BLOCKS
from enginekit.sizing.split import Placement

NOTHING: Final[Triple] = (0, 0, 0)

_ENCODER: Triple = (100 * MIB, 400 * MIB, 800 * MIB)
"""Working memory of an encoder beside its weights."""

_DIGITS: Final = re.compile(r"\d+")


def sees(spec: ModelSpec, policy: Policy) -> bool:
    """Whether this engine would load something beside the text model."""
    return bool(weights(spec, policy, ""))


def weights(spec: ModelSpec, policy: Policy, quantization: str) -> int:
    """Bytes of the projector's tensors; 0 for a model, or an engine, of text alone.

    Args:
        spec: the model.
        policy: whose rules.
        quantization: the text model's; llama.cpp takes the projector file nearest to it.
    """
    if policy.images == "none" and spec.architecture not in policy.towers:
        return 0
    if spec.projector_bytes:
        return spec.projector_bytes
    kinds = spec.projector_types if policy.names == "gguf" else ()
    bits = BLOCKS[nearest(kinds, quantization)].bits_per_weight if kinds else 16
    return int(spec.tower_params * bits / 8)


def nearest(kinds: tuple[str, ...], quantization: str) -> str:
    """The projector that `-hf` takes: the first whose bits are nearest to the model's.

    `find_best_sibling` in llama.cpp's common/download.cpp compares the first digits of both labels.
    """
    own = _bits(quantization)
    return min(kinds, key=lambda kind: abs(_bits(kind) - own))


def _bits(label: str) -> int:
    found = _DIGITS.search(label)
    return int(found[0]) if found else 0


def projector(spec: ModelSpec, policy: Policy, quantization: str) -> Triple:
    """Weights and working memory of the projector, low, expected and high; zeros without one."""
    size = weights(spec, policy, quantization)
    if not size:
        return NOTHING
    if policy.images != "file":
        return size, size, size
    low, expected, high = _ENCODER
    return size + low, size + expected, size + high


def held_by(place: Placement, policy: Policy) -> int:
    """The device that holds it: 0 is the first GPU (the host without GPUs), -1 the host.

    Ollama keeps it off the GPU when it was told how many layers go there and that is not all of
    them (`shouldDisableMMProjOffload` in llm/llama_server.go).
    """
    return -1 if policy.projector_follows and place.host_layers else 0
