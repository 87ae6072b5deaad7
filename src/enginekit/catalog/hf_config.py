"""config.json to `ModelSpec`: dimensions, attention layout and quantization of a Hugging Face model.

Every number is checked before use, since the file may be anything. What a class leaves out comes
from its default in transformers. Weights are not in config.json: `weight_bytes` stays 0 until
safetensors headers are read (`enginekit.catalog.safetensors`, `enginekit.catalog.hub`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from enginekit.catalog import _layout, _tower
from enginekit.catalog._hf_families import (
    ARCHITECTURES,
    AUDIO_KEYS,
    DEFAULTS,
    ENCODERS,
    FOURFOLD,
    TIED_BY_DEFAULT,
    VISION_KEYS,
    WINDOW_PERIOD,
)
from enginekit.catalog._hf_quant import quantization_label
from enginekit.catalog._hf_state import LayerKinds, layer_kinds, recurrent_state
from enginekit.catalog._keys import Config
from enginekit.errors import ModelFileError
from enginekit.facts.model import (
    Capabilities,
    Experts,
    Mla,
    ModelNames,
    ModelSpec,
    Origin,
)
from enginekit.sizing import tensors

_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")


def to_spec(
    config: Mapping[str, Any],
    *,
    name: str = "",
    source: str = "config.json",
    quant_config: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
) -> ModelSpec:
    """Describe the model of a config.json.

    Args:
        config: the parsed file.
        name: how to call the model; the file's own name if empty.
        source: how errors name the file.
        quant_config: modelopt's separate `hf_quant_config.json`, if the repository has one.
        chat_template: the tokenizer's template, if it is known.

    Raises:
        ModelFileError: a needed field is missing, of the wrong kind or absurd; names the field.
    """
    flat = _flatten(config, source)
    model_type = flat.get("model_type") or ""
    if not isinstance(model_type, str) or not model_type.isprintable() or len(model_type) > 64:
        Config(flat, source).fail(
            "model_type", model_type, "the name of a kind of model was expected"
        )
    architecture = ARCHITECTURES.get(model_type, model_type or "unknown")
    stated = {key: value for key, value in flat.items() if value is not None}
    keys = Config({**DEFAULTS.get(architecture, {}), **stated}, source)
    count = _count(keys)
    hidden = keys.number("hidden_size", "n_embd", "d_model", limit=1 << 20, needed=True)
    kinds = layer_kinds(keys, architecture, count)
    if architecture == "nemotron_h" and kinds.moe is not None and any(kinds.moe):
        architecture = "nemotron_h_moe"
    delta = flat.get("linear_attn_config")
    if isinstance(delta, Mapping) and delta.get("use_full_rank_gate"):
        architecture = "kimi-k3"
    known = model_type in ARCHITECTURES and kinds.understood
    mla = _mla(keys)
    experts = _experts(keys)
    layers = _layout.build(_shape(keys, architecture, count, hidden, kinds, mla, experts))
    vocab = keys.number("vocab_size", "padded_vocab_size", limit=1 << 26, needed=True)
    for field, size in (("hidden_size", hidden), ("vocab_size", vocab)):
        if not size:
            keys.fail(field, size, "a model has at least one")
    if known and any(x.attention != "none" and not x.heads for x in layers):
        # Neither the cache nor the weights of such a layer could be told.
        stated_heads = flat.get("num_attention_heads")
        keys.fail("num_attention_heads", stated_heads, f"a {architecture} attends with heads")
    if known and _layout.headless(layers):
        keys.fail("num_key_value_heads", flat.get("num_key_value_heads"), _layout.headless(layers))
    if not known:
        layers = _layout.unknown(layers, hidden)
    embedding = architecture in ENCODERS
    tied = keys.flag("tie_word_embeddings", default=architecture in TIED_BY_DEFAULT)
    label = quantization_label(config, quant_config)
    spec = ModelSpec(
        name=name or keys.text("_name_or_path") or source,
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        vocab=vocab,
        context_length=_context(keys),
        known_layout=known,
        experts=experts,
        mla=mla,
        recurrent=recurrent_state(keys, architecture, hidden) if kinds.stateful else None,
        per_layer_embedding=keys.number("hidden_size_per_layer_input", limit=1 << 16),
        tied_embeddings=tied or embedding,
        causal=not embedding,
        mtp_layers=keys.number("num_nextn_predict_layers", "mtp_num_hidden_layers", limit=64),
        tower_params=_towers(config, hidden),
        format="mlx" if label.startswith("mlx-") else "safetensors",
        quantization=label,
        names=ModelNames(hf=name if "/" in name else ""),
        capabilities=Capabilities(
            tools="tools" in chat_template if chat_template else None,
            thinking=(
                "<think>" in chat_template or "enable_thinking" in chat_template
                if chat_template
                else None
            ),
            vision=True if any(config.get(key) for key in VISION_KEYS) else None,
            audio=True if any(config.get(key) for key in AUDIO_KEYS) else None,
            embedding=embedding or None,
        ),
        chat_template=None if chat_template is None else bool(chat_template),
        notes=() if known else (f"unknown attention layout: {model_type or 'no model_type'}",),
        provenance=_provenance(source, known),
    )
    return replace(
        spec,
        params_total=tensors.parameters(spec),
        params_active=tensors.active_parameters(spec),
    )


def _towers(config: Mapping[str, Any], hidden: int) -> int:
    """Parameters that see and hear; 0 without, and where the blocks do not say enough."""
    kind = config.get("model_type")
    found = 0
    for keys, count in ((VISION_KEYS, _tower.vision), (AUDIO_KEYS, _tower.audio)):
        block = next((block for key in keys if isinstance(block := config.get(key), Mapping)), None)
        if block is not None:
            found += count(block, kind if isinstance(kind, str) else "", hidden)
    return found


def _flatten(config: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The text model's keys over the top level's: multimodal configs nest them."""
    if not isinstance(config, Mapping):
        raise ModelFileError(f"{source}: a JSON object was expected", field="config")
    flat = dict(config)
    for outer in _NESTED:
        inner = config.get(outer)
        if isinstance(inner, Mapping):
            deeper = inner.get("text_config")
            flat.update(deeper if isinstance(deeper, Mapping) else inner)
            break
    # DBRX and MPT keep these two groups apart.
    for outer in ("attn_config", "ffn_config"):
        inner = config.get(outer)
        if isinstance(inner, Mapping):
            flat = {**inner, **flat}
    if isinstance(config.get("model_type"), str) and not flat.get("model_type"):
        flat["model_type"] = config["model_type"]
    return flat


def _provenance(source: str, known: bool) -> Mapping[str, Origin]:
    exact = Origin(source=source, confidence="exact")
    counted = Origin(source=source, confidence="derived" if known else "guess")
    fields = dict.fromkeys(("layers", "hidden", "vocab", "context_length", "quantization"), exact)
    fields["params_total"] = fields["params_active"] = counted
    return MappingProxyType(fields)


def _count(keys: Config) -> int:
    count = keys.number(
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", limit=_layout.MAX_LAYERS
    )
    for key in ("layers_block_type", "layer_types", "hybrid_override_pattern"):
        value = keys.data.get(key)
        if not count and isinstance(value, str | list):
            count = len(value)
    if not 0 < count <= _layout.MAX_LAYERS:
        keys.fail("num_hidden_layers", count or None, "1 to 2048 layers are possible")
    return count


def _context(keys: Config) -> int:
    """Trained context: a rope factor counts only where the file does not count it already."""
    base = keys.number(
        "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", limit=1 << 31
    )
    scaling = keys.data.get("rope_scaling") or keys.data.get("rope_parameters")
    if not isinstance(scaling, Mapping):
        return base
    original = scaling.get("original_max_position_embeddings")
    factor = scaling.get("factor")
    if isinstance(original, int) and isinstance(factor, int | float) and 1 <= factor <= 1024:
        return max(base, int(original * factor)) if base <= original else base
    return base


def _heads(keys: Config, hidden: int) -> tuple[int, int, int, int]:
    """Heads, KV heads, and the sizes of K and V per head."""
    heads = keys.number("num_attention_heads", "n_head", "num_heads", "n_heads", limit=1 << 16)
    kv = keys.number(
        "num_key_value_heads",
        "multi_query_group_num",
        "n_head_kv",
        "num_kv_heads",
        "kv_n_heads",
        limit=1 << 16,
    )
    if not kv:
        multi_query = keys.flag("multi_query") and not keys.flag("new_decoder_architecture")
        kv = 1 if multi_query else heads
    usual = hidden // heads if heads else 0
    head = keys.number("head_dim", "kv_channels", "attention_head_dim", limit=1 << 14) or usual
    return heads, kv, head, keys.number("v_head_dim", limit=1 << 14) or head


def _shape(
    keys: Config,
    architecture: str,
    count: int,
    hidden: int,
    kinds: LayerKinds,
    mla: Mla | None,
    experts: Experts | None,
) -> _layout.Shape:
    heads, kv, key_dim, value_dim = _heads(keys, hidden)
    heads_of: _layout.PerLayer = heads
    kv_heads: _layout.PerLayer = kv
    head: _layout.PerLayer = key_dim
    value: _layout.PerLayer = key_dim if mla is None else value_dim
    window, sliding = _window(keys, architecture, count, kinds)
    if sliding is not None:
        full_kv = keys.number("num_global_key_value_heads", limit=1 << 16) or kv
        full_dim = keys.number("global_head_dim", limit=1 << 14) or key_dim
        kv_heads = tuple(kv if local else full_kv for local in sliding)
        head = value = tuple(key_dim if local else full_dim for local in sliding)
    if kinds.kv_heads is not None:
        kv_heads = kinds.kv_heads
        heads_of = tuple(heads if each else 0 for each in kinds.kv_heads)
    ffn = _ffn(keys, architecture, count, hidden, kinds)
    shared_kv = min(keys.number("num_kv_shared_layers", limit=_layout.MAX_LAYERS), count)
    if isinstance(ffn, int) and keys.flag("use_double_wide_mlp"):
        ffn = tuple(ffn * (2 if index >= count - shared_kv else 1) for index in range(count))
    dense_beside = keys.flag("enable_moe_block") or keys.flag("parallel_attn_mlp_res")
    return _layout.Shape(
        layers=count,
        heads=heads_of,
        kv_heads=kv_heads,
        key_dim=head,
        value_dim=value,
        ffn=ffn,
        window=window,
        sliding=sliding,
        chunked=architecture == "llama4",
        attention=kinds.attention,
        recurrent=kinds.recurrent,
        shared_kv=shared_kv,
        mla=mla,
        indexer_dim=keys.number("index_head_dim", limit=1 << 14),
        indexer=_indexer(keys, count),
        moe=kinds.moe if kinds.moe is not None else _moe(keys, count, experts),
        dense_beside_moe=dense_beside,
        causal=architecture not in ENCODERS,
    )


def _ffn(
    keys: Config, architecture: str, count: int, hidden: int, kinds: LayerKinds
) -> _layout.PerLayer:
    value = keys.data.get("intermediate_size")
    width: _layout.PerLayer
    if kinds.widths is not None:
        return kinds.widths
    if isinstance(value, list):
        if len(value) < count:
            keys.fail("intermediate_size", value, f"{count} layers need {count} values")
        width = tuple(keys.checked("intermediate_size", item, 1 << 24) for item in value[:count])
    else:
        width = keys.number(
            "intermediate_size", "n_inner", "ffn_hidden_size", "d_ff", limit=1 << 24
        )
        width = keys.number("intermediate_size_mlp", limit=1 << 24) or width
        if keys.flag("block_auto_adjust_ff_dim"):
            width = _lfm2_width(keys, width)
        width = width or (4 * hidden if architecture in FOURFOLD else 0)
    if kinds.ffn is not None:
        width = tuple(_layout.pick(width, i) if has else 0 for i, has in enumerate(kinds.ffn))
    return width


def _lfm2_width(keys: Config, width: int) -> int:
    """LFM2 states the width before the two thirds that a gated feed-forward takes."""
    stated = keys.number("block_ff_dim", limit=1 << 24) or width
    factor = keys.data.get("block_ffn_dim_multiplier")
    scale = factor if isinstance(factor, int | float) and 0 < factor < 64 else 1
    multiple = keys.number("block_multiple_of", limit=1 << 16) or 1
    return -(-int(scale * (2 * stated // 3)) // multiple) * multiple


def _window(
    keys: Config, architecture: str, count: int, kinds: LayerKinds
) -> tuple[int, tuple[bool, ...] | None]:
    """Window and the layers that have it; a window that is switched off does not count."""
    if keys.data.get("use_sliding_window") is False:
        return 0, None
    window = keys.number("sliding_window", "sliding_window_size", limit=1 << 31)
    if architecture == "llama4":
        window = keys.number("attention_chunk_size", limit=1 << 31)
        step = keys.number("no_rope_layer_interval", limit=_layout.MAX_LAYERS) or 4
        return (window, kinds.sliding or _layout.every(count, step)) if window else (0, None)
    if not window:
        return 0, None
    if kinds.sliding is not None:
        return (window, kinds.sliding) if any(kinds.sliding) else (0, None)
    period = keys.number("sliding_window_pattern", "_sliding_window_pattern", limit=1 << 12)
    period = period or WINDOW_PERIOD.get(architecture, 0)
    return window, _layout.every(count, period) if period else (True,) * count


def _moe(keys: Config, count: int, experts: Experts | None) -> tuple[bool, ...] | None:
    """Layers with experts, where no per-layer list says."""
    if experts is None:
        return None
    listed = keys.data.get("moe_layers")
    if isinstance(listed, list) and listed:
        return tuple(index in listed for index in range(count))
    dense = keys.data.get("mlp_only_layers")
    skipped: Sequence[Any] = dense if isinstance(dense, list) else ()
    first = keys.number("first_k_dense_replace", "moe_layer_start_index", limit=1 << 12)
    first = first or keys.number("num_dense_layers", limit=1 << 12)
    step = keys.number(
        "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq", limit=1 << 12
    )
    period = step or keys.number("expert_layer_period", limit=1 << 12) or 1
    offset = keys.number("expert_layer_offset", limit=1 << 12)
    if keys.number("expert_layer_period", limit=1 << 12):
        return tuple(i % period == offset for i in range(count))
    return tuple(i >= first and (i + 1) % period == 0 and i not in skipped for i in range(count))


def _indexer(keys: Config, count: int) -> tuple[bool, ...] | None:
    """Layers with an indexer of their own; GLM-5.2's `shared` ones reuse the choice before them."""
    kinds = keys.data.get("indexer_types")
    if not isinstance(kinds, list) or len(kinds) < count:
        return None
    return tuple(kind == "full" for kind in kinds[:count])


def _mla(keys: Config) -> Mla | None:
    rank = keys.number("kv_lora_rank", limit=1 << 16)
    if not rank:
        return None
    return Mla(
        kv_lora_rank=rank,
        rope_dim=keys.number("qk_rope_head_dim", limit=1 << 12, default=64),
        q_lora_rank=keys.number("q_lora_rank", limit=1 << 16),
        nope_dim=keys.number("qk_nope_head_dim", limit=1 << 12, default=128),
        value_dim=keys.number("v_head_dim", limit=1 << 12, default=128),
    )


def _experts(keys: Config) -> Experts | None:
    total = keys.number("num_experts", "num_local_experts", "n_routed_experts", limit=1 << 16)
    total = total or keys.number("moe_num_experts", limit=1 << 16)
    # Dense members of MoE families say 1 or 0 here.
    if total < 2:
        return None
    used = keys.number(
        "num_experts_per_tok",
        "num_experts_per_token",
        "experts_per_token",
        "top_k_experts",
        "moe_topk",
        "moe_top_k",
        "moe_k",
        limit=1 << 16,
    )
    ffn = keys.number("moe_intermediate_size", "expert_ffn_hidden_size", limit=1 << 22)
    ffn = ffn or keys.number("intermediate_size", "ffn_hidden_size", limit=1 << 22)
    shared = keys.number(
        "n_shared_experts", "num_shared_experts", "moe_num_shared_experts", limit=1 << 10
    )
    width = keys.number(
        "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "shared_intermediate_size",
        limit=1 << 22,
    )
    if keys.text("model_type").startswith("llama4"):
        shared, width = 1, ffn
    return Experts(
        total=total,
        used=min(used or 1, total),
        ffn=ffn,
        shared=shared or int(bool(width)),
        shared_ffn=width or shared * ffn,
        latent=keys.number("moe_latent_size", "routed_expert_hidden_size", limit=1 << 20),
        gated=not keys.text("model_type").startswith("nemotron_h"),
    )
