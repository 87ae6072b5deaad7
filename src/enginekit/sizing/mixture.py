"""Which block type each tensor of a GGUF gets for a quantization label.

A label such as Q4_K_M is a recipe. These are llama-quantize's rules (llama.cpp
src/llama-quant.cpp, build b11434): by what the tensor is for, how early its layer comes, how many
heads share a V, and whether a row divides into blocks.

A tensor's type is a `Rule`: one for most layers, others for the few that the recipe raises. So a
model is sized by its distinct tensors, whatever the number of its layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from enginekit.facts.model import ModelSpec
from enginekit.sizing.quantization import BLOCKS, DEFAULT_BLOCK, FALLBACK
from enginekit.sizing.tensors import TensorShape, blueprint

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
_UNIFORM: Final = frozenset(("up", "gate", "other"))
"""Categories that nearly all recipes give their default type."""
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


class Rule(NamedTuple):
    """Block types of the tensors of one shape."""

    usual: str
    raised: tuple[tuple[str, Sequence[int]], ...] = ()
    """Other types and where they apply, the first that matches: by position or by layer."""
    by_layer: bool = False
    """Whether `raised` counts layers of the model instead of tensors of the category."""


class Alike(NamedTuple):
    """Tensors of the same layers that no recipe tells apart."""

    shapes: tuple[TensorShape, ...]
    category: Category
    row: int
    rows: int
    """Of all of them in one layer; each takes as many bytes as any other."""
    layers: tuple[int, ...]
    positions: Mapping[int, int]
    """The layer of each place in llama-quantize's count of the category."""
    of: int
    """How many tensors it counts."""

    fixed: str
    """The type that no recipe changes; empty if one may."""
    wide: bool
    """Whether they are several matrices, as experts are."""


class Typed(NamedTuple):
    """The block types that tensors get."""

    tensors: Alike
    usual: str
    raised: tuple[tuple[str, tuple[int, ...]], ...]
    """Other types with the layers that get them."""


@lru_cache(maxsize=64)
def _more_bits(count: int) -> tuple[int, ...]:
    """The layers that the `_M` mixes favour: the first and last eighth, and every third between."""
    first, last = count // 8, 7 * count // 8
    return tuple(
        [n for n in range(count) if n < first or n >= last or (n - first) % 3 == 2],
    )


@lru_cache(maxsize=512)
def alike_tensors(spec: ModelSpec) -> tuple[Alike, ...]:
    """The model's tensors, those together that every recipe treats alike."""
    shapes = [(shape, category(shape.name)) for shape in blueprint(spec)]
    values, downs = _places(shapes, ("v", "qkv")), _places(shapes, ("down",))
    groups: dict[tuple[object, ...], Alike] = {}
    for index, (shape, kind) in enumerate(shapes):
        row, rows = shape.row, shape.rows * shape.matrices
        places, of = _NO_PLACES
        if shape.fixed:
            if BLOCKS[shape.fixed].elements == 1 and kind != "output":
                kind, row, rows = "other", 1, row * rows
        elif kind in ("v", "qkv", "down"):
            places, of = (downs if kind == "down" else values)[index]
        key = (kind, shape.role, row, shape.matrices > 1, shape.fixed, shape.layers, id(places))
        same = groups.get(key)
        if same is None:
            wide = shape.matrices > 1
            groups[key] = Alike(
                (shape,), kind, row, rows, shape.layers, places, of, shape.fixed, wide
            )
        else:
            groups[key] = same._replace(shapes=(*same.shapes, shape), rows=same.rows + rows)
    return tuple(groups.values())


_NO_PLACES: Final[tuple[Mapping[int, int], int]] = MappingProxyType({}), 0


class Mixture:
    """The recipe of one label for one model."""

    def __init__(
        self, spec: ModelSpec, label: str, *, imatrix: bool = False, wide_tables: bool = False
    ) -> None:
        self.spec = spec
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
        self.uniform = label not in ("MXFP4_MOE", "IQ3_XS")
        # The "70B" special case of llama-quantize: Llama and Qwen2 models of 80 layers.
        self.is_70b = (
            spec.architecture in ("llama", "qwen2", "deci") and spec.n_layers == 80 and self.gqa > 1
        )

    def assign(self) -> Iterator[tuple[TensorShape, int, str]]:
        """Every tensor with its layer and the block type it gets."""
        for alike in alike_tensors(self.spec):
            for shape in alike.shapes if alike.fixed else ():
                for layer in shape.layers:
                    yield shape, layer, shape.fixed
        for alike, usual, raised in self.types():
            others = {layer: kind for kind, layers in raised for layer in layers}
            for shape in alike.shapes:
                for layer in shape.layers:
                    yield shape, layer, others.get(layer, usual)

    def types(self) -> list[Typed]:
        """The block types of all tensors but those that no recipe changes."""
        found = alike_tensors(self.spec)
        tied = all(alike.category != "output" for alike in found)
        return [self._typed(alike, tied) for alike in found if not alike.fixed]

    def _typed(self, alike: Alike, tied: bool) -> Typed:
        row = alike.row
        if self.native and alike.shapes[0].role == "experts":
            return Typed(alike, "MXFP4", ())
        if self.default in _UNQUANTIZED:
            return Typed(alike, self.default, ())
        if self.uniform and alike.category in _UNIFORM:
            return Typed(alike, self._fit(self.default, row), ())
        rule = self._rule(alike, tied)
        usual = self._fit(rule.usual, row)
        if not rule.raised:
            return Typed(alike, usual, ())
        # Numbers of layers, or places in the count, to layers.
        found = {layer: layer for layer in alike.layers} if rule.by_layer else {**alike.positions}
        raised = []
        for kind, where in rule.raised:
            layers = tuple([found.pop(number) for number in where if number in found])
            if layers:
                raised.append((self._fit(kind, row), layers))
        return Typed(alike, usual, tuple(raised))

    def _rule(self, alike: Alike, tied: bool) -> Rule:
        kind = alike.category
        if kind not in ("v", "qkv", "down", "up", "gate"):
            return Rule(self._fixed_choice(alike, tied))
        if self.label == "MXFP4_MOE":
            return Rule("MXFP4" if alike.wide else "Q8_0")
        if kind in ("v", "qkv"):
            return self._value(alike.of)
        if kind == "down":
            # With experts llama-quantize reads the layer from the name, otherwise it counts
            # tensors; the IQ1 and IQ2 mixes always count.
            return self._down()._replace(by_layer=self.n_expert > 1 and self.label not in _IQ2)
        if self.label == "IQ3_XS":
            middle = range(self.n_layers // 8, 7 * self.n_layers // 8)
            return Rule(self.default, (("IQ3_XXS", middle),), by_layer=True)
        return Rule(self.default)

    def _fit(self, kind: str, row: int) -> str:
        """Fall back to another type where the row is no whole number of blocks."""
        if row % BLOCKS[kind].elements == 0:
            return kind
        other = FALLBACK.get(kind, "F16")
        return other if row % BLOCKS[other].elements == 0 else "F16"

    def _fixed_choice(self, alike: Alike, tied: bool) -> str:
        """Tensors whose type does not depend on the layer."""
        label, kind = self.label, alike.category
        if self.wide_tables and kind in ("output", "token_embd"):
            return "Q8_0"
        if kind == "output" or (tied and kind == "token_embd"):
            return self._head(alike.row)
        if label == "MXFP4_MOE":
            return "MXFP4" if alike.wide else "Q8_0"
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

    def _head(self, row: int) -> str:
        if self.label == "MXFP4_MOE":
            return "Q8_0"
        if self.falcon or row % BLOCKS[self.default].elements:
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

    def _value(self, count: int) -> Rule:
        """V, and Q, K and V in one, by their position among `count` of them."""
        if self.label in _IQ2:
            if self.gqa >= 4 or self.n_expert >= 4:
                return Rule("Q4_K")
            return Rule("IQ3_S" if self.label in _IQ2_SM else "Q2_K")
        if self.n_expert == 8:
            return Rule("Q8_0")
        usual, raised = self._value_types(count)
        return Rule("Q5_K" if self.is_70b and usual in ("Q3_K", "Q4_K") else usual, raised)

    def _value_types(self, count: int) -> tuple[str, tuple[tuple[str, Sequence[int]], ...]]:
        label, shared = self.label, self.gqa >= 4
        if label == "Q2_K":
            return "Q4_K" if shared else "Q3_K", ()
        if label == "IQ3_XXS":
            return "Q4_K" if shared else "IQ3_XXS" if self.imatrix else "IQ3_S", ()
        if (label in ("Q2_K_S", "IQ3_XS", "IQ3_S") and shared) or label == "IQ3_M":
            return "Q4_K", ()
        if label == "Q3_K_M":
            return "Q4_K", (("Q5_K", range(2)),)
        if label == "Q3_K_L" or (label in ("IQ4_NL", "IQ4_XS") and shared):
            return "Q5_K", ()
        if label in ("Q4_K_M", "Q5_K_M"):
            return self.default, (("Q6_K", _more_bits(count)),)
        if label == "Q4_K_S":
            return self.default, (("Q5_K", range(4)),)
        return self.default, ()

    def _down(self) -> Rule:
        """The feed-forward's way back to the hidden width."""
        label, count, usual = self.label, self.n_layers, self.default
        early = range(count // 8)
        if label in _IQ2:
            return Rule(usual, (("IQ3_S" if label in _IQ2_SM else "Q2_K", early),))
        if label == "Q2_K":
            return Rule("Q3_K")
        if label == "Q2_K_S":
            return Rule(usual, (("Q4_K", early),))
        if label == "IQ3_XXS" and not self.imatrix:
            return Rule("Q3_K", (("Q4_K", early),))
        if label == "Q3_K_M":
            first = ("Q5_K", range(count // 16))
            if self.falcon:
                return Rule("Q3_K", (first, ("Q4_K", _more_bits(count))))
            return Rule("Q4_K", (first,))
        if label == "IQ3_M":
            return Rule(usual, (("Q4_K", _more_bits(count) if self.n_expert == 8 else early),))
        if label == "Q3_K_L":
            return Rule("Q4_K" if self.falcon else "Q5_K")
        if label == "Q4_K_M" and self.falcon:
            return Rule(usual, (("Q6_K", range(count // 16)), ("Q5_K", _more_bits(count))))
        if label in ("Q4_K_M", "Q5_K_M"):
            return Rule(usual, (("Q6_K", _more_bits(count)),))
        if label in ("IQ4_NL", "IQ4_XS") and not self.imatrix:
            return Rule(usual, (("Q5_K", early),))
        if label == "Q4_K_S" and not self.falcon:
            return Rule(usual, (("Q5_K", early),))
        if label in ("Q4_0", "Q5_0") and self.imatrix:
            return Rule(usual, (("Q4_1" if label == "Q4_0" else "Q5_1", early),))
        return Rule(usual)


def _places(
    shapes: Sequence[tuple[TensorShape, Category]], kinds: tuple[Category, ...]
) -> dict[int, tuple[Mapping[int, int], int]]:
    """By index: place to layer in llama-quantize's order (layer, then name), and how many it counts."""
    named = [
        (f"{shape.name}.weight", index, shape.layers)
        for index, (shape, kind) in enumerate(shapes)
        if kind in kinds and not shape.fixed
    ]
    if len(named) == 1:
        _, index, layers = named[0]
        return {index: (dict(enumerate(layers)), len(layers))}
    within: dict[int, list[dict[int, int]]] = {}
    found: dict[int, dict[int, int]] = {}
    for _, index, layers in sorted(named):
        places = found[index] = {}
        for layer in layers:
            within.setdefault(layer, []).append(places)
    count = 0
    for layer in sorted(within):
        for places in within[layer]:
            places[count] = layer
            count += 1
    return {index: (places, count) for index, places in found.items()}


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
