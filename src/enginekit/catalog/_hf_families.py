"""config.json `model_type` to llama.cpp's architecture name, and what the classes default to.

Source: transformers configuration classes and llama.cpp's convert_hf_to_gguf.py. Two models with
one architecture name have the same tensors, so weights and cache are computed the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

ARCHITECTURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "llama": "llama",
        "mistral": "llama",
        "mixtral": "llama",
        "ministral": "llama",
        "mistral3": "mistral3",
        "ministral3": "mistral3",
        "llama4": "llama4",
        "llama4_text": "llama4",
        "qwen2": "qwen2",
        "qwen2_moe": "qwen2moe",
        "qwen2_vl": "qwen2vl",
        "qwen2_vl_text": "qwen2vl",
        "qwen2_5_vl": "qwen2vl",
        "qwen2_5_vl_text": "qwen2vl",
        "qwen3": "qwen3",
        "qwen3_moe": "qwen3moe",
        "qwen3_next": "qwen3next",
        "qwen3_vl": "qwen3vl",
        "qwen3_vl_text": "qwen3vl",
        "qwen3_vl_moe": "qwen3vlmoe",
        "qwen3_vl_moe_text": "qwen3vlmoe",
        "qwen3_5": "qwen35",
        "qwen3_5_text": "qwen35",
        "qwen3_5_moe": "qwen35moe",
        "qwen3_5_moe_text": "qwen35moe",
        "gemma": "gemma",
        "gemma2": "gemma2",
        "gemma3": "gemma3",
        "gemma3_text": "gemma3",
        "gemma3n": "gemma3n",
        "gemma3n_text": "gemma3n",
        "gemma4": "gemma4",
        "gemma4_text": "gemma4",
        "phi": "phi2",
        "phi3": "phi3",
        "phi3_v": "phi3",
        "phi4mm": "phi3",
        "phimoe": "phimoe",
        "deepseek_v2": "deepseek2",
        "deepseek_v3": "deepseek2",
        "deepseek_v32": "deepseek32",
        "kimi_k2": "deepseek2",
        "kimi_k25": "deepseek2",
        "kimi_linear": "kimi-linear",
        "glm": "chatglm",
        "chatglm": "chatglm",
        "glm4": "glm4",
        "glm4_moe": "glm4moe",
        "glm4_moe_lite": "deepseek2",
        "glm_moe_dsa": "glm-dsa",
        "gpt_oss": "gpt-oss",
        "granite": "granite",
        "granitemoe": "granitemoe",
        "granitemoehybrid": "granitehybrid",
        "bamba": "granitehybrid",
        "mamba": "mamba",
        "falcon_mamba": "mamba",
        "mamba2": "mamba2",
        "falcon_h1": "falcon-h1",
        "jamba": "jamba",
        "nemotron": "nemotron",
        "nemotron_h": "nemotron_h",
        "nemotron-nas": "deci",
        "lfm2": "lfm2",
        "lfm2_moe": "lfm2moe",
        "minimax": "minimax",
        "minimax_text_01": "minimax",
        "minimax_m1": "minimax",
        "minimax_m2": "minimax-m2",
        "olmo": "olmo",
        "olmo2": "olmo2",
        "olmo3": "olmo2",
        "olmoe": "olmoe",
        "cohere": "command-r",
        "cohere2": "cohere2",
        "smollm3": "smollm3",
        "ernie4_5": "ernie4_5",
        "ernie4_5_moe": "ernie4_5-moe",
        "hunyuan_v1_dense": "hunyuan-dense",
        "hunyuan_v1_moe": "hunyuan-moe",
        "exaone": "exaone",
        "exaone4": "exaone4",
        "seed_oss": "seed_oss",
        "starcoder2": "starcoder2",
        "stablelm": "stablelm",
        "gpt2": "gpt2",
        "gpt_neox": "gptneox",
        "falcon": "falcon",
        "bloom": "bloom",
        "mpt": "mpt",
        "dots1": "dots1",
        "internlm2": "internlm2",
        "internlm3": "llama",
        "minicpm": "minicpm",
        "minicpm3": "minicpm3",
        "dbrx": "dbrx",
        "bert": "bert",
        "roberta": "bert",
        "xlm-roberta": "bert",
        "nomic_bert": "nomic-bert",
        "modernbert": "modern-bert",
    }
)

ENCODERS: Final = frozenset(("bert", "nomic-bert", "modern-bert"))

TIED_BY_DEFAULT: Final = frozenset(
    (
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3n",
        "gemma4",
        "command-r",
        "cohere2",
        "gpt2",
        "bloom",
        "falcon",
        "mpt",
        "starcoder2",
        "mamba",
        "lfm2",
        "lfm2moe",
    )
)
"""Classes whose `tie_word_embeddings` is true when config.json does not mention it."""

WINDOW_PERIOD: Final[Mapping[str, int]] = MappingProxyType(
    {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gemma4": 6, "gpt-oss": 2, "cohere2": 4, "olmo2": 4}
)
"""Every which layer is full if neither `layer_types` nor a pattern says."""

DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "gemma3": {
            "vocab_size": 262208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        "gemma3n": {"vocab_size": 262400, "head_dim": 256, "max_position_embeddings": 32768},
        "gemma4": {"vocab_size": 262144, "head_dim": 256, "global_head_dim": 512},
        "gemma2": {"vocab_size": 256000, "head_dim": 256, "sliding_window": 4096},
        "gemma": {"vocab_size": 256000, "head_dim": 256},
        "qwen3next": {"head_dim": 256},
        "qwen35": {"head_dim": 256},
        "qwen35moe": {"head_dim": 256},
        "qwen3": {"head_dim": 128},
        "llama4": {"vocab_size": 202048, "attention_chunk_size": 8192},
        "falcon": {"multi_query": True},
    }
)
"""What a configuration class fills in: multimodal repositories often state only what differs."""

FOURFOLD: Final = frozenset(("gpt2", "bloom", "falcon", "mpt"))
"""Architectures whose feed-forward is four times the hidden width unless stated."""

VISION_KEYS: Final = ("vision_config", "visual", "vision_tower_config", "vit_config")
AUDIO_KEYS: Final = ("audio_config", "audio_encoder_config")
