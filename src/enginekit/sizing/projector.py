"""The part of a model that sees or hears: what it takes, and where engines put it.

llama.cpp loads it from a GGUF file of its own (`mmproj`), which `-hf` fetches and loads unless told
`--no-mmproj`; `-m FILE` loads none by itself. Ollama starts the same server and always hands it the
projector that comes with a model. Engines of safetensors load the publisher's whole checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from enginekit.facts.model import ModelSpec
from enginekit.sizing.policy import MIB, Policy, Triple
from enginekit.sizing.split import Placement

NOTHING: Final[Triple] = (0, 0, 0)


class Encoder(NamedTuple):
    """Working memory of llama.cpp's encoder beside its weights, MiB."""

    least: float
    """Of the family's smallest model."""
    start: float
    """Reserved at the start, for the image that it warms up with."""
    most: float
    """For the largest image that it takes; the buffer grows once one comes."""
    without_flash: float
    """At the start without flash attention."""


# llama.cpp b11434's `mtmd_get_memory_usage` on files that hold every key and tensor of a projector
# but no weights. CUDA and ROCm builds print the same figures (tests/fixtures/published).
_QWEN35 = Encoder(161, 248, 480, 4658)
ENCODERS: Final[Mapping[str, Encoder]] = MappingProxyType(
    {
        "gemma3": Encoder(121, 121, 121, 1132),
        "gemma4": Encoder(151, 175, 330, 381),
        "llama4": Encoder(20, 20, 20, 37),
        "minimax-m3": Encoder(53, 53, 119, 206),
        "mistral3": Encoder(64, 65, 258, 258),
        "qwen2vl": Encoder(705, 705, 1719, 4872),
        "qwen3vl": Encoder(322, 372, 808, 4769),
        "qwen3vlmoe": Encoder(322, 372, 808, 4769),
        "qwen35": _QWEN35,
        "qwen35moe": _QWEN35,
        "deepseek2": Encoder(469, 469, 469, 16925),
    }
)
"""By the text model's architecture."""

_UNKNOWN: Final = Encoder(100, 400, 800, 4000)

_DIGITS: Final = re.compile(r"\d+")


def sees(spec: ModelSpec, policy: Policy) -> bool:
    """Whether this engine would load something beside the text model."""
    return bool(weights(spec, policy, ""))


def weights(spec: ModelSpec, policy: Policy, quantization: str) -> int:
    """Bytes of the projector's tensors; 0 for a model, or an engine, of text alone.

    Args:
        spec: the model.
        policy: whose rules.
        quantization: the text model's; llama.cpp takes the projector nearest to it.
    """
    if policy.images == "none" and spec.architecture not in policy.towers:
        return 0
    if spec.projector_bytes:
        return spec.projector_bytes
    if policy.images == "file" and spec.projector_files:
        sizes = dict(spec.projector_files)
        # Ollama's own models have theirs in 16 bits.
        return sizes[nearest(list(sizes), quantization if policy.names == "gguf" else "F16")]
    return 2 * spec.tower_params


def nearest(labels: Sequence[str], quantization: str) -> str:
    """The projector that `-hf` takes: the first whose bits are nearest to the model's.

    `find_best_sibling` in llama.cpp's common/download.cpp compares the first digits of both labels.
    """
    own = bits(quantization)
    return min(labels, key=lambda label: abs(bits(label) - own))


def bits(label: str) -> int:
    """The first digits of a label, 0 without."""
    found = _DIGITS.search(label)
    return int(found[0]) if found else 0


def projector(spec: ModelSpec, policy: Policy, quantization: str, *, flash: bool = True) -> Triple:
    """Weights and working memory of the projector, low, expected and high; zeros without one."""
    size = weights(spec, policy, quantization)
    if not size:
        return NOTHING
    if policy.images != "file":
        return size, size, size
    found = ENCODERS.get(spec.architecture, _UNKNOWN)
    least, start, most, without = found
    if not flash:
        least, start, most = least, without, max(most, without)
    return size + int(least * MIB), size + int(start * MIB), size + int(most * MIB)


def divided(seen: Triple, spec: ModelSpec, tensor: int, batched: int) -> Triple:
    """What of a checkpoint's projector each GPU of a pipeline stage holds; every stage has one.

    Args:
        seen: of one copy.
        spec: the model.
        tensor: GPUs that share it.
        batched: image tokens that vLLM's profiling run holds while the text model runs, its encoder
            budget (`gpu_model_runner.profile_run`): one vector each, four with Qwen3-VL's deepstack.
    """
    if not seen[1]:
        return NOTHING
    low, expected, high = (size // tensor for size in seen)
    kept = 2 * batched * spec.hidden
    return low, expected + kept, high + 4 * kept


def held_by(place: Placement, policy: Policy) -> int:
    """The device that holds it: 0 is the first GPU (the host without GPUs), -1 the host.

    Ollama keeps it off the GPU when it was told how many layers go there and that is not all of
    them (`shouldDisableMMProjOffload` in llm/llama_server.go).
    """
    return -1 if policy.projector_follows and place.host_layers else 0
