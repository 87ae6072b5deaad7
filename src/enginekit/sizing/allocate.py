"""Memory of an engine that allocates what the context needs, device by device (llama.cpp)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from copy import copy as clone
from operator import mul
from typing import NamedTuple

from enginekit.facts.model import ModelSpec
from enginekit.sizing.budget import Device, Devices
from enginekit.sizing.calibration import NONE, Calibration
from enginekit.sizing.demand import demand
from enginekit.sizing.outcome import Where
from enginekit.sizing.policy import Policy, Triple
from enginekit.sizing.projector import NOTHING, held_by
from enginekit.sizing.rows import Line, Needs, Row
from enginekit.sizing.split import Placement, gpu_counts, largest, layered
from enginekit.sizing.tables import narrower, runs


class Setting(NamedTuple):
    """What a search may change."""

    quantization: str
    context: int
    """Tokens per user."""
    users: int
    cache_type: str


class Allocation:
    """The arithmetic of one model under one policy on one set of devices.

    A search asks for many settings that differ in one value, so what depends on the quantization
    and what depends on context, slots and cache type are kept apart and remembered.
    """

    def __init__(
        self,
        spec: ModelSpec,
        policy: Policy,
        devices: Devices,
        ubatch: int,
        *,
        images: bool = True,
        flash: bool = True,
        calibration: Calibration = NONE,
    ) -> None:
        self.spec, self.policy, self.devices, self.ubatch = spec, policy, devices, ubatch
        self.images, self.flash, self.calibration = images, flash, calibration
        self.n = max(spec.n_layers, 1)
        self._ask(images)
        self._rows: dict[tuple[tuple[int, ...], str], tuple[Row, ...]] = {}
        self._alike: dict[tuple[tuple[int, ...], str], list[tuple[Row, list[int]]]] = {}
        self._wholes: list[Placement] = []
        self._roomy: dict[str, list[Placement]] = {}
        self._runtimes: dict[tuple[str, tuple[int, int] | None], Triple] = {}
        self._places: dict[tuple[int, int, int], Placement] = {}

    def _ask(self, images: bool) -> None:
        """Take the model's demand with or without what sees, and forget what depends on that."""
        self.images = images
        self.demand = demand(
            self.spec,
            self.policy,
            self.ubatch,
            flash=self.flash,
            images=images,
            calibration=self.calibration,
        )
        self.weights, self.weights_on = self.demand.weights, self.demand.weights_on
        self.cache, self.projector = self.demand.cache, self.demand.projector
        self.copied = self.demand.copied
        self._loads = self.demand.loads
        self._lines: dict[tuple[Placement, str, str], list[Line]] = {}
        self._needs: dict[
            tuple[tuple[int, ...], int, int, int, str, int, int], tuple[Needs, ...]
        ] = {}
        self._offloaded: dict[tuple[Setting, bool], Placement | None] = {}

    def needs(self, setting: Setting, place: Placement) -> tuple[Needs, ...]:
        """Everything but weights on each GPU in use, then on the host."""
        copy = self.copied(setting.quantization, place)
        image = self.projector(setting.quantization)
        tokens, users, kind = setting[1:]
        key = (place.bounds, place.copies, tokens, users, kind, copy, image[1])
        found = self._needs.get(key)
        if found is not None:
            return found
        load = self.demand.load(setting.context, setting.users, place.copies)
        images = [NOTHING] * (len(place.gpus) + 1)
        images[held_by(place, self.policy)] = image
        buffer = load.buffer
        buffer = (buffer[0], buffer[1] + copy, buffer[2] + copy)
        needs = []
        for own, row, seen in zip(
            (*place.gpus, self.devices.host),
            self.rows(place, setting.cache_type),
            images,
            strict=True,
        ):
            needs.append(
                Needs(
                    device=own,
                    attention=sum(map(mul, row.cells, load.cells)),
                    doubt=int(row.doubt * load.context),
                    state=row.state * setting.users,
                    compute=load.beside if row.beside else buffer,
                    projector=seen,
                    runtime=self._runtime(own),
                )
            )
            buffer = load.buffer
        found = self._needs[key] = tuple(needs)
        return found

    def rows(self, place: Placement, cache_type: str) -> tuple[Row, ...]:
        """The devices of a placement, the GPUs first, the host last."""
        # Of so many GPUs it is always the first ones, so the bounds name them.
        key = (place.bounds, cache_type)
        found = self._rows.get(key)
        if found is not None:
            return found
        rows = []
        for device, part in zip(
            (*place.gpus, self.devices.host), self.demand.parts(place, cache_type), strict=True
        ):
            runtime, host = self._runtime(device), device.host
            rows.append(
                Row(
                    device.limit,
                    device.margin,
                    part.cells,
                    part.state,
                    part.doubt,
                    runtime[1],
                    runtime[2],
                    device.carve_out if device.shared and not host else -1,
                    host,
                    host and bool(place.gpus) and not place.host_layers,
                )
            )
        found = self._rows[key] = tuple(rows)
        return found

    def _kinds(self, place: Placement, cache_type: str) -> list[tuple[Row, list[int]]]:
        """Rows with the numbers of the devices that they stand for.

        Of GPUs that are alike the fullest decides; but each that borrows from the host counts.
        """
        key = (place.bounds, cache_type)
        found = self._alike.get(key)
        if found is None:
            rows = self.rows(place, cache_type)
            if len(rows) < 3 or place.borrows:
                found = [(row, [number]) for number, row in enumerate(rows)]
            else:
                numbers: dict[Row, list[int]] = {}
                for number, row in enumerate(rows):
                    numbers.setdefault(row, []).append(number)
                found = list(numbers.items())
            self._alike[key] = found
        return found

    def _line(self, place: Placement, quantization: str, cache_type: str) -> list[Line]:
        """The rows of a placement with their weights, expected and high; remembered."""
        sizes, wide = self.demand.sums(quantization, place)
        found = []
        for row, numbers in self._kinds(place, cache_type):
            if len(numbers) == 1:
                size, high = sizes[numbers[0]], wide[numbers[0]]
            else:
                size = max([sizes[number] for number in numbers])
                high = max([wide[number] for number in numbers])
            found.append((row, size + row.expected, high + row.high))
        self._lines[place, quantization, cache_type] = found
        return found

    def _runtime(self, device: Device) -> Triple:
        key = (device.backend, device.capability)
        found = self._runtimes.get(key)
        if found is None:
            policy = self.policy
            found = policy.runtime.get(device.backend, NOTHING)
            if device.backend == "cuda" and device.capability is not None:
                found = policy.contexts.get(device.capability, found)
            found = self._runtimes[key] = self.calibration.scaled("runtime", found)
        return found

    def text_only(self) -> Allocation:
        """The same without what sees; what does not depend on it stays shared."""
        found = clone(self)
        found._ask(images=False)
        return found

    def excess(
        self, setting: Setting, place: Placement, *, margin: bool = True, host: bool = True
    ) -> int:
        """Bytes by which the tightest device is over; 0 or less when everything has its place.

        With `margin` the rule of verdict `fits`, without it the rule of `tight`; without `host` only
        the GPUs are asked. The same sums as `terms.allocated_devices`, written for the thousands of
        times that a search asks.
        """
        quantization, tokens, slots, cache_type = setting
        # Both are known nearly always: a call would cost as much as looking them up.
        load = self._loads.get((tokens, slots, place.copies))
        context, cells, buffers, beside = load or self.demand.load(tokens, slots, place.copies)
        line = self._lines.get((place, quantization, cache_type))
        _, device_expected, device_high = buffers
        over, lent_expected, lent_high = -(1 << 62), 0, 0
        for row, expected, high in line or self._line(place, quantization, cache_type):
            limit, kept, kinds, state, doubt, _, _, carve_out, on_host, inputs = row
            if on_host and not host:
                continue
            if len(kinds) == 1:  # one kind of layer, as in most models
                rest = kinds[0] * cells[0] + state * slots
            else:
                rest = sum(map(mul, kinds, cells)) + state * slots
            if inputs:
                expected += rest + beside[1]
                high += rest + beside[2]
            else:
                expected += rest + device_expected
                high += rest + device_high
            if doubt:
                high += int(doubt * context)
            if carve_out >= 0:
                lent_expected += max(0, expected - carve_out)
                lent_high += max(0, high - carve_out)
            elif on_host:
                expected, high = expected + lent_expected, high + lent_high
            missing = expected - limit
            if margin:
                missing += kept
                if high - limit > missing:
                    missing = high - limit
            if missing > over:
                over = missing
        return over

    # Placements -------------------------------------------------------------------------------

    def whole(self, count: int) -> Placement:
        """Everything on the first `count` GPUs, or on the CPU for none."""
        return self._placed(count, 0, 0)

    def _placed(self, count: int, first: int, moved: int) -> Placement:
        key = (count, first, moved)
        found = self._places.get(key)
        if found is None:
            if moved:
                base = self._placed(count, first, 0)
                found = Placement(gpus=base.gpus, bounds=base.bounds, host_experts=moved)
            else:
                found = layered(self.n, self.devices.gpus[:count], first)
            self._places[key] = found
        return found

    def places(self) -> list[Placement]:
        """Everything on GPUs: 1, 2, 4, … of them; the CPU where there are none."""
        if not self._wholes:
            counts = gpu_counts(len(self.devices.gpus))
            self._wholes = [self.whole(count) for count in counts or (0,)]
        return self._wholes

    def roomy(self, quantization: str) -> list[Placement]:
        """Of `places()` those that can hold the weights; no context or cache helps the others."""
        found = self._roomy.get(quantization)
        if found is None:
            table = self.weights(quantization)
            size = table.layers[-1] + table.tail
            found = [place for place in self.places() if not place.gpus or size <= place.room]
            self._roomy[quantization] = found
        return found

    def passing(self, names: Sequence[str], test: Callable[[str], bool]) -> list[str]:
        """The quantizations that pass; where a wider one does, its narrower ones are not tested."""
        found: list[str] = []
        for run in runs(self.spec, tuple(names)):
            if found and narrower(self.spec, found[0], run[0]):
                found += run
            else:
                found += run[bisect_left(run, True, key=test) :]
        return found

    def hosted(self, names: Sequence[str], setting: Setting) -> set[str]:
        """The quantizations that fit with some or all of it in host memory."""
        gpus, host = self.devices.gpus, self.devices.host
        if not gpus or not self.policy.offload:
            return set()
        room = host.limit + sum([gpu.carve_out if gpu.shared else gpu.limit for gpu in gpus])
        none = self.whole(0)

        def alone(name: str) -> bool:
            return self.excess(Setting(name, *setting[1:]), none) <= 0

        there = [name for name in names if self.weights(name).found.total < room]
        found = set(self.passing(there, alone))
        # The copy of one matrix may be larger where the types are mixed: each is asked.
        for name in there:
            if name not in found and self.offloaded(Setting(name, *setting[1:])) is not None:
                found.add(name)
        return found

    def offloaded(self, setting: Setting, *, margin: bool = True) -> Placement | None:
        """The placement that keeps most on the GPUs when not all of it fits there."""
        if not self.devices.gpus or not self.policy.offload:
            return None
        key = (setting, margin)
        if key not in self._offloaded:
            self._offloaded[key] = self._offload(setting, margin)
        return self._offloaded[key]

    def _offload(self, setting: Setting, margin: bool) -> Placement | None:
        """Fill the GPUs, then see whether the rest has its place: no split asks less of the host."""

        def over(place: Placement, *, host: bool = False) -> int:
            return self.excess(setting, place, margin=margin, host=host)

        if self.spec.experts is not None:
            left = largest(lambda left: over(self.without_experts(self.n - left)), 0, self.n)
            if left >= 0:
                place = self.without_experts(self.n - left)
                if over(place, host=True) <= 0:
                    return place
        count = len(self.devices.gpus)
        kept = largest(lambda kept: over(self._placed(count, self.n - kept, 0)), 1, self.n - 1)
        if kept >= 1:
            place = self._placed(count, self.n - kept, 0)
            if over(place, host=True) <= 0:
                return place
        # Over several GPUs, layers are dealt anew with each one more: a few more may ask less of each.
        most = min(kept + 2 * count, self.n - 1) if count > 1 else kept
        layers = self.weights(setting.quantization).layers
        room = self.places()[-1].room
        for tried in range(most, kept, -1):
            if layers[-1] - layers[self.n - tried] > room:
                continue
            place = self._placed(count, self.n - tried, 0)
            short = over(place, host=True)
            if short <= 0:
                return place
            if short > over(place):
                break  # the host is short, and with fewer layers on GPUs it will be more so
        place = self.whole(0)
        return place if over(place, host=True) <= 0 else None

    def without_experts(self, moved: int) -> Placement:
        """Everything on GPUs but the routed experts of the first `moved` layers."""
        return self._placed(len(self.devices.gpus), 0, moved)

    def least_count(self, setting: Setting, gpu: Device) -> int:
        """GPUs like this one that it takes at least: what is to be divided over what each has left."""
        buffer = self.demand.load(setting.context, setting.users, 4).buffer
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
