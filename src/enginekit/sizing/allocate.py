"""Memory of an engine that allocates what the context needs, device by device (llama.cpp)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from enginekit.facts.model import ModelSpec
from enginekit.sizing.budget import Device, Devices
from enginekit.sizing.calibration import NONE
from enginekit.sizing.compute import llamacpp_compute, llamacpp_host
from enginekit.sizing.offload import copied
from enginekit.sizing.outcome import Amount, DevicePlan, Verdict, Where
from enginekit.sizing.policy import MIB, Policy, Triple
from enginekit.sizing.split import Placement, gpu_counts, largest, layered
from enginekit.sizing.tables import CacheTable, WeightTable, cache_table, stream, weight_table

_ENCODER: Triple = (100 * MIB, 400 * MIB, 800 * MIB)
"""Working memory of an image encoder beside its weights."""

_COMPUTE_LOW = 0.85
"""CUDA builds stay up to 15 per cent below the closed form, which was measured on CPU."""


class Setting(NamedTuple):
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

    @property
    def expected(self) -> int:
        """All of it."""
        return self.attention + self.state + self.compute[1] + self.projector[1] + self.runtime[1]

    @property
    def high(self) -> int:
        """The upper end."""
        fixed = self.attention + self.doubt + self.state
        return fixed + self.compute[2] + self.projector[2] + self.runtime[2]


_NOTHING: Triple = (0, 0, 0)


class _Row(NamedTuple):
    """One device of a placement with everything that does not depend on context and slots."""

    limit: int
    margin: int
    cells: tuple[int, ...]
    """Cache bytes per cell, by window in the order of `CacheTable.windows`."""
    state: int
    """Bytes per slot."""
    doubt: float
    """Bytes per token that an unknown layout may need beyond `cells`."""
    expected: int
    """Projector and runtime."""
    high: int
    carve_out: int
    """-1 for a device with memory of its own."""
    host: bool
    beside: bool
    """Whether it is a host with the inputs of GPUs instead of a compute buffer."""


class _Load(NamedTuple):
    """What a context with its slots costs wherever it lies."""

    context: int
    cells: tuple[int, ...]
    """By window, in the order of `CacheTable.windows`."""
    buffer: Triple
    """Of a device that holds layers."""
    beside: Triple
    """Of the host when all layers are on GPUs."""


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
        self._tables: dict[str, WeightTable] = {}
        self._caches: dict[str, CacheTable] = {}
        self._loads: dict[tuple[int, int, int], _Load] = {}
        self._rows: dict[tuple[Placement, str], tuple[_Row, ...]] = {}
        self._lines: dict[tuple[Placement, str, str], tuple[tuple[_Row, int, int], ...]] = {}
        self._runtimes: dict[str, Triple] = {}
        self._places: dict[tuple[int, int, int], Placement] = {}
        self._copies: dict[tuple[str, Placement], int] = {}

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
        table = self.weights(quantization)
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

    def copied(self, quantization: str, place: Placement) -> int:
        """Bytes in the first GPU's compute buffer for weights that lie in host memory."""
        if not place.host_experts and not place.host_layers:
            return 0
        key = (quantization, place)
        found = self._copies.get(key)
        if found is None:
            found = self._copies[key] = copied(self.weights(quantization), place, self.spec)
        return found

    def needs(self, setting: Setting, place: Placement) -> tuple[Needs, ...]:
        """Everything but weights on each GPU in use, then on the host."""
        load = self._load(setting.context, setting.users, place.copies)
        cache, projector = self.cache(setting.cache_type), self._projector()
        parts = list(zip(place.bounds, place.bounds[1:], strict=False))
        parts.append((0, place.host_layers))
        copy = self.copied(setting.quantization, place)
        first_buffer = (load.buffer[0], load.buffer[1] + copy, load.buffer[2] + copy)
        found = []
        for number, device in enumerate((*place.gpus, self.devices.host)):
            first, last = parts[number] if self.sized else (0, 0)
            attention = sum(
                (sums[last] - sums[first]) * cells
                for (_, sums), cells in zip(cache.windows, load.cells, strict=True)
            )
            beside = device.host and bool(place.gpus) and not place.host_layers
            found.append(
                Needs(
                    device=device,
                    attention=attention,
                    doubt=0 if cache.known else int(cache.doubtful(first, last) * load.context),
                    state=(cache.state[last] - cache.state[first]) * setting.users,
                    compute=load.beside if beside else load.buffer if number else first_buffer,
                    projector=projector if number == 0 else _NOTHING,
                    runtime=self._runtime(device),
                )
            )
        return tuple(found)

    def _load(self, tokens: int, slots: int, copies: int) -> _Load:
        """What so many tokens per slot cost wherever they lie."""
        key = (tokens, slots, copies)
        found = self._loads.get(key)
        if found is not None:
            return found
        spec, ubatch, unified = self.spec, self.ubatch, self.policy.unified_slots
        causal, streams = spec.causal, 1 if unified else slots
        each = stream(tokens * slots, slots, unified=unified) if causal else 0
        context = each * streams
        # Windows and cells are the same for every cache type.
        spans = self.cache(self.policy.cache_types[0]).spans(
            context, slots, ubatch, unified=unified
        )
        size = llamacpp_compute(
            spec,
            each,
            ubatch=ubatch,
            outputs=slots if causal else ubatch,
            slots=slots,
            # A mask is as wide as the cache of one slot.
            sliding_cells=max((cells for window, _, cells in spans if window), default=0)
            // streams,
            flash=self.flash,
            copies=copies,
        ).total
        found = self._loads[key] = _Load(
            context,
            tuple(cells for _, _, cells in spans),
            self.calibration.scaled("compute", (int(size * _COMPUTE_LOW), size, size)),
            llamacpp_host(spec, context, ubatch=ubatch),
        )
        return found

    def rows(self, place: Placement, cache_type: str) -> tuple[_Row, ...]:
        """The devices of a placement, the GPUs first, the host last."""
        found = self._rows.get((place, cache_type))
        if found is not None:
            return found
        cache, image = self.cache(cache_type), self._projector()
        parts = [*zip(place.bounds, place.bounds[1:], strict=False), (0, place.host_layers)]
        rows = []
        for device, part in zip((*place.gpus, self.devices.host), parts, strict=True):
            first, last = part if self.sized else (0, 0)
            runtime, host = self._runtime(device), device.host
            rows.append(
                _Row(
                    device.limit,
                    device.margin,
                    tuple([sums[last] - sums[first] for _, sums in cache.windows]),
                    cache.state[last] - cache.state[first],
                    0.0 if cache.known else cache.doubtful(first, last),
                    image[1] + runtime[1],
                    image[2] + runtime[2],
                    device.carve_out if device.shared and not host else -1,
                    host,
                    host and bool(place.gpus) and not place.host_layers,
                )
            )
            image = _NOTHING
        found = self._rows[place, cache_type] = tuple(rows)
        return found

    def _line(
        self, place: Placement, quantization: str, cache_type: str
    ) -> tuple[tuple[_Row, int, int], ...]:
        """Rows with their weights, expected and high; of GPUs that are alike the fullest only."""
        key = (place, quantization, cache_type)
        found = self._lines.get(key)
        if found is None:
            widest = self.weights(quantization).high
            pairs = list(
                zip(self.rows(place, cache_type), self.weights_on(quantization, place), strict=True)
            )
            copy = self.copied(quantization, place)
            if copy:
                # Beside the weights of the first GPU, not multiplied by their doubt.
                first, size = pairs[0]
                pairs[0] = (
                    first._replace(expected=first.expected + copy, high=first.high + copy),
                    size,
                )
            if len(pairs) > 2 and not any(row.carve_out >= 0 for row, _ in pairs):
                # GPUs that are alike: the fullest decides. One that borrows from the host counts.
                most: dict[_Row, int] = {}
                for row, size in pairs:
                    if size > most.get(row, -1):
                        most[row] = size
                pairs = list(most.items())
            found = self._lines[key] = tuple(
                [(row, size, int(size * widest)) for row, size in pairs]
            )
        return found

    def _runtime(self, device: Device) -> Triple:
        found = self._runtimes.get(device.backend)
        if found is None:
            found = self.policy.runtime.get(device.backend, _NOTHING)
            found = self._runtimes[device.backend] = self.calibration.scaled("runtime", found)
        return found

    def _projector(self) -> Triple:
        size = self.spec.projector_bytes
        if not size:
            return _NOTHING
        low, expected, high = _ENCODER
        return size + low, size + expected, size + high

    def excess(self, setting: Setting, place: Placement, *, margin: bool = True) -> int:
        """Bytes by which the tightest device is over; 0 or less when everything has its place.

        With `margin` the rule of verdict `fits`, without it the rule of `tight`. The same sums as
        `devices_of`, written for the thousands of times that a search asks.
        """
        quantization, tokens, slots, cache_type = setting
        context, cells, buffers, beside = self._load(tokens, slots, place.copies)
        _, device_expected, device_high = buffers
        over, lent_expected, lent_high = -(1 << 62), 0, 0
        for row, size, wide in self._line(place, quantization, cache_type):
            limit, kept, kinds, state, doubt, expected, high, carve_out, host, inputs = row
            rest = state * slots
            for per_cell, count in zip(kinds, cells, strict=True):
                rest += per_cell * count
            if inputs:
                expected += size + rest + beside[1]
                high += wide + rest + beside[2]
            else:
                expected += size + rest + device_expected
                high += wide + rest + device_high
            if doubt:
                high += int(doubt * context)
            if carve_out >= 0:
                lent_expected += max(0, expected - carve_out)
                lent_high += max(0, high - carve_out)
            elif host:
                expected, high = expected + lent_expected, high + lent_high
            missing = expected - limit
            if margin:
                missing += kept
                if high - limit > missing:
                    missing = high - limit
            if missing > over:
                over = missing
        return over

    def grade(
        self, setting: Setting, place: Placement, quantizations: Sequence[str]
    ) -> list[Verdict]:
        """The verdict of each quantization, everything else as set."""
        rows = self.rows(place, setting.cache_type)
        if any(row.carve_out >= 0 for row in rows):
            tried = [setting._replace(quantization=name) for name in quantizations]
            return [
                "fits" if self.excess(one, place) <= 0
                else "tight" if self.excess(one, place, margin=False) <= 0
                else "no"
                for one in tried
            ]  # fmt: skip
        own = self.copied(setting.quantization, place)
        rooms = [
            (need.device.limit, need.device.margin, need.expected, need.high)
            for need in self.needs(setting, place)
        ]
        verdicts: list[Verdict] = []
        for name in quantizations:
            widest = self.weights(name).high
            more = self.copied(name, place) - own
            verdict: Verdict = "fits"
            for size, (limit, kept, expected, high) in zip(
                self.weights_on(name, place), rooms, strict=True
            ):
                expected, high, more = expected + more, high + more, 0
                if size + expected > limit:
                    verdict = "no"
                    break
                if size + expected + kept > limit or int(size * widest) + high > limit:
                    verdict = "tight"
            verdicts.append(verdict)
        return verdicts

    # Placements -------------------------------------------------------------------------------

    def whole(self, count: int) -> Placement:
        """Everything on the first `count` GPUs, or on the CPU for none."""
        return self._placed(count, 0, 0)

    def _placed(self, count: int, first: int, moved: int) -> Placement:
        key = (count, first, moved)
        found = self._places.get(key)
        if found is None:
            gpus = self.devices.gpus[:count]
            found = self._places[key] = layered(self.n, gpus, first, host_experts=moved)
        return found

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
            least = largest(lambda left: over(self.without_experts(self.n - left)), 0, self.n)
            if least >= 0:
                return self.without_experts(self.n - least)
        count = len(gpus)
        layers = largest(lambda kept: over(self._placed(count, self.n - kept, 0)), 1, self.n - 1)
        if layers >= 1:
            return self._placed(count, self.n - layers, 0)
        place = self.whole(0)
        return place if over(place) <= 0 else None

    def without_experts(self, moved: int) -> Placement:
        """Everything on GPUs but the routed experts of the first `moved` layers."""
        return self._placed(len(self.devices.gpus), 0, moved)

    def least_count(self, setting: Setting, gpu: Device) -> int:
        """GPUs like this one that it takes at least: what is to be divided over what each has left."""
        buffer = self._load(setting.context, setting.users, 4).buffer
        usable = gpu.budget - buffer[1] - self._runtime(gpu)[1]
        place = self.places()[-1]
        divided = sum(self.weights_on(setting.quantization, place)[:-1])
        divided += sum(need.attention + need.state for need in self.needs(setting, place)[:-1])
        return -(-divided // usable) if usable > 0 else divided

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
