"""Which llama.cpp architectures keep their past in which way: data for the header reader.

Source: llama.cpp src/models/*.cpp, build b11434.
"""

from __future__ import annotations

from typing import Final

from enginekit.sizing.kv_cache import LLAMACPP_WINDOWED


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PLAIN: Final = _words(
    """llama deci falcon grok gpt2 gptj gptneox mpt baichuan starcoder refact bloom stablelm qwen
    qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe phi2 phi3 phimoe plamo codeshell orion
    internlm2 minicpm gemma starcoder2 xverse command-r dbrx olmo olmoe openelm arctic deepseek
    chatglm glm4 glm4moe bitnet jais nemotron exaone granite granitemoe chameleon bailingmoe
    bailingmoe2 dots1 arcee ernie4_5 ernie4_5-moe hunyuan-moe hunyuan-dense smollm3 seed_oss
    grovemoe apertus minimax-m2 mistral3 cogvlm pangu-embedded maincoder talkie jais2 nanbeige
    paddleocr hunyuan_vl hy_v3 deepseek2-ocr llama-embed"""
)
"""A cache cell per token in every layer that has KV heads."""

DENSE_FIRST: Final = frozenset(("modern-bert", "laguna", "cohere2moe"))
DEFAULT_WINDOW: Final = {"llama4": 8192, "gemma2": 4096}
LATENT: Final = frozenset(("deepseek2", "deepseek32", "glm-dsa", "minicpm3", "mistral4", "plm"))
RECURRENT_ONLY: Final = frozenset(("mamba", "mamba2", "rwkv6", "rwkv7", "rwkv6qwen2", "arwkv7"))
HYBRID: Final = _words(
    """jamba falcon-h1 granitehybrid nemotron_h nemotron_h_moe plamo2 lfm2 lfm2moe qwen3next qwen35
    qwen35moe kimi-linear kimi-k3 minimax-01"""
)
ENCODERS: Final = _words(
    """bert nomic-bert nomic-bert-moe jina-bert-v2 jina-bert-v3 modern-bert neo-bert eurobert
    gemma-embedding t5encoder"""
)
DIFFUSION: Final = _words("dream llada llada-moe rnd1")
"""Write a text all at once, by steps of denoising: no past is kept."""
PERIODIC: Final = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8}
"""Recurrent but for each so-manieth layer, where the file does not list them."""
KNOWN: Final = (
    PLAIN | DIFFUSION | set(LLAMACPP_WINDOWED) | LATENT | RECURRENT_ONLY | HYBRID | ENCODERS
)
"""Every architecture whose cache is computed rather than bounded."""

GDN: Final = frozenset(("qwen3next", "qwen35", "qwen35moe"))
VISION: Final = frozenset(("qwen2vl", "qwen3vl", "qwen3vlmoe", "llama4", "cogvlm", "chameleon"))
