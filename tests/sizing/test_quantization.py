"""Block sizes and formats: every number has a witness."""

from __future__ import annotations

import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from enginekit.sizing.quantization import (
    BLOCKS,
    BLOCKS_BY_ID,
    FTYPES,
    GGUF_LABELS,
    gguf_label,
    weight_format,
)


@pytest.mark.parametrize("kind", list(GGMLQuantizationType), ids=lambda kind: kind.name)
def test_every_block_equals_the_gguf_packages(kind: GGMLQuantizationType) -> None:
    elements, size = GGML_QUANT_SIZES[kind]
    block = BLOCKS_BY_ID[kind.value]
    # gguf-py counts 40 bytes for Q8_1; ggml's own struct has 36, and the type is never on disk.
    expected = (kind.name, elements, 36 if kind.name == "Q8_1" else size)
    assert (block.name, block.elements, block.bytes) == expected


@pytest.mark.parametrize(
    ("name", "elements", "size", "bits"),
    [
        ("Q4_K", 256, 144, 4.5),
        ("Q6_K", 256, 210, 6.5625),
        ("IQ1_S", 256, 50, 1.5625),
        ("TQ1_0", 256, 54, 1.6875),
        ("MXFP4", 32, 17, 4.25),
        ("NVFP4", 64, 36, 4.5),
        ("Q2_0", 64, 18, 2.25),
        ("Q1_0", 128, 18, 1.125),
    ],
)
def test_bits_per_weight(name: str, elements: int, size: int, bits: float) -> None:
    block = BLOCKS[name]
    assert (block.elements, block.bytes, block.bits_per_weight) == (elements, size, bits)


def test_every_file_type_of_the_gguf_package_has_its_label() -> None:
    for kind in LlamaFileType:
        if kind.name != "GUESSED":
            label = kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
            assert FTYPES[kind.value] == label


@pytest.mark.parametrize(
    ("written", "label"),
    [
        ("q4_k_m", "Q4_K_M"),
        ("UD-Q4_K_XL", "Q4_K_M"),
        ("Q3_K_XL", "Q3_K_L"),
        ("UD-Q3_K_XL", "Q3_K_M"),
        ("Q6_K_L", "Q6_K"),
        ("UD-Q8_K_XL", "Q8_0"),
        ("UD-Q6_K_M", "Q6_K"),
        ("UD-IQ2_XXS", "IQ2_XXS"),
        ("Q8_0", "Q8_0"),
        ("mxfp4", "MXFP4_MOE"),
        ("Q4_K", "Q4_K_M"),
        ("awq", ""),
        ("nonsense", ""),
    ],
)
def test_labels_are_recognised_as_people_write_them(written: str, label: str) -> None:
    assert gguf_label(written) == label


def test_labels_that_only_old_files_have_are_not_offered() -> None:
    assert "Q4_0_4_4" not in GGUF_LABELS
    assert "Q4_K_M" in GGUF_LABELS


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("awq", 4 + 20 / 128),
        ("gptq-int4-g32", 4 + 20 / 32),
        ("fp8-block", 8 + 32 / 16384),
        ("nvfp4", 4.5),
        ("mxfp4", 4.25),
        ("mlx-4bit", 4.5),
        ("mlx-3bit", 3.5),
        ("q4f16_1", 4.5),
        ("q3f16_1", 3.6),
        ("bnb-nf4", 4.5),
        ("bnb-nf4-double", 4.127),
    ],
)
def test_formats_of_other_engines(name: str, bits: float) -> None:
    found = weight_format(name)
    assert found is not None
    assert found.bits_per_weight == pytest.approx(bits, abs=1e-9)


def test_an_unknown_format_is_none_rather_than_a_guess() -> None:
    assert weight_format("q17f3") is None
