"""Where the layers go: devices in order, a part on the host, experts in host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from enginekit.facts.model import ModelSpec
from enginekit.sizing.budget import Device
from enginekit.sizing.kinds import kinds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placement:
    """Layers on devices; equal only to itself, so that a search finds what it knows of it at once.

    `bounds[k]` to `bounds[k + 1]` are on `gpus[k]`; layers before `bounds[0]` are on the host, and
    so are the routed experts of all layers before `host_experts`.
    """

    gpus: tuple[Device, ...]
    bounds: tuple[int, ...]
    host_experts: int = 0
    copies: int = 1
    """Copies of inputs that llama.cpp keeps for pipelining: 4 over several GPUs that hold all."""
    room: int = field(init=False)
    """What its GPUs can hold together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "room", sum([gpu.limit for gpu in self.gpus]))

    @property
    def host_layers(self) -> int:
        """Whole layers in host memory."""
        return self.bounds[0]

    @property
    def parts(self) -> list[tuple[int, int]]:
        """First layer and the one after the last of each GPU."""
        return list(pairwise(self.bounds))

    @property
    def borrows(self) -> bool:
        """Whether its GPUs draw on the host's memory; those of one plan are of one kind."""
        return bool(self.gpus) and self.gpus[0].shared


def layered(
    n_layers: int, gpus: tuple[Device, ...], first: int = 0, host_experts: int = 0
) -> Placement:
    """llama.cpp's own split: by count, in proportion to what each device has.

    The output matrix counts as one more layer behind the last.
    """
    if not gpus:
        return Placement(gpus=(), bounds=(n_layers,))
    if len(gpus) == 1:
        return Placement(gpus=gpus, bounds=(first, n_layers), host_experts=host_experts)
    budgets = [max(gpu.budget, 1) for gpu in gpus]
    units, total = n_layers - first + 1, sum(budgets)
    bounds, running = [first], 0
    for budget in budgets[:-1]:
        running += budget
        bounds.append(min(first - (-running * units // total), n_layers))
    bounds.append(n_layers)
    # With layers or experts in host memory there is no pipeline (llama-context.cpp).
    copies = 1 if first or host_experts else 4
    return Placement(gpus=gpus, bounds=tuple(bounds), host_experts=host_experts, copies=copies)


def gpu_counts(available: int) -> tuple[int, ...]:
    """How many GPUs to try: 1, 2, 4, … and all."""
    counts = []
    count = 1
    while count < available:
        counts.append(count)
        count *= 2
    return (*counts, available) if available else ()


def tensor_splits(
    spec: ModelSpec, available: int, replicates: bool = True, pipelines: bool = True
) -> Iterator[tuple[int, int]]:
    """Tensor and pipeline parallel degrees that an engine accepts, fewest GPUs first.

    Heads must divide evenly, those of K and V too, or be copied evenly where the engine does so
    (`replicates`). Pipeline stages are tried where tensor parallelism alone cannot use the GPUs
    and the engine has them (`pipelines`).
    """
    seen = set()
    for count in gpu_counts(available):
        split = tensor_split(spec, count, replicates, pipelines)
        if split not in seen:
            seen.add(split)
            yield split


def tensor_split(
    spec: ModelSpec, count: int, replicates: bool = True, pipelines: bool = True
) -> tuple[int, int]:
    """Tensor and pipeline parallel degrees for so many GPUs; without `pipelines` some stay idle."""
    if not pipelines:
        return max(_tensor(spec, fewer, replicates) for fewer in gpu_counts(count)), 1
    tensor = _tensor(spec, count, replicates)
    return tensor, min(count // tensor, max(spec.n_layers, 1))


def _tensor(spec: ModelSpec, count: int, replicates: bool) -> int:
    """The largest tensor parallel degree that divides so many GPUs evenly."""
    return next(t for t in range(count, 0, -1) if count % t == 0 and _divides(spec, t, replicates))


@lru_cache(maxsize=4096)
def _divides(spec: ModelSpec, tensor: int, replicates: bool) -> bool:
    """Whether the heads of every layer can be divided; a latent is the same on every GPU."""
    for layer, _ in kinds(spec):
        if layer.heads % tensor:
            return False
        kv = 0 if layer.attention == "mla" else layer.kv_heads
        if kv % tensor and not (replicates and tensor % kv == 0):
            return False
    return True


def largest(fits: Callable[[int], int], low: int, high: int) -> int:
    """The largest `n` in `low..high` with `fits(n) <= 0`, for a function that never falls.

    Interpolates, because sizes are nearly linear in contexts and users; halves where it must.
    Returns `low - 1` if even `low` does not fit.
    """
    if high < low:
        return low - 1
    at_low = fits(low)
    if at_low > 0:
        return low - 1
    at_high = fits(high)
    if at_high <= 0:
        return high
    halve = False
    while high - low > 1:
        middle = (low + high) // 2
        if not halve:
            share = -at_low / (at_high - at_low)
            middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        width, value = high - low, fits(middle)
        if value <= 0:
            low, at_low = middle, value
        else:
            high, at_high = middle, value
        halve = (high - low) * 2 > width and not halve
    return low
