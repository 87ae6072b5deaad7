"""From a handful of hyperparameters to one `Layer` per block.

GGUF keys, config.json and the catalog all end here, so a rule such as "the last n layers share
their cache" exists once. A value is either one number for all layers or a sequence, one per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from enginekit.errors import ModelFileError
from enginekit.facts.model import AttentionKind, Layer, Mla, Recurrent, RecurrentKind

PerLayer = int | Sequence[int]
Flags = Sequence[bool] | None

MAX_LAYERS = 2048
"""llama.cpp stops at 512; more than this is a broken or hostile file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Hyperparameters of a stack of blocks; defaults describe a plain dense decoder."""

    layers: int
    heads: PerLayer
    kv_heads: PerLayer
    key_dim: PerLayer
    value_dim: PerLayer
    ffn: PerLayer
    window: int = 0
    sliding: Flags = None
    """Which layers see only the window; None with a window means all of them."""
    chunked: bool = False
    attention: Flags = None
    """Which layers attend at all; None means all."""
    recurrent: Flags = None
    shared_kv: int = 0
    """How many layers at the end reuse an earlier cache."""
    mla: Mla | None = None
    indexer_dim: int = 0
    indexer: Flags = None
    moe: Flags = None
    dense_beside_moe: bool = False
    """Whether MoE layers keep a dense feed-forward too (Gemma 4 26B, Arctic)."""
    causal: bool = True


def pick(value: PerLayer, index: int) -> int:
    """The value for one layer."""
    return value if isinstance(value, int) else value[index]


def _flag(flags: Flags, index: int, default: bool) -> bool:
    return default if flags is None else index < len(flags) and flags[index]


def build(shape: Shape) -> tuple[Layer, ...]:
    """One frozen `Layer` per block; equal neighbours are the same object.

    Raises:
        ModelFileError: there are no layers, or more than any model has.
    """
    if not 0 < shape.layers <= MAX_LAYERS:
        raise ModelFileError(
            f"the model claims {shape.layers} layers; 1 to {MAX_LAYERS} are possible",
            field="layers",
        )
    seen: dict[Layer, Layer] = {}
    built = (_layer(shape, index) for index in range(shape.layers))
    return tuple(seen.setdefault(layer, layer) for layer in built)


def _layer(shape: Shape, index: int) -> Layer:
    heads = pick(shape.heads, index)
    kv_heads = pick(shape.kv_heads, index)
    key_dim, value_dim = pick(shape.key_dim, index), pick(shape.value_dim, index)
    kind: AttentionKind = "full"
    window = 0
    if shape.window and _flag(shape.sliding, index, default=True):
        kind = "chunked" if shape.chunked else "sliding"
        window = shape.window
    if shape.mla is not None:
        kind, kv_heads, key_dim, value_dim = "mla", 1, shape.mla.cached, 0
    if index >= shape.layers - shape.shared_kv:
        kind, kv_heads = "shared", 0
    if not shape.causal:
        kind = "none"
    if not _flag(shape.attention, index, default=True) or (not heads and not kv_heads):
        kind, heads, kv_heads, key_dim, value_dim, window = "none", 0, 0, 0, 0, 0
    moe = _flag(shape.moe, index, default=False)
    return Layer(
        attention=kind,
        heads=heads,
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        window=window,
        indexer_dim=shape.indexer_dim if _flag(shape.indexer, index, default=True) else 0,
        recurrent=_flag(shape.recurrent, index, default=False),
        ffn=0 if moe and not shape.dense_beside_moe else pick(shape.ffn, index),
        moe=moe,
    )


def headless(layers: Sequence[Layer]) -> str:
    """What is absurd about heads of an understood layout: a problem in words, or ""."""
    for layer in layers:
        if layer.attention not in ("full", "sliding", "chunked"):
            continue
        if not layer.kv_heads or not layer.key_dim:
            return (
                f"{layer.heads} heads, {layer.kv_heads} KV heads of {layer.key_dim} keep no cache"
            )
        if layer.heads % layer.kv_heads:
            return f"{layer.heads} heads cannot share {layer.kv_heads} KV heads evenly"
    return ""


def unknown(layers: Sequence[Layer], hidden: int) -> tuple[Layer, ...]:
    """The layers of an architecture that is not understood: what their cache takes is a range.

    Where no heads are stated at all, full attention of the hidden size is its upper end.
    """
    if all(layer.attention == "none" and not layer.recurrent for layer in layers):
        wide = {"heads": 1, "kv_heads": 1, "key_dim": hidden, "value_dim": hidden}
        return tuple(replace(layer, attention="unknown", **wide) for layer in layers)  # type: ignore[arg-type]
    return tuple(
        replace(layer, attention="unknown") if layer.attention != "none" else layer
        for layer in layers
    )


def every(layers: int, period: int) -> tuple[bool, ...]:
    """True for the local layers of the usual pattern: all but each `period`-th."""
    return tuple(period > 0 and index % period < period - 1 for index in range(layers))


def ssm(
    kind: RecurrentKind, *, inner: int, state: int, groups: int, conv: int, heads: int = 0
) -> Recurrent:
    """State of Mamba-1/2 and gated delta nets; for the latter groups are k heads, state is k_dim."""
    return Recurrent(
        kind=kind,
        conv_elements=max(conv - 1, 0) * (inner + 2 * groups * state),
        state_elements=state * inner,
        conv=conv,
        inner=inner,
        state=state,
        groups=groups,
        heads=heads,
    )


def rwkv(*, hidden: int, head_size: int, shifts: int) -> Recurrent:
    """State of RWKV-6 and RWKV-7."""
    return Recurrent(
        kind="rwkv",
        conv_elements=shifts * hidden,
        state_elements=hidden * head_size,
        state=head_size,
        inner=hidden,
    )


def shortconv(*, hidden: int, cache: int) -> Recurrent:
    """State of LFM2's short convolutions."""
    return Recurrent(
        kind="shortconv", conv_elements=hidden * max(cache - 1, 0), state_elements=0, conv=cache
    )


def kda(*, heads: int, head_dim: int, conv: int) -> Recurrent:
    """State of Kimi delta attention."""
    return Recurrent(
        kind="kda",
        conv_elements=3 * max(conv - 1, 0) * heads * head_dim,
        state_elements=head_dim * head_dim * heads,
        conv=conv,
        inner=heads * head_dim,
        state=head_dim,
        heads=heads,
    )


def lightning(*, heads: int, head_dim: int) -> Recurrent:
    """State of MiniMax-01's lightning attention."""
    return Recurrent(
        kind="lightning",
        conv_elements=0,
        state_elements=head_dim * head_dim * heads,
        state=head_dim,
        heads=heads,
        inner=heads * head_dim,
    )
