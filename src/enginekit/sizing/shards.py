"""What tensor parallelism does not divide, and what loading adds to a repository's weights (vLLM).

A shard is more than a share: some matrices are whole on every GPU, MLA's up-projection is unpacked
once more for decoding, and kernels pad experts.
"""

from __future__ import annotations

from functools import lru_cache

from enginekit.facts.model import ModelSpec
from enginekit.sizing.quantization import weight_format


@lru_cache(maxsize=8192)
def whole(spec: ModelSpec, quantization: str, tensor: int) -> int:
    """Bytes that each GPU holds beyond its share of the weights.

    * MLA's down-projections (`q_a`, `kv_a`) and the routers are on every GPU. DeepSeek-R1 in AWQ over
      16 GPUs loads 21.21 GiB on each, of which a sixteenth of the file is 20.5 (vllm#14447).
    * MLA decodes with `kv_b` unpacked to 16 bits and split in two, beside the packed one.
    * Fewer KV heads than GPUs: each GPU still has one.
    """
    other = weight_format(quantization)
    packed = other is not None and "attention" in other.quantized
    bits = float(other.bits) if other is not None and packed else 16.0
    everywhere = routers = unpacked = heads = 0.0
    mla, experts = spec.mla, spec.experts
    for layer in spec.layers:
        if layer.attention == "mla" and mla is not None:
            everywhere += spec.hidden * (mla.q_lora_rank + mla.cached)
            unpacked += 2 * layer.heads * mla.kv_lora_rank * (mla.nope_dim + mla.value_dim)
        elif 0 < layer.kv_heads < tensor:
            lacking = 1 - layer.kv_heads / tensor
            heads += spec.hidden * (layer.key_dim + layer.value_dim) * lacking
        if layer.moe and experts is not None:
            routers += 2 * spec.hidden * experts.total
    share = 1 - 1 / tensor
    return int((everywhere * share + heads) * bits / 8 + routers * share + unpacked / tensor)


def padded(
    spec: ModelSpec, pads: tuple[int, int] | None, tensor: int, capability: tuple[int, int] | None
) -> float:
    """How much larger experts are on the GPU than in the file.

    Marlin wants the hidden width in multiples of `pads[0]` and each shard's own width in multiples
    of `pads[1]`: gpt-oss's 2880 becomes 3072 by 2944, and 65.97 GiB of the 120b on one GPU
    (vllm#23278). Hopper's kernels on one GPU pad one side: 64.38 GiB (vllm#33155).
    """
    experts = spec.experts
    if pads is None or experts is None or not experts.ffn:
        return 1.0
    hidden, width = experts.latent or spec.hidden, -(-experts.ffn // tensor)
    factor = _up(hidden, pads[0]) / hidden
    if tensor > 1 or capability is None or capability[0] != 9:
        factor *= _up(width, pads[1]) * tensor / experts.ffn
    return factor


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
