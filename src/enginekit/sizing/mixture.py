"""Which block type each tensor of a GGUF gets for a quantization label.

A label such as Q4_K_M is a recipe. These are llama-quantize's rules (llama.cpp
src/llama-quant.cpp, build b11434): by what the tensor is for, how early its layer comes, how many
heads share a V, and whether a row divides into blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal

from enginekit.facts.model import ModelSpec
from enginekit.sizing.quantization import BLOCKS, DEFAULT_BLOCK, FALLBACK
from enginekit.sizing.tensors import TensorShape

Category = Literal[
    "output", "token_embd", "qkv", "v", "k", "q", "attn_output", "up", "gate", "down", "other"
]

_IQ2: Final = frozenset(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"))
_IQ2_SM: Final = frozenset(("IQ2_S", "IQ2_M"))
_Q5K_HEAD: Final = _IQ2 | {"IQ3_XXS"}
_Q5K_ATTENTION_OUTPUT: Final = frozenset(
    (
        "Q2_K",
        "IQ3_XS",
        "IQ3_XXS",
        "Q3_K_S",
        "Q3_K_M",
        "IQ4_NL",
        "Q4_K_S",
        "Q4_K_M",
        "IQ3_S",
        "IQ3_M",
        "IQ4_XS",
    )
)
_PER_LAYER_KV_ARRAYS: Final = frozenset(
    ("nemotron_h", "nemotron_h_moe", "granitehybrid", "jamba", "lfm2", "lfm2moe", "plamo2")
)
_UNQUANTIZED: Final = frozenset(("F32", "F16", "BF16"))


def category(name: str) -> Category:
    """What a tensor is for, told from its ggml name as llama-quantize does."""
    if name == "output":
        return "output"
    if name in ("token_embd", "per_layer_token_embd"):
        return "token_embd"
    if name in ("attn_qkv", "attn_kv_b"):
        return "qkv" if name == "attn_qkv" else "v"
    if name in ("attn_v", "attn_k", "attn_q"):
        return {"attn_v": "v", "attn_k": "k", "attn_q": "q"}[name]  # type: ignore[return-value]
    if name == "attn_output":
        return "attn_output"
    for prefix, kind in (("ffn_up", "up"), ("ffn_gate", "gate"), ("ffn_down", "down")):
        if prefix in name:
            return kind  # type: ignore[return-value]
    return "other"


def _more_bits(index: int, count: int) -> bool:
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


class Mixture:
    """The recipe of one label for one model."""

    def __init__(
        self, spec: ModelSpec, label: str, *, imatrix: bool = False, wide_tables: bool = False
    ) -> None:
        self.label = label
        self.default = DEFAULT_BLOCK.get(label, label)
        self.wide_tables = wide_tables
        # llama-quantize refuses to quantize again what the checkpoint has in MXFP4.
        self.native = spec.native_format == "mxfp4"
        self.imatrix = imatrix
        self.falcon = spec.architecture == "falcon"
        self.n_expert = spec.experts.total if spec.experts else 0
        self.n_layers = spec.n_layers
        self.gqa = _gqa(spec)
        # The "70B" special case of llama-quantize: Llama and Qwen2 models of 80 layers.
        self.is_70b = (
            spec.architecture in ("llama", "qwen2", "deci") and spec.n_layers == 80 and self.gqa > 1
        )

    def assign(self, shapes: Iterable[TensorShape]) -> Iterator[tuple[TensorShape, int, str]]:
        """Every tensor with its layer and the block type it gets."""
        entries = [(shape, category(shape.name)) for shape in shapes]
        tied = all(kind != "output" for _, kind in entries)
        v_order = _order(entries, ("v", "qkv"))
        down_order = _order(entries, ("down",))
        n_v = len(v_order)
        for shape, kind in entries:
            if shape.fixed:
                for layer in shape.layers:
                    yield shape, layer, shape.fixed
                continue
            if self.native and shape.role == "experts":
                for layer in shape.layers:
                    yield shape, layer, "MXFP4"
                continue
            if self.default in _UNQUANTIZED:
                for layer in shape.layers:
                    yield shape, layer, self.default
                continue
            if kind in ("v", "qkv", "down", "up", "gate"):
                for layer in shape.layers:
                    order = down_order if kind == "down" else v_order
                    index = order.get((layer, shape.name), layer)
                    yield (
                        shape,
                        layer,
                        self._fit(self._choose(shape, kind, layer, index, n_v), shape),
                    )
                continue
            chosen = self._fit(self._fixed_choice(shape, kind, tied), shape)
            for layer in shape.layers:
                yield shape, layer, chosen

    def _fit(self, kind: str, shape: TensorShape) -> str:
        """Fall back to another type where the row is no whole number of blocks."""
        if shape.row % BLOCKS[kind].elements == 0:
            return kind
        other = FALLBACK.get(kind, "F16")
        return other if shape.row % BLOCKS[other].elements == 0 else "F16"

    def _fixed_choice(self, shape: TensorShape, kind: Category, tied: bool) -> str:
        """Tensors whose type does not depend on the layer."""
        label = self.label
        if self.wide_tables and kind in ("output", "token_embd"):
            return "Q8_0"
        if kind == "output" or (tied and kind == "token_embd"):
            return self._head(shape)
        if label == "MXFP4_MOE":
            return "MXFP4" if shape.matrices > 1 else "Q8_0"
        if kind == "token_embd":
            if label in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"):
                return "Q2_K"
            if label in _IQ2_SM or label == "IQ3_XXS":
                return "IQ3_S"
            return "Q4_K" if label in ("TQ1_0", "TQ2_0", "Q2_0") else self.default
        if kind == "k":
            return self._key()
        if kind == "q":
            return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(label, self.default)
        if kind == "attn_output":
            return self._attention_output()
        return self.default

    def _head(self, shape: TensorShape) -> str:
        if self.label == "MXFP4_MOE":
            return "Q8_0"
        if self.falcon or shape.row % BLOCKS[self.default].elements:
            return "Q8_0"
        if self.label in _Q5K_HEAD:
            return "Q5_K"
        return self.default if self.default == "Q8_0" else "Q6_K"

    def _key(self) -> str:
        if self.n_expert == 8:
            return "Q4_K" if self.label in _IQ2 else "Q8_0"
        if self.label in _IQ2:
            return self.default
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(self.label, self.default)

    def _attention_output(self) -> str:
        label = self.label
        if label in _IQ2:
            if self.n_expert == 8:
                return "Q5_K"
            if label in ("IQ1_S", "IQ1_M"):
                return "IQ2_XXS"
            return "IQ3_S" if label in _IQ2_SM else self.default
        if self.falcon:
            return "Q4_K" if label == "Q3_K_L" else self.default
        if self.n_expert == 8:
            return "Q5_K" if label in _Q5K_ATTENTION_OUTPUT else self.default
        raised = {
            "Q2_K": "Q3_K",
            "IQ3_XXS": "IQ3_S",
            "Q3_K_M": "Q4_K",
            "Q3_K_L": "Q5_K",
            "IQ3_M": "Q4_K",
        }
        return raised.get(label, self.default)

    def _choose(self, shape: TensorShape, kind: Category, layer: int, index: int, n_v: int) -> str:
        """Tensors whose type depends on how early their layer comes."""
        label = self.label
        if label == "MXFP4_MOE":
            return "MXFP4" if shape.matrices > 1 else "Q8_0"
        if kind in ("v", "qkv"):
            return self._value(index, n_v)
        # With experts llama-quantize reads the layer from the name, otherwise it counts tensors;
        # the IQ1 and IQ2 mixes always count.
        if kind == "down":
            return self._down(index if self.n_expert <= 1 or label in _IQ2 else layer)
        count = self.n_layers
        if label == "IQ3_XS" and count // 8 <= layer < 7 * count // 8:
            return "IQ3_XXS"
        return self.default

    def _value(self, index: int, count: int) -> str:
        label, chosen, shared = self.label, self.default, self.gqa >= 4
        if label in _IQ2:
            if shared or self.n_expert >= 4:
                return "Q4_K"
            return "IQ3_S" if label in _IQ2_SM else "Q2_K"
        if label == "Q2_K":
            chosen = "Q4_K" if shared else "Q3_K"
        elif label == "IQ3_XXS":
            chosen = "Q4_K" if shared else "IQ3_XXS" if self.imatrix else "IQ3_S"
        elif (label in ("Q2_K_S", "IQ3_XS", "IQ3_S") and shared) or label == "IQ3_M":
            chosen = "Q4_K"
        elif label == "Q3_K_M":
            chosen = "Q5_K" if index < 2 else "Q4_K"
        elif label == "Q3_K_L" or (label in ("IQ4_NL", "IQ4_XS") and shared):
            chosen = "Q5_K"
        elif label in ("Q4_K_M", "Q5_K_M") and _more_bits(index, count):
            chosen = "Q6_K"
        elif label == "Q4_K_S" and index < 4:
            chosen = "Q5_K"
        if self.is_70b and chosen in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"
        return "Q8_0" if self.n_expert == 8 else chosen

    def _down(self, index: int) -> str:
        label, count, chosen = self.label, self.n_layers, self.default
        early = index < count // 8
        if label in _IQ2:
            if early:
                return "IQ3_S" if label in _IQ2_SM else "Q2_K"
            return chosen
        more = _more_bits(index, count)
        if label == "Q2_K":
            return "Q3_K"
        if label == "Q2_K_S":
            return "Q4_K" if early else chosen
        if label == "IQ3_XXS" and not self.imatrix:
            return "Q4_K" if early else "Q3_K"
        if label == "Q3_K_M":
            if index < count // 16:
                return "Q5_K"
            return "Q4_K" if not self.falcon or more else "Q3_K"
        if label == "IQ3_M":
            return "Q4_K" if early or (self.n_expert == 8 and more) else chosen
        if label == "Q3_K_L":
            return "Q4_K" if self.falcon else "Q5_K"
        if label == "Q4_K_M" and self.falcon:
            return "Q6_K" if index < count // 16 else "Q5_K" if more else chosen
        if label in ("Q4_K_M", "Q5_K_M"):
            return "Q6_K" if more else chosen
        if label in ("IQ4_NL", "IQ4_XS"):
            return "Q5_K" if early and not self.imatrix else chosen
        if label == "Q4_K_S":
            return "Q5_K" if early and not self.falcon else chosen
        if label in ("Q4_0", "Q5_0") and self.imatrix and early:
            return "Q4_1" if label == "Q4_0" else "Q5_1"
        return chosen


def _order(
    entries: list[tuple[TensorShape, Category]], kinds: tuple[Category, ...]
) -> dict[tuple[int, str], int]:
    """Position of each tensor of these categories in llama-quantize's order: layer, then name."""
    keys = [
        (layer, f"{shape.name}.weight", shape.name)
        for shape, kind in entries
        if kind in kinds and not shape.fixed
        for layer in shape.layers
    ]
    keys.sort()
    return {(layer, name): index for index, (layer, _, name) in enumerate(keys)}


def _gqa(spec: ModelSpec) -> int:
    """Heads per KV head of the first layer, as the file's keys state it."""
    if spec.mla is not None:
        return spec.heads
    if not spec.layers:
        return 1
    first = spec.layers[0]
    if first.heads and first.kv_heads:
        return first.heads // first.kv_heads
    if spec.architecture in _PER_LAYER_KV_ARRAYS:
        return 0
    return spec.heads // spec.kv_heads if spec.kv_heads else 0
