"""One model, one machine, one way of taking memory: what fits, how much of it, how fast, and why.

`plan()` is pure. It takes a fraction of a millisecond; the first plan of a model, which sums its
weights at every quantization, up to a few (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Final

from enginekit.facts.machine import Machine
from enginekit.facts.model import ModelSpec
from enginekit.sizing import advice, asked
from enginekit.sizing.advice import excess
from enginekit.sizing.allocate import Allocation, Setting
from enginekit.sizing.budget import Devices, devices
from enginekit.sizing.calibration import NONE, Calibration
from enginekit.sizing.compute import usual_ubatch
from enginekit.sizing.kv_cache import llamacpp_refusal
from enginekit.sizing.outcome import DevicePlan, Plan, QuantizationFit, Verdict
from enginekit.sizing.policy import CONTEXT, GIB, Policy
from enginekit.sizing.pool import Pooling, Shards
from enginekit.sizing.quantization import is_gguf, weight_format
from enginekit.sizing.repositories import tag_quantization
from enginekit.sizing.speed import NO_SPEED, estimate
from enginekit.sizing.split import Placement, largest
from enginekit.sizing.stages import allocated_stages, pooled_stages, shard_words, split_words
from enginekit.sizing.terms import allocated_devices, pooled_devices

MOST_USERS: Final = 4096
_STEP: Final = 256


def plan(
    model: ModelSpec,
    machine: Machine,
    *,
    policy: Policy = CONTEXT,
    quantization: str | None = None,
    context: int | None = None,
    users: int = 1,
    cache_type: str | None = None,
    ubatch: int | None = None,
    sequences: int | None = None,
    flash: bool = True,
    eager: bool = False,
    images: bool = True,
    calibration: Calibration | None = None,
    source: str = "",
) -> Plan:
    """Say whether and how a model runs on a machine.

    Args:
        model: facts of the model.
        machine: facts of the machine.
        policy: how the engine takes memory; `policy_of(profile)` gives an engine's.
        quantization: label or format; None: the file's own, else the policy's usual one.
        context: tokens per user; None: what the engine itself would choose.
        users: concurrent requests of full length (slots).
        cache_type: element type of K and V; None: the engine's default.
        ubatch: micro-batch (`-ub`).
        sequences: `max_num_seqs` of pool engines; None: the engine's default for the GPU.
        flash: whether flash attention is on.
        eager: no CUDA graphs.
        images: whether a model that sees or hears loads what it does so with, as the engine does
            by itself; False plans for text alone, and the command says so. An engine without such a
            flag (Ollama, TGI, MLC LLM) loads it all the same: False is then ignored, with a note.
        calibration: measured loads that correct the estimate of the same engine and architecture.
        source: the local file or folder that the command line should name.

    Raises:
        ValueError: an unknown quantization, a cache type that the engine has not got or refuses for
            this model, or a number below one or absurdly large.
    """
    asked.number("users", users, asked.MOST_ROWS)
    if context is not None:
        asked.number("context", context, asked.MOST_TOKENS)
    for name, count in (("ubatch", ubatch), ("sequences", sequences)):
        if count is not None:
            asked.number(name, count, asked.MOST_ROWS)
    if quantization is not None:
        quantization = asked.quantization(quantization)
    kind = policy.cache_types[0] if cache_type is None else asked.cache_type(cache_type, policy)
    ignored = not images and advice.always_sees(model, policy, source)
    images = images or ignored
    found = devices(machine, policy)
    quantization = quantization or _default_quantization(model, policy)
    setting = Setting(quantization, context or 0, users, kind)
    if policy.allocation == "allocate":
        sizer: Allocation | Pooling = Allocation(
            model,
            policy,
            found,
            ubatch or usual_ubatch(model, policy, context),
            images=images,
            flash=flash,
            calibration=calibration or NONE,
        )
        refusal = llamacpp_refusal(model, setting.cache_type, flash=flash)
        if refusal:
            raise ValueError(f"{refusal}: use {policy.cache_types[0]}")
    else:
        sizer = Pooling(model, policy, found, sequences=sequences, eager=eager, images=images)
        sizer.calibration = calibration or NONE
    setting, why, best = _with_context(sizer, setting, model, context)
    made = _answer(sizer, setting, why, best, model, machine, source)
    return replace(made, notes=(*made.notes, advice.NO_SWITCH)) if ignored else made


def _default_quantization(model: ModelSpec, policy: Policy) -> str:
    own = model.quantization
    if own and model.format in policy.formats:
        return own
    other = None if is_gguf(own) else weight_format(own)
    if other is not None and other.format in policy.formats:
        return own
    if own and is_gguf(own) and "gguf" in policy.formats:
        return own
    if model.names.hf_quantization == "bf16" and "safetensors" in policy.formats:
        return "bf16"
    return tag_quantization(model, policy)


def _with_context(
    sizer: Allocation | Pooling, setting: Setting, model: ModelSpec, wanted: int | None
) -> tuple[Setting, str, int | None]:
    """The setting, why it has that context, and the largest on GPUs if that was searched."""
    trained = model.context_length or 4096
    if wanted is not None:
        beyond = model.context_length and wanted > model.context_length
        why = f"as asked, though trained for {model.context_length} only" if beyond else "as asked"
        return setting, why, None
    batch = advice.refused_beyond(sizer, model)
    if batch and batch < trained:
        return setting._replace(context=batch), "a text must fit into one batch", None
    if not model.causal:
        return setting._replace(context=trained), "all that the encoder reads", None
    tiers = sizer.policy.context_tiers
    if tiers:
        memory = sum(gpu.total for gpu in sizer.devices.gpus)
        tokens = next(tokens for least, tokens in tiers if memory >= least)
        why = f"the default for {memory / GIB:.0f} GiB of GPU memory"
        return setting._replace(context=min(tokens, trained)), why, None
    best = _context_on_gpus(sizer, setting, model)
    least = min(sizer.policy.least_context, trained)
    if best >= trained:
        all_of_it = "all that it was trained for"
        why = all_of_it if model.context_length else "what it was trained for is not known"
        return setting._replace(context=trained), why, best
    if best >= least:
        return setting._replace(context=best), "the largest that fits", best
    return setting._replace(context=least), "the least an automatic context is shrunk to", best


def _searched(
    sizer: Allocation | Pooling, setting: Setting, model: ModelSpec
) -> Callable[[Placement | Shards], int]:
    """The largest context per user that a placement holds, as a function."""
    trained = model.context_length or 1 << 17
    quantization, _, users, cache_type = setting

    def search(place: Placement | Shards) -> int:
        def over(step: int) -> int:
            return excess(
                sizer, Setting(quantization, min(step * _STEP, trained), users, cache_type), place
            )

        return min(max(largest(over, 1, -(-trained // _STEP)), 0) * _STEP, trained)

    return search


def _context_on_gpus(sizer: Allocation | Pooling, setting: Setting, model: ModelSpec) -> int:
    """Largest context per user with nothing but inputs on the host (on the CPU without GPUs)."""
    trained = model.context_length or 1 << 17
    search, best = _searched(sizer, setting, model), 0
    places: list[Placement | Shards] = [*sizer.roomy(setting.quantization)]
    for place in reversed(places):
        if excess(sizer, setting._replace(context=min(best + _STEP, trained)), place) <= 0:
            best = search(place)
        if best >= trained:
            return trained
    return best


def _context_with_host(sizer: Allocation | Pooling, setting: Setting, model: ModelSpec) -> int:
    """Largest context per user with layers or experts on the host."""
    if isinstance(sizer, Pooling):
        return 0
    trained = model.context_length or 1 << 17

    def at(step: int) -> Setting:
        return setting._replace(context=min(step * _STEP, trained))

    most = -(-trained // _STEP)
    first = min(max(setting.context // _STEP, 1), most)
    return min(_most_with_host(sizer, at, most, first) * _STEP, trained)


def _most_with_host(
    sizer: Allocation, at: Callable[[int], Setting], most: int, first: int = 1
) -> int:
    """The largest step up to `most` that some split with host memory holds; 0: none.

    Each step may need a split of its own. A split that holds one step often holds many more, so it
    is asked first how far it reaches, and the host alone before all others.
    """
    if not sizer.devices.gpus or not sizer.policy.offload:
        return 0
    if sizer.excess(at(most), sizer.whole(0)) <= 0:
        return most
    found, beyond, step = 0, most + 1, first
    while found < step < beyond:
        place = sizer.offloaded(at(step))
        if place is None:
            beyond = step
        else:

            def over(tried: int, place: Placement = place) -> int:
                return sizer.excess(at(tried), place)

            found = largest(over, step, beyond - 1)
        step = (found + beyond) // 2
    return found


def choose(
    sizer: Allocation | Pooling, setting: Setting
) -> tuple[Verdict, Placement | Shards | None]:
    """The first placement that fits, else that is tight, else the one to show what is missing."""
    places, roomy = sizer.places(), sizer.roomy(setting.quantization)
    for place in roomy:
        if excess(sizer, setting, place) <= 0:
            return "fits", place
    if isinstance(sizer, Allocation):
        place_off = sizer.offloaded(setting)
        if place_off is not None:
            return "fits", place_off
    for place in roomy:
        if excess(sizer, setting, place, margin=False) <= 0:
            return "tight", place
    if isinstance(sizer, Allocation):
        place_off = sizer.offloaded(setting, margin=False)
        if place_off is not None:
            return "tight", place_off
    return "no", places[-1] if places else None


def _answer(
    sizer: Allocation | Pooling,
    setting: Setting,
    why: str,
    best: int | None,
    model: ModelSpec,
    machine: Machine,
    source: str,
) -> Plan:
    policy, found = sizer.policy, sizer.devices
    verdict, place = choose(sizer, setting)
    if place is None or not (found.gpus or policy.cpu):
        return _unusable(sizer, setting, why, model, machine)
    if isinstance(sizer, Allocation):
        assert isinstance(place, Placement)
        shown = allocated_devices(sizer, setting, place)
        where = sizer.where(place)
        method = sizer.weights(setting.quantization).found.method
        stages, split = allocated_stages(sizer, setting, place), split_words(place, model)
        tensor = pipeline = 1
        pool_tokens, load = 0, sizer.weights(setting.quantization).found.total
        host_layers, host_experts = place.host_layers, place.host_experts
    else:
        assert isinstance(place, Shards)
        shown = pooled_devices(sizer, setting, place)
        where = sizer.where(place)
        method = sizer.weights(setting.quantization).found.method
        stages, split = pooled_stages(sizer, setting, place), shard_words(place)
        tensor, pipeline = place.tensor, place.pipeline
        pool_tokens = sizer.tokens(setting, place)
        load = sizer.weights(setting.quantization).found.total
        host_layers = host_experts = 0
    if best is None:
        best = _context_on_gpus(sizer, setting, model)
    largest_context = best or _context_with_host(sizer, setting, model)
    if verdict == "fits":
        # What was asked may fit on a split with host memory that holds more than the GPUs alone.
        largest_context = max(largest_context, setting.context)
    batch = advice.refused_beyond(sizer, model)
    if batch:
        largest_context = min(largest_context, batch)
    on_gpu = where in ("one GPU", "several GPUs") or not found.gpus
    settled = verdict == "fits" and on_gpu
    return Plan(
        model=model.name,
        machine=machine.name or "this computer",
        policy=policy.name,
        quantization=setting.quantization,
        context=setting.context,
        context_reason=why,
        users=setting.users,
        cache_type=setting.cache_type,
        verdict=verdict,
        where="nowhere" if verdict == "no" else where,
        split=split,
        devices=shown,
        binding=advice.token_limit(sizer, setting, place) or _binding(shown),
        largest_context=largest_context,
        most_users=_most_users(sizer, setting, place, verdict),
        quantizations=_ladder(sizer, setting),
        fixes=() if settled else advice.fixes(sizer, setting, model, largest_context, verdict),
        speed=NO_SPEED
        if verdict == "no"
        else estimate(
            model,
            stages,
            quantization=setting.quantization,
            context=setting.context,
            users=setting.users,
            load_bytes=load,
            startup=policy.startup,
            wide=policy.allocation == "pool",
        ),
        command=advice.command(sizer, setting, place, model, source),
        notes=advice.notes(sizer, setting, place, model, machine, source),
        weights_method=method,
        host_layers=host_layers,
        host_expert_layers=host_experts,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        pool_tokens=pool_tokens,
    )


def _unusable(
    sizer: Allocation | Pooling, setting: Setting, why: str, model: ModelSpec, machine: Machine
) -> Plan:
    found: Devices = sizer.devices
    reason = "; ".join(found.excluded) or "no GPU, and this engine has no CPU build"
    return Plan(
        model=model.name,
        machine=machine.name or "this computer",
        policy=sizer.policy.name,
        quantization=setting.quantization,
        context=setting.context,
        context_reason=why,
        users=setting.users,
        cache_type=setting.cache_type,
        verdict="no",
        where="nowhere",
        split="",
        devices=(),
        binding=reason,
        largest_context=0,
        most_users=0,
        quantizations=(),
        fixes=(),
        speed=NO_SPEED,
        command="",
        notes=(reason,),
        weights_method="",
    )


def _binding(shown: tuple[DevicePlan, ...]) -> str:
    """The fullest device and its largest term."""
    worst = min(shown, key=lambda device: device.spare / max(device.limit, 1))
    if not worst.terms:
        return worst.name
    term = max(worst.terms.items(), key=lambda item: item[1].expected)[0]
    label = worst.name if worst.index < 0 else f"GPU {worst.index} ({worst.name})"
    return f"{term} on {label}"


def _most_users(
    sizer: Allocation | Pooling, setting: Setting, place: Placement | Shards, verdict: Verdict
) -> int:
    places: list[Placement | Shards] = [*sizer.roomy(setting.quantization)]
    offloaded = isinstance(place, Placement) and (place.host_layers or place.host_experts)
    if verdict == "fits" and offloaded:
        places = [place]
    best = 0
    quantization, context, _, cache_type = setting
    # The last holds most as a rule; another is searched only where it holds one more.
    for tried in reversed(places):

        def over(users: int, tried: Placement | Shards = tried) -> int:
            return excess(sizer, Setting(quantization, context, users, cache_type), tried)

        if best < MOST_USERS and over(best + 1) <= 0:
            best = largest(over, best + 1, MOST_USERS)
    if not best and isinstance(sizer, Allocation) and setting.users > 1:
        # With all its users it does not fit on any split, so only fewer can.
        best = _most_with_host(sizer, lambda n: setting._replace(users=n), setting.users - 1)
    return best


def _ladder(sizer: Allocation | Pooling, setting: Setting) -> tuple[QuantizationFit, ...]:
    names = list(sizer.policy.ladder)
    native = weight_format(sizer.spec.native_format) if sizer.spec.native_format else None
    if native is not None and native.format in sizer.policy.formats:
        # Nobody ships it wider.
        fewer = [name for name in names if advice.bits(name) < native.bits]
        names = [sizer.spec.native_format, *fewer]
    if setting.quantization not in names:
        names.insert(0, setting.quantization)

    def on_gpus(name: str, *, margin: bool = True) -> bool:
        tried = Setting(name, *setting[1:])
        places: Sequence[Placement | Shards] = sizer.roomy(name)
        return any(excess(sizer, tried, place, margin=margin) <= 0 for place in reversed(places))

    fits = sizer.passing(names, on_gpus)
    rest = [name for name in names if name not in fits]
    tight = sizer.passing(rest, lambda name: on_gpus(name, margin=False))
    hosted = sizer.hosted(rest, setting) if isinstance(sizer, Allocation) else ()
    return tuple(
        _fit(
            name,
            sizer.weights(name).found.total,
            "fits" if name in fits else "tight" if name in tight else "no",
            name in fits or name in hosted,
        )
        for name in names
    )


@lru_cache(maxsize=8192)
def _fit(name: str, size: int, verdict: Verdict, with_host: bool) -> QuantizationFit:
    return QuantizationFit(name=name, weight_bytes=size, verdict=verdict, with_host=with_host)
