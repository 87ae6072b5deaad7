"""The work of each device of a placement, for the speed estimate, and the split in words."""

from __future__ import annotations

from enginekit.facts.model import ModelSpec
from enginekit.sizing.allocate import Allocation, Setting
from enginekit.sizing.pool import Pooling, Shards
from enginekit.sizing.speed import Stage
from enginekit.sizing.split import Placement
from enginekit.sizing.weights import read_per_token


def allocated_stages(sizer: Allocation, setting: Setting, place: Placement) -> list[Stage]:
    """What each device reads and computes per token; those without work are left out."""
    spec = sizer.spec
    weights, cache = sizer.weights(setting.quantization), sizer.cache(setting.cache_type)
    found = weights.found
    one = read_per_token(spec, found)
    many = read_per_token(spec, found, batch=setting.users)
    # Routed experts are read in part, everything else whole.
    expert_total = max(weights.experts[-1], 1)
    rest = max(found.total - weights.embedding - weights.experts[-1], 0) + weights.tied_copy
    expert_one, expert_many = max(one - rest, 0), max(many - rest, 0)
    stages: list[Stage] = []
    sizes = sizer.weights_on(setting.quantization, place)
    for size, need in zip(sizes, sizer.needs(setting, place), strict=True):
        device = need.device
        number = len(stages)
        if device.host:
            first, last = 0, place.host_layers
            experts = weights.experts[max(place.host_experts, last)]
            plain = weights.layers[last] - weights.experts[last]
            if not place.gpus:
                plain += weights.tail
        else:
            first, last = place.bounds[number], place.bounds[number + 1]
            start = min(max(place.host_experts, first), last)
            experts = weights.experts[last] - weights.experts[start]
            plain = weights.layers[last] - weights.layers[first]
            plain -= weights.experts[last] - weights.experts[first]
            plain += weights.tail if number == len(place.gpus) - 1 else 0
        share = experts / expert_total
        read = plain + int(expert_one * share)
        if not read:
            continue
        stages.append(
            Stage(
                backend=device.backend,
                bandwidth=device.bandwidth,
                flops=device.flops,
                weights=read,
                weights_batch=plain + int(expert_many * share),
                cache_per_token=cache.per_token(first, last),
                state=need.state // max(setting.users, 1),
                share=read / max(one, 1),
                held=size,
            )
        )
    return stages


def pooled_stages(sizer: Pooling, setting: Setting, place: Shards) -> list[Stage]:
    """One stage per pipeline stage; tensor-parallel GPUs share it."""
    spec, table = sizer.spec, sizer.weights(setting.quantization)
    gpu = place.gpus[0]
    per_stage = place.pipeline
    request, _ = sizer.request(setting, place)
    per_token = request * place.tensor / max(setting.context, 1)
    one = read_per_token(spec, table.found) // per_stage
    many = read_per_token(spec, table.found, batch=setting.users) // per_stage
    return [
        Stage(
            backend=gpu.backend,
            bandwidth=min((g.bandwidth or 0 for g in place.gpus), default=0) or None,
            flops=min((g.flops or 0 for g in place.gpus), default=0) or None,
            weights=one,
            weights_batch=many,
            cache_per_token=per_token,
            share=1 / per_stage,
            parallel=place.tensor,
            link=gpu.link,
        )
        for _ in range(per_stage)
    ]


def split_words(place: Placement, model: ModelSpec) -> str:
    """Which layers are where, in words."""
    parts = []
    if place.host_layers:
        parts.append(f"layers 0-{place.host_layers - 1} in host memory")
    for number, gpu in enumerate(place.gpus):
        first, last = place.bounds[number], place.bounds[number + 1]
        if last > first:
            parts.append(f"layers {first}-{last - 1} on GPU {gpu.index}")
    if place.host_experts:
        parts.append(f"experts of layers 0-{place.host_experts - 1} in host memory")
    if not place.gpus:
        return f"all {model.n_layers} layers on the CPU"
    return ", ".join(parts)


def shard_words(place: Shards) -> str:
    """Which shards are where, in words."""
    if place.gpus[0].host:
        return "on the CPU"
    if place.tensor * place.pipeline == 1:
        return f"all on GPU {place.gpus[0].index}"
    shards = f"tensor parallel over {place.tensor} GPUs"
    if place.pipeline == 1:
        return shards
    each = shards if place.tensor > 1 else "on one GPU"
    return f"{place.pipeline} pipeline stages, each {each}"
