"""The distinct layers of a model: most models repeat one to three kinds, and sizes follow from those."""

from __future__ import annotations

from functools import lru_cache

from enginekit.facts.model import Layer, ModelSpec


@lru_cache(maxsize=1024)
def kinds(spec: ModelSpec) -> tuple[tuple[Layer, tuple[int, ...]], ...]:
    """Each distinct layer with the block numbers that have it, in the order of their first one."""
    # Most sources repeat one object: comparing those is cheaper than hashing ten fields each.
    same: dict[int, list[int]] = {}
    for index, layer in enumerate(spec.layers):
        same.setdefault(id(layer), []).append(index)
    found: dict[Layer, list[int]] = {}
    for numbers in same.values():
        found.setdefault(spec.layers[numbers[0]], []).extend(numbers)
    return tuple((layer, tuple(sorted(numbers))) for layer, numbers in found.items())


@lru_cache(maxsize=1024)
def widest_heads(spec: ModelSpec) -> tuple[int, int]:
    """Query heads and KV heads of the layers that have most; a spec looks at every layer for them."""
    return spec.heads, spec.kv_heads
