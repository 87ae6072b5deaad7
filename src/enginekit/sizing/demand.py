"""What a model asks of devices under one policy, whatever the machine.

A search asks for many settings that differ in one value, and a list of machines for the same ones
again and again: what depends on the quantization and what depends on context, slots and cache type
are kept apart and remembered. Nothing here knows how much a device has.
"""

from __future__ import annotations

from functools import lru_cache
from operator import sub
from typing import TypeVar

from enginekit.facts.model import ModelSpec
from enginekit.sizing.calibration import NONE, Calibration
from enginekit.sizing.compute import llamacpp_compute, llamacpp_host
from enginekit.sizing.kv_cache import pad
from enginekit.sizing.offload import copied
from enginekit.sizing.policy import Policy, Triple
from enginekit.sizing.projector import NOTHING, held_by, projector
from enginekit.sizing.rows import Load, Part
from enginekit.sizing.split import Placement
from enginekit.sizing.tables import (
    CacheTable,
    WeightTable,
    cache_table,
    stream,
    weight_table,
)

_COMPUTE_LOW = 0.85
"""CUDA builds stay up to 15 per cent below the closed form, which was measured on CPU."""

_MOST = 1024
"""Answers of one kind that are remembered; then it starts anew."""

Sums = tuple[tuple[int, ...], tuple[int, ...]]
Key = TypeVar("Key")
Value = TypeVar("Value")


class Demand:
    """The sizes of one model under one policy; safe to share, for all that it keeps is derived."""

    def __init__(
        self,
        spec: ModelSpec,
        policy: Policy,
        ubatch: int,
        *,
        flash: bool = True,
        images: bool = True,
        calibration: Calibration = NONE,
    ) -> None:
        self.spec, self.policy, self.ubatch = spec, policy, ubatch
        self.flash, self.images, self.calibration = flash, images, calibration
        self.sized = bool(spec.layers)
        serves = spec.capabilities
        self.embeds = bool(serves.embedding or serves.rerank)
        self.loads: dict[tuple[int, int, int], Load] = {}
        """What `load` has answered, for callers to whom a call would cost as much as looking."""
        self._tables: dict[str, WeightTable] = {}
        self._caches: dict[str, CacheTable] = {}
        self._seeing: dict[str, Triple] = {}
        self._copies: dict[tuple[str, int, int, str], int] = {}
        self._sums: dict[tuple[str, tuple[int, ...], int, str], Sums] = {}
        self._parts: dict[tuple[tuple[int, ...], str], tuple[Part, ...]] = {}

    def weights(self, quantization: str) -> WeightTable:
        """Running sums of the weights."""
        found = self._tables.get(quantization)
        if found is None:
            found = _keep(self._tables, quantization, weight_table(self.spec, quantization))
        return found

    def cache(self, cache_type: str) -> CacheTable:
        """Running sums of the cache."""
        found = self._caches.get(cache_type)
        if found is None:
            table = cache_table(self.spec, cache_type, self.flash)
            found = _keep(self._caches, cache_type, table)
        return found

    def projector(self, quantization: str) -> Triple:
        """Weights and working memory of what sees, beside text models of this quantization."""
        if not self.images:
            return NOTHING
        found = self._seeing.get(quantization)
        if found is None:
            seen = projector(self.spec, self.policy, quantization, flash=self.flash)
            found = _keep(self._seeing, quantization, seen)
        return found

    def weights_on(self, quantization: str, place: Placement) -> list[int]:
        """Weight bytes of each GPU in use, then of the host."""
        table = self.weights(quantization)
        layers, experts, moved = table.layers, table.experts, place.host_experts
        # What of the layers before each bound is on GPUs, had the GPUs all layers.
        before = [layers[bound] for bound in place.bounds]
        if moved:
            cut = [bound if bound < moved else moved for bound in place.bounds]
            before = list(map(sub, before, [experts[bound] for bound in cut]))
        sizes = list(map(sub, before[1:], before))
        start = place.bounds[0]
        host = table.embedding + layers[start] + experts[max(moved, start)] - experts[start]
        if sizes:
            sizes[-1] += table.tail
        else:
            host += table.tail - table.tied_copy
        sizes.append(host)
        return sizes

    def copied(self, quantization: str, place: Placement) -> int:
        """Bytes in the first GPU's compute buffer for weights that lie in host memory."""
        if not place.gpus or not (place.host_experts or place.bounds[0]):
            return 0
        key = (quantization, place.bounds[0], place.host_experts, place.gpus[0].backend)
        found = self._copies.get(key)
        if found is None:
            size = copied(self.weights(quantization), place, self.spec)
            found = _keep(self._copies, key, size)
        return found

    def sums(self, quantization: str, place: Placement) -> Sums:
        """Of each GPU in use, then of the host: weights, copies and what sees; expected and high."""
        backend = place.gpus[0].backend if place.gpus else ""
        key = (quantization, place.bounds, place.host_experts, backend)
        found = self._sums.get(key)
        if found is None:
            found = _keep(self._sums, key, self._summed(quantization, place))
        return found

    def _summed(self, quantization: str, place: Placement) -> Sums:
        widest = self.weights(quantization).high
        sizes = self.weights_on(quantization, place)
        wide = [int(size * widest) for size in sizes]
        # Beside the weights of the first GPU, not multiplied by their doubt.
        copy = self.copied(quantization, place)
        sizes[0] += copy
        wide[0] += copy
        _, expected, most = self.projector(quantization)
        at = held_by(place, self.policy)
        sizes[at] += expected
        wide[at] += most
        return tuple(sizes), tuple(wide)

    def parts(self, place: Placement, cache_type: str) -> tuple[Part, ...]:
        """What each GPU in use, then the host, keeps for every token and slot."""
        key = (place.bounds, cache_type)
        found = self._parts.get(key)
        if found is None:
            cache = self.cache(cache_type)
            ranges = [*place.parts, (0, place.host_layers)]
            if not self.sized:
                ranges = [(0, 0)] * len(ranges)
            found = tuple(
                [
                    Part(
                        tuple([sums[last] - sums[first] for _, sums in cache.windows]),
                        cache.state[last] - cache.state[first],
                        0.0 if cache.known else cache.doubtful(first, last),
                    )
                    for first, last in ranges
                ]
            )
            _keep(self._parts, key, found)
        return found

    def load(self, tokens: int, slots: int, copies: int) -> Load:
        """What so many tokens per slot cost wherever they lie."""
        key = (tokens, slots, copies)
        found = self.loads.get(key)
        return _keep(self.loads, key, self._loaded(*key)) if found is None else found

    def _loaded(self, tokens: int, slots: int, copies: int) -> Load:
        spec, unified, causal = self.spec, self.policy.unified_slots, self.spec.causal
        streams = 1 if unified else slots
        each = stream(tokens * slots, slots, unified=unified) if causal else 0
        context = each * streams
        # No batch is longer than all contexts together; an encoder has none.
        ubatch = min(self.ubatch, pad(tokens * slots)) if causal else self.ubatch
        # Windows and cells are the same for every cache type.
        spans = self.cache(self.policy.cache_types[0]).spans(
            context, slots, ubatch, unified=unified
        )
        size = llamacpp_compute(
            spec,
            each if causal else ubatch,
            ubatch=ubatch,
            outputs=ubatch if self.embeds else slots,
            slots=slots,
            # A mask is as wide as the cache of one slot.
            sliding_cells=max([cells for window, _, cells in spans if window], default=0)
            // streams,
            flash=self.flash,
            copies=copies,
        ).total
        return Load(
            context,
            tuple([cells for _, _, cells in spans]),
            self.calibration.scaled("compute", (int(size * _COMPUTE_LOW), size, size)),
            llamacpp_host(spec, context, ubatch=ubatch),
        )


def demand(
    spec: ModelSpec,
    policy: Policy,
    ubatch: int,
    *,
    flash: bool = True,
    images: bool = True,
    calibration: Calibration = NONE,
) -> Demand:
    """The sizes of a model: the same object for all machines, but for a calibration's own."""
    if calibration.factors:
        return Demand(spec, policy, ubatch, flash=flash, images=images, calibration=calibration)
    return _shared(spec, policy, ubatch, flash, images)


@lru_cache(maxsize=512)
def _shared(spec: ModelSpec, policy: Policy, ubatch: int, flash: bool, images: bool) -> Demand:
    return Demand(spec, policy, ubatch, flash=flash, images=images)


def _keep(memory: dict[Key, Value], key: Key, value: Value) -> Value:
    if len(memory) >= _MOST:
        memory.clear()
    memory[key] = value
    return value
