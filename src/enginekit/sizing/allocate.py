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
from enginekit.sizing.tables import CacheTable, WeightTable, cache_table, pad, weight_table

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
    """Bytes on one device before ranges are put on them."""

    weights: int
    attention: int
    doubt: int
    """What the cache may need beyond `attention`; above 0 only for unknown layouts."""
    state: int
    compute: Triple
    projector: Triple
    runtime: Triple


class Allocation:
    """The arithmetic of one model under one policy on one set of devices."""

    def __init__(self, spec: ModelSpec, policy: Policy, devices: Devices, ubatch: int) -> None:
        self.spec, self.policy, self.devices, self.ubatch = spec, policy, devices, ubatch
        self.n = max(spec.n_layers, 1)
        self.sized = bool(spec.layers)
        self.flash = True
        self.calibration = NONE

    def tables(self, setting: Setting) -> tuple[WeightTable, CacheTable]:
        """Running sums of weights and cache."""
        return (
            weight_table(self.spec, setting.quantization),
            cache_table(self.spec, setting.cache_type),
        )

    def needs(self, setting: Setting, place: Placement) -> list[tuple[Device, Needs]]:
        """Every device in use with its bytes; the host comes last."""
        weights, cache = self.tables(setting)
        slots = setting.users
        context = pad(setting.context * slots) if self.spec.causal else 0
        sliding = cache.sliding_cells(context, slots, self.ubatch)
        compute = llamacpp_compute(
            self.spec,
            context,
            ubatch=self.ubatch,
            outputs=slots if self.spec.causal else self.ubatch,
            sliding_cells=sliding,
            flash=self.flash,
            copies=place.copies,
        ).total
        scaled = self.calibration.scaled
        buffer = scaled("compute", (int(compute * _COMPUTE_LOW), compute, compute))
        result = []
        last_gpu = len(place.gpus) - 1
        for number, gpu in enumerate(place.gpus):
            first, last = place.bounds[number], place.bounds[number + 1]
            size = weights.layers[last] - weights.layers[first]
            moved = min(place.host_experts, last)
            if moved > first:
                size -= weights.experts[moved] - weights.experts[first]
            if number == last_gpu:
                size += weights.tail
            result.append(
                (
                    gpu,
                    Needs(
                        size,
                        *self._cache(cache, first, last, context, slots),
                        buffer,
                        self._projector() if number == 0 else (0, 0, 0),
                        scaled("runtime", self.policy.runtime.get(gpu.backend, (0, 0, 0))),
                    ),
                )
            )
        result.append((self.devices.host, self._host(setting, place, context, buffer)))
        return result

    def _cache(
        self, cache: CacheTable, first: int, last: int, context: int, slots: int
    ) -> tuple[int, int, int]:
        if not self.sized:
            return 0, 0, 0
        return (
            cache.attention(first, last, context, slots, self.ubatch),
            cache.extra(first, last, context),
            cache.recurrent(first, last, slots),
        )

    def _projector(self) -> Triple:
        size = self.spec.projector_bytes
        if not size:
            return 0, 0, 0
        low, expected, high = _ENCODER
        return size + low, size + expected, size + high

    def _host(self, setting: Setting, place: Placement, context: int, buffer: Triple) -> Needs:
        weights, cache = self.tables(setting)
        first = place.host_layers
        size = weights.embedding + weights.layers[first]
        if place.host_experts > first:
            size += weights.experts[place.host_experts] - weights.experts[first]
        if not place.gpus:
            size += weights.tail - weights.tied_copy
        if place.gpus and not first:
            buffer = llamacpp_host(self.spec, context, ubatch=self.ubatch)
        return Needs(
            size,
            *self._cache(cache, 0, first, context, setting.users),
            buffer,
            (0, 0, 0) if place.gpus else self._projector(),
            self.policy.runtime.get("cpu", (0, 0, 0)),
        )

    def excess(self, setting: Setting, place: Placement, *, margin: bool = True) -> int:
        """Bytes by which the tightest device is over; 0 or less when everything has its place.

        With `margin` the rule of verdict `fits`, without it the rule of `tight`.
        """
        weights = weight_table(self.spec, setting.quantization)
        over = -(1 << 62)
        lent_expected = lent_high = 0
        for device, need in self.needs(setting, place):
            rest = need.attention + need.state
            expected = need.weights + rest + need.compute[1] + need.projector[1] + need.runtime[1]
            high = (
                int(need.weights * weights.high) + rest + need.doubt
                + need.compute[2] + need.projector[2] + need.runtime[2]
            )  # fmt: skip
            if device.host:
                expected, high = expected + lent_expected, high + lent_high
            elif device.shared:
                lent_expected += max(0, expected - device.carve_out)
                lent_high += max(0, high - device.carve_out)
            if margin:
                over = max(over, expected - device.budget, high - device.limit)
            else:
                over = max(over, expected - device.limit)
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
        weights, cache = self.tables(setting)
        doubtful = "unknown attention layout: from nothing to a cell for every query head"
        shown = []
        for number, (device, need) in enumerate(self.needs(setting, place)):
            terms = {
                "weights": Amount(
                    low=int(need.weights * weights.low),
                    expected=need.weights,
                    high=int(need.weights * weights.high),
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
