"""Norms, biases and other small tensors that llama.cpp's loaders demand, by architecture.

One word per tensor, `WHERE:NAME:SHAPE`. WHERE is `*` every block, `a` blocks with attention, `k`
those with keys of their own, `r` recurrent blocks, `f` dense and `m` mixture blocks, `i` those with
an indexer, `1` the first block, `-` outside the blocks. SHAPE counts in the letters of
`tests.support.headers.sizes`, row length first, `x` between dimensions. Source: the
`load_arch_tensors` of llama.cpp src/models/*.cpp, build b11434; the loader refuses a wrong table.
"""

from __future__ import annotations

_NORMS = "*:attn_norm.weight:D *:ffn_norm.weight:D"
_QKV_BIAS = "a:attn_q.bias:Q a:attn_k.bias:K a:attn_v.bias:V"
_HEAD_NORMS = "a:attn_q_norm.weight:H a:attn_k_norm.weight:H"
_POST_NORMS = "*:post_attention_norm.weight:D *:post_ffw_norm.weight:D"
_LAYER_NORMS = f"{_NORMS} *:attn_norm.bias:D *:ffn_norm.bias:D -:output_norm.bias:D"
_LINEAR_BIAS = "a:attn_output.bias:D f:ffn_up.bias:F f:ffn_down.bias:D"
_LATENT = f"{_NORMS} a:attn_q_a_norm.weight:QL a:attn_kv_a_norm.weight:L m:exp_probs_b.bias:E"
_MAMBA2 = "r:ssm_conv1d.bias:C r:ssm_dt.bias:T r:ssm_a:1xT r:ssm_d:1xT r:ssm_norm.weight:JxG"
_MAMBA1 = "r:ssm_conv1d.bias:I r:ssm_dt.bias:I r:ssm_a:SxI r:ssm_d:I"
_GDN = "r:ssm_dt.bias:T r:ssm_a:T r:ssm_norm.weight:S"
_QWEN35 = f"*:attn_norm.weight:D *:post_attention_norm.weight:D {_HEAD_NORMS} {_GDN}"
_SHARED_GATE = "m:ffn_gate_inp_shexp.weight:D"
_ENCODER = (
    "-:token_embd_norm.weight:D -:token_embd_norm.bias:D "
    "*:attn_output_norm.weight:D *:attn_output_norm.bias:D "
    "*:layer_output_norm.weight:D *:layer_output_norm.bias:D"
)

VECTORS: dict[str, str] = {
    "llama": _NORMS,
    "llama4": _NORMS,
    "mistral3": _NORMS,
    "granite": _NORMS,
    "granitemoe": _NORMS,
    "smollm3": _NORMS,
    "internlm2": _NORMS,
    "exaone": _NORMS,
    "gemma": _NORMS,
    "phi3": _NORMS,
    "ernie4_5": _NORMS,
    "chatglm": f"{_NORMS} a:attn_qkv.bias:QKV",
    "olmo": "",
    "qwen2": f"{_NORMS} {_QKV_BIAS}",
    "seed_oss": f"*:attn_norm.weight:D *:post_attention_norm.weight:D {_QKV_BIAS}",
    "qwen2moe": f"{_NORMS} {_QKV_BIAS} {_SHARED_GATE}",
    "qwen3": f"{_NORMS} {_HEAD_NORMS}",
    "qwen3moe": f"{_NORMS} {_HEAD_NORMS}",
    "hunyuan-dense": f"{_NORMS} {_HEAD_NORMS}",
    "qwen35": _QWEN35,
    "qwen35moe": f"{_QWEN35} {_SHARED_GATE}",
    "qwen3next": f"{_QWEN35} {_SHARED_GATE}",
    "gemma2": f"{_NORMS} {_POST_NORMS}",
    "gemma3": f"{_NORMS} {_POST_NORMS} {_HEAD_NORMS}",
    "gemma-embedding": f"{_NORMS} {_POST_NORMS} {_HEAD_NORMS}",
    "gemma4": f"{_NORMS} {_POST_NORMS} a:attn_q_norm.weight:H k:attn_k_norm.weight:H "
    "*:layer_output_scale.weight:1 1:rope_freqs.weight:R "
    "m:ffn_gate_inp.scale:D m:post_ffw_norm_1.weight:D m:post_ffw_norm_2.weight:D "
    "m:pre_ffw_norm_2.weight:D m:ffn_down_exps.scale:E",
    "gpt-oss": "*:attn_norm.weight:D *:post_attention_norm.weight:D "
    f"{_QKV_BIAS} a:attn_output.bias:D a:attn_sinks.weight:h m:ffn_gate_inp.bias:E "
    "m:ffn_gate_exps.bias:XxE m:ffn_up_exps.bias:XxE m:ffn_down_exps.bias:DxE",
    "command-r": "*:attn_norm.weight:D",
    "cohere2": "*:attn_norm.weight:D",
    "glm4": f"{_NORMS} {_POST_NORMS}",
    "glm4moe": "*:attn_norm.weight:D *:post_attention_norm.weight:D "
    f"{_QKV_BIAS} m:exp_probs_b.bias:E",
    "olmo2": f"{_POST_NORMS} a:attn_q_norm.weight:Q a:attn_k_norm.weight:K",
    "olmoe": f"{_NORMS} a:attn_q_norm.weight:Q a:attn_k_norm.weight:K",
    "minimax-m2": f"{_NORMS} a:attn_q_norm.weight:Q a:attn_k_norm.weight:K m:exp_probs_b.bias:E",
    "exaone4": f"{_POST_NORMS} {_HEAD_NORMS}",
    "deepseek2": _LATENT,
    "deepseek32": f"{_LATENT} i:indexer.k_norm.weight:N i:indexer.k_norm.bias:N",
    "glm-dsa": f"{_LATENT} i:indexer.k_norm.weight:N i:indexer.k_norm.bias:N",
    "nemotron": _LAYER_NORMS,
    "nemotron_h": f"*:attn_norm.weight:D {_MAMBA2}",
    "nemotron_h_moe": f"*:attn_norm.weight:D {_MAMBA2} m:exp_probs_b.bias:E",
    "granitehybrid": f"{_NORMS} {_MAMBA2}",
    "falcon-h1": f"*:attn_norm.weight:D *:ffn_norm:D {_MAMBA2}",
    "mamba": f"*:attn_norm.weight:D {_MAMBA1}",
    "mamba2": f"*:attn_norm.weight:D {_MAMBA2}",
    "jamba": f"{_NORMS} {_MAMBA1} r:ssm_dt_norm.weight:T r:ssm_b_norm.weight:S "
    "r:ssm_c_norm.weight:S",
    "lfm2": f"{_NORMS} {_HEAD_NORMS}",
    "lfm2moe": f"{_NORMS} {_HEAD_NORMS} m:exp_probs_b.bias:E",
    "bert": f"{_ENCODER} {_QKV_BIAS} {_LINEAR_BIAS}",
    "nomic-bert": _ENCODER,
    "falcon": "*:attn_norm.weight:D *:attn_norm.bias:D -:output_norm.bias:D",
    "dbrx": "*:attn_norm.weight:D *:attn_output_norm.weight:D",
    "bloom": f"{_LAYER_NORMS} a:attn_qkv.bias:QKV {_LINEAR_BIAS} "
    "-:token_embd_norm.weight:D -:token_embd_norm.bias:D",
    "gpt2": f"{_LAYER_NORMS} a:attn_qkv.bias:QKV {_LINEAR_BIAS}",
    "gptneox": f"{_LAYER_NORMS} a:attn_qkv.bias:QKV {_LINEAR_BIAS}",
    "mpt": _NORMS,
    "starcoder2": f"{_LAYER_NORMS} {_QKV_BIAS} {_LINEAR_BIAS}",
    "phi2": f"*:attn_norm.weight:D *:attn_norm.bias:D -:output_norm.bias:D {_QKV_BIAS} "
    f"{_LINEAR_BIAS} -:output.bias:W",
    "stablelm": _LAYER_NORMS,
}
