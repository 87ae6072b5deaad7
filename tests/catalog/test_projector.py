"""Which projector goes with a model, in a repository, a folder and on an Ollama server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginekit.catalog import describe, describe_file, describe_ollama
from enginekit.catalog._projector import projector_beside
from tests.catalog.gguf_keys import keys_of
from tests.catalog.gguf_writer import header
from tests.catalog.test_gguf import LLAMA, TABLE


@pytest.mark.parametrize(
    ("model", "paths", "taken"),
    [
        ("m-Q4_K_M.gguf", ["mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"], "mmproj-BF16.gguf"),
        ("m-Q4_K_M.gguf", ["mmproj-m-Q8_0.gguf", "mmproj-m-f16.gguf"], "mmproj-m-Q8_0.gguf"),
        ("m-f16.gguf", ["mmproj-m-Q8_0.gguf", "mmproj-m-f16.gguf"], "mmproj-m-f16.gguf"),
        ("m-IQ2_M.gguf", ["mmproj-m-f16.gguf"], "mmproj-m-f16.gguf"),
        ("m-8B-BF16.gguf", ["m-8B-BF16-mmproj.gguf"], "m-8B-BF16-mmproj.gguf"),
        ("UD/m-Q4_K_M-00001-of-00002.gguf", ["mmproj-F16.gguf", "UD/mmproj-F32.gguf"], "UD/mmproj-F32.gguf"),
        ("m-Q4_K_M.gguf", ["other/mmproj-F16.gguf"], ""),
        ("m-Q4_K_M.gguf", ["mmproj-F16.safetensors", "m-Q8_0.gguf"], ""),
    ],
)  # fmt: skip
def test_the_projector_that_llama_server_takes(model: str, paths: list[str], taken: str) -> None:
    """By the rules of `find_best_sibling`, whatever else is there."""
    assert projector_beside(model, [*paths, model]) == taken


def test_a_folder_with_several_projectors(tmp_path: Path) -> None:
    model = tmp_path / "m-Q4_K_M.gguf"
    model.write_bytes(header(LLAMA, TABLE))
    for name, size in (("mmproj-F16.gguf", 900), ("mmproj-Q8_0.gguf", 500)):
        (tmp_path / name).write_bytes(bytes(size))
    spec = describe_file(model)
    assert spec.projector_bytes == 500
    assert spec.projector_file == str(tmp_path / "mmproj-Q8_0.gguf")
    assert spec.capabilities.vision


def shown(name: str, **more: Any) -> dict[str, Any]:
    known = describe(name)
    info = keys_of(known) | {"tokenizer.ggml.tokens": None}
    return {
        "model_info": info,
        "details": {"family": "x", "quantization_level": "Q4_K_M"},
        "capabilities": ["completion", "vision"],
        **more,
    }


def test_what_ollama_counts_of_a_projector_is_apart_from_the_weights() -> None:
    """`/api/tags` lists all layers of a model together."""
    told = shown("gemma3-4b", projector_info={"general.parameter_count": 419_816_304})
    spec = describe_ollama(told, "gemma3:4b", size=3_338_801_804)
    assert spec.projector_bytes == 2 * 419_816_304
    assert spec.weight_bytes == 3_338_801_804 - 2 * 419_816_304


def test_a_projector_inside_the_file_is_the_catalogs() -> None:
    spec = describe_ollama(shown("gemma3-4b"), "gemma3:4b", size=3_338_801_804)
    assert spec.projector_bytes == 2 * describe("gemma3-4b").tower_params
    blind = shown("gemma3-4b") | {"capabilities": ["completion"]}
    assert describe_ollama(blind, "gemma3:4b", size=3_338_801_804).projector_bytes == 0
