"""How large the attention cache and the recurrent state are.

One dispatcher turns a layer and a number of cells into bytes; what differs between engines is how
many cells a layer gets. llama.cpp allocates once for the whole context; vLLM fills a pool of
blocks. llama.cpp's rules here reproduce its own dry runs to the MiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from enginekit.facts.model import Layer, ModelSpec
from enginekit.sizing.kinds import kinds
from enginekit.sizing.quantization import BLOCKS

CACHE_TYPES: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        **{
            name: (BLOCKS[name.upper()].elements, BLOCKS[name.upper()].bytes)
            for name in ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
        },
        "float32": (1, 4),
        "float16": (1, 2),
        "bfloat16": (1, 2),
        "auto": (1, 2),
        "fp8": (1, 1),
        "fp8_e4m3": (1, 1),
        "fp8_e4m3fn": (1, 1),
        "fp8_e5m2": (1, 1),
        "fp8_inc": (1, 1),
        "int8": (1, 1),
        "int4": (2, 1),
        "nvfp4": (16, 9),
    }
)
"""Cache element types of llama.cpp (`-ctk`, `-ctv`) and vLLM: elements and bytes of a block."""

LLAMACPP_WINDOWED: Final[Mapping[str, int]] = MappingProxyType(
    {
        "gemma2": 2,
        "gemma3": 6,
        "gemma3n": 5,
        "gemma4": 6,
        "gpt-oss": 2,
        "cohere2": 4,
        "exaone4": 4,
        "exaone-moe": 4,
        "olmo2": 4,
        "llama4": 4,
        "afmoe": 4,
        "smallthinker": 4,
        "gemma-embedding": 6,
        "modern-bert": 3,
        "laguna": 4,
        "granite_swa": 4,
        "cohere2moe": 4,
        "mellum": 4,
        "plamo3": 8,
        "mimo2": 6,
        "step35": 4,
    }
)
"""Architectures whose sliding window llama.cpp honours, and every which layer is full if the file
does not say. Elsewhere (Mistral 7B v0.1, Phi-3) it allocates the whole context; vLLM does not."""

NO_FLASH: Final = frozenset(("grok",))
"""Architectures for which llama.cpp turns flash attention off (`llama_init_from_model`)."""

PADDING: Final = 256
"""llama.cpp rounds every cell count up to this."""


def pad(tokens: int) -> int:
    """A context as llama.cpp rounds it: up to a multiple of 256."""
    return -(-tokens // PADDING) * PADDING


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Bytes of everything that depends on context length and number of sequences."""

    attention: int
    """Cells of full attention and latent layers."""
    sliding: int
    """Cells of sliding-window and chunked layers."""
    recurrent: int
    """Fixed state, one copy per sequence."""
    context: int
    """Context after rounding, over all sequences together."""
    sliding_cells: int
    """Cells of one sliding layer; 0 without such layers."""
    low: int
    high: int
    """Differ from `total` only if the attention layout is unknown."""
    reason: str
    by_kind: Mapping[Layer, int]
    """Bytes of one layer of each kind that the model has."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.attention + self.sliding + self.recurrent

    def layers(self, spec: ModelSpec) -> tuple[int, ...]:
        """Bytes of each block, for a split by layers."""
        return tuple(self.by_kind[layer] for layer in spec.layers)


def row_bytes(elements: int, cache_type: str) -> int:
    """Bytes of one cell's K or V row.

    Raises:
        ValueError: the type is not one that a cache can have.
    """
    block = CACHE_TYPES.get(cache_type)
    if block is None:
        raise ValueError(
            f"unknown cache type {cache_type!r}: one of {', '.join(sorted(CACHE_TYPES))}"
        )
    return -(-elements // block[0]) * block[1]


def llamacpp_refusal(spec: ModelSpec, cache_type: str, *, flash: bool = True) -> str:
    """Why llama.cpp would not start with such K and V (`llama_init_from_model`); "" if it would."""
    elements = CACHE_TYPES[cache_type][0] if cache_type in CACHE_TYPES else 1
    if elements == 1:
        return ""
    if not flash or spec.architecture in NO_FLASH:
        return f"llama.cpp refuses a {cache_type} cache without flash attention"
    for layer, _ in kinds(spec):
        odd = [dim for dim in (layer.key_dim, layer.value_dim) if dim % elements]
        if odd and layer.kv_heads:
            return (
                f"llama.cpp refuses a {cache_type} cache for {spec.name}: heads of {odd[0]} elements "
                f"are no whole blocks of {elements}"
            )
    return ""


def cell_bytes(layer: Layer, type_k: str = "f16", type_v: str = "f16", *, widest: int = 0) -> int:
    """Bytes of one cell of one layer; 0 for a layer without a cache of its own.

    `widest` is what `widest_value` says where flash attention is off.
    """
    if layer.attention in ("none", "shared"):
        return 0
    key = layer.kv_heads * layer.key_dim
    value = widest or layer.kv_heads * layer.value_dim
    total = row_bytes(key, type_k) + row_bytes(value, type_v)
    return total + row_bytes(layer.indexer_dim, type_k) if layer.indexer_dim else total


@lru_cache(maxsize=1024)
def _kinds(spec: ModelSpec) -> tuple[tuple[Layer, int], ...]:
    """The distinct layers of a model and how often each occurs."""
    return tuple([(layer, len(numbers)) for layer, numbers in kinds(spec)])


@lru_cache(maxsize=1024)
def widest_value(spec: ModelSpec) -> int:
    """Elements of the widest layer's V row.

    Without flash attention llama.cpp keeps V transposed, and every layer's rows are so wide
    (`n_embd_v_gqa_max`); it matters for models whose layers differ, such as Gemma 4.
    """
    own = (layer for layer, _ in kinds(spec) if layer.attention not in ("none", "shared"))
    return max((layer.kv_heads * layer.value_dim for layer in own), default=0)


def bytes_per_token(spec: ModelSpec, type_k: str = "f16", type_v: str = "f16") -> int:
    """Bytes that each further token costs once sliding windows are full."""
    return sum(
        cell_bytes(layer, type_k, type_v) * count
        for layer, count in _kinds(spec)
        if not layer.window
    )


def state_bytes(spec: ModelSpec) -> int:
    """Recurrent state of one sequence in all layers, F32 as llama.cpp stores it."""
    return spec.recurrent.bytes_f32 * spec.recurrent_layers if spec.recurrent else 0


def llamacpp_cache(
    spec: ModelSpec,
    context: int,
    *,
    slots: int = 1,
    unified: bool = True,
    type_k: str = "f16",
    type_v: str = "f16",
    ubatch: int = 512,
    swa_full: bool = False,
    flash: bool = True,
) -> Cache:
    """What llama.cpp allocates for a context, to the byte (build b11434).

    Args:
        spec: the model.
        context: `-c`, tokens over all slots together; 0 means the trained context.
        slots: `-np`.
        unified: `--kv-unified`, one pool for all slots (llama-server's own choice when `-np` is not
            given). Without it each slot gets its share of the context, rounded up.
        type_k: `-ctk`.
        type_v: `-ctv`; a quantized type needs flash attention.
        ubatch: `-ub`.
        swa_full: `--swa-full`, sliding layers as long as the context.
        flash: flash attention; off by `-fa off` or where a device cannot.
    """
    slots = max(slots, 1)
    context = context or spec.context_length
    streams = 1 if unified else slots
    per_stream = pad(-(-pad(context) // streams))
    window_slots = slots if unified else 1
    attention = sliding = recurrent = sliding_cells = unknown = 0
    by_kind: dict[Layer, int] = {}
    state = spec.recurrent.bytes_f32 * slots if spec.recurrent else 0
    windowed = not swa_full and spec.architecture in LLAMACPP_WINDOWED
    widest = 0 if flash else widest_value(spec)
    for layer, count in _kinds(spec):
        cells = per_stream
        if layer.window and windowed:
            cells = pad(min(per_stream, layer.window * window_slots + ubatch))
        size = cells * streams * cell_bytes(layer, type_k, type_v, widest=widest)
        fixed = state if layer.recurrent else 0
        by_kind[layer] = size + fixed
        recurrent += fixed * count
        if layer.attention == "unknown":
            unknown += size * count
        if layer.window:
            sliding += size * count
            sliding_cells = max(sliding_cells, cells)
        else:
            attention += size * count
    total = attention + sliding + recurrent
    low, high, reason = _band(spec, total, unknown)
    return Cache(
        attention=attention,
        sliding=sliding,
        recurrent=recurrent,
        context=per_stream * streams,
        sliding_cells=sliding_cells,
        low=low,
        high=high,
        reason=reason,
        by_kind=MappingProxyType(by_kind),
    )


def _band(spec: ModelSpec, total: int, unknown: int) -> tuple[int, int, str]:
    if spec.known_layout:
        return total, total, "one formula per layer; equal to the engine's own figure"
    # Nothing is assumed: a recurrent model keeps almost nothing, full multi-head attention keeps
    # K and V of every query head.
    heads = max(spec.heads, 1)
    high = total
    if unknown:
        high += unknown * heads // max(spec.kv_heads, 1) - unknown
    return 0, max(high, total), f"unknown attention layout ({spec.architecture})"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPool:
    """What one request costs in a pool of blocks (vLLM), on one GPU."""

    block_tokens: int
    per_token: int
    """Bytes of one token in the layers that keep all tokens."""
    request: int
    """Bytes that one request of full length needs, window layers and state included."""
    max_len: int
    low: int
    high: int
    reason: str

    def tokens(self, available: int) -> int:
        """Tokens that a pool of so many bytes holds, as vLLM prints it (one block it never uses).

        With windows or recurrent state the figure is for requests of full length.
        """
        block = self.per_token * self.block_tokens
        whole = -(-self.max_len // self.block_tokens) * block
        if not self.request:
            return 0
        if self.request != whole:
            room = int(available * self.max_len / self.request)
            return room // self.block_tokens * self.block_tokens
        return max(available // block, 0) * self.block_tokens

    def requests(self, available: int) -> float:
        """Requests of full length that fit at once; below 1 vLLM refuses to start."""
        return available / self.request if self.request else float("inf")


def vllm_pool(
    spec: ModelSpec,
    max_len: int,
    *,
    dtype: str = "auto",
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    block_tokens: int = 16,
    batched_tokens: int = 2048,
) -> BlockPool:
    """Cache of one request of `max_len` tokens on each GPU of vLLM (0.32).

    KV heads are divided by `tensor_parallel` but never below one: beyond that they are replicated.
    The latent of MLA is never divided. A sliding layer holds the blocks of its window and of the
    tokens in flight, plus one. With recurrent state the attention block grows until its page holds
    the state of one layer, and each layer keeps two such pages per request, as prefix caching
    needs them. Layers of different kinds share one pool in groups of equal size: a kind that is no
    whole number of groups is filled up.
    """
    max_len = max_len or spec.context_length
    per_token = request = unknown = pages = 0
    cells = {layer: _vllm_cell(layer, dtype, tensor_parallel) for layer, _ in _kinds(spec)}
    widest = max(cells.values(), default=0)
    if spec.recurrent is not None:
        state = 2 * spec.recurrent.conv_elements + 4 * spec.recurrent.state_elements
        state = -(-state // tensor_parallel)
        if widest:
            block_tokens = max(block_tokens, -(-state // (widest * block_tokens)) * block_tokens)
            state = block_tokens * widest
        pages = 2 * state * (spec.recurrent_layers + _grouped(spec).get(_STATE, (0, 0))[0])
    padded = _grouped(spec)
    for layer, count in _kinds(spec):
        token = cells[layer]
        if layer.window:
            seen = min(layer.window - 1 + batched_tokens, max_len)
            blocks = -(-seen // block_tokens) + 1
        else:
            blocks = -(-max_len // block_tokens)
            per_token += token * count
        size = blocks * block_tokens * token * count
        if padded and token:
            extra, of = padded[layer.window]
            size += size * extra // of
        request += size
        unknown += size if layer.attention == "unknown" else 0
    request += pages
    stages = max(pipeline_parallel, 1)
    low, high, reason = _band(spec, request, unknown)
    return BlockPool(
        block_tokens=block_tokens,
        per_token=-(-per_token // stages),
        request=-(-request // stages),
        max_len=max_len,
        low=-(-low // stages),
        high=-(-high // stages),
        reason=reason if not spec.known_layout else "whole blocks of every layer",
    )


_STATE: Final = -1


@lru_cache(maxsize=1024)
def _grouped(spec: ModelSpec) -> Mapping[int, tuple[int, int]]:
    """By window (0 for none, `_STATE` for recurrent state): layers that are added, and those that there
    are; empty for one kind.

    vLLM's groups are as large as the rarest kind, or as the commonest if that is under 1.25 times.
    """
    counts: dict[int, int] = {}
    for layer, count in _kinds(spec):
        if layer.attention not in ("none", "shared") and layer.kv_heads:
            counts[layer.window] = counts.get(layer.window, 0) + count
    if spec.recurrent_layers:
        counts[_STATE] = spec.recurrent_layers
    every = counts.values()
    if len(every) < 2:
        return MappingProxyType({})
    size = max(every) if max(every) < 1.25 * min(every) else min(every)
    return MappingProxyType({window: (-count % size, count) for window, count in counts.items()})


def _vllm_cell(layer: Layer, dtype: str, tensor_parallel: int) -> int:
    if layer.attention in ("none", "shared"):
        return 0
    heads = layer.kv_heads
    if layer.attention != "mla":
        heads = max(1, heads // max(tensor_parallel, 1)) if heads else 0
    row = row_bytes(heads * (layer.key_dim + layer.value_dim), dtype)
    return row + row_bytes(layer.indexer_dim, dtype) if layer.indexer_dim else row


def mlc_cache(spec: ModelSpec, tokens: int) -> int:
    """Bytes of MLC LLM's cache for so many tokens: f16 K and V of every layer, 1.25 B beside."""
    per_token, state = _mlc_parts(spec)
    return tokens * per_token + tokens * 5 // 4 + state


@lru_cache(maxsize=2048)
def _mlc_parts(spec: ModelSpec) -> tuple[int, int]:
    """Bytes of K and V per token, and of recurrent state."""
    return sum(cell_bytes(layer) * count for layer, count in _kinds(spec)), state_bytes(spec)
