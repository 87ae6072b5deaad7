"""How large the weights are, in bytes, and how they spread over layers and uses.

Exact when the spec came from a file's own tensor table. For a quantization label it applies
llama-quantize's mixture rules to the model's tensor shapes; for the formats of other engines the
bits per weight and the list of what stays wide. A label alone is never exact: vendors mix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import add
from types import MappingProxyType
from typing import Final, Literal

from enginekit.facts.model import ModelSpec, Role
from enginekit.sizing.mixture import Mixture, alike_tensors
from enginekit.sizing.quantization import (
    BLOCKS,
    DEFAULT_BLOCK,
    FORMATS,
    WIDE_TABLES,
    WeightFormat,
    gguf_label,
    weight_format,
)
from enginekit.sizing.tensors import (
    OUTSIDE,
    active_parameters,
    blueprint,
    known,
    parameters,
)

Method = Literal["file", "mixture", "format", "bits per weight"]
"""`file`: summed from real headers; `mixture`: llama-quantize's rules on known shapes; `format`:
another engine's format on known shapes; `bits per weight`: parameters times a typical figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Bytes of one loadable copy of the text model, without projector and MTP blocks."""

    label: str
    """Quantization that this is for."""
    total: int
    low: int
    high: int
    """`low <= truth <= high` is expected; both equal `total` when it was read from a file."""
    method: Method
    reason: str
    """Why the range is as wide as it is."""
    roles: Mapping[Role, int]
    layers: tuple[int, ...]
    """Bytes of each block."""
    layer_experts: tuple[int, ...]
    """Bytes of each block's routed experts, a part of `layers`."""

    @property
    def embedding(self) -> int:
        """The input table: llama.cpp keeps it in host memory, also a second copy when tied."""
        return self.roles.get("embedding", 0)

    @property
    def layer_embedding(self) -> int:
        """Per-layer embedding tables, a row look-up that may stay in host memory."""
        return self.roles.get("layer_embedding", 0)

    @property
    def experts(self) -> int:
        """All routed experts."""
        return self.roles.get("experts", 0)


def weights(spec: ModelSpec, quantization: str = "", *, imatrix: bool | None = None) -> Weights:
    """Bytes of the weights at a quantization.

    Args:
        spec: the model.
        quantization: a llama.cpp label (`Q4_K_M`), another engine's format (`awq`, `fp8-block`,
            `mlx-4bit`, `q4f16_1`, `bf16`), or empty for the file's own, `BF16` if it has none.
        imatrix: whether the file was made with an importance matrix; it changes a few labels
            (IQ3_XXS by four per cent; IQ4_XS, IQ4_NL, Q4_0, Q5_0 by less than one). None: as
            such files are published, the IQ types with one, the others without.

    Raises:
        ValueError: the name is neither a label nor a format.
    """
    own = spec.quantization
    if spec.weight_bytes and (not quantization or quantization.upper() == own.upper()):
        return _from_file(spec)
    name = quantization or own or "BF16"
    return _estimate(spec, name, _with_matrix(name) if imatrix is None else imatrix)


def _with_matrix(name: str) -> bool:
    return gguf_label(name).startswith("IQ")


def read_per_token(spec: ModelSpec, found: Weights, *, batch: int = 1) -> int:
    """Weight bytes that one decoding step of `batch` sequences reads.

    Look-up tables are not read (an untied input table, per-layer tables). Of the routed experts a
    batch touches `E * (1 - (1 - k/E) ** batch)` in each layer.
    """
    roles = found.roles
    total = found.total - roles.get("layer_embedding", 0)
    if not spec.tied_embeddings:
        total -= roles.get("embedding", 0)
    if spec.experts is not None and spec.experts.total:
        share = spec.experts.used / spec.experts.total
        touched = 1 - (1 - share) ** max(batch, 1)
        total -= round(roles.get("experts", 0) * (1 - touched))
    return total


@lru_cache(maxsize=256)
def _from_file(spec: ModelSpec) -> Weights:
    roles: dict[Role, int] = {}
    layers = [0] * spec.n_layers
    experts = [0] * spec.n_layers
    for group in spec.weights:
        if group.role in ("mtp", "projector"):
            continue
        roles[group.role] = roles.get(group.role, 0) + group.bytes
        if group.layer is not None and group.layer < spec.n_layers:
            layers[group.layer] += group.bytes
            if group.role == "experts":
                experts[group.layer] += group.bytes
    total = spec.weight_bytes
    if not spec.weights:
        # Only the size is known (an Ollama manifest, a repository listing): spread it by shape.
        return _scaled(_estimate(spec, spec.quantization or "BF16", False), total, spec)
    return Weights(
        label=spec.quantization,
        total=total,
        low=total,
        high=total,
        method="file",
        reason="summed from the file's own tensor table",
        roles=MappingProxyType(roles),
        layers=tuple(layers),
        layer_experts=tuple(experts),
    )


def _scaled(shape: Weights, total: int, spec: ModelSpec) -> Weights:
    def part(value: int) -> int:
        return value * total // shape.total if shape.total else 0

    return Weights(
        label=spec.quantization,
        total=total,
        low=total,
        high=total,
        method="file",
        reason="the size is the file's; its division over layers is estimated",
        roles=MappingProxyType({role: part(size) for role, size in shape.roles.items()}),
        layers=tuple(part(size) for size in shape.layers),
        layer_experts=tuple(part(size) for size in shape.layer_experts),
    )


@lru_cache(maxsize=4096)
def _estimate(spec: ModelSpec, quantization: str, imatrix: bool) -> Weights:
    # `mxfp4` and `nvfp4` are safetensors formats, `MXFP4_MOE` and `NVFP4` GGUF labels.
    label = "" if quantization in FORMATS else gguf_label(quantization)
    other = None if label else weight_format(quantization)
    if not label and other is None:
        raise ValueError(
            f"unknown quantization {quantization!r}: use a llama.cpp label such as Q4_K_M, or "
            "bf16, fp8, fp8-block, awq, gptq-int4-g128, nvfp4, mxfp4, mlx-4bit, q4f16_1"
        )
    if not spec.layers or not spec.hidden or not spec.vocab:
        return _by_bits(spec, label or quantization, other)
    wide = _written(quantization) in WIDE_TABLES
    if other is None:
        sums = _unchanged(spec).copy()
        sums.add(_mixture_sizes(spec, label, imatrix, wide))
    else:
        sums = Sums(spec.n_layers)
        sums.add(_format_sizes(spec, other))
    roles = sums.roles
    total = sum(roles.values())
    low, high, reason = _band(spec, quantization, label)
    most = round(total * high)
    if label and spec.native_format == "mxfp4" and label not in ("F32", "F16", "BF16"):
        # Only what is no expert differs, by little: no file is larger than one of a wider label.
        wider = "F16" if label in ("MXFP4_MOE", "Q8_0") else "Q8_0"
        most = max(min(most, _estimate(spec, wider, False).high), total)
    return Weights(
        label=label or quantization,
        total=total,
        low=round(total * low),
        high=most,
        method="format" if other is not None else "mixture",
        reason=reason,
        roles=MappingProxyType(roles),
        layers=tuple(map(add, sums.rest, sums.routed)),
        layer_experts=tuple(sums.routed),
    )


# What publishers of their own mixtures ship, as factors of the plain label's size: 60 files of
# unsloth's (27 of one model in steps of equal size) and 22 of bartowski's. Below 4 bits the
# label says least: a dense model's tables shrink too, a mixture of experts keeps all else at 8 bits.
_VENDOR: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "1": (0.84, 1.12),
        "2": (0.84, 1.12),
        "3": (0.90, 1.12),
        "4": (0.92, 1.10),
        "5": (0.96, 1.12),
        "6": (0.96, 1.16),
        "8": (0.99, 1.25),
    }
)


def _written(quantization: str) -> str:
    return quantization.upper().replace("-", "_")


def _band(spec: ModelSpec, quantization: str, label: str) -> tuple[float, float, str]:
    """How far the truth may lie from the estimate, as factors, and why."""
    if not known(spec.architecture) or not spec.known_layout:
        return 0.85, 1.15, f"the tensors of {spec.architecture!r} are assumed to be a plain decoder"
    written = _written(quantization)
    if label and written != label and written not in WIDE_TABLES:
        bits = next((char for char in label if char.isdigit()), "4")
        low, high = _VENDOR.get(bits, _VENDOR["4"])
        return low, high, f"{quantization} is a vendor's mix; sized as {label}"
    if label in ("F32", "F16", "BF16", "Q8_0"):
        return 0.998, 1.002, "one type throughout; shapes from the architecture"
    if label and spec.native_format == "mxfp4" and label != "MXFP4_MOE":
        return 0.97, 1.08, f"{label} of the published checkpoint, whose experts stay in MXFP4"
    if label and spec.experts is not None:
        # Of 22 labels bartowski shipped for Qwen3.6-35B-A3B, those below 4 bits are 6 to 16 per
        # cent larger, the others 2 to 7: what is no routed expert is kept at 8 bits.
        high = 1.17 if label.lstrip("IT").startswith(("Q1", "Q2", "Q3")) else 1.08
        return 0.96, high, f"{label} of a mixture of experts: publishers keep the rest wider"
    if label.startswith("IQ"):
        # Without a matrix IQ3_XXS is up to 4.3 per cent larger.
        return 0.96, 1.05, f"{label} is a mixture, and vendors vary it; a file's header is exact"
    if label:
        return 0.96, 1.04, f"{label} is a mixture, and vendors vary it; a file's header is exact"
    other = weight_format(quantization)
    if other is not None and other.bits < 6:
        # An NVFP4 repository of Qwen3.8-27B with attention in 16 bits loads 13 per cent more.
        return 0.95, 1.15, "which layers stay in 16 bits differs between repositories"
    return 0.95, 1.05, "what stays in 16 bits differs between repositories"


Sized = tuple[Role, tuple[int, ...], int, Sequence[tuple[int, tuple[int, ...]]]]
"""What some tensors are for, their layers, their bytes in one, and by how many more some differ."""


def _mixture_sizes(spec: ModelSpec, label: str, imatrix: bool, wide: bool) -> Iterator[Sized]:
    mixture = Mixture(spec, label, imatrix=imatrix, wide_tables=wide)
    for alike, usual, raised in mixture.types():
        row, rows = alike.row, alike.rows
        size = BLOCKS[usual].size(row) * rows
        more = [(BLOCKS[kind].size(row) * rows - size, layers) for kind, layers in raised]
        yield alike.shapes[0].role, alike.layers, size, more


def _format_sizes(spec: ModelSpec, other: WeightFormat) -> Iterator[Sized]:
    # Publishers who train for 4 bits (gpt-oss, Kimi K2.5) do so for the experts alone.
    own = other.name == spec.native_format and other.bits < 8 and spec.experts is not None
    narrow = other.quantized & {"experts"} if own else other.quantized
    for shape in blueprint(spec):
        shrinks = shape.role in narrow and not shape.fixed
        # One-dimensional tensors are 16-bit in safetensors, whatever GGUF makes of them.
        bits = other.bits if shrinks else 8 * other.wide_bytes
        size = -(-shape.elements * bits.numerator // (8 * bits.denominator))
        yield shape.role, shape.layers, size, ()


@lru_cache(maxsize=512)
def _unchanged(spec: ModelSpec) -> Sums:
    """What has one type at every label: norms, routers, biases. To be copied, not added to."""
    sums = Sums(spec.n_layers)
    sums.add(
        (alike.shapes[0].role, alike.layers, BLOCKS[alike.fixed].size(alike.row) * alike.rows, ())
        for alike in alike_tensors(spec)
        if alike.fixed
    )
    return sums


class Sums:
    """Bytes of each role, and of each block: its routed experts and the rest."""

    def __init__(self, count: int) -> None:
        self.roles: dict[Role, int] = {}
        self.routed, self.rest = [0] * count, [0] * count

    def copy(self) -> Sums:
        """The same sums, to be added to."""
        found = Sums(0)
        found.roles, found.routed, found.rest = {**self.roles}, [*self.routed], [*self.rest]
        return found

    def add(self, sizes: Iterable[Sized]) -> None:
        """Add some tensors of the model."""
        # Most are in the same layers: their sizes are added up before they are laid out. A
        # blueprint's equal tuples of layers are one object.
        alike: dict[tuple[int, bool], tuple[tuple[int, ...], int]] = {}
        roles = self.roles
        for role, where, size, raised in sizes:
            total = size * len(where)
            expert = role == "experts"
            if where != OUTSIDE:
                key = id(where), expert
                alike[key] = where, (alike[key][1] if key in alike else 0) + size
            for more, which in raised:
                total += more * len(which)
                _add(self.routed if expert else self.rest, which, more)
            roles[role] = roles.get(role, 0) + total
        for (_, expert), (where, size) in alike.items():
            _add(self.routed if expert else self.rest, where, size)


def _add(sums: list[int], layers: tuple[int, ...], size: int) -> None:
    """Add to the blocks of these ascending numbers; a number that is no block's is left out."""
    first, last, count = layers[0], layers[-1] + 1, len(sums)
    if first >= 0 and last <= count and last - first == len(layers):
        sums[first:last] = [before + size for before in sums[first:last]]
        return
    for layer in layers:
        if 0 <= layer < count:
            sums[layer] += size


# Mean bits per weight where only a parameter count is known: (30B and up, 7B-14B, 1B-4B tied,
# below 1B); our own dry runs of llama-quantize over 45 models.
_TYPICAL: Final[Mapping[str, tuple[float, float, float, float]]] = MappingProxyType(
    {
        "F32": (32.0, 32.0, 32.0, 32.0),
        "F16": (16.0, 16.0, 16.0, 16.0),
        "BF16": (16.0, 16.0, 16.0, 16.0),
        "Q8_0": (8.5, 8.5, 8.5, 8.5),
        "Q6_K": (6.56, 6.56, 6.56, 7.3),
        "Q5_K_M": (5.67, 5.70, 5.80, 6.3),
        "Q5_K_S": (5.53, 5.57, 5.68, 6.2),
        "Q4_K_M": (4.82, 4.89, 5.08, 5.8),
        "Q4_K_S": (4.58, 4.67, 4.85, 5.6),
        "Q4_0": (4.54, 4.63, 4.82, 5.3),
        "IQ4_XS": (4.34, 4.45, 4.68, 5.25),
        "Q3_K_M": (3.88, 3.99, 4.25, 5.15),
        "Q2_K": (2.98, 3.13, 3.50, 4.65),
        "IQ2_XXS": (2.15, 2.38, 2.68, 4.05),
    }
)


def typical_bits(label: str, params: int) -> float:
    """Mean bits per weight of a GGUF label for a model of that size; the block's own if unlisted."""
    row = _TYPICAL.get(label)
    if row is None:
        return BLOCKS[DEFAULT_BLOCK.get(label, label)].bits_per_weight * 1.05
    billions = params / 1e9
    column = 0 if billions >= 20 else 1 if billions >= 5 else 2 if billions >= 1 else 3
    return row[column]


def _by_bits(spec: ModelSpec, label: str, other: WeightFormat | None) -> Weights:
    bits = float(other.bits) if other is not None else typical_bits(label, spec.params_total)
    total = round(spec.params_total * bits / 8)
    small = spec.params_total < 2e9
    return Weights(
        label=label,
        total=total,
        low=round(total * 0.95),
        high=round(total * (1.35 if small else 1.10)),
        method="bits per weight",
        reason=f"{spec.params_total / 1e9:.2f} B parameters at about {bits:.2f} bits; no shapes",
        roles=MappingProxyType({"other": total}),
        layers=(),
        layer_experts=(),
    )


__all__ = [
    "Method",
    "Weights",
    "active_parameters",
    "parameters",
    "read_per_token",
    "typical_bits",
    "weights",
]
