"""Which tensors a model has, with their shapes, from its dimensions alone.

The shapes are those of llama.cpp's GGUF files (src/models/*.cpp), because block sizes depend on row
lengths; element counts are the same in every format. What differs between architectures beyond
dimensions is a row in `enginekit.sizing.traits`. An architecture without a row is taken as a plain gated decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from enginekit.facts.model import Layer, ModelSpec, Recurrent, Role
from enginekit.sizing.kinds import kinds
from enginekit.sizing.traits import PLAIN, TRAITS, Traits

OUTSIDE: Final = (-1,)
"""The block number of tensors outside the blocks."""


class TensorShape(NamedTuple):
    """Tensors of one name and shape, and the layers that have them."""

    name: str
    """ggml name without block prefix and `.weight`: `attn_v`, `ffn_down_exps`, `token_embd`."""
    role: Role
    row: int
    """Row length, ggml's first dimension: what must divide into blocks."""
    rows: int = 1
    matrices: int = 1
    """Third dimension: experts, or heads of an unfolded latent."""
    layers: tuple[int, ...] = OUTSIDE
    """Block numbers."""
    fixed: str = ""
    """Type that no quantization changes (`F32` for norms and routers); empty if it may shrink."""

    @property
    def elements(self) -> int:
        """Elements of one such tensor."""
        return self.row * self.rows * self.matrices


def known(architecture: str) -> bool:
    """Whether the tensors of the architecture are known by rule rather than by likeness."""
    return architecture in TRAITS


@lru_cache(maxsize=512)
def blueprint(spec: ModelSpec) -> tuple[TensorShape, ...]:
    """Every tensor of the text model; MTP blocks and projector are not among them.

    Taken from the file's own table where the spec came from a GGUF header, built from the
    dimensions otherwise.
    """
    if spec.weights and all(group.shape for group in spec.weights):
        return _merge(_from_file(spec))
    return _merge(_generated(spec))


def parameters(spec: ModelSpec) -> int:
    """Weights of the text model, counted from its tensors."""
    return sum(shape.elements * len(shape.layers) for shape in blueprint(spec))


def active_parameters(spec: ModelSpec) -> int:
    """Weights that one token is multiplied with.

    All of them in a dense model, look-up tables per layer aside; in a mixture the experts in use,
    and not the input table, which is a look-up too unless it is also the output matrix.
    """
    total = 0
    for shape in blueprint(spec):
        count = shape.elements * len(shape.layers)
        if shape.role == "experts" and spec.experts is not None:
            count = count * spec.experts.used // spec.experts.total
        elif shape.role == "layer_embedding" or (
            shape.role == "embedding" and spec.experts is not None and not spec.tied_embeddings
        ):
            count = 0
        total += count
    return total


def _from_file(spec: ModelSpec) -> Iterator[tuple[TensorShape, tuple[int, ...]]]:
    for group in spec.weights:
        if group.role in ("mtp", "projector"):
            continue
        row, rows, matrices = (*group.shape, 1, 1)[:3]
        for extra in group.shape[3:]:
            matrices *= extra
        shape = TensorShape(
            name=_stem(group.name),
            role=group.role,
            row=row,
            rows=rows,
            matrices=matrices,
            # MXFP4 is how the checkpoint was published: every other label keeps it.
            fixed=""
            if _may_shrink(group.name, group.shape) and group.type != "MXFP4"
            else group.type,
        )
        yield shape, OUTSIDE if group.layer is None else (group.layer,)


def _stem(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) > 2:
        parts = parts[2:]
    return ".".join(parts).removesuffix(".weight")


# llama-quant.cpp, tensor_allows_quantization().
_KEPT: Final = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w",
    "time_mix_v0",
    "time_mix_v1",
    "time_mix_v2",
    "time_mix_a",
    "time_mix_g1",
    "time_mix_g2",
    "time_mix_decay_w",
    "time_mix_lerp_fused",
    "attn_rel_b.weight",
    ".position_embd",
    "position_embd.weight",
    "token_types.weight",
)


def _may_shrink(name: str, shape: tuple[int, ...]) -> bool:
    if len([size for size in shape if size > 1]) < 2 or not name.endswith("weight"):
        return False
    return not any(word in name for word in _KEPT)


def _merge(shapes: Iterator[tuple[TensorShape, tuple[int, ...]]]) -> tuple[TensorShape, ...]:
    """Tensors of the same name and shape become one entry with all their layers, ascending."""
    layers: dict[TensorShape, list[int]] = {}
    for shape, numbers in shapes:
        layers.setdefault(shape, []).extend(numbers)
    found, same = [], dict[tuple[int, ...], tuple[int, ...]]()
    for shape, every in layers.items():
        once = tuple(sorted(every))
        found.append(shape._replace(layers=same.setdefault(once, once)))
    return tuple(found)


def _generated(spec: ModelSpec) -> Iterator[tuple[TensorShape, tuple[int, ...]]]:
    traits = TRAITS.get(spec.architecture, PLAIN)
    hidden, vocab = spec.hidden, spec.vocab
    yield TensorShape(name="token_embd", role="embedding", row=hidden, rows=vocab), OUTSIDE
    if not spec.tied_embeddings and spec.causal:
        yield TensorShape(name="output", role="output", row=hidden, rows=vocab), OUTSIDE
    yield _vector("output_norm", traits.outer_norms * hidden), OUTSIDE
    if traits.positions:
        yield (
            TensorShape(
                name="position_embd",
                role="embedding",
                row=hidden,
                rows=spec.context_length,
                fixed="F32",
            ),
            OUTSIDE,
        )
    if traits.token_types:
        yield (
            TensorShape(name="token_types", role="embedding", row=hidden, rows=2, fixed="F32"),
            OUTSIDE,
        )
    if spec.per_layer_embedding:
        wide = spec.per_layer_embedding * spec.n_layers
        yield (
            TensorShape(name="per_layer_token_embd", role="layer_embedding", row=wide, rows=vocab),
            OUTSIDE,
        )
        yield (
            TensorShape(
                name="per_layer_model_proj", role="other", row=hidden, rows=wide, fixed="F16"
            ),
            OUTSIDE,
        )
    for layer, numbers in kinds(spec):
        for shape in _block(spec, layer, traits):
            yield shape, numbers


def _vector(name: str, size: int) -> TensorShape:
    return TensorShape(name=name, role="norm", row=size, fixed="F32")


def _block(spec: ModelSpec, layer: Layer, traits: Traits) -> Iterator[TensorShape]:
    hidden = spec.hidden
    yield _vector("norms", traits.norms * hidden)
    if layer.recurrent and spec.recurrent is not None:
        yield from _recurrent(spec.recurrent, hidden, traits)
    if layer.heads and spec.mla is not None:
        yield from _latent_attention(spec, layer)
        if traits.full_gate:
            gate = layer.heads * spec.mla.value_dim
            yield TensorShape(name="attn_gate", role=_ATTENTION, row=hidden, rows=gate)
    elif layer.heads:
        yield from _attention(spec, layer, traits)
    if layer.ffn:
        yield from _feed_forward(hidden, layer.ffn, traits, "", "ffn")
        if traits.bias:
            yield _vector("ffn_bias", layer.ffn + hidden)
    if layer.moe:
        yield from _experts(spec, traits)
    if spec.per_layer_embedding:
        width = spec.per_layer_embedding
        yield TensorShape(name="inp_gate", role="other", row=hidden, rows=width)
        yield TensorShape(name="proj", role="other", row=width, rows=hidden)
        yield _vector("post_norm", hidden)


def _attention(spec: ModelSpec, layer: Layer, traits: Traits) -> Iterator[TensorShape]:
    hidden, role = spec.hidden, _ATTENTION
    query = layer.heads * layer.key_dim
    key, value = layer.kv_heads * layer.key_dim, layer.kv_heads * layer.value_dim
    out = layer.heads * layer.value_dim
    if traits.fused_qkv:
        yield TensorShape(name="attn_qkv", role=role, row=hidden, rows=query + key + value)
    else:
        wide = 2 * query if traits.gated_query else query
        yield TensorShape(name="attn_q", role=role, row=hidden, rows=wide)
        if key:
            yield TensorShape(name="attn_k", role=role, row=hidden, rows=key)
            shared = (
                traits.key_is_value and layer.attention == "full" and layer.kv_heads < spec.kv_heads
            )
            if not shared:
                yield TensorShape(name="attn_v", role=role, row=hidden, rows=value)
    yield TensorShape(name="attn_output", role=role, row=out, rows=hidden)
    if layer.indexer_dim:
        yield from _indexer(spec, layer.indexer_dim)
    if traits.head_norms:
        norms = traits.head_norms if key else 1
        yield _vector("head_norms", norms * layer.key_dim)
    if traits.wide_norms:
        yield _vector("wide_norms", query + key)
    if traits.qkv_bias:
        yield _vector("attn_bias", query + key + value)
    if traits.bias:
        yield _vector("attn_output_bias", hidden)
    if traits.sinks:
        yield _vector("attn_sinks", layer.heads)


_ATTENTION: Final[Role] = "attention"


def _latent_attention(spec: ModelSpec, layer: Layer) -> Iterator[TensorShape]:
    mla, hidden, role = spec.mla, spec.hidden, _ATTENTION
    assert mla is not None
    heads, head = layer.heads, mla.nope_dim + mla.rope_dim
    if mla.q_lora_rank:
        yield TensorShape(name="attn_q_a", role=role, row=hidden, rows=mla.q_lora_rank)
        yield TensorShape(name="attn_q_b", role=role, row=mla.q_lora_rank, rows=heads * head)
    else:
        yield TensorShape(name="attn_q", role=role, row=hidden, rows=heads * head)
    yield TensorShape(name="attn_kv_a_mqa", role=role, row=hidden, rows=mla.cached)
    yield TensorShape(
        name="attn_k_b", role=role, row=mla.nope_dim, rows=mla.kv_lora_rank, matrices=heads
    )
    yield TensorShape(
        name="attn_v_b", role=role, row=mla.kv_lora_rank, rows=mla.value_dim, matrices=heads
    )
    yield TensorShape(name="attn_output", role=role, row=heads * mla.value_dim, rows=hidden)
    yield _vector("latent_norms", mla.q_lora_rank + mla.kv_lora_rank)
    if layer.indexer_dim:
        yield from _indexer(spec, layer.indexer_dim)


_INDEX_HEADS: Final = {"glm-dsa": 32, "minimax-m3": 0}
"""0: not known, and too little to show in the published size."""


def _indexer(spec: ModelSpec, width: int) -> Iterator[TensorShape]:
    """DeepSeek-V3.2's sparse-attention indexer; 64 index heads there, others in `_INDEX_HEADS`."""
    heads = _INDEX_HEADS.get(spec.architecture, 64)
    if not heads:
        return
    rank = spec.mla.q_lora_rank if spec.mla else spec.hidden
    yield TensorShape(name="indexer.attn_q_b", role=_ATTENTION, row=rank, rows=heads * width)
    yield TensorShape(name="indexer.attn_k", role=_ATTENTION, row=spec.hidden, rows=width)
    yield TensorShape(name="indexer.proj", role=_ATTENTION, row=spec.hidden, rows=heads)


def _feed_forward(
    hidden: int, width: int, traits: Traits, suffix: str, role: Role
) -> Iterator[TensorShape]:
    if traits.fused_up:
        yield TensorShape(name=f"ffn_up{suffix}", role=role, row=hidden, rows=2 * width)
    else:
        if traits.gated_ffn:
            yield TensorShape(name=f"ffn_gate{suffix}", role=role, row=hidden, rows=width)
        yield TensorShape(name=f"ffn_up{suffix}", role=role, row=hidden, rows=width)
    yield TensorShape(name=f"ffn_down{suffix}", role=role, row=width, rows=hidden)


def _experts(spec: ModelSpec, traits: Traits) -> Iterator[TensorShape]:
    experts, hidden = spec.experts, spec.hidden
    if experts is None:
        return
    inner = experts.latent or hidden
    total, width = experts.total, experts.ffn
    role: Role = "experts"
    yield TensorShape(name="ffn_gate_inp", role="router", row=hidden, rows=total, fixed="F32")
    gated = experts.gated and traits.gated_ffn
    if gated and traits.fused_experts:
        yield TensorShape(
            name="ffn_gate_up_exps", role=role, row=inner, rows=2 * width, matrices=total
        )
        # Gemma 4's router scale and three extra norms of the dense-plus-MoE block.
        yield _vector("moe_norms", 4 * hidden + total)
    else:
        names = ("ffn_gate_exps", "ffn_up_exps") if gated else ("ffn_up_exps",)
        for name in names:
            yield TensorShape(name=name, role=role, row=inner, rows=width, matrices=total)
    yield TensorShape(name="ffn_down_exps", role=role, row=width, rows=inner, matrices=total)
    if experts.latent:
        yield TensorShape(name="ffn_latent_down", role="other", row=hidden, rows=inner)
        yield TensorShape(name="ffn_latent_up", role="other", row=inner, rows=hidden)
    if traits.bias:
        yield _vector("expert_bias", total * (2 * width + hidden + 1))
    if traits.router_bias:
        yield _vector("exp_probs_b", total)
    if experts.shared_ffn:
        if traits.shared_gate:
            yield _vector("ffn_gate_inp_shexp", hidden)
        yield from _feed_forward(hidden, experts.shared_ffn, traits, "_shexp", "shared_experts")


def _recurrent(state: Recurrent, hidden: int, traits: Traits) -> Iterator[TensorShape]:
    role: Role = "recurrent"
    inner = state.inner
    conv_width = inner + 2 * state.groups * state.state
    if state.kind == "gdn":
        yield TensorShape(name="attn_qkv", role=role, row=hidden, rows=conv_width)
        yield TensorShape(name="attn_gate", role=role, row=hidden, rows=inner)
        if traits.separate_ba:
            yield TensorShape(name="ssm_beta", role=role, row=hidden, rows=state.heads)
            yield TensorShape(name="ssm_alpha", role=role, row=hidden, rows=state.heads)
        else:
            yield TensorShape(name="ssm_ba", role=role, row=hidden, rows=2 * state.heads)
        yield TensorShape(name="ssm_out", role=role, row=inner, rows=hidden)
        yield _vector("ssm_vectors", 2 * state.heads + state.state)
    elif state.kind in ("mamba1", "mamba2"):
        extra = 2 * state.groups * state.state + state.heads if state.kind == "mamba2" else 0
        yield TensorShape(name="ssm_in", role=role, row=hidden, rows=2 * inner + extra)
        if state.kind == "mamba1":
            rank = state.heads
            yield TensorShape(name="ssm_x", role=role, row=inner, rows=rank + 2 * state.state)
            yield TensorShape(name="ssm_dt", role=role, row=rank, rows=inner)
            conv_width = inner
        yield TensorShape(name="ssm_out", role=role, row=inner, rows=hidden)
        if state.kind == "mamba1":
            # Biases of dt and the convolution, D, and A, which Mamba-1 keeps per channel and state.
            yield _vector("ssm_vectors", (3 + state.state) * inner)
        else:
            yield _vector("ssm_vectors", 3 * state.heads + inner + conv_width)
    elif state.kind == "shortconv":
        yield TensorShape(name="shortconv.in_proj", role=role, row=hidden, rows=3 * hidden)
        yield TensorShape(name="shortconv.out_proj", role=role, row=hidden, rows=hidden)
        conv_width = hidden
    elif state.kind == "kda":
        yield from _delta_attention(state, hidden, traits)
        return
    else:
        for name in ("q", "k", "v", "output", "gate"):
            yield TensorShape(name=f"attn_{name}", role=role, row=hidden, rows=inner or hidden)
        return
    conv = "shortconv.conv" if state.kind == "shortconv" else "ssm_conv1d"
    yield TensorShape(name=conv, role=role, row=max(state.conv, 1), rows=conv_width, fixed="F32")


def _delta_attention(state: Recurrent, hidden: int, traits: Traits) -> Iterator[TensorShape]:
    """Kimi delta attention: the decay has a projection of low rank, the output gate may have a full one."""
    role: Role = "recurrent"
    inner, rank = state.inner, state.state
    for name in ("q", "k", "v"):
        yield TensorShape(name=f"attn_{name}", role=role, row=hidden, rows=inner)
        yield TensorShape(
            name=f"ssm_conv1d_{name}", role=role, row=max(state.conv, 1), rows=inner, fixed="F32"
        )
    for name in ("f",) if traits.full_gate else ("f", "g"):
        yield TensorShape(name=f"ssm_{name}_a", role=role, row=hidden, rows=rank)
        yield TensorShape(name=f"ssm_{name}_b", role=role, row=rank, rows=inner)
    if traits.full_gate:
        yield TensorShape(name="attn_gate", role=role, row=hidden, rows=inner)
    yield TensorShape(name="ssm_beta", role=role, row=hidden, rows=state.heads)
    yield TensorShape(name="attn_output", role=role, row=inner, rows=hidden)
    yield _vector("ssm_vectors", state.heads + inner + rank)
