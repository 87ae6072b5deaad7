"""Small models for the real vLLM: dimensions of published checkpoints, dummy weights.

`deepseek-v2-cut` is DeepSeek-V2-Lite with four of its layers and eight of its experts, so that it
fits a small machine; what one token takes in one layer stays what it is.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("vllm_loaded.py")
POOL = 1 << 30
LENGTH = 8192
BATCHED = 4096
"""Tokens that the `LLM` class batches at most where it is not told (vLLM 0.32 on the processor)."""

_BASE = {"torch_dtype": "bfloat16", "rms_norm_eps": 1e-6, "hidden_act": "silu"}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": _BASE | {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896,
        "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768,
        "tie_word_embeddings": True, "rope_theta": 1e6,
    },
    "llama3.2-1b": _BASE | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
        "max_position_embeddings": 131072, "tie_word_embeddings": True, "rope_theta": 5e5,
    },
    "qwen3-0.6b": _BASE | {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
        "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "max_position_embeddings": 40960, "tie_word_embeddings": True, "rope_theta": 1e6,
    },
    "gemma3-1b": {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 1152,
        "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144,
        "max_position_embeddings": 32768, "sliding_window": 512, "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 256, "hidden_activation": "gelu_pytorch_tanh",
        "torch_dtype": "bfloat16", "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    },
    "granite-3.1-1b-a400m": _BASE | {
        "architectures": ["GraniteMoeForCausalLM"], "model_type": "granitemoe",
        "hidden_size": 1024, "intermediate_size": 512, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 49155,
        "num_local_experts": 32, "num_experts_per_tok": 8, "max_position_embeddings": 131072,
        "tie_word_embeddings": True, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
        "attention_multiplier": 0.015625, "logits_scaling": 6.0, "rope_theta": 1e7,
    },
    "deepseek-v2-cut": _BASE | {
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
        "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
        "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 16,
        "vocab_size": 102400, "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "n_shared_experts": 2, "first_k_dense_replace": 1,
        "moe_layer_freq": 1, "norm_topk_prob": False, "scoring_func": "softmax",
        "topk_method": "greedy", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
        "max_position_embeddings": 163840, "tie_word_embeddings": False, "rope_theta": 1e4,
    },
}  # fmt: skip


def load(
    python: Path, folder: Path, smollm2: Path, *, seconds: float = 1800
) -> list[dict[str, Any]]:
    """Load SmolLM2's own weights and every model above with the real vLLM; one row each.

    Args:
        python: an interpreter that has vLLM.
        folder: where the configurations are written.
        smollm2: SmolLM2 as safetensors (`scripts/make_smollm2_safetensors.py`).
        seconds: until vLLM is given up.
    """
    orders = [{"name": "smollm2-135m", "path": str(smollm2), "load_format": "auto"}]
    for name, config in CONFIGS.items():
        place = folder / name
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config))
        orders.append({"name": name, "path": str(place), "load_format": "dummy"})
    listed = folder / "orders"
    listed.write_text(
        "".join(json.dumps(order | {"length": LENGTH, "pool": POOL}) + "\n" for order in orders)
    )
    done = subprocess.run(
        [str(python), str(CHILD), str(listed)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=seconds,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
