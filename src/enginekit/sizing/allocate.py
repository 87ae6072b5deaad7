"""Memory of an engine that allocates what the context needs, device by device (llama.cpp)."""

from __future__ import annotations

from dataclasses import dataclass

from enginekit.facts.model import ModelSpec
from enginekit.sizing.budget import Device, Devices
from enginekit.sizing.calibration import NONE
from enginekit.sizing.compute import llamacpp_compute, llamacpp_host
from enginekit.sizing.outcome import Amount, DevicePlan, Where
from enginekit.sizing.policy import MIB, Policy, Triple
from enginekit.sizing.split import Placement, gpu_counts, largest, layered
from enginekit.sizing.tables import CacheTable, Spans, WeightTable, cache_table, pad, weight_table

_ENCODER: Triple = (100 * MIB, 400 * MIB, 800 * MIB)
"""Working memory of an image encoder beside its weights."""

_COMPUTE_LOW = 0.85
"""CUDA builds stay up to 15 per cent below the closed form, which was measured on CPU."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a search may change."""

    quantization: str
    context: int
    """Tokens per user."""
    users: int
    cache_type: str


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes on one device beside its weights."""

    device: Device
    attention: int
    doubt: int
    """What the cache may need beyond `attention`; above 0 only for unknown layouts."""
    state: int
    compute: Triple
    projector: Triple
    runtime: Triple
    expected: int
    high: int


_NOTHING: Triple = (0, 0, 0)


class Allocation:
    """The arithmetic of one model under one policy on one set of devices.

    A search asks for many settings that differ in one value, so what depends on the quantization
    and what depends on context, slots and cache type are kept apart and remembered.
    """

    def __init__(self, spec: ModelSpec, policy: Policy, devices: Devices, ubatch: int) -> None:
        self.spec, self.policy, self.devices, self.ubatch = spec, policy, devices, ubatch
        self.n = max(spec.n_layers, 1)
        self.sized = bool(spec.layers)
        self.flash = True
        self.calibration = NONE
        self._weights: dict[tuple[str, Placement], tuple[int, ...]] = {}
        self._needs: dict[tuple[int, int, str, Placement], tuple[Needs, ...]] = {}
        self._tables: dict[str, WeightTable] = {}
        self._caches: dict[str, CacheTable] = {}

    def weights(self, quantization: str) -> WeightTable:
        """Running sums of the weights."""
        found = self._tables.get(quantization)
        if found is None:
            found = self._tables[quantization] = weight_table(self.spec, quantization)
        return found

    def cache(self, cache_type: str) -> CacheTable:
        """Running sums of the cache."""
        found = self._caches.get(cache_type)
        if found is None:
            found = self._caches[cache_type] = cache_table(self.spec, cache_type)
        return found

    def weights_on(self, quantization: str, place: Placement) -> tuple[int, ...]:
        """Weight bytes of each GPU in use, then of the host."""
        key = (quantization, place)
        found = self._weights.get(key)
        if found is None:
            found = self._weights[key] = self._weigh(self.weights(quantization), place)
        return found

    def _weigh(self, table: WeightTable, place: Placement) -> tuple[int, ...]:
        layers, experts, moved = table.layers, table.experts, place.host_experts
        sizes = []
        for first, last in zip(place.bounds, place.bounds[1:], strict=False):
            size = layers[last] - layers[first]
            if moved > first:
                size -= experts[min(moved, last)] - experts[first]
            sizes.append(size)
        start = place.host_layers
        host = table.embedding + layers[start]
        if moved > start:
            host += experts[moved] - experts[start]
        if sizes:
            sizes[-1] += table.tail
        else:
            host += table.tail - table.tied_copy
        return (*sizes, host)

    def needs(self, setting: Setting, place: Placement) -> tuple[Needs, ...]:
        """Everything but weights on each GPU in use, then on the host."""
        key = (setting.context, setting.users, setting.cache_type, place)
        found = self._needs.get(key)
        if found is None:
            found = self._needs[key] = self._measure(setting, place)
        return found

    def _measure(self, setting: Setting, place: Placement) -> tuple[Needs, ...]:
        cache, slots, ubatch = self.cache(setting.cache_type), setting.users, self.ubatch
        context = pad(setting.context * slots) if self.spec.causal else 0
        spans = cache.spans(context, slots, ubatch)
        compute = llamacpp_compute(
            self.spec,
            context,
            ubatch=ubatch,
            outputs=slots if self.spec.causal else ubatch,
            sliding_cells=max((cells for window, _, cells in spans if window), default=0),
            flash=self.flash,
            copies=place.copies,
        ).total
        scaled, runtime = self.calibration.scaled, self.policy.runtime
        buffer = scaled("compute", (int(compute * _COMPUTE_LOW), compute, compute))
        projector = self._projector()
        rows = []
        for number, gpu in enumerate(place.gpus):
            part = (place.bounds[number], place.bounds[number + 1])
            own = projector if number == 0 else _NOTHING
            process = scaled("runtime", runtime.get(gpu.backend, _NOTHING))
            rows.append(self._row(gpu, cache, spans, part, context, slots, buffer, own, process))
        part = (0, place.host_layers if self.sized else 0)
        if place.gpus and not place.host_layers:
            buffer = llamacpp_host(self.spec, context, ubatch=ubatch)
        own, process = _NOTHING if place.gpus else projector, runtime.get("cpu", _NOTHING)
        host = self.devices.host
        rows.append(self._row(host, cache, spans, part, context, slots, buffer, own, process))
        return tuple(rows)

    def _row(
        self,
        device: Device,
        cache: CacheTable,
        spans: Spans,
        part: tuple[int, int],
        context: int,
        slots: int,
        compute: Triple,
        projector: Triple,
        runtime: Triple,
    ) -> Needs:
        first, last = part
        if not self.sized:
            first = last = 0
        attention = 0
        for _, sums, cells in spans:
            attention += (sums[last] - sums[first]) * cells
        state = (cache.state[last] - cache.state[first]) * slots
        doubt = 0 if cache.known else cache.extra(first, last, context)
        fixed = attention + state
        return Needs(
            device, attention, doubt, state, compute, projector, runtime,
            fixed + compute[1] + projector[1] + runtime[1],
            fixed + doubt + compute[2] + projector[2] + runtime[2],
        )  # fmt: skip

    def _projector(self) -> Triple:
        size = self.spec.projector_bytes
        if not size:
            return _NOTHING
        low, expected, high = _ENCODER
        return size + low, size + expected, size + high

    def excess(self, setting: Setting, place: Placement, *, margin: bool = True) -> int:
        """Bytes by which the tightest device is over; 0 or less when everything has its place.

        With `margin` the rule of verdict `fits`, without it the rule of `tight`.
        """
        widest = self.weights(setting.quantization).high
        sizes = self.weights_on(setting.quantization, place)
        over = -(1 << 62)
        for size, gpu in zip(sizes, place.gpus, strict=False):
            # Weights alone are too large: the rest need not be known.
            over = max(over, size - gpu.limit)
        if over > 0:
            return over
        lent_expected = lent_high = 0
        for size, need in zip(sizes, self.needs(setting, place), strict=True):
            device = need.device
            expected, high = size + need.expected, int(size * widest) + need.high
            if device.index < 0:
                expected, high = expected + lent_expected, high + lent_high
            elif device.shared:
                lent_expected += max(0, expected - device.carve_out)
                lent_high += max(0, high - device.carve_out)
            limit = device.limit
            if margin:
                over = max(over, expected - limit + device.margin, high - limit)
            else:
                over = max(over, expected - limit)
        return over

    # Placements -------------------------------------------------------------------------------

    def whole(self, count: int) -> Placement:
        """Everything on the first `count` GPUs, or on the CPU for none."""
        return layered(self.n, self.devices.gpus[:count])

    def places(self) -> list[Placement]:
        """Everything on GPUs: 1, 2, 4, … of them; the CPU where there are none."""
        counts = gpu_counts(len(self.devices.gpus))
        return [self.whole(count) for count in counts] or [self.whole(0)]

    def offloaded(self, setting: Setting, *, margin: bool = True) -> Placement | None:
        """The placement that keeps most on the GPUs when not all of it fits there."""
        gpus = self.devices.gpus
        if not gpus or not self.policy.offload:
            return None

        def over(place: Placement) -> int:
            return self.excess(setting, place, margin=margin)

        if self.spec.experts is not None:
            least = largest(lambda left: over(self._experts(self.n - left)), 0, self.n)
            if least >= 0:
                return self._experts(self.n - least)
        layers = largest(lambda kept: over(layered(self.n, gpus, self.n - kept)), 1, self.n - 1)
        if layers >= 1:
            return layered(self.n, gpus, self.n - layers)
        place = self.whole(0)
        return place if over(place) <= 0 else None

    def _experts(self, moved: int) -> Placement:
        return layered(self.n, self.devices.gpus, host_experts=moved)

    def where(self, place: Placement) -> Where:
        """The placement in a word."""
        if not place.gpus:
            return "CPU"
        if place.host_experts:
            return "experts in RAM"
        if place.host_layers:
            return "partly on GPU"
        return "one GPU" if len(place.gpus) == 1 else "several GPUs"

    # Presentation -----------------------------------------------------------------------------

    def devices_of(self, setting: Setting, place: Placement) -> tuple[DevicePlan, ...]:
        """The result, device by device."""
        weights, cache = self.weights(setting.quantization), self.cache(setting.cache_type)
        doubtful = "unknown attention layout: from nothing to a cell for every query head"
        shown = []
        sizes = self.weights_on(setting.quantization, place)
        for number, (size, need) in enumerate(zip(sizes, self.needs(setting, place), strict=True)):
            device = need.device
            terms = {
                "weights": Amount(
                    low=int(size * weights.low),
                    expected=size,
                    high=int(size * weights.high),
                    reason=weights.found.reason,
                ),
                "cache": Amount(
                    low=need.attention if cache.known else 0,
                    expected=need.attention,
                    high=need.attention + need.doubt,
                    reason="equal to the engine's own figure" if cache.known else doubtful,
                ),
                "state": _exact(need.state, "fixed per slot"),
                "compute": _amount(need.compute, "closed form; CUDA builds need up to 15 % less"),
                "projector": _amount(need.projector, "encoder buffers grow with the image"),
                "runtime": _amount(need.runtime, f"{device.backend} context of the process"),
            }
            layers = None
            if not device.host:
                layers = (place.bounds[number], place.bounds[number + 1])
            elif place.host_layers:
                layers = (0, place.host_layers)
            shown.append(
                DevicePlan(
                    name=device.name,
                    index=device.index,
                    backend=device.backend,
                    terms={name: term for name, term in terms.items() if term.high},
                    total=device.total,
                    free=device.free,
                    limit=device.limit,
                    margin=device.margin,
                    budget_reason=device.reason,
                    layers=layers,
                )
            )
        return tuple(shown)


def _exact(size: int, reason: str) -> Amount:
    return Amount(low=size, expected=size, high=size, reason=reason)


def _amount(sizes: Triple, reason: str) -> Amount:
    return Amount(low=sizes[0], expected=sizes[1], high=sizes[2], reason=reason)
