"""How many bytes a weight takes: every GGUF block type, and the formats of the other engines.

Tables with their sources, and the few lines of arithmetic on them. GGUF blocks are exact: a row of
`n` elements takes `n / block.elements * block.bytes`. Other formats keep part of the model in 16
bits; `WeightFormat.quantized` says which part shrinks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from enginekit.facts.model import FileFormat, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One GGUF storage type: `elements` weights are stored together in `bytes` bytes."""

    name: str
    id: int
    """The number in a GGUF tensor table."""
    elements: int
    bytes: int
    note: str = ""

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight inside a block of this type."""
        return self.bytes * 8 / self.elements

    def size(self, elements: int) -> int:
        """Bytes of `elements` weights whose rows are whole blocks (rounded up otherwise)."""
        return -(-elements // self.elements) * self.bytes


# Sources: ggml/include/ggml.h (numbers), ggml/src/ggml-common.h (block structs), gguf-py constants.
# Q8_1 is 36 bytes in ggml (two halves and 32 bytes); gguf-py still says 40. It is never on disk.
_BLOCKS: Final = (
    ("F32", 0, 1, 4, ""),
    ("F16", 1, 1, 2, ""),
    ("Q4_0", 2, 32, 18, ""),
    ("Q4_1", 3, 32, 20, ""),
    ("Q5_0", 6, 32, 22, ""),
    ("Q5_1", 7, 32, 24, ""),
    ("Q8_0", 8, 32, 34, ""),
    ("Q8_1", 9, 32, 36, "activations only"),
    ("Q2_K", 10, 256, 84, ""),
    ("Q3_K", 11, 256, 110, ""),
    ("Q4_K", 12, 256, 144, ""),
    ("Q5_K", 13, 256, 176, ""),
    ("Q6_K", 14, 256, 210, ""),
    ("Q8_K", 15, 256, 292, "activations only"),
    ("IQ2_XXS", 16, 256, 66, ""),
    ("IQ2_XS", 17, 256, 74, ""),
    ("IQ3_XXS", 18, 256, 98, ""),
    ("IQ1_S", 19, 256, 50, ""),
    ("IQ4_NL", 20, 32, 18, ""),
    ("IQ3_S", 21, 256, 110, ""),
    ("IQ2_S", 22, 256, 82, ""),
    ("IQ4_XS", 23, 256, 136, ""),
    ("I8", 24, 1, 1, ""),
    ("I16", 25, 1, 2, ""),
    ("I32", 26, 1, 4, ""),
    ("I64", 27, 1, 8, ""),
    ("F64", 28, 1, 8, ""),
    ("IQ1_M", 29, 256, 56, ""),
    ("BF16", 30, 1, 2, ""),
    ("Q4_0_4_4", 31, 32, 18, "removed from llama.cpp in 2024, same size as Q4_0"),
    ("Q4_0_4_8", 32, 32, 18, "removed from llama.cpp in 2024, same size as Q4_0"),
    ("Q4_0_8_8", 33, 32, 18, "removed from llama.cpp in 2024, same size as Q4_0"),
    ("TQ1_0", 34, 256, 54, ""),
    ("TQ2_0", 35, 256, 66, ""),
    ("IQ4_NL_4_4", 36, 32, 18, "removed from llama.cpp in 2024, same size as IQ4_NL"),
    ("IQ4_NL_4_8", 37, 32, 18, "removed from llama.cpp in 2024, same size as IQ4_NL"),
    ("IQ4_NL_8_8", 38, 32, 18, "removed from llama.cpp in 2024, same size as IQ4_NL"),
    ("MXFP4", 39, 32, 17, ""),
    ("NVFP4", 40, 64, 36, ""),
    ("Q1_0", 41, 128, 18, ""),
    ("Q2_0", 42, 64, 18, ""),
)

BLOCKS: Final[Mapping[str, Block]] = MappingProxyType(
    {n: Block(name=n, id=i, elements=e, bytes=b, note=note) for n, i, e, b, note in _BLOCKS}
)
"""GGUF storage type by name."""

BLOCKS_BY_ID: Final[Mapping[int, Block]] = MappingProxyType({b.id: b for b in BLOCKS.values()})
"""GGUF storage type by its number in the tensor table."""

FTYPES: Final[Mapping[int, str]] = MappingProxyType(
    {
        0: "F32",
        1: "F16",
        2: "Q4_0",
        3: "Q4_1",
        7: "Q8_0",
        8: "Q5_0",
        9: "Q5_1",
        10: "Q2_K",
        11: "Q3_K_S",
        12: "Q3_K_M",
        13: "Q3_K_L",
        14: "Q4_K_S",
        15: "Q4_K_M",
        16: "Q5_K_S",
        17: "Q5_K_M",
        18: "Q6_K",
        19: "IQ2_XXS",
        20: "IQ2_XS",
        21: "Q2_K_S",
        22: "IQ3_XS",
        23: "IQ3_XXS",
        24: "IQ1_S",
        25: "IQ4_NL",
        26: "IQ3_S",
        27: "IQ3_M",
        28: "IQ2_S",
        29: "IQ2_M",
        30: "IQ4_XS",
        31: "IQ1_M",
        32: "BF16",
        33: "Q4_0_4_4",
        34: "Q4_0_4_8",
        35: "Q4_0_8_8",
        36: "TQ1_0",
        37: "TQ2_0",
        38: "MXFP4_MOE",
        39: "NVFP4",
        40: "Q1_0",
        41: "Q2_0",
    }
)
"""`general.file_type` number to label (llama.h). A hint only: vendor mixes keep the number."""

DEFAULT_BLOCK: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Q2_K_S": "Q2_K",
        "Q3_K_S": "Q3_K",
        "Q3_K_M": "Q3_K",
        "Q3_K_L": "Q3_K",
        "Q4_K_S": "Q4_K",
        "Q4_K_M": "Q4_K",
        "Q5_K_S": "Q5_K",
        "Q5_K_M": "Q5_K",
        "IQ2_S": "IQ2_XS",
        "IQ2_M": "IQ2_S",
        "IQ3_XS": "IQ3_S",
        "IQ3_M": "IQ3_S",
        "MXFP4_MOE": "MXFP4",
    }
)
"""Label to the block type most of its tensors get (llama-quantize); other labels name their own."""

GGUF_LABELS: Final[tuple[str, ...]] = tuple(
    label for number, label in FTYPES.items() if number not in (33, 34, 35)
)
"""Labels that `llama-quantize` can make, in the order of their numbers."""

FALLBACK: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(
            ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"], "IQ4_NL"
        ),
        **dict.fromkeys(["Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"], "Q4_0"),
        "Q4_K": "Q5_0",
        "Q5_K": "Q5_1",
        "Q6_K": "Q8_0",
    }
)
"""What llama-quantize uses where a row is no whole number of blocks (llama-quant.cpp)."""

WIDE_TABLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Q2_K_L": "Q2_K",
        "Q3_K_XL": "Q3_K_L",
        "Q4_K_L": "Q4_K_M",
        "Q5_K_L": "Q5_K_M",
        "Q6_K_L": "Q6_K",
    }
)
"""Labels of publishers (bartowski) for a mixture whose input table and output matrix are Q8_0."""

_LINEAR: Final[frozenset[Role]] = frozenset(
    ("attention", "recurrent", "ffn", "experts", "shared_experts", "mtp")
)
_TABLES: Final[frozenset[Role]] = frozenset(("embedding", "layer_embedding", "output"))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """A weight format of an engine that does not read GGUF."""

    name: str
    bits: Fraction
    """Bits per quantized weight, scales and zero points included."""
    quantized: frozenset[Role]
    """What shrinks; everything else stays at `wide_bytes` per weight."""
    format: FileFormat
    wide_bytes: int = 2
    source: str = ""

    @property
    def bits_per_weight(self) -> float:
        """Bits per quantized weight as a float, for display."""
        return float(self.bits)


def _grouped(bits: int, group: int, scale: int = 16, zero: int = 0) -> Fraction:
    """Bits per weight when each group of weights shares a scale and a zero point."""
    return bits + Fraction(scale + zero, group)


def _formats() -> dict[str, WeightFormat]:
    rows: list[tuple[str, Fraction, frozenset[Role], FileFormat, str]] = [
        ("bf16", Fraction(16), frozenset(), "safetensors", ""),
        ("fp16", Fraction(16), frozenset(), "safetensors", ""),
        ("fp8", Fraction(8), _LINEAR, "safetensors", "per-tensor scales"),
        ("fp8-block", _grouped(8, 128 * 128, 32), _LINEAR, "safetensors", "128x128 F32 scales"),
        ("int8", Fraction(8), _LINEAR, "safetensors", "W8A8, a scale per row"),
        ("nvfp4", _grouped(4, 16, 8), _LINEAR, "safetensors", "modelopt: FP8 scale per 16"),
        ("mxfp4", _grouped(4, 32, 8), frozenset(("experts",)), "safetensors", "gpt-oss: experts"),
        ("bnb-nf4", _grouped(4, 64, 32), _LINEAR, "safetensors", "bitsandbytes"),
        ("bnb-nf4-double", Fraction(4127, 1000), _LINEAR, "safetensors", "double quantization"),
        ("bnb-int8", Fraction(8), _LINEAR, "safetensors", "LLM.int8()"),
        ("q0f16", Fraction(16), frozenset(), "mlc", "MLC"),
        ("q4f16_1", _grouped(4, 32), _LINEAR | _TABLES, "mlc", "MLC: F16 scale per 32"),
        ("q4f16_0", _grouped(4, 32), _LINEAR | _TABLES, "mlc", "MLC: F16 scale per 32"),
        # Ten 3-bit values to a 32-bit word, an F16 scale per 40.
        ("q3f16_1", Fraction(36, 10), _LINEAR | _TABLES, "mlc", "MLC"),
        ("q4bf16_1", _grouped(4, 32), _LINEAR | _TABLES, "mlc", "MLC: BF16 scale per 32"),
    ]
    for method in ("awq", "gptq"):
        for bits in (2, 3, 4, 8) if method == "gptq" else (4,):
            for group in (32, 64, 128):
                name = f"{method}-int{bits}-g{group}"
                exact = _grouped(bits, group, zero=bits)
                rows.append((name, exact, _LINEAR, "safetensors", "F16 scale, packed zero"))
    rows.extend(
        (f"w4a16-g{group}", _grouped(4, group), _LINEAR, "safetensors", "compressed-tensors")
        for group in (32, 64, 128)
    )
    rows.append(("w8a16", Fraction(8), _LINEAR, "safetensors", "compressed-tensors"))
    for bits in (2, 3, 4, 5, 6, 8):
        for group in (32, 64, 128):
            name = f"mlx-{bits}bit" if group == 64 else f"mlx-{bits}bit-g{group}"
            exact = _grouped(bits, group, 32)
            rows.append((name, exact, _LINEAR | _TABLES, "mlx", "affine: F16 scale and bias"))
    return {
        name: WeightFormat(name=name, bits=bits, quantized=roles, format=kind, source=source)
        for name, bits, roles, kind, source in rows
    }


FORMATS: Final[Mapping[str, WeightFormat]] = MappingProxyType(_formats())
"""Non-GGUF weight formats by our name for them."""

_ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "float16": "fp16",
        "f16": "fp16",
        "bfloat16": "bf16",
        "awq": "awq-int4-g128",
        "gptq": "gptq-int4-g128",
        "awq-int4": "awq-int4-g128",
        "gptq-int4": "gptq-int4-g128",
        "gptq-int8": "gptq-int8-g128",
        "w4a16": "w4a16-g128",
        "w8a8": "int8",
        "bnb": "bnb-nf4",
        "bitsandbytes": "bnb-nf4",
        "nf4": "bnb-nf4",
        "mlx": "mlx-4bit",
    }
)


def gguf_label(label: str) -> str:
    """The llama-quantize label that a name such as `UD-Q4_K_XL` or `q4_k_m` stands for; "" if none.

    A vendor's `XL` mix counts as the `M` (or plain) mix it is built on, so its size is a little low.
    """
    known = label.upper().replace("-", "_")
    if known in WIDE_TABLES:
        return WIDE_TABLES[known]
    known = known.removeprefix("UD_")
    if known in _LABELS:
        return known
    for end in ("_XL", "_L", "_M", "_S"):
        stem = known.removesuffix(end)
        if stem != known:
            for candidate in (f"{stem}_M", stem, f"{stem.removesuffix('_K')}_0"):
                if candidate in _LABELS:
                    return candidate
    if known == "MXFP4":
        return "MXFP4_MOE"
    return "Q4_K_M" if known == "Q4_K" else "Q5_K_M" if known == "Q5_K" else ""


def is_gguf(name: str) -> bool:
    """Whether a quantization is one of llama-quantize's; `mxfp4` and `nvfp4` are safetensors formats."""
    return name not in FORMATS and bool(gguf_label(name))


_LABELS: Final = frozenset(GGUF_LABELS)


def weight_format(name: str) -> WeightFormat | None:
    """The non-GGUF format of that name or alias (`awq`, `fp8-block`, `mlx-4bit`); None if unknown."""
    key = name.lower().replace("_", "-")
    for candidate in (name, key, key.replace("-", "_"), _ALIASES.get(key, "")):
        found = FORMATS.get(candidate)
        if found is not None:
            return found
    return None
