"""What an architecture has beyond its dimensions, as data: one row per llama.cpp architecture.

Source: llama.cpp src/models/*.cpp. Checked by parameter counts: with these rows the tensors of the
catalog's models add up to the published numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What an architecture has beyond its dimensions."""

    fused_qkv: bool = False
    fused_up: bool = False
    """Gate and up in one matrix (Phi-3)."""
    fused_experts: bool = False
    """Gate and up of the experts in one tensor (Gemma 4)."""
    gated_query: bool = False
    """The query projection also makes an output gate: twice as wide."""
    gated_ffn: bool = True
    qkv_bias: bool = False
    bias: bool = False
    """Bias on the attention's output and the feed-forward; on experts too for gpt-oss."""
    sinks: bool = False
    """A learned sink per query head (gpt-oss)."""
    outer_norms: int = 1
    """Norm vectors of the hidden width outside the blocks."""
    head_norms: int = 0
    """Norms over one head (Q and K)."""
    wide_norms: int = 0
    """Norms over all heads of Q and K (OLMo 2)."""
    norms: int = 2
    """Norms over the hidden width per layer."""
    key_is_value: bool = False
    """Full-attention layers project K and V with one matrix when they have fewer KV heads."""
    positions: bool = False
    """A learned position table (BERT, GPT-2)."""
    token_types: bool = False
    """A table of two token types (BERT)."""
    shared_gate: bool = False
    """A gate vector on the shared expert (Qwen)."""
    router_bias: bool = False
    """A bias per expert on the router (DeepSeek-V3 and its kin)."""
    parallel: bool = False
    """Attention and feed-forward read one norm side by side, which is alive until both are done."""
    full_gate: bool = False
    """The output gate of delta attention is one full matrix, not two of low rank, and latent
    attention has such a gate as well (Kimi K3)."""
    deepstack: int = 0
    """First layers that get features of an image added to their output (Qwen3-VL)."""
    separate_ba: bool = True
    """GDN's beta and alpha in two tensors (Qwen3.5) or one (Qwen3-Next)."""


_QWEN3 = Traits(head_norms=2)
_BERT = Traits(
    gated_ffn=False, bias=True, qkv_bias=True, norms=4, outer_norms=2, positions=True,
    token_types=True,
)  # fmt: skip
_FUSED_BIASED = Traits(
    gated_ffn=False, fused_qkv=True, bias=True, qkv_bias=True, norms=4, outer_norms=2
)
TRAITS: Final[Mapping[str, Traits]] = MappingProxyType(
    {
        "llama": Traits(),
        "mistral3": Traits(),
        "llama4": Traits(),
        "granite": Traits(),
        "granitemoe": Traits(),
        "smollm3": Traits(),
        "qwen2": Traits(qkv_bias=True),
        "qwen2moe": Traits(qkv_bias=True, shared_gate=True),
        "qwen2vl": Traits(qkv_bias=True),
        "qwen3": _QWEN3,
        "qwen3moe": _QWEN3,
        "qwen3vl": replace(_QWEN3, deepstack=3),
        "qwen3vlmoe": replace(_QWEN3, deepstack=3),
        "qwen3next": Traits(head_norms=2, gated_query=True, separate_ba=False, shared_gate=True),
        "qwen35": Traits(head_norms=2, gated_query=True),
        "qwen35moe": Traits(head_norms=2, gated_query=True, shared_gate=True),
        "gemma": Traits(),
        "gemma2": Traits(norms=4),
        "gemma3": Traits(norms=4, head_norms=2),
        "gemma4": Traits(norms=4, head_norms=2, key_is_value=True, fused_experts=True),
        "gemma-embedding": Traits(norms=4, head_norms=2),
        "phi3": Traits(fused_qkv=True, fused_up=True),
        "command-r": Traits(norms=1),
        "cohere2": Traits(norms=1, parallel=True),
        "gpt-oss": Traits(qkv_bias=True, bias=True, sinks=True),
        "deepseek2": Traits(router_bias=True),
        "deepseek32": Traits(router_bias=True),
        "glm-dsa": Traits(router_bias=True),
        "kimi-linear": Traits(router_bias=True),
        "kimi-k3": Traits(router_bias=True, full_gate=True),
        "glm4moe": Traits(qkv_bias=True, router_bias=True),
        "olmo2": Traits(wide_norms=2),
        "nemotron_h": Traits(gated_ffn=False, norms=1),
        "nemotron_h_moe": Traits(gated_ffn=False, norms=1),
        "falcon-h1": Traits(),
        "granitehybrid": Traits(),
        "lfm2": Traits(head_norms=2),
        "lfm2moe": Traits(head_norms=2),
        "mamba": Traits(norms=1),
        "mamba2": Traits(norms=1),
        "internlm2": Traits(),
        "stablelm": Traits(norms=4, outer_norms=2),
        "exaone": Traits(),
        "exaone4": Traits(head_norms=2),
        "ernie4_5": Traits(),
        "ernie4_5-moe": Traits(),
        "hunyuan-dense": Traits(head_norms=2),
        "hunyuan-moe": Traits(head_norms=2),
        "seed_oss": Traits(qkv_bias=True),
        "dots1": Traits(head_norms=2),
        "minimax-m2": Traits(wide_norms=2),
        "olmo": Traits(norms=0),
        "olmoe": Traits(wide_norms=2),
        "dbrx": Traits(fused_qkv=True),
        "phimoe": Traits(qkv_bias=True, bias=True),
        "chatglm": Traits(fused_qkv=True, fused_up=True, qkv_bias=True),
        "glm4": Traits(fused_up=True, norms=4),
        "phi2": Traits(gated_ffn=False, bias=True, qkv_bias=True, outer_norms=2, parallel=True),
        "starcoder2": Traits(gated_ffn=False, bias=True, qkv_bias=True, norms=4, outer_norms=2),
        "nemotron": Traits(gated_ffn=False, norms=4, outer_norms=2),
        "falcon": Traits(gated_ffn=False, fused_qkv=True, outer_norms=2, parallel=True),
        "mpt": Traits(gated_ffn=False, fused_qkv=True),
        "bloom": replace(_FUSED_BIASED, outer_norms=4),
        "gptneox": _FUSED_BIASED,
        "gpt2": replace(_FUSED_BIASED, positions=True),
        "jamba": Traits(),
        "deci": Traits(),
        "arcee": Traits(gated_ffn=False),
        "apertus": Traits(gated_ffn=False, head_norms=2),
        "jais2": Traits(gated_ffn=False, bias=True, qkv_bias=True, norms=4, outer_norms=2),
        "starcoder": replace(_FUSED_BIASED, positions=True),
        "codeshell": _FUSED_BIASED,
        "nomic-bert-moe": Traits(gated_ffn=False, fused_qkv=True, norms=4, outer_norms=2),
        "jina-bert-v3": Traits(
            gated_ffn=False, fused_qkv=True, bias=True, qkv_bias=True, norms=4, outer_norms=2
        ),
        "bert": _BERT,
        "nomic-bert": Traits(fused_qkv=True, norms=4, outer_norms=2, token_types=True),
    }
)
"""By llama.cpp architecture name."""

PLAIN: Final = Traits()
"""What is assumed of an architecture without a row."""
