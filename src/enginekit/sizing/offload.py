"""What a GPU needs for weights that stay in host memory (llama.cpp's `--op-offload`, on by default).

Batches of 32 tokens and more are computed on the first GPU with a copy of one matrix at a time: of
one with all experts of a layer. The copy lies in the compute buffer, so that a plan with experts in
RAM that does not count it is hundreds of MiB too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from enginekit.facts.model import ModelSpec
from enginekit.sizing.split import Placement
from enginekit.sizing.tables import WeightTable

_BACKENDS: Final = frozenset({"cuda", "rocm", "vulkan", "xpu"})
"""Those whose builds compute with weights of the host; Metal and the host share theirs."""

_PAIR: Final = 0.72
"""Two matrices of a block by its size, where their types differ: 4.5 and 6.56 bits of the 15.6 that
Q4_K_M spends on three. The place of the smaller one is no use to the larger, and both are kept."""

_FEED_FORWARD: Final = 0.8
"""The part of a layer without experts that is its feed-forward block: two thirds to four fifths."""


def copied(table: WeightTable, place: Placement, spec: ModelSpec) -> int:
    """Bytes in the first GPU's compute buffer; 0 where no weights are on the host.

    Measured with the experts of Qwen3-235B in RAM: 1024 MiB at Q8_0, of which 816 are one matrix of
    128 experts, and 774 MiB at Q6_K, of which 630 are (ikawrakow/ik_llama.cpp discussion 357 and
    pull request 370, both with ggml-org/llama.cpp).
    """
    if not place.gpus or place.gpus[0].backend not in _BACKENDS:
        return 0
    gated = spec.experts is None or spec.experts.gated
    moved = _differences(table.experts, max(place.host_experts, place.host_layers))
    whole = _differences(table.layers, place.host_layers)
    dense = [(size - experts) * _FEED_FORWARD for size, experts in zip(whole, moved, strict=False)]
    return max(_matrix(moved, gated), _matrix(dense, True))


def _differences(sums: Sequence[int], last: int) -> list[int]:
    return [after - before for before, after in pairwise(sums[: last + 1])]


def _matrix(blocks: Sequence[float], gated: bool) -> int:
    """The largest that is alive of the feed-forward blocks of some layers."""
    sizes = [size for size in blocks if size > 0]
    if not sizes:
        return 0
    mixed = max(sizes) > 1.01 * min(sizes)
    return int(max(sizes) * (_PAIR if mixed else 1 / 3 if gated else 1 / 2))
