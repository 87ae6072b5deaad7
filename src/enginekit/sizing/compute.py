"""Memory that computing needs beside weights and cache: graphs, activations, sampling.

llama.cpp's compute buffer follows a closed form, measured on 45 models (build b11434). The pool
engines run one dummy batch at start; what it peaks at is theirs for good.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from enginekit.facts.model import Layer, Mla, ModelSpec
from enginekit.sizing.kinds import kinds, widest_heads
from enginekit.sizing.kv_cache import NO_FLASH
from enginekit.sizing.policy import ALL_LOGITS, MIB, Policy, Triple
from enginekit.sizing.traits import PLAIN, TRAITS


class Compute(NamedTuple):
    """llama.cpp's compute buffer on one device, in bytes."""

    layers: int
    """Widest layer for one micro-batch."""
    head: int
    """Logit rows; wins over `layers` where every token has one."""
    mask: int
    """Attention masks, growing with the context."""
    chosen: int = 0
    """Cells that a sparse-attention indexer chose, of every layer."""
    passed: int = 0
    """Further copies of what the device before hands over, where micro-batches are pipelined."""

    @property
    def total(self) -> int:
        """The buffer: layers and head are never alive together, the rest always is."""
        return max(self.layers, self.head) + self.mask + self.chosen + self.passed


@dataclass(frozen=True, slots=True)
class _Widths:
    """Elements per token of the widest layer, with and without flash attention."""

    layer: int
    without_flash: int
    heads: int
    layer_embedding: int
    indexed: int = 0
    """Layers that attend to the cells an indexer chose; 0 without one."""
    attention: int = 0
    """Elements per token while a sparse layer attends."""
    latent: int = 0
    """Elements per token of its output in the latent space."""
    query: int = 0
    """Elements per token of its queries."""
    recurrent: int = 0
    """Elements per token of a recurrent layer."""
    slot: int = 0
    """Bytes per slot of a recurrent layer: states gathered for a batch and those it writes."""
    masked: bool = True
    """Whether any layer attends."""


INDEXER_TOP: Final = 2048
"""Cells per token that the indexers of DeepSeek-V3.2 and GLM-5 choose."""


_ROWS: Final = {"rwkv7": 20.15, "arwkv7": 25.6}
"""Rows of the hidden width that RWKV-7 keeps alive (measured on one model each)."""


_STREAMS: Final = {"gemma3n": 4}
"""Parallel residual streams (AltUp)."""


@lru_cache(maxsize=1024)
def _widths(spec: ModelSpec) -> _Widths:
    hidden, experts = spec.hidden, spec.experts
    widest = max(5 * hidden, int(_ROWS.get(spec.architecture, 0) * hidden))
    plain = 0
    traits = TRAITS.get(spec.architecture, PLAIN)
    gated, rows_kept = traits.gated_ffn, 6 if traits.parallel else 5
    for layer, _ in kinds(spec):
        if layer.ffn:
            # Without a gate one matrix is alive less, and its product is activated in place.
            rest = rows_kept * hidden + _stacked(spec, layer, layer.ffn)
            widest = max(widest, rest + (3 if gated else 1) * layer.ffn)
        if layer.moe and experts is not None:
            inner = experts.latent or hidden
            used = (3 if gated and experts.gated else 1) * experts.used * experts.ffn
            # A row per expert in use goes where gate and up were if it fits there, else behind them.
            fits = gated and experts.gated and inner <= 2 * experts.ffn
            rows = 0 if fits else experts.used * inner
            if experts.used == 1:
                rows = max(rows, hidden)  # a sum of one is copied
            widest = max(widest, 5 * hidden + used + rows + _stacked(spec, layer, rows or used))
        if layer.attention == "mla" and spec.mla is not None:
            attention = 5 * hidden + _latent(spec.mla) * layer.heads
            widest, plain = max(widest, attention), max(plain, attention)
        elif layer.heads:
            wide = max(hidden, layer.heads * layer.key_dim)
            plain = max(plain, 6 * wide + 2 * layer.kv_heads * layer.key_dim)
    embedded = spec.per_layer_embedding * spec.n_layers
    if any(layer.ffn > embedded for layer in spec.layers) and embedded:
        # Put in another order once it is made; what the first copy leaves holds no matrix so wide.
        widest += embedded
    mla = spec.mla
    if mla is None or not any(layer.indexer_dim for layer in spec.layers):
        state, slot = _recurrent(spec)
        masked = not spec.layers or any(
            layer.attention != "none" or (layer.heads and not spec.causal) for layer in spec.layers
        )
        return _Widths(
            widest, plain, spec.heads, embedded, recurrent=state, slot=slot, masked=masked
        )
    return _Widths(
        layer=widest,
        without_flash=plain,
        heads=spec.heads,
        layer_embedding=embedded,
        indexed=spec.n_layers,
        attention=5 * hidden + 1344 * spec.heads,
        latent=spec.heads * mla.kv_lora_rank,
        query=spec.heads * (mla.nope_dim + mla.rope_dim),
    )


def _stacked(spec: ModelSpec, layer: Layer, matrix: int) -> int:
    """Elements per token that inputs of several widths add: those of images for the first layers
    (Qwen3-VL), or parallel streams (Gemma 3n). Measured; text alone has them too."""
    traits = TRAITS.get(spec.architecture, PLAIN)
    if traits.deepstack:
        return (1 + traits.deepstack) * spec.hidden + matrix + layer.heads * layer.key_dim
    return _STREAMS.get(spec.architecture, 0) * spec.hidden


def _latent(mla: Mla) -> int:
    """Elements per token and head while a latent layer attends: query, output and their halves."""
    return mla.cached + mla.kv_lora_rank + mla.nope_dim + mla.value_dim


def _recurrent(spec: ModelSpec) -> tuple[int, int]:
    """Elements per token and bytes per slot while a recurrent layer works.

    Measured on ten models at 1 to 64 slots: up to 4 per cent high for Mamba-2, 3 low.
    """
    state = spec.recurrent
    if state is None or not state.inner or state.conv < 2:
        return 0, 0
    hidden, inner = 5 * spec.hidden, state.inner
    channels = state.conv_elements // (state.conv - 1)
    kept, written = 4 * state.conv_elements, 4 * state.state_elements
    if state.kind == "gdn":
        return hidden + 2 * channels + inner, 2 * written + kept
    if state.kind == "mamba2":
        return hidden + 2 * channels + 3 * inner, 2 * written + 2 * kept
    if state.kind == "mamba1":
        return hidden + 5 * inner, written + kept
    return 0, 0


def llamacpp_compute(
    spec: ModelSpec,
    context: int,
    *,
    ubatch: int = 512,
    outputs: int = 1,
    slots: int = 1,
    sliding_cells: int = 0,
    flash: bool = True,
    copies: int = 1,
) -> Compute:
    """The compute buffer of one device that holds at least one layer.

    Args:
        spec: the model.
        context: cells of the cache that a slot sees: its own, or those of a unified pool.
        ubatch: `-ub`.
        outputs: rows with logits: slots × (1 + draft tokens) in llama-server, `ubatch` in
            embedding servers, llama-cli and llama-bench.
        slots: sequences that one micro-batch may hold; they count for recurrent layers.
        sliding_cells: cells of a sliding layer that a slot sees; 0 without.
        flash: flash attention; without it the score matrix of one layer is alive.
        copies: 4 where layers are split over several GPUs (pipeline parallelism).
    """
    width = _widths(spec)
    flash = flash and spec.architecture not in NO_FLASH
    per_row = 4 * ubatch
    layers = per_row * (width.layer + width.layer_embedding)
    layers = max(layers, per_row * width.recurrent + slots * width.slot)
    # Measured 5 or 6 rows of the hidden width beside the logits on CPU, 1 or 2 on CUDA.
    head = per_row * (6 * spec.hidden + width.layer_embedding)
    # An encoder makes embeddings of the hidden width and has no head.
    head += 4 * outputs * spec.vocab if spec.causal else 0
    if not spec.causal:
        # An encoder keeps no past: its masks are as wide as the micro-batch.
        context, sliding_cells = min(context, ubatch), min(sliding_cells, ubatch)
    if not width.masked:
        context = sliding_cells = 0
    mask, chosen = 2 * ubatch * (context + sliding_cells) * copies, 0
    if width.indexed:
        # Measured on DeepSeek-V3.2 and GLM-5.2 from 1k to 160k: a second mask for the indexer, the
        # chosen cells of all layers, and, once its scores are too large to take the place of the
        # queries, the scores or the attention's output beside what a layer needs.
        mask *= 2
        chosen = per_row * width.indexed * min(INDEXER_TOP, context)
        if context > width.query:
            beside = max(width.latent, context)
            layers = max(layers, per_row * (width.attention + beside))
    if not flash:
        mask *= 2
        layers = max(layers, per_row * (width.without_flash + context * width.heads))
    # 516 MiB on each inner GPU of four for GLM-4.6V (TkskKurumi/llama-server-benchmarks).
    passed = per_row * spec.hidden * (copies - 1)
    return Compute(layers=layers, head=head, mask=mask, chosen=chosen, passed=passed)


def llamacpp_host(spec: ModelSpec, context: int, *, ubatch: int = 512) -> Triple:
    """Inputs and masks that a GPU build keeps in host memory."""
    base = 4 * ubatch * spec.hidden
    return base + 2 * ubatch * context, base + 2 * ubatch * context, base + 4 * ubatch * context


def in_one_piece(spec: ModelSpec) -> bool:
    """Whether llama.cpp refuses a text that does not fit into one micro-batch.

    A decoder whose last token stands for the text may read it in parts (`can_split` in
    tools/server/server-context.cpp); an encoder and a reranker may not.
    """
    serves = spec.capabilities
    return bool(serves.rerank or (serves.embedding and not spec.causal))


def usual_ubatch(spec: ModelSpec, policy: Policy, context: int | None = None) -> int:
    """The micro-batch that an engine, or the command of a plan, takes for a model.

    Args:
        spec: the model.
        policy: whose rules.
        context: tokens of a text, if that was asked for.
    """
    serves = spec.capabilities
    own = policy.embedding_ubatch if serves.embedding or serves.rerank else 0
    if own and in_one_piece(spec) and "batch" in policy.flags:
        # An encoder's texts are short; a decoder could read more than any memory holds at once.
        own = max(own, context or (0 if spec.causal else spec.context_length))
    return own or policy.ubatch


def rows_of(policy: Policy, smallest_gpu: int, name: str = "") -> tuple[int, int]:
    """Batched tokens and sequences that a pool engine takes by default on GPUs of that size and name."""
    for least, tokens, sequences, but in policy.rows:
        if smallest_gpu >= least and not (but and but in name.lower()):
            return tokens, sequences
    return 2048, 256


@lru_cache(maxsize=2048)
def _layer_peak(spec: ModelSpec, tensor_parallel: int) -> int:
    """Bytes per batched token of the widest layer in 16 bits."""
    widest = 0
    for layer, _ in kinds(spec):
        wide = 3 * layer.ffn // tensor_parallel
        if layer.moe and spec.experts is not None:
            used, width = spec.experts.used, spec.experts.ffn // tensor_parallel
            wide = max(wide, used * (max(2 * width, spec.hidden) + width))
        widest = max(widest, wide)
    return 2 * (2 * spec.hidden + widest)


def pool_compute(
    spec: ModelSpec,
    policy: Policy,
    *,
    sequences: int,
    batched_tokens: int,
    tensor_parallel: int = 1,
    eager: bool = False,
) -> Triple:
    """Activations and graphs of one GPU of a pool engine, low, expected and high.

    The profiling run ends in the sampler: `sequences` rows of the whole vocabulary, whatever the
    model's size. The widest layer of the dummy batch matters only with few sequences.
    """
    layer = _layer_peak(spec, tensor_parallel) * batched_tokens
    rows = sequences * spec.vocab
    low, expected, high = (round(per * rows) for per in policy.sampler_bytes)
    graphs = (0, 0, 0) if eager else policy.graphs_moe if spec.experts else policy.graphs
    slack = 150 * MIB
    return (
        max(low, layer // 2) + graphs[0],
        max(expected, layer) + graphs[1],
        max(high, layer) + slack + graphs[2],
    )


def compiled_planned(spec: ModelSpec, prefill: int, tensor: int = 1) -> int:
    """Bytes that a library compiled by MLC LLM plans for one call.

    2 D + 5 F elements of 16 bits per token of a prefill chunk, and the chunk's logits in F32 for
    some architectures: 25 entries of web-llm's list within 2 per cent of their total.
    """
    logits = spec.architecture in ALL_LOGITS or (
        spec.architecture == "phi3" and spec.tied_embeddings
    )
    ffn = max((layer.ffn for layer in spec.layers), default=0)
    if not ffn and spec.experts is not None:
        ffn = spec.experts.used * spec.experts.ffn
    planned = 2 * prefill * (2 * spec.hidden + 5 * ffn // tensor)
    return planned + 4 * prefill * spec.vocab if logits else planned


def compiled_workspace(spec: ModelSpec, prefill: int, sequences: int, tensor: int = 1) -> int:
    """Bytes of MLC LLM's own workspaces for the model's inputs and for sampling."""
    heads = max(widest_heads(spec)[0] // tensor, 1)
    inputs = 4 * (prefill + sequences) + 2 * (2 * prefill + sequences) * heads * _dim(spec)
    return inputs + 20 * sequences + sequences * spec.vocab * 129 // 8


def compiled_compute(spec: ModelSpec, prefill: int, sequences: int, tensor: int = 1) -> int:
    """What MLC LLM keeps beside parameters and cache, in bytes (`EstimateMemoryUsageOnMode`).

    Args:
        spec: the model.
        prefill: tokens of a prefill chunk.
        sequences: largest batch.
        tensor: shards.
    """
    heads, kv_heads = (max(count // tensor, 1) for count in widest_heads(spec))
    auxiliary = 88 * (sequences + 1) + 8 * prefill * (heads + 1) + 48 * MIB
    auxiliary += 4 * prefill * _dim(spec) * (heads + kv_heads)
    # It doubles what the library names, "for safety".
    planned = 2 * compiled_planned(spec, prefill, tensor)
    return auxiliary + compiled_workspace(spec, prefill, sequences, tensor) + planned


def _dim(spec: ModelSpec) -> int:
    return max((layer.key_dim for layer in spec.layers), default=0)
