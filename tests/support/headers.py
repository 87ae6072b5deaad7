"""GGUF files without weights: every key and tensor of a model, then a hole as large as the data.

llama.cpp plans memory from the header, so a sparse file of a few megabytes stands in for a model of
any size. Matrices come from `enginekit.sizing.tensors`, the rest from `header_vectors`; the real
loader checks the name and shape of every one, and that there is none too many. Block sizes are
those of the `gguf` package, not ours.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from enginekit.facts.model import Layer, ModelSpec
from enginekit.sizing.mixture import Mixture
from tests.catalog.gguf_writer import text, value
from tests.support.header_vectors import VECTORS

LEAST_FILE = 6 << 30
"""Files are at least this long: mapping one then always fails under the oracle's address limit."""


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def bytes(self) -> int:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.type]]
        return math.prod(self.shape) // block * size


@dataclass(frozen=True, slots=True)
class Header:
    keys: dict[str, Any]
    tensors: list[Tensor] = field(default_factory=list)

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


def header_of(spec: ModelSpec, label: str = "F16") -> Header:
    """The header that llama.cpp's converter and llama-quantize would write for a model."""
    return Header(keys_of(spec), sorted(_matrices(spec, label), key=_order) + list(_small(spec)))


def write(path: Path, header: Header) -> Path:
    """Keys and tensor table, then a hole."""
    out = bytearray(b"GGUF")
    out += struct.pack("<IQQ", 3, len(header.tensors), len(header.keys))
    for key, item in header.keys.items():
        out += text(key) + value(item)
    offset = 0
    for tensor in header.tensors:
        out += text(tensor.name) + struct.pack("<I", len(tensor.shape))
        out += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
        out += struct.pack("<IQ", int(GGMLQuantizationType[tensor.type]), offset)
        offset += -(-tensor.bytes // 32) * 32
    out += bytes(-len(out) % 32)
    with path.open("wb") as file:
        file.write(out)
        file.truncate(max(len(out) + offset, LEAST_FILE))
    return path


def _order(tensor: Tensor) -> tuple[int, str]:
    parts = tensor.name.split(".")
    return (int(parts[1]) if parts[0] == "blk" else -1, tensor.name)


def _matrices(spec: ModelSpec, label: str) -> Iterator[Tensor]:
    for shape, layer, kind in Mixture(spec, label).assign():
        if shape.role == "norm":
            continue
        dims: tuple[int, ...] = (shape.row, shape.rows, shape.matrices)
        while dims[-1] == 1 and len(dims) > 2:
            dims = dims[:-1]
        prefix = f"blk.{layer}." if layer >= 0 else ""
        yield Tensor(f"{prefix}{shape.name}.weight", dims, kind)


def _small(spec: ModelSpec) -> Iterator[Tensor]:
    table = VECTORS[spec.architecture]
    if spec.architecture not in ("olmo", "bert", "nomic-bert"):
        last = "token_embd_norm" if spec.architecture.startswith("lfm2") else "output_norm"
        yield Tensor(f"{last}.weight", (spec.hidden,), "F32")
    if spec.per_layer_embedding:
        yield Tensor("per_layer_proj_norm.weight", (spec.per_layer_embedding,), "F32")
        table += " *:post_norm.weight:D"
    words = [word.split(":") for word in table.split()]
    for where, name, shape in words:
        if where == "-":
            yield Tensor(name, _dims(spec, spec.layers[0], shape), "F32")
    for index, layer in enumerate(spec.layers):
        for where, name, shape in words:
            if not _applies(layer, where):
                continue
            outside = where == "1"
            if outside and any(before == layer for before in spec.layers[:index]):
                continue
            if outside and layer.attention != "full":
                continue
            prefix = "" if outside else f"blk.{index}."
            dims = _dims(spec, layer, shape)
            if all(dims):
                yield Tensor(prefix + name, dims, "F32")


def _applies(layer: Layer, where: str) -> bool:
    return {
        "*": True,
        "1": True,
        "-": False,
        "a": bool(layer.heads),
        "k": bool(layer.kv_heads),
        "r": layer.recurrent,
        "f": bool(layer.ffn),
        "m": layer.moe,
        "i": bool(layer.indexer_dim),
    }[where]


def _dims(spec: ModelSpec, layer: Layer, shape: str) -> tuple[int, ...]:
    known = sizes(spec, layer)
    return tuple(known[word] if word in known else int(word) for word in shape.split("x"))


def sizes(spec: ModelSpec, layer: Layer) -> dict[str, int]:
    """What the letters of `header_vectors` stand for."""
    query, key = layer.heads * layer.key_dim, layer.kv_heads * layer.key_dim
    worth = layer.kv_heads * layer.value_dim
    found = {
        "D": spec.hidden,
        "W": spec.vocab,
        "h": layer.heads,
        "H": layer.key_dim,
        "R": layer.key_dim // 2,
        "Q": query,
        "K": key,
        "V": worth,
        "QKV": query + key + worth,
        "F": layer.ffn,
        "N": layer.indexer_dim,
    }
    if spec.experts is not None:
        found |= {"E": spec.experts.total, "X": spec.experts.ffn}
    if spec.mla is not None:
        found |= {"QL": spec.mla.q_lora_rank, "L": spec.mla.kv_lora_rank}
    if spec.recurrent is not None:
        state = spec.recurrent
        found |= {
            "I": state.inner,
            "S": state.state,
            "G": state.groups,
            "T": state.heads,
            "C": state.inner + 2 * state.groups * state.state,
            "J": state.inner // max(state.groups, 1),
        }
    return found


# ---------------------------------------------------------------------------------------- keys


def _same(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values


def keys_of(spec: ModelSpec) -> dict[str, Any]:
    """The metadata that describes a model to llama.cpp; no tokenizer, which needs no memory."""
    arch = spec.architecture
    found: dict[str, Any] = {
        "block_count": spec.n_layers,
        "embedding_length": spec.hidden,
        "context_length": spec.context_length,
        "vocab_size": spec.vocab,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "feed_forward_length": _same([layer.ffn for layer in spec.layers]),
    }
    first = next((layer for layer in spec.layers if layer.heads), None)
    if first is None:
        found["attention.head_count"] = 0
    elif spec.mla is None:
        found |= _attention_keys(spec, first)
    if spec.mla is not None and first is not None:
        found |= {
            "attention.head_count": first.heads,
            "attention.head_count_kv": 1,
            "attention.kv_lora_rank": spec.mla.kv_lora_rank,
            "attention.q_lora_rank": spec.mla.q_lora_rank,
            "attention.key_length": spec.mla.cached,
            "attention.value_length": spec.mla.kv_lora_rank,
            "attention.key_length_mla": spec.mla.nope_dim + spec.mla.rope_dim,
            "attention.value_length_mla": spec.mla.value_dim,
            "rope.dimension_count": spec.mla.rope_dim,
        }
    found |= _window_keys(spec) | _expert_keys(spec) | _state_keys(spec) | _own_keys(spec)
    named = {f"{arch}.{key}": item for key, item in found.items()}
    return {
        "general.architecture": arch,
        "general.name": spec.name,
        "general.file_type": 1,
        "tokenizer.ggml.model": "no_vocab",
        "tokenizer.ggml.token_type_count": 2,
        **named,
    }


def _attention_keys(spec: ModelSpec, first: Layer) -> dict[str, Any]:
    kv = [layer.kv_heads for layer in spec.layers]
    if spec.architecture == "gemma4":
        # Layers that share a cache have the head count of their kind all the same.
        by_dim = {layer.key_dim: layer.kv_heads for layer in spec.layers if layer.kv_heads}
        kv = [by_dim.get(layer.key_dim, first.kv_heads) for layer in spec.layers]
    full = next((layer for layer in spec.layers if layer.attention == "full"), first)
    if spec.architecture.startswith("qwen3") and spec.recurrent is not None:
        kv = [full.kv_heads]
    return {
        "attention.head_count": first.heads,
        "attention.head_count_kv": _same(kv),
        "attention.key_length": full.key_dim,
        "attention.value_length": full.value_dim,
        # MiniMax rotates half of each head; the loader insists.
        "rope.dimension_count": full.key_dim // (2 if spec.architecture == "minimax-m2" else 1),
    }


def _window_keys(spec: ModelSpec) -> dict[str, Any]:
    window = max(layer.window for layer in spec.layers)
    if not window:
        return {}
    if spec.architecture == "llama4":
        return {"attention.chunk_size": window}
    return {"attention.sliding_window": window}


def _expert_keys(spec: ModelSpec) -> dict[str, Any]:
    experts = spec.experts
    if experts is None:
        return {}
    found: dict[str, Any] = {
        "expert_count": experts.total,
        "expert_used_count": experts.used,
        "expert_feed_forward_length": experts.ffn,
    }
    if not any(layer.ffn for layer in spec.layers):
        found["feed_forward_length"] = experts.ffn
    if experts.shared_ffn:
        found |= {
            "expert_shared_count": max(experts.shared, 1),
            "expert_shared_feed_forward_length": experts.shared_ffn,
        }
    dense = 0
    while dense < spec.n_layers and not spec.layers[dense].moe:
        dense += 1
    if spec.mla is not None or spec.architecture in ("glm4moe", "lfm2moe", "minimax-m2"):
        found |= {"leading_dense_block_count": dense, "expert_gating_func": 2}
    if experts.latent:
        found["moe_latent_size"] = experts.latent
    return found


def _state_keys(spec: ModelSpec) -> dict[str, Any]:
    state = spec.recurrent
    if state is None:
        return {}
    if state.kind == "shortconv":
        return {"shortconv.l_cache": state.conv}
    return {
        "ssm.conv_kernel": state.conv,
        "ssm.inner_size": state.inner,
        "ssm.state_size": state.state,
        "ssm.group_count": state.groups,
        "ssm.time_step_rank": state.heads,
    }


def _own_keys(spec: ModelSpec) -> dict[str, Any]:
    """What one architecture alone has."""
    arch = spec.architecture
    if arch == "gemma4":
        local = next(layer for layer in spec.layers if layer.window)
        return {
            "attention.key_length_swa": local.key_dim,
            "attention.value_length_swa": local.value_dim,
            "attention.sliding_window_pattern": [
                layer.key_dim == local.key_dim for layer in spec.layers
            ],
            "attention.shared_kv_layers": sum(x.attention == "shared" for x in spec.layers),
            "embedding_length_per_layer_input": spec.per_layer_embedding,
        }
    if arch in ("deepseek32", "glm-dsa"):
        width = max(layer.indexer_dim for layer in spec.layers)
        found = {
            "attention.indexer.head_count": 32 if arch == "glm-dsa" else 64,
            "attention.indexer.key_length": width,
            "attention.indexer.top_k": 2048,
        }
        if arch == "glm-dsa":
            found["attention.indexer.types"] = [bool(x.indexer_dim) for x in spec.layers]
        return found
    if arch.startswith("qwen3") and spec.recurrent is not None:
        found = {"full_attention_interval": 4}
        return found | {"rope.dimension_sections": [11, 11, 10, 0]}
    if arch.startswith("nemotron_h") and spec.experts is not None:
        widths = [layer.ffn or (spec.experts.ffn if layer.moe else 0) for layer in spec.layers]
        return {"feed_forward_length": widths}
    if arch == "llama4":
        first = next(index for index, layer in enumerate(spec.layers) if layer.moe)
        return {"interleave_moe_layer_step": first + 1}
    if arch == "gptneox":
        return {"use_parallel_residual": True}
    if arch == "dbrx":
        return {"attention.clamp_kqv": 8.0}
    if arch in ("command-r", "cohere2", "granite", "granitemoe"):
        return {"logit_scale": 0.25}
    if arch in ("bert", "nomic-bert"):
        return {"attention.causal": False}
    return {}
