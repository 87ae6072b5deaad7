"""A model's bytes as running sums over its layers, so that any range of layers costs O(1).

`llamacpp_cache` and `weights` are the definitions; these tables hold the same numbers in the form
that a search over contexts, slots and splits needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from operator import le, sub

from enginekit.facts.model import ModelSpec
from enginekit.sizing.kinds import kinds
from enginekit.sizing.kv_cache import LLAMACPP_WINDOWED, cell_bytes, pad, widest_value
from enginekit.sizing.weights import Weights, weights


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightTable:
    """Weights at one quantization; entry `i` of a running sum covers layers before `i`."""

    found: Weights
    layers: tuple[int, ...]
    experts: tuple[int, ...]
    embedding: int
    """Stays on the host; looked up, never multiplied."""
    tail: int
    """What goes to the device of the last layer: output matrix (or a copy of a tied one), norms."""
    tied_copy: int
    """The part of `tail` that the file holds only once."""

    low: float
    high: float
    """Ends of the range as factors of the expected size."""


@lru_cache(maxsize=4096)
def weight_table(spec: ModelSpec, quantization: str, padded: float = 1.0) -> WeightTable:
    """The table; `padded` is how much larger the engine makes routed experts when it loads them."""
    found = weights(spec, quantization)
    layers, experts = found.layers, found.layer_experts
    if not layers:
        # Only a size is known: spread evenly, so that splits still add up.
        count = max(spec.n_layers, 1)
        layers = tuple(
            found.total * (i + 1) // count - found.total * i // count for i in range(count)
        )
        experts = (0,) * count
    if padded != 1.0:
        layers = tuple(
            size + round(part * (padded - 1)) for size, part in zip(layers, experts, strict=True)
        )
        experts = tuple(round(part * padded) for part in experts)
    embedding = found.embedding + found.layer_embedding
    outside = max(found.total - sum(found.layers or layers) - embedding, 0)
    copy = found.embedding if spec.tied_embeddings and spec.causal else 0
    return WeightTable(
        found=found,
        layers=(0, *accumulate(layers)),
        experts=(0, *accumulate(experts)),
        embedding=embedding,
        tail=outside + copy,
        tied_copy=copy,
        low=found.low / found.total if found.total else 1.0,
        high=found.high / found.total if found.total else 1.0,
    )


@lru_cache(maxsize=16384)
def narrower(spec: ModelSpec, wide: str, narrow: str) -> bool:
    """Whether every part of the weights needs no more at `narrow`, nor at the end of its range.

    Then it needs no more than `wide` on any device, however they are split (but for the byte that
    the ends of the ranges are rounded by). Mixtures often are not: they widen single layers.
    """
    one, other = weight_table(spec, wide), weight_table(spec, narrow)
    bounds, sizes = _parts(one), _parts(other)
    if not all(map(le, sizes, bounds)):
        return False
    if max(sizes) * (other.high - one.high) < 0.5:  # as nearly always: the same range, rounded
        return True
    pairs = set(zip(bounds, sizes, strict=True))
    return all(size * other.high <= bound * one.high + 1 for bound, size in pairs)


@lru_cache(maxsize=16384)
def runs(spec: ModelSpec, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The quantizations divided where one is not narrower than the one before it."""
    found: list[tuple[str, ...]] = []
    for name in names:
        if found and narrower(spec, found[-1][-1], name):
            found[-1] = (*found[-1], name)
        else:
            found.append((name,))
    return tuple(found)


def _parts(table: WeightTable) -> list[int]:
    """What one device may have without the rest."""
    layers = list(map(sub, table.layers[1:], table.layers))
    experts = list(map(sub, table.experts[1:], table.experts))
    outside = [table.embedding, table.tail - table.tied_copy, table.tied_copy]
    return [*outside, *experts, *map(sub, layers, experts)]


Spans = tuple[tuple[int, tuple[int, ...], int], ...]
"""Window, running sums of bytes per cell, cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTable:
    """Cache bytes per cell as running sums; one list per distinct window (0 is none)."""

    windows: tuple[tuple[int, tuple[int, ...]], ...]
    unknown: tuple[int, ...]
    """Of the windowless cells, those whose layout is a guess."""
    state: tuple[int, ...]
    """Recurrent bytes per sequence."""
    known: bool
    doubt: float
    """How many times larger an unknown layout could be: every query head with K and V."""

    def spans(self, context: int, slots: int, ubatch: int, *, unified: bool = True) -> Spans:
        """For each window its running sums and the cells of its layers (llama.cpp b11434).

        `context` is that of all slots together, already rounded up (`stream`). In a unified pool a
        window holds its tokens for every slot and one micro-batch; else each slot has a cache of
        its own, with a micro-batch in each.
        """
        streams = 1 if unified else slots
        each, sharing = context // streams, slots if unified else 1
        return tuple(
            [
                (
                    window,
                    sums,
                    streams * pad(min(each, window * sharing + ubatch)) if window else context,
                )
                for window, sums in self.windows
            ]
        )

    def per_token(self, first: int, last: int) -> int:
        """Bytes that each token of past adds in those layers once windows are full."""
        return sum(sums[last] - sums[first] for window, sums in self.windows if not window)

    def doubtful(self, first: int, last: int) -> float:
        """Bytes per token that those layers may need beyond the expected ones."""
        return (self.unknown[last] - self.unknown[first]) * (self.doubt - 1)


def stream(tokens: int, slots: int, *, unified: bool) -> int:
    """Cells of one slot's cache; of the pool where all slots share one."""
    return pad(tokens) if unified else pad(-(-pad(tokens) // slots))


@lru_cache(maxsize=4096)
def cache_table(spec: ModelSpec, cache_type: str, flash: bool = True) -> CacheTable:
    """The table for one element type of K and V, with or without flash attention."""
    honoured, count = spec.architecture in LLAMACPP_WINDOWED, spec.n_layers
    fixed = spec.recurrent.bytes_f32 if spec.recurrent else 0
    widest = 0 if flash else widest_value(spec)
    unknown, state = [0] * count, [0] * count
    windows: dict[int, list[int]] = {}
    for layer, numbers in kinds(spec):
        size = cell_bytes(layer, cache_type, cache_type, widest=widest)
        sizes = windows.setdefault(layer.window if honoured else 0, [0] * count)
        _fill(sizes, numbers, size)
        if layer.attention == "unknown":
            _fill(unknown, numbers, size)
        if layer.recurrent:
            _fill(state, numbers, fixed)
    return CacheTable(
        windows=tuple([(window, (0, *accumulate(windows[window]))) for window in sorted(windows)]),
        unknown=(0, *accumulate(unknown)),
        state=(0, *accumulate(state)),
        known=spec.known_layout,
        doubt=max(spec.heads / max(spec.kv_heads, 1), 1.0),
    )


def _fill(sizes: list[int], layers: Iterable[int], size: int) -> None:
    for layer in layers:
        sizes[layer] = size
