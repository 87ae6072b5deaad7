"""What would make a model fit, which command says so, and what a person should know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Final

from enginekit.facts.machine import Machine
from enginekit.facts.model import ModelSpec
from enginekit.sizing import checkpoint, gguf_names, pool_flags, repositories
from enginekit.sizing.allocate import Allocation, Setting
from enginekit.sizing.compute import in_one_piece
from enginekit.sizing.kinds import widest_heads
from enginekit.sizing.kv_cache import llamacpp_refusal
from enginekit.sizing.outcome import Fix, Verdict
from enginekit.sizing.policy import GIB, Policy
from enginekit.sizing.pool import Pooling, Shards
from enginekit.sizing.projector import sees, weights
from enginekit.sizing.quantization import gguf_label, is_gguf, weight_format
from enginekit.sizing.quoting import in_program, quoted
from enginekit.sizing.repositories import by_name, lacks, to_convert
from enginekit.sizing.split import Placement, largest, layered
from enginekit.sizing.weights import typical_bits

Sizer = Allocation | Pooling
Place = Placement | Shards

_LEAST_CONTEXT: Final = 1024
"""A smaller context is no help to anybody."""

_BATCH: Final = 2048
"""llama.cpp's `-b` where nobody gives it."""

_ONE_FILE: Final = 45 * GIB
"""Larger files do not go to the Hub in one piece (its limit is 50 GB)."""

_FEWER_BITS: Final = 4.0
"""Below so many bits per weight answers get visibly worse."""


_FINE_CACHES: Final = ("q8_0", "fp8", "fp8_e5m2")


def excess(sizer: Sizer, setting: Setting, place: Place, *, margin: bool = True) -> int:
    """Bytes missing on the tightest device. The place is one of the sizer's own."""
    own: Any = place
    return sizer.excess(setting, own, margin=margin)


def fixes(
    sizer: Sizer, setting: Setting, model: ModelSpec, largest_context: int, verdict: Verdict
) -> tuple[Fix, ...]:
    """Single changes that make it fit on the GPUs, cheapest loss first.

    Where neither a smaller cache nor a smaller quantization is enough, both together may keep
    context and users. If nothing is, one combination is tried: the least context, a small cache
    and the smallest quantization.
    """
    place = sizer.places()[-1]
    flags = sizer.policy.flags
    found: list[Fix] = []

    def fits(tried: Setting) -> bool:
        return excess(sizer, tried, place) <= 0

    found += _without_images(sizer, setting, place)
    found += _fewer_sequences(sizer, setting, place)
    for kind in sizer.policy.cache_types:
        if kind == setting.cache_type or _refused(sizer, kind):
            continue
        if not fits(setting._replace(cache_type=kind)):
            continue
        loss = "hardly measurable" if kind in _FINE_CACHES else "long answers drift"
        found.append(_fix(f"{kind} cache", loss, _flag(flags, "cache_type", kind), sizer, place))
        break
    smaller = _smaller_weights(sizer, setting, place)
    if not found and not smaller:
        found += _weights_and_cache(sizer, setting, place)
    if setting.users > 1:
        users = largest(lambda n: excess(sizer, setting._replace(users=n), place), 1, setting.users)
        if 1 <= users < setting.users:
            flag = _flag(flags, "users", str(users))
            found.append(
                _fix(
                    "1 user" if users == 1 else f"{users} users", "others wait", flag, sizer, place
                )
            )
    found += _smaller_context(sizer, setting, place)
    found += smaller
    if not found and verdict != "fits":
        found += _together(sizer, setting, place)
        if not found and _switch(sizer, setting):
            found += _together(sizer.text_only(), setting, place, "no images")
    if not found:
        found += _more_gpus(sizer, setting)
    return tuple(found)


def _refused(sizer: Sizer, cache_type: str) -> bool:
    if not isinstance(sizer, Allocation):
        return False
    return bool(llamacpp_refusal(sizer.spec, cache_type, flash=sizer.flash))


def _flag(flags: Mapping[str, str], name: str, value: str) -> str:
    return flags.get(name, "").format(value) if value else ""


def _window(sizer: Sizer, context: int, users: int) -> str:
    """The flag for `context` tokens a user; llama.cpp's own counts those of all slots together."""
    flags = sizer.policy.flags
    if "context_each" in flags:
        return _flag(flags, "context_each", str(context))
    return _flag(
        flags, "context", str(context * users if isinstance(sizer, Allocation) else context)
    )


def _fix(change: str, cost: str, flags: str, sizer: Sizer, place: Place) -> Fix:
    if flags and sizer.policy.together:
        flags = sizer.policy.together.format(flags)
    return Fix(change=change, cost=cost, flags=flags, where=sizer.where(place))  # type: ignore[arg-type]


def _switch(sizer: Sizer, setting: Setting) -> str:
    """The flag that leaves out what sees, if it is loaded and there is one."""
    loaded = sizer.projector(setting.quantization)[2]
    return sizer.policy.flags.get("text_only", "") if loaded else ""


def _without_images(sizer: Sizer, setting: Setting, place: Place) -> list[Fix]:
    switch = _switch(sizer, setting)
    if not switch or excess(sizer.text_only(), setting, place) > 0:
        return []
    saved = sizer.projector(setting.quantization)[1] / GIB
    return [_fix("text only", f"no images; saves {saved:.1f} GiB", switch, sizer, place)]


def _fewer_sequences(sizer: Sizer, setting: Setting, place: Place) -> list[Fix]:
    if not isinstance(sizer, Pooling) or sizer.compiled:
        return []
    assert isinstance(place, Shards)
    _, rows = sizer.rows(place, setting.users)
    own = sizer.own_rows
    try:
        for tried in (256, 128, 64, 32, 16):
            if tried >= rows or tried < setting.users:
                continue
            sizer.own_rows = tried
            if sizer.excess(setting, place) <= 0:
                flag = _flag(sizer.policy.flags, "sequences", str(tried))
                cost = "fewer requests run at once"
                return [_fix(f"max_num_seqs {tried}", cost, flag, sizer, place)]
    finally:
        sizer.own_rows = own
    return []


def _smaller_context(sizer: Sizer, setting: Setting, place: Place) -> list[Fix]:
    most = (setting.context - 1) // 256
    steps = largest(lambda n: excess(sizer, setting._replace(context=n * 256), place), 4, most)
    if steps * 256 < _LEAST_CONTEXT:
        return []
    tokens = steps * 256
    flag = _window(sizer, tokens, setting.users)
    return [_fix(f"context {tokens}", "less past is seen", flag, sizer, place)]


@cache
def bits(name: str) -> float:
    """Typical bits per weight of a quantization, for comparing two."""
    if is_gguf(name):
        return typical_bits(gguf_label(name), 8_000_000_000)
    other = weight_format(name)
    return float(other.bits) if other else 16.0


def _smaller_weights(sizer: Sizer, setting: Setting, place: Place) -> list[Fix]:
    now = bits(setting.quantization)
    for name in sizer.policy.ladder:
        width = bits(name)
        if width >= now or excess(sizer, setting._replace(quantization=name), place) > 0:
            continue
        cost = "answers get worse" if width < _FEWER_BITS else "little, if it is a good conversion"
        if lacks(sizer.spec, sizer.policy, name):
            cost += f"; {sizer.spec.names.gguf} has no such file"
        return [_fix(name, cost, "", sizer, place)]
    return []


def _weights_and_cache(sizer: Sizer, setting: Setting, place: Place) -> list[Fix]:
    """A finer loss in two places that keeps every user and the whole context."""
    kinds = sizer.policy.cache_types
    if len(kinds) < 2 or setting.cache_type != kinds[0]:
        return []
    found = _smaller_weights(sizer, setting._replace(cache_type=kinds[1]), place)
    return [
        replace(
            fix,
            change=f"{fix.change} + {kinds[1]} cache",
            flags=_flag(sizer.policy.flags, "cache_type", kinds[1]),
        )
        for fix in found
    ]


def _counted(sizer: Allocation, place: Placement) -> int:
    """Layers on GPUs as llama.cpp counts them, and Ollama with it.

    The output is one more behind the last, and the MTP blocks of a file count whether they are used
    or not: the first on a GPU is `n_layer_all + 1 - n_gpu_layers` (llama-model.cpp, build b11434).
    For all of them 99, or as many as there are.
    """
    if not place.gpus:
        return 0
    spec = sizer.spec
    every = sizer.n + 1 + (spec.mtp_layers if spec.format == "gguf" else 0)
    return every - place.host_layers if place.host_layers else max(every, 99)


def _host_experts(sizer: Allocation, place: Placement) -> str:
    flags = sizer.policy.flags
    words = (
        _flag(flags, "all_layers", str(_counted(sizer, place))),
        _flag(flags, "host_experts", str(place.host_experts)),
    )
    return " ".join(word for word in words if word)


def _together(sizer: Sizer, setting: Setting, place: Place, also: str = "") -> list[Fix]:
    kind = sizer.policy.cache_types[min(1, len(sizer.policy.cache_types) - 1)]
    kind = setting.cache_type if _refused(sizer, kind) else kind
    now = bits(setting.quantization)
    names = [name for name in sizer.policy.ladder if bits(name) <= now]
    least = setting._replace(cache_type=kind, users=1, context=min(setting.context, 4096))
    if names and isinstance(sizer, Allocation):
        # What the narrowest cannot do no other can; the kernels of pool engines pad some.
        least = least._replace(quantization=names[-1])
        if excess(sizer, least, place) > 0:
            return []
    for name in names:
        for users in dict.fromkeys((setting.users, 1)):
            tried = setting._replace(
                quantization=name,
                cache_type=kind,
                users=users,
                context=min(setting.context, 4096),
            )
            if excess(sizer, tried, place) <= 0:
                parts = [name, f"{kind} cache", f"context {tried.context}"]
                if users != setting.users:
                    parts.append("1 user")
                if also:
                    parts.append(also)
                return [_fix(" + ".join(parts), "all of these", "", sizer, place)]
    return []


def _more_gpus(sizer: Sizer, setting: Setting) -> list[Fix]:
    """How many GPUs like the best one it would take; llama.cpp takes 16 at most, others are asked to 64."""
    original = sizer.devices
    if not original.gpus or original.gpus[0].shared:
        return []
    one = original.gpus[0]
    short = excess(sizer, setting, sizer.places()[-1]) * len(original.gpus)
    first = len(original.gpus) + max(1, short // max(one.budget, 1))
    most = 64
    if isinstance(sizer, Allocation):
        first, most = max(first, sizer.least_count(setting, one)), 16
    counts = range(first, first + 8) if isinstance(sizer, Allocation) else (2, 4, 8, 16, 32, 64)
    try:
        for count in counts:
            if not len(original.gpus) < count <= most:
                continue
            sizer.devices = replace(original, gpus=(one,) * count)
            place: Place = (
                layered(sizer.n, sizer.devices.gpus)
                if isinstance(sizer, Allocation)
                else sizer.everywhere()
            )
            # Without pipeline stages an engine may use fewer of them, and no more than there are.
            count = len(place.gpus)
            if count > len(original.gpus) and excess(sizer, setting, place) <= 0:
                return [Fix(change=f"{count} x {one.name}", cost="hardware", where="several GPUs")]
    finally:
        sizer.devices = original
    return []


def command(
    sizer: Sizer,
    setting: Setting,
    place: Place,
    model: ModelSpec,
    source: str = "",
    folder: str = "",
) -> str:
    """The command line that this plan means; empty where weights must be made first.

    `source` is a local file or folder, if there is one, and `folder` one of converted weights.
    """
    policy, flags = sizer.policy, sizer.policy.flags
    if not policy.command:
        return ""
    word = in_program if "{settings}" in policy.command else quoted
    stands_for = checkpoint.placeholder(policy, model, setting.quantization)
    parts: list[str] = []
    if isinstance(sizer, Allocation):
        assert isinstance(place, Placement)
        parts.append(_window(sizer, setting.context, setting.users))
        parts.append(_flag(flags, "users", str(setting.users)))
        if place.host_experts:
            parts.append(_host_experts(sizer, place))
        elif sizer.devices.gpus:
            whole = place.gpus and not place.host_layers
            name = "all_layers" if whole else "layers"
            parts.append(_flag(flags, name, str(_counted(sizer, place))))
        if 0 < len(place.gpus) < len(sizer.devices.gpus):
            parts.append(_flag(flags, "devices", _device_names(sizer, place)))
        if sizer.devices.gpus and not place.gpus and sizer.projector(setting.quantization)[2]:
            parts.append(flags.get("host_projector", ""))
        if sizer.ubatch != policy.ubatch:
            # Beyond its logical batch llama.cpp cuts the micro-batch, without a word.
            name = "ubatch" if sizer.ubatch <= _BATCH else "batch"
            parts.append(_flag(flags, name, str(sizer.ubatch)))
        if sizer.demand.embeds:
            parts.append(flags.get("rerank" if model.capabilities.rerank else "embeddings", ""))
    else:
        assert isinstance(place, Shards)
        parts.append(_window(sizer, setting.context, setting.users))
        parts += [pool_flags.visible(sizer, place), *pool_flags.rows(sizer, setting, place)]
        if place.tensor > 1:
            parts.append(_flag(flags, "tensor", str(place.tensor)))
        if place.pipeline > 1:
            parts.append(_flag(flags, "pipeline", str(place.pipeline)))
        parts.append(_utilization(sizer, place))
        parts.append(checkpoint.conversion(policy, model, setting.quantization))
        if model.names.revision and not source and model.format != "gguf" and not stands_for:
            parts.append(_flag(flags, "revision", word(model.names.revision)))
    if setting.cache_type != policy.cache_types[0]:
        parts.append(_flag(flags, "cache_type", setting.cache_type))
    beside = source and policy.images == "file"
    if not sizer.images and not beside and sees(model, policy):
        parts.append(flags.get("text_only", ""))
    words = [part for part in parts if part]
    environment = [word for word in words if word.split("=")[0].isupper()]
    rest = [word for word in words if word not in environment]
    if policy.together:
        # Given twice the option keeps only the last.
        apart = [word for word in rest if word.startswith("-")]
        joined = ";".join(word for word in rest if word not in apart)
        rest = [*apart, policy.together.format(joined)] if joined else apart
    seen = bool(sizer.projector(setting.quantization)[2])
    if stands_for:
        shown = stands_for
    elif folder:
        shown = folder
    elif to_convert(model, policy, setting.quantization, source):
        if "gguf" not in policy.formats:
            return ""
        shown = by_name(policy, model, setting.quantization, seen)
    elif source and sizer.images and model.projector_file and policy.pair_option:
        shown = policy.pair_option.format(word(source), word(model.projector_file))
    elif source:
        shown = policy.file_option.format(word(source))
    else:
        shown = by_name(policy, model, setting.quantization, seen)
    if "{settings}" in policy.command:
        program = policy.command.format(model=shown, settings=", ".join(rest))
        return " ".join([*environment, program])
    return " ".join([*environment, policy.command.format(model=shown), *rest]).strip()


def refused_beyond(sizer: Sizer, model: ModelSpec) -> int:
    """Tokens of the longest text that is not refused for the batch's sake; 0: it may be divided."""
    if not isinstance(sizer, Allocation) or not sizer.policy.embedding_ubatch:
        return 0
    return sizer.ubatch if in_one_piece(model) else 0


def _device_names(sizer: Allocation, place: Placement) -> str:
    """Some of several equal GPUs as llama.cpp's `--list-devices` has them; else it takes them all.

    CUDA counts what it sees, fastest first: only of equal cards without a gap is the number known.
    """
    every = sizer.devices.gpus
    alike = len({gpu.name for gpu in every}) == 1 and every[0].backend == "cuda"
    if not alike or {gpu.index for gpu in every} != set(range(len(every))):
        return ""
    return ",".join(f"CUDA{gpu.index}" for gpu in sorted(place.gpus, key=lambda gpu: gpu.index))


def _utilization(sizer: Pooling, place: Shards) -> str:
    """Needed where something else already holds more of the GPU than the default leaves."""
    share = min((gpu.free / gpu.total for gpu in place.gpus if gpu.total), default=1.0)
    if share >= sizer.policy.utilization or place.gpus[0].host:
        return ""
    return _flag(sizer.policy.flags, "utilization", f"{int(share * 100) / 100:.2f}")


def notes(
    sizer: Sizer,
    setting: Setting,
    place: Place,
    model: ModelSpec,
    machine: Machine,
    source: str = "",
) -> tuple[str, ...]:
    """What the numbers do not say. `source` is a local file or folder, if there is one."""
    said: list[str] = [*sizer.devices.excluded, *sizer.policy.notes]
    if not model.known_layout:
        stated = all(layer.attention != "unknown" for layer in model.layers)
        range_ = "at most what is counted" if stated else "a range, not a number"
        said.append(f"unknown attention layout ({model.architecture}): the cache is {range_}")
    if model.context_length and setting.context > model.context_length:
        said.append(
            f"trained for {model.context_length} tokens only: what comes after them is not "
            "understood well, and some engines refuse so large a context"
        )
    batch = refused_beyond(sizer, model)
    if 0 < batch < setting.context:
        said.append(f"a text of more than {batch} tokens is refused: it must fit into one batch")
    label, seen = setting.quantization, bool(sizer.projector(setting.quantization)[2])
    start = command(sizer, setting, place, model, folder="DIR")
    said.extend(repositories.notes(model, sizer.policy, label, source, start, seen))
    if isinstance(sizer, Pooling) and place.gpus[0].host and sizer.policy.cpu_note:
        said.append(sizer.policy.cpu_note)
    shown = by_name(sizer.policy, model, label) if sizer.policy.tags else ""
    if "hf.co/" in shown and sizer.weights(label).found.total > _ONE_FILE:
        said.append(
            "files of this size are split, and Ollama takes no split file from the Hub (its issue "
            "5245): download it, then `ollama create`"
        )
    other = None if is_gguf(label) else weight_format(label)
    kind = "gguf" if is_gguf(label) and label not in sizer.policy.ladder else ""
    kind = other.format if other is not None and not kind else kind
    if kind and kind not in sizer.policy.formats and kind != "unknown":
        said.append(f"{label} is a {kind} format; this engine loads {sizer.policy.formats[0]}")
    if (
        isinstance(place, Shards)
        and place.tensor > max(widest_heads(model)[1], 1)
        and not model.mla
    ):
        said.append(f"{model.kv_heads} KV heads over {place.tensor} GPUs: the cache is replicated")
    shm = machine.memory.shm_bytes
    if isinstance(place, Shards) and len(place.gpus) > 1 and shm is not None and shm < GIB:
        said.append("shared memory is under 1 GiB: start the container with --ipc=host")
    if isinstance(sizer, Pooling) and (sizer.own_rows or setting.users) < setting.users:
        said.append(f"{sizer.own_rows} requests run at once: the others of {setting.users} wait")
    limit = token_limit(sizer, setting, place)
    if limit:
        said.append(f"{setting.context * setting.users} tokens are beyond {limit}")
    said.append(checkpoint.said(sizer.policy, model, label))
    said.append(gguf_names.said(sizer.policy, model, label))
    said += _images(sizer, setting, model)
    if sizer.calibration.sentence:
        said.append(sizer.calibration.sentence)
    # The layout is said above, in the words of a plan.
    said.extend(note for note in model.notes if not note.startswith("unknown attention layout"))
    return tuple(dict.fromkeys(note for note in said if note))


NO_SWITCH: Final = (
    "--no-images is ignored: no flag of this engine leaves out what the model sees or hears with"
)


def always_sees(model: ModelSpec, policy: Policy, source: str = "") -> bool:
    """Whether the engine loads what sees whatever it is told; of a file it loads that file alone."""
    alone = source and policy.images == "file"
    return not alone and policy.always_sees and sees(model, policy)


def token_limit(sizer: Sizer, setting: Setting, place: Place) -> str:
    """The engine's own limit of tokens where it is exceeded, whatever memory is left."""
    if not isinstance(sizer, Pooling) or not isinstance(place, Shards):
        return ""
    limit = sizer.token_limit(setting, place)
    backend = place.gpus[0].backend.capitalize()
    return f"the engine's limit of {limit} tokens over all sequences on {backend}" if limit else ""


def _images(sizer: Sizer, setting: Setting, model: ModelSpec) -> Iterator[str]:
    """Whether what sees is counted, and how to have it the other way."""
    size = weights(model, sizer.policy, setting.quantization) / GIB
    switch = sizer.policy.flags.get("text_only", "")
    if sizer.projector(setting.quantization)[2]:
        yield f"images are counted: a projector of {size:.2f} GiB and its working memory" + (
            f"; {switch} leaves them out" if switch else ""
        )
    elif size:
        yield f"for text only: images would need a projector of {size:.2f} GiB and working memory"
    elif model.projector_files and sizer.policy.images == "file":
        yield "for text only: llama.cpp has no projector for this model"
    elif model.capabilities.vision and sizer.policy.images != "none" and not model.weights:
        yield "the projector's size is not known: images need more than is counted here"
