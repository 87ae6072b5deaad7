"""Which projector goes with a model, in a repository, a folder and on an Ollama server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginekit.catalog import _tower, describe, describe_file, describe_ollama, hf_config
from enginekit.catalog._projector import projector_beside
from enginekit.catalog._summary import with_weights
from tests.catalog.configs import CATALOG
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


SIGLIP = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "image_size": 896,
    "patch_size": 14,
}  # fmt: skip
MERGER = {
    "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 16,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304,
}  # fmt: skip
SMALL = MERGER | {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}
DEEP = {"deepstack_visual_indexes": [8, 16, 24]}
GEMMA4 = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 16,
    "position_embedding_size": 10240,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "model_type", "block"),
    [
        ("gemma3-4b", "gemma3", SIGLIP),
        ("gemma3-27b", "gemma3", SIGLIP),
        (
            "qwen2.5-vl-7b",
            "qwen2_5_vl",
            {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "patch_size": 14},
        ),
        ("qwen3-vl-8b", "qwen3_vl", MERGER | DEEP),
        ("qwen3-vl-2b", "qwen3_vl", SMALL | DEEP),
        ("qwen3.5-27b", "qwen3_5", MERGER),
        ("qwen3.5-4b", "qwen3_5", SMALL),
        (
            "ministral3-8b",
            "mistral3",
            {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
             "patch_size": 14, "image_size": 1540},
        ),
        (
            "llama4-scout-109b",
            "llama4",
            {"hidden_size": 1408, "intermediate_size": 5632, "num_hidden_layers": 34,
             "patch_size": 14, "image_size": 336, "projector_output_dim": 4096},
        ),
        (
            "kimi-k2.5",
            "kimi_k25",
            {"vt_hidden_size": 1152, "vt_intermediate_size": 4304, "vt_num_hidden_layers": 27,
             "patch_size": 14},
        ),
        ("gemma4-31b", "gemma4", GEMMA4),
    ],
)  # fmt: skip
def test_a_tower_is_counted_from_its_block(
    name: str, model_type: str, block: dict[str, Any]
) -> None:
    known = describe(name)
    assert _tower.vision(block, model_type, known.hidden) == pytest.approx(
        known.tower_params, rel=0.002
    )


def test_a_tower_that_hears_is_counted_too() -> None:
    known = describe("gemma4-e4b")
    block = GEMMA4 | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16}
    found = _tower.vision(block, "gemma4", known.hidden)
    hearing = {"hidden_size": 1024, "num_hidden_layers": 12, "output_proj_dims": 1536}
    found += _tower.audio(hearing, "gemma4", known.hidden)
    assert found == pytest.approx(known.tower_params, rel=0.002)


@pytest.mark.parametrize(
    "block",
    [{}, {"depth": 27}, MERGER | {"depth": -1}, MERGER | {"hidden_size": 1 << 60},
     MERGER | {"intermediate_size": None}, MERGER | {"depth": "27"}, MERGER | {"depth": True}],
)  # fmt: skip
def test_a_block_that_says_too_little_counts_nothing(block: dict[str, Any]) -> None:
    assert _tower.vision(block, "qwen3_vl", 4096) == 0


def test_a_config_alone_tells_the_tower_and_headers_overrule_it() -> None:
    config = CATALOG["qwen3.5-27b"] | {"vision_config": MERGER}
    spec = hf_config.to_spec(config, name="x")
    assert spec.tower_params == pytest.approx(describe("qwen3.5-27b").tower_params, rel=0.002)
    bare = with_weights(spec, [], 0)
    assert (bare.projector_bytes, bare.tower_params) == (0, 0)
