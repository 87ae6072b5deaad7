"""The metadata that llama.cpp's converter writes for models of the catalog, by hand."""

from __future__ import annotations

from typing import Any

from enginekit.facts.model import ModelSpec


def keys_of(spec: ModelSpec) -> dict[str, Any]:
    """Keys of gguf-py's names for one of the architectures below."""
    arch = spec.architecture
    first = next(layer for layer in spec.layers if layer.heads)
    found: dict[str, Any] = {
        "block_count": spec.n_layers,
        "embedding_length": spec.hidden,
        "context_length": spec.context_length,
        "attention.head_count": first.heads,
        "attention.head_count_kv": first.kv_heads,
        "attention.key_length": first.key_dim,
        "attention.value_length": first.value_dim,
        "feed_forward_length": spec.ffn,
    }
    if spec.experts is not None:
        found |= {
            "expert_count": spec.experts.total,
            "expert_used_count": spec.experts.used,
            "expert_feed_forward_length": spec.experts.ffn,
        }
        if spec.experts.shared:
            found["expert_shared_count"] = spec.experts.shared
            found["expert_shared_feed_forward_length"] = spec.experts.shared_ffn
    dense = sum(1 for layer in spec.layers if not layer.moe)
    if spec.mla is not None:
        found |= {
            "attention.head_count_kv": 1,
            "attention.kv_lora_rank": spec.mla.kv_lora_rank,
            "attention.q_lora_rank": spec.mla.q_lora_rank,
            "attention.key_length": spec.mla.cached,
            "attention.value_length": spec.mla.kv_lora_rank,
            "attention.key_length_mla": spec.mla.nope_dim + spec.mla.rope_dim,
            "attention.value_length_mla": spec.mla.value_dim,
            "rope.dimension_count": spec.mla.rope_dim,
            "leading_dense_block_count": dense,
        }
    window = max(layer.window for layer in spec.layers)
    if window:
        found["attention.sliding_window"] = window
    if arch == "gemma4":
        full = next(layer for layer in spec.layers if layer.attention == "full")
        own = [layer.kv_heads or first.kv_heads for layer in spec.layers]
        found |= {
            "attention.head_count_kv": own,
            "attention.key_length": full.key_dim,
            "attention.value_length": full.value_dim,
            "attention.key_length_swa": first.key_dim,
            "attention.value_length_swa": first.value_dim,
            "attention.sliding_window_pattern": [
                layer.key_dim == first.key_dim for layer in spec.layers
            ],
            "attention.shared_kv_layers": sum(x.attention == "shared" for x in spec.layers),
            "embedding_length_per_layer_input": spec.per_layer_embedding,
            "feed_forward_length": [layer.ffn for layer in spec.layers],
        }
    if spec.recurrent is not None:
        found |= {
            "ssm.conv_kernel": spec.recurrent.conv,
            "ssm.inner_size": spec.recurrent.inner,
            "ssm.state_size": spec.recurrent.state,
            "ssm.group_count": spec.recurrent.groups,
            "ssm.time_step_rank": spec.recurrent.heads,
        }
        if arch.startswith("qwen"):
            found["full_attention_interval"] = 4
        if arch.startswith("nemotron"):
            found["attention.head_count_kv"] = [layer.kv_heads for layer in spec.layers]
            found["feed_forward_length"] = [
                spec.experts.ffn if layer.moe and spec.experts else 0 for layer in spec.layers
            ]
    named = {f"{arch}.{key}": item for key, item in found.items()}
    return {
        "general.architecture": arch,
        "general.name": spec.name,
        "general.file_type": 1,
        **named,
    }
