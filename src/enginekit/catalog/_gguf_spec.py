"""From a GGUF header to a `ModelSpec`: llama.cpp's key names and its rules for what is absent.

Keys: gguf-py constants; defaults and per-architecture rules: llama.cpp src/models/*.cpp. An
architecture that is not listed here gets `known_layout=False`: its weights are exact, its cache
is a range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from enginekit.catalog import _layout
from enginekit.catalog._families import (
    DEFAULT_WINDOW,
    DENSE_FIRST,
    DIFFUSION,
    ENCODERS,
    GDN,
    HYBRID,
    KNOWN,
    LATENT,
    PERIODIC,
    RECURRENT_ONLY,
    VISION,
)
from enginekit.catalog._gguf_keys import Keys
from enginekit.catalog._gguf_roles import weight_groups
from enginekit.catalog.gguf import GgufHeader, TensorInfo
from enginekit.errors import ModelFileError
from enginekit.facts.model import (
    Capabilities,
    Experts,
    Layer,
    Mla,
    ModelNames,
    ModelSpec,
    Origin,
    Recurrent,
    WeightGroup,
)
from enginekit.sizing.kv_cache import LLAMACPP_WINDOWED
from enginekit.sizing.quantization import FTYPES
from enginekit.sizing.tensors import active_parameters

_THINKING: Final = ("<think>", "enable_thinking", "reasoning_effort")
"""What templates of reasoning models mention; the last is gpt-oss's."""


def to_spec(header: GgufHeader, *, name: str = "") -> ModelSpec:
    """Describe the model in a GGUF file.

    Raises:
        ModelFileError: a needed key is missing or absurd, or the file is a projector or adapter.
    """
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    kind = metadata.get("general.type")
    if kind in _NO_MODELS or architecture == "clip":
        what = _NO_MODELS["mmproj" if architecture == "clip" else str(kind)]
        raise ModelFileError(
            f"{header.source}: this is {what}, not a model",
            field="general.architecture",
            hint="name the model's own GGUF file",
        )
    if not isinstance(architecture, str) or not architecture:
        raise ModelFileError(
            f"{header.source}: general.architecture is missing", field="general.architecture"
        )
    if not architecture.isprintable() or len(architecture) > 64:
        raise ModelFileError(
            f"{header.source}: general.architecture is {architecture[:64]!r}, which names nothing",
            field="general.architecture",
        )
    keys = Keys(header, architecture)
    for needed in ("block_count", "embedding_length"):
        if not keys.has(needed):
            raise ModelFileError(
                f"{header.source}: {architecture}.{needed} is missing", field=needed
            )
    total_layers = keys.one("block_count", limit=_layout.MAX_LAYERS)
    mtp = keys.one("nextn_predict_layers", limit=64)
    count = total_layers - mtp if mtp < total_layers else total_layers
    tensors = {tensor.name: tensor for tensor in header.tensors}
    recurrent_flags, recurrent = _recurrent(keys, architecture, count)
    mla = _mla(keys, architecture)
    weights = weight_groups(header.tensors, count, recurrent_flags)
    layers = _layers(keys, architecture, count, mla, recurrent_flags, weights)
    hidden = keys.one("embedding_length", limit=1 << 20)
    known = architecture in KNOWN
    if not hidden:
        raise keys.bad("embedding_length", hidden, "a model has an embedding length")
    if known:
        _check_heads(keys, architecture, layers)
    else:
        layers = _layout.unknown(layers, hidden)
    kept = tuple(group for group in weights if group.role not in ("mtp", "projector"))
    spec = ModelSpec(
        name=name or _plain(metadata.get("general.name")) or header.source,
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        vocab=_vocab(keys, header, tensors),
        context_length=keys.one("context_length", limit=1 << 31),
        known_layout=known,
        params_total=sum(group.elements for group in kept),
        experts=_experts(keys),
        mla=mla,
        recurrent=recurrent,
        per_layer_embedding=keys.one("embedding_length_per_layer_input", limit=1 << 16),
        tied_embeddings="output.weight" not in tensors and bool(tensors),
        causal=architecture not in ENCODERS | DIFFUSION,
        mtp_layers=total_layers - count,
        format="gguf",
        quantization=_label(metadata.get("general.file_type"), kept),
        weights=weights,
        weight_bytes=sum(group.bytes for group in kept),
        file_bytes=header.size if header.size is not None and not header.missing else header.end,
        mtp_bytes=sum(group.bytes for group in weights if group.role == "mtp"),
        projector_bytes=sum(group.bytes for group in weights if group.role == "projector"),
        names=ModelNames(),
        license=_plain(metadata.get("general.license")),
        capabilities=_capabilities(metadata, keys, architecture),
        chat_template=isinstance(metadata.get("tokenizer.chat_template"), str),
        notes=_notes(header, architecture, known),
        provenance=_provenance(header.source),
    )
    return replace(spec, params_active=active_parameters(spec))


_NO_MODELS: Final = {
    "adapter": "a LoRA adapter",
    "mmproj": "a vision or audio projector (the file beside a model)",
    "imatrix": "an importance matrix, which quantizing reads",
}
"""By `general.type`."""


def _check_heads(keys: Keys, architecture: str, layers: Sequence[Layer]) -> None:
    """Refuse a known architecture whose cache and weights nobody could tell."""
    heads = keys.one("attention.head_count")
    if not heads and architecture not in RECURRENT_ONLY:
        why = f"a {architecture} attends with heads"
        stated = keys.has("attention.head_count")
        raise keys.bad("attention.head_count", heads if stated else None, why)
    problem = _layout.headless(layers)
    if problem:
        kv_heads = keys.one("attention.head_count_kv", heads)
        raise keys.bad("attention.head_count_kv", kv_heads, problem)


def _provenance(source: str) -> Mapping[str, Origin]:
    exact = Origin(source=source, confidence="exact")
    derived = Origin(source=source, confidence="derived")
    fields: dict[str, Origin] = dict.fromkeys(
        (
            "architecture",
            "layers",
            "hidden",
            "vocab",
            "context_length",
            "params_total",
            "weights",
            "weight_bytes",
            "tied_embeddings",
            "chat_template",
        ),
        exact,
    )
    fields["params_active"] = fields["capabilities"] = derived
    return MappingProxyType(fields)


def _plain(value: object) -> str:
    """A text of the file as one that a terminal can show: no control characters, no novel."""
    text = value if isinstance(value, str) else ""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:200]).split())


def _notes(header: GgufHeader, architecture: str, known: bool) -> tuple[str, ...]:
    notes = []
    if header.missing:
        notes.append(f"the file is {header.missing} bytes short: the download is incomplete")
    if not known:
        notes.append(f"unknown attention layout: {architecture}")
    return tuple(notes)


def _vocab(keys: Keys, header: GgufHeader, tensors: Mapping[str, TensorInfo]) -> int:
    table = tensors.get("token_embd.weight")
    if table is not None and len(table.shape) > 1:
        return table.shape[1]
    return keys.one("vocab_size") or header.counts.get("tokenizer.ggml.tokens", 0)


def _label(ftype: object, weights: Sequence[WeightGroup]) -> str:
    if isinstance(ftype, int) and ftype & 1023 in FTYPES:
        return FTYPES[ftype & 1023]
    sizes: dict[str, int] = {}
    for group in weights:
        sizes[group.type] = sizes.get(group.type, 0) + group.bytes
    return max(sizes, key=lambda kind: sizes[kind]) if sizes else ""


def _capabilities(metadata: Mapping[str, object], keys: Keys, architecture: str) -> Capabilities:
    template = metadata.get("tokenizer.chat_template")
    text = template if isinstance(template, str) else ""
    embedding = architecture in ENCODERS or keys.has("pooling_type")
    return Capabilities(
        tools="tools" in text if text else None,
        thinking=any(word in text for word in _THINKING) if text else None,
        vision=True if architecture in VISION else None,
        embedding=embedding,
        rerank=True if keys.one("pooling_type") == 4 else None,
    )


def _mla(keys: Keys, architecture: str) -> Mla | None:
    rank = keys.one("attention.kv_lora_rank", limit=1 << 16)
    latent = architecture in LATENT and rank and keys.has("attention.key_length_mla")
    if not latent and not (architecture in ("kimi-linear", "kimi-k3") and rank):
        return None
    rope = keys.one("rope.dimension_count", 64, limit=1 << 12)
    full = keys.one("attention.key_length_mla", 128 + rope, limit=1 << 16)
    return Mla(
        kv_lora_rank=rank,
        rope_dim=rope,
        q_lora_rank=keys.one("attention.q_lora_rank", limit=1 << 16),
        nope_dim=max(full - rope, 0),
        value_dim=keys.one("attention.value_length_mla", 128, limit=1 << 16),
    )


def _experts(keys: Keys) -> Experts | None:
    total = keys.one("expert_count", limit=1 << 16)
    if not total:
        return None
    ffn = keys.one("expert_feed_forward_length", limit=1 << 20)
    ffn = ffn or keys.one("feed_forward_length", limit=1 << 22)
    shared = keys.one("expert_shared_count", limit=1 << 10)
    width = keys.one("expert_shared_feed_forward_length", limit=1 << 20)
    return Experts(
        total=total,
        used=min(keys.one("expert_used_count", 1, limit=1 << 16) or 1, total),
        ffn=ffn,
        shared=shared or int(bool(width)),
        shared_ffn=width or shared * ffn,
        latent=keys.one("moe_latent_size", limit=1 << 20),
    )


def _recurrent(
    keys: Keys, architecture: str, count: int
) -> tuple[tuple[bool, ...] | None, Recurrent | None]:
    """Which layers hold state, and how much."""
    if architecture not in RECURRENT_ONLY | HYBRID:
        return None, None
    flags: tuple[bool, ...]
    kv = keys.many("attention.head_count_kv", 1, count)
    if architecture in RECURRENT_ONLY or architecture == "falcon-h1":
        flags = (True,) * count
    elif architecture in PERIODIC:
        usual = PERIODIC[architecture]
        period = keys.one("full_attention_interval", usual, limit=_layout.MAX_LAYERS)
        flags = keys.flags("attention.recurrent_layers", count) or _layout.every(count, period)
    else:
        ffn = keys.many("feed_forward_length", 0, count, 1 << 22)
        flags = tuple(
            _layout.pick(kv, i) == 0
            and (not architecture.startswith("nemotron_h") or _layout.pick(ffn, i) == 0)
            for i in range(count)
        )
    return flags, _state(keys, architecture)


def _state(keys: Keys, architecture: str) -> Recurrent:
    hidden = keys.one("embedding_length", limit=1 << 20)
    conv = keys.one("ssm.conv_kernel", 4, limit=1 << 10)
    if architecture in ("lfm2", "lfm2moe"):
        return _layout.shortconv(
            hidden=hidden, cache=keys.one("shortconv.l_cache", 3, limit=1 << 10)
        )
    if "rwkv" in architecture:
        return _layout.rwkv(
            hidden=hidden,
            head_size=keys.one("wkv.head_size", 64, limit=1 << 12),
            shifts=keys.one("token_shift_count", 1 if "qwen" in architecture else 2, limit=64),
        )
    if architecture in ("kimi-linear", "kimi-k3"):
        return _layout.kda(
            heads=keys.one("attention.head_count", limit=1 << 16),
            head_dim=keys.one("kda.head_dim", 128, limit=1 << 12),
            conv=conv,
        )
    if architecture == "minimax-01":
        return _layout.lightning(
            heads=keys.one("attention.head_count", limit=1 << 16),
            head_dim=keys.one("attention.key_length", limit=1 << 16),
        )
    rank = keys.one("ssm.time_step_rank", limit=1 << 20)
    one_group = architecture in ("mamba", "jamba")
    return _layout.ssm(
        "gdn" if architecture in GDN else "mamba1" if one_group else "mamba2",
        inner=keys.one("ssm.inner_size", limit=1 << 22),
        state=keys.one("ssm.state_size", limit=1 << 16),
        groups=keys.one("ssm.group_count", 0, limit=1 << 16),
        conv=conv,
        heads=rank,
    )


def _layers(
    keys: Keys,
    architecture: str,
    count: int,
    mla: Mla | None,
    recurrent: tuple[bool, ...] | None,
    weights: Sequence[WeightGroup],
) -> tuple[Layer, ...]:
    heads = keys.many("attention.head_count", 0, count)
    kv_heads = (
        keys.many("attention.head_count_kv", -1, count)
        if keys.has("attention.head_count_kv")
        else heads
    )
    most = heads if isinstance(heads, int) else max(heads, default=0)
    usual = keys.one("embedding_length", limit=1 << 20) // most if most else 0
    full_key = keys.one("attention.key_length", usual, limit=1 << 16)
    full_value = keys.one("attention.value_length", usual, limit=1 << 16)
    key_dim: _layout.PerLayer = full_key
    value_dim: _layout.PerLayer = full_value
    window, sliding = _window(keys, architecture, count)
    if sliding is not None:
        local_key = keys.one("attention.key_length_swa", full_key, limit=1 << 16)
        local_value = keys.one("attention.value_length_swa", full_value, limit=1 << 16)
        key_dim = tuple(local_key if local else full_key for local in sliding)
        value_dim = tuple(local_value if local else full_value for local in sliding)
    attention = None
    if recurrent is not None and architecture != "falcon-h1":
        attention = tuple(
            not state and _layout.pick(kv_heads, i) > 0 for i, state in enumerate(recurrent)
        )
    elif not isinstance(kv_heads, int):
        attention = tuple(bool(value) for value in kv_heads)
    return _layout.build(
        _layout.Shape(
            layers=count,
            heads=heads,
            kv_heads=kv_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            ffn=keys.many("feed_forward_length", 0, count, 1 << 22),
            window=window,
            sliding=sliding,
            chunked=architecture == "llama4",
            attention=attention,
            recurrent=recurrent,
            shared_kv=min(keys.one("attention.shared_kv_layers", limit=1 << 12), count),
            mla=mla,
            indexer_dim=keys.one("attention.indexer.key_length", limit=1 << 14),
            indexer=_indexer(keys, count, weights),
            moe=_moe(keys, count, weights),
            dense_beside_moe=_dense_beside(weights),
            causal=architecture not in ENCODERS | DIFFUSION,
        )
    )


def _window(keys: Keys, architecture: str, count: int) -> tuple[int, tuple[bool, ...] | None]:
    """The window that llama.cpp honours, and the layers that have it."""
    period = LLAMACPP_WINDOWED.get(architecture)
    if period is None:
        return 0, None
    default = DEFAULT_WINDOW.get(architecture, 0)
    if architecture == "exaone4" and count == 64:
        default = 4096
    window = keys.one("attention.sliding_window", default, limit=1 << 31)
    if not window:
        return 0, None
    flags = keys.flags("attention.sliding_window_pattern", count)
    if flags is not None:
        return window, flags
    period = keys.one("attention.sliding_window_pattern", period, limit=_layout.MAX_LAYERS)
    if architecture in DENSE_FIRST:
        return window, tuple(period > 0 and index % period != 0 for index in range(count))
    return window, _layout.every(count, period)


def _moe(keys: Keys, count: int, weights: Sequence[WeightGroup]) -> tuple[bool, ...] | None:
    """Layers with experts: where the tensors are, or by the keys if there is no tensor table."""
    if not keys.one("expert_count", limit=1 << 16):
        return None
    present = {group.layer for group in weights if group.role == "experts"}
    if present:
        return tuple(index in present for index in range(count))
    first = keys.one("leading_dense_block_count", limit=_layout.MAX_LAYERS)
    step = keys.one("interleave_moe_layer_step", 1, limit=_layout.MAX_LAYERS) or 1
    return tuple(i >= first and (i + 1) % step == 0 for i in range(count))


def _indexer(keys: Keys, count: int, weights: Sequence[WeightGroup]) -> tuple[bool, ...] | None:
    """Layers with an indexer of their own; GLM-5.2's others reuse the choice of the one before."""
    present = {group.layer for group in weights if ".indexer." in group.name}
    if present:
        return tuple(index in present for index in range(count))
    return keys.flags("attention.indexer.types", count)


def _dense_beside(weights: Sequence[WeightGroup]) -> bool:
    dense = {group.layer for group in weights if group.role == "ffn"}
    return any(group.role == "experts" and group.layer in dense for group in weights)
