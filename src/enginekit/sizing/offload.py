"""What a GPU needs for weights that stay in host memory (llama.cpp's `--op-offload`, on by default).

Batches of 32 tokens and more are computed on the first GPU with a copy of one matrix at a time: of
one with all experts of a layer. The copy lies in the compute buffer, so that a plan with experts in
RAM that does not count it is hundreds of MiB too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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
    experts, dense = _alive(table.layers, table.experts, gated)
    return max(experts[max(place.host_experts, place.host_layers)], dense[place.host_layers])


@lru_cache(maxsize=1024)
def _alive(
    layers: tuple[int, ...], experts: tuple[int, ...], gated: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The largest copy by the number of layers whose experts, and of those that are wholly, there."""
    routed = [after - before for before, after in pairwise(experts)]
    whole = [after - before for before, after in pairwise(layers)]
    dense = [(size - part) * _FEED_FORWARD for size, part in zip(whole, routed, strict=True)]
    return _matrices(routed, gated), _matrices(dense, True)


def _matrices(blocks: Sequence[float], gated: bool) -> tuple[int, ...]:
    """Entry `i`: what of the feed-forward blocks before `i` is alive at once."""
    sizes, least, most = [0], 0.0, 0.0
    for size in blocks:
        if size > 0:
            least, most = min(least or size, size), max(most, size)
        mixed = most > 1.01 * least
        sizes.append(int(most * (_PAIR if mixed else 1 / 3 if gated else 1 / 2)))
    return tuple(sizes)
