"""What a plan shows of each device: its terms, each with its range and the reason for the width."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from enginekit.sizing.allocate import Allocation, Setting
from enginekit.sizing.budget import Device
from enginekit.sizing.outcome import Amount, DevicePlan
from enginekit.sizing.policy import Triple
from enginekit.sizing.pool import Pooling, Shards
from enginekit.sizing.rows import Needs
from enginekit.sizing.split import Placement
from enginekit.sizing.tables import WeightTable


def allocated_devices(
    sizer: Allocation, setting: Setting, place: Placement
) -> tuple[DevicePlan, ...]:
    """The GPUs of a placement and the host, as an engine fills them that allocates what it needs."""
    weights, known = sizer.weights(setting.quantization), sizer.spec.known_layout
    layers = [*place.parts, (0, place.host_layers) if place.host_layers else None]
    sizes = sizer.weights_on(setting.quantization, place)
    return tuple(
        [
            _plan(need.device, _terms(size, need, weights, known), layers=part)
            for size, need, part in zip(sizes, sizer.needs(setting, place), layers, strict=True)
        ]
    )


def _terms(size: int, need: Needs, weights: WeightTable, known: bool) -> dict[str, Amount]:
    """The terms that take something, in the order in which they are shown."""
    terms: dict[str, Amount] = {}
    widest = int(size * weights.high)
    if widest:
        low = int(size * weights.low)
        terms["weights"] = Amount(low=low, expected=size, high=widest, reason=weights.found.reason)
    if need.attention + need.doubt:
        terms["cache"] = Amount(
            low=need.attention if known else 0,
            expected=need.attention,
            high=need.attention + need.doubt,
            reason="equal to the engine's own figure"
            if known
            else "unknown attention layout: from nothing to a cell for every query head",
        )
    if need.state:
        exact = need.state
        terms["state"] = Amount(low=exact, expected=exact, high=exact, reason="fixed per slot")
    for name, sizes, reason in (
        ("compute", need.compute, "closed form; CUDA builds need up to 15 % less"),
        ("projector", need.projector, "encoder buffers grow with the image"),
        ("runtime", need.runtime, f"{need.device.backend} context of the process"),
    ):
        if sizes[2]:
            terms[name] = _amount(sizes, reason)
    return terms


def pooled_devices(sizer: Pooling, setting: Setting, place: Shards) -> tuple[DevicePlan, ...]:
    """The GPUs that hold one copy of the model; all of a group look alike."""
    fixed = sizer.fixed(setting, place)
    expected, high = sizer.request(setting, place)
    sequences = sizer.rows(place, setting.users)[1]
    users = max(setting.users, 1)
    unknown = not sizer.spec.known_layout
    terms = {
        "weights": _amount(fixed.weights, sizer.weights(setting.quantization).found.reason),
        "cache": Amount(
            low=0 if unknown else expected * users,
            expected=expected * users,
            high=high * users,
            reason="unknown attention layout"
            if unknown
            else "whole blocks, all users at full length",
        ),
        "compute": _amount(
            fixed.compute,
            f"{sequences} rows of {sizer.spec.vocab} logits when sampling; newer kernels need "
            "a third",
        ),
        "projector": _amount(
            fixed.projector, "16 bits; a batch of image tokens is kept while profiling"
        ),
        "runtime": _amount(fixed.runtime, f"{place.gpus[0].backend} libraries of the process"),
    }
    terms = {name: term for name, term in terms.items() if term.high}
    per_stage = sizer.spec.n_layers // max(place.pipeline, 1)
    shown = []
    for number, gpu in enumerate(place.gpus):
        stage = number // place.tensor
        last = (stage + 1) * per_stage if stage < place.pipeline - 1 else sizer.spec.n_layers
        pool = max(gpu.budget - fixed.total(1), 0)
        shown.append(_plan(gpu, terms, layers=(stage * per_stage, last), pool=pool))
    return tuple(shown)


def _plan(
    device: Device, terms: Mapping[str, Amount], *, layers: tuple[int, int] | None, pool: int = 0
) -> DevicePlan:
    return DevicePlan(
        name=device.name,
        index=device.index,
        backend=device.backend,
        terms=terms,
        total=device.total,
        free=device.free,
        limit=device.limit,
        margin=device.margin,
        budget_reason=device.reason,
        layers=layers,
        pool=pool,
    )


@lru_cache(maxsize=1024)
def _amount(sizes: Triple, reason: str) -> Amount:
    return Amount(low=sizes[0], expected=sizes[1], high=sizes[2], reason=reason)
