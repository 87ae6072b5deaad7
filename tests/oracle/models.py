"""Models for the oracle: the catalog, the configurations of `tests.catalog`, and more families.

The configurations below are those of published checkpoints (dimensions only). Together the three
sources cover more than fifty of llama.cpp's architectures.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from enginekit.catalog import _table, describe, hf_config
from enginekit.facts.model import ModelSpec
from tests.catalog.configs import OTHERS
from tests.support.header_vectors import VECTORS


def _config(
    kind: str, hidden: int, layers: int, heads: int, kv: int, ffn: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    } | more


CONFIGS: dict[str, dict[str, Any]] = {
    "gemma-7b": _config(
        "gemma", 3072, 28, 16, 16, 24576, 256000, head_dim=256, tie_word_embeddings=True
    ),
    "qwen1.5-moe-a2.7b": _config(
        "qwen2_moe", 2048, 24, 16, 16, 5632, 151936, num_experts=60, num_experts_per_tok=4,
        moe_intermediate_size=1408, shared_expert_intermediate_size=5632,
    ),
    "command-r7b": _config(
        "cohere2", 4096, 32, 32, 8, 14336, 256000, head_dim=128, sliding_window=4096,
        sliding_window_pattern=4, tie_word_embeddings=True,
    ),
    "olmo-7b": _config("olmo", 4096, 32, 32, 32, 11008, 50304),
    "olmoe-1b-7b": _config(
        "olmoe", 2048, 16, 16, 16, 1024, 50304, num_experts=64, num_experts_per_tok=8
    ),
    "nemotron-mini-4b": _config("nemotron", 3072, 32, 24, 8, 9216, 256000),
    "stablelm-3b-4e1t": _config("stablelm", 2560, 32, 32, 32, 6912, 50304),
    "internlm2.5-7b": _config("internlm2", 4096, 32, 32, 8, 14336, 92544),
    "exaone-3.5-7.8b": _config("exaone", 4096, 32, 32, 8, 14336, 102400),
    "exaone-4.0-32b": _config(
        "exaone4", 5120, 64, 40, 8, 27392, 102400, head_dim=128, sliding_window=4096,
        sliding_window_pattern=4,
    ),
    "seed-oss-36b": _config(
        "seed_oss", 5120, 64, 80, 8, 27648, 155136, head_dim=128, attention_bias=True
    ),
    "pythia-6.9b": _config("gpt_neox", 4096, 32, 32, 32, 16384, 50432),
    "phi-2": _config("phi", 2560, 32, 32, 32, 10240, 51200),
    "mpt-7b": _config("mpt", 4096, 32, 32, 32, 16384, 50432, tie_word_embeddings=True),
    "granite-3.1-3b-a800m": _config(
        "granitemoe", 1536, 32, 24, 8, 512, 49155, num_local_experts=40, num_experts_per_tok=8,
        tie_word_embeddings=True,
    ),
    "minimax-m2": _config(
        "minimax_m2", 3072, 62, 48, 8, 1536, 200064, head_dim=128, num_local_experts=256,
        num_experts_per_tok=8,
    ),
    "lfm2-8b-a1b": _config(
        "lfm2_moe", 2048, 24, 32, 8, 7168, 65536, conv_L_cache=3, num_experts=32,
        num_experts_per_tok=4, moe_intermediate_size=1792, num_dense_layers=2,
        layer_types=[
            "full_attention" if i in (2, 6, 10, 14, 18, 21) else "conv" for i in range(24)
        ],
        tie_word_embeddings=True,
    ),
    "hunyuan-7b": _config("hunyuan_v1_dense", 4096, 32, 32, 8, 14336, 128167, head_dim=128),
    "ernie-4.5-0.3b": _config(
        "ernie4_5", 1024, 18, 16, 2, 3072, 103424, head_dim=128, tie_word_embeddings=True
    ),
    "glm-4-9b-0414": _config("glm4", 4096, 40, 32, 2, 13696, 151552, head_dim=128),
    "mamba2-2.7b": {
        "model_type": "mamba2", "hidden_size": 2560, "num_hidden_layers": 64, "state_size": 128,
        "expand": 2, "n_groups": 1, "conv_kernel": 4, "num_heads": 80, "head_dim": 64,
        "vocab_size": 50288, "tie_word_embeddings": True,
    },
}  # fmt: skip


@cache
def specs() -> dict[str, ModelSpec]:
    """Every model whose header can be written, by name."""
    found = {name: describe(name) for name in _table.rows()}
    for name, (config, *_) in OTHERS.items():
        found[name] = hf_config.to_spec(config, name=name)
    for name, config in CONFIGS.items():
        found[name] = hf_config.to_spec(config, name=name)
    # Headers as of a 16-bit copy: of what was published in MXFP4 nothing is kept as it was.
    return {
        name: replace(spec, native_format="")
        for name, spec in found.items()
        if spec.architecture in VECTORS
    }


def one_per_architecture() -> dict[str, ModelSpec]:
    """The smallest model of each architecture."""
    found: dict[str, ModelSpec] = {}
    for spec in sorted(specs().values(), key=lambda spec: spec.params_total):
        found.setdefault(spec.architecture, spec)
    return {spec.name: spec for spec in found.values()}
