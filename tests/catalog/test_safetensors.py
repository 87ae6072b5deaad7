"""safetensors headers, roles of tensors, and which files are one copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enginekit.catalog import describe, describe_folder, safetensors
from enginekit.errors import ModelFileError
from enginekit.sizing.weights import weights
from tests.catalog.configs import CATALOG


def blob(header: dict[str, Any], data: int | None = None) -> bytes:
    """A file with that header and zeros after it."""
    raw = json.dumps(header).encode()
    if data is None:
        data = max(
            (e["data_offsets"][1] for e in header.values() if "data_offsets" in e), default=0
        )
    return len(raw).to_bytes(8, "little") + raw + bytes(data)


def parse(data: bytes) -> tuple[safetensors.StoredTensor, ...]:
    return safetensors.parse(lambda at, n: data[at : at + n], size=len(data))


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_sizes_come_from_offsets_and_are_checked_against_the_shape() -> None:
    found = parse(
        blob(
            {
                "__metadata__": {"format": "pt"},
                "a": entry("BF16", [4, 8], 0, 64),
                "b": entry("F8_E4M3", [10], 64, 74),
                "c": entry("F4", [6], 74, 77),
                "d": entry("F32", [], 77, 81),
            }
        )
    )
    assert [(t.name, t.dtype, t.bytes) for t in found] == [
        ("a", "BF16", 64),
        ("b", "F8_E4M3", 10),
        ("c", "F4", 3),
        ("d", "F32", 4),
    ]


def test_a_header_longer_than_the_first_read_is_read_on() -> None:
    header = {f"tensor.{i}": entry("U8", [1], i, i + 1) for i in range(5000)}
    assert len(parse(blob(header))) == 5000


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no safetensors file"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "header of 1152921504606846976 bytes"),
        ((100 << 20).to_bytes(8, "little") + b"{}", "header of 104857600 bytes"),
        (b"GGUF\x03\x00\x00\x00" + bytes(40), "a GGUF file"),
        ((4).to_bytes(8, "little") + b"nope", "no JSON"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
        ((20000).to_bytes(8, "little") + b"[" * 20000, "no JSON"),
        (blob({"a": {"dtype": "BF16"}}, 0), "lacks"),
        (blob({"a": entry("Q9", [1], 0, 1)}), "Q9"),
        (blob({"a": entry("BF16", [4], 0, 9)}), "cannot take 9 bytes"),
        (blob({"a": entry("BF16", [-4], 0, 8)}), "absurd"),
        (blob({"a": entry("BF16", [1 << 62], 0, 8)}), "absurd"),
        (blob({"a": entry("BF16", [1 << 61] * 300_000, 0, 8)}), "absurd"),
        (blob({"a": entry("BF16", [0] * 300_000, 0, 0)}), "absurd"),
        (blob({"a": entry("BF16", [float("nan")], 0, 8)}), "absurd"),
        (blob({"a": entry("BF16", ["4"], 0, 8)}), "absurd"),
        (blob({"a": {**entry("BF16", [4], 0, 8), "data_offsets": [0]}}, 8), "lacks"),
        (blob({"a": [1, 2]}, 8), "lacks"),
        (blob({"a": entry("BF16", [4], 8, 0)}, 8), "cannot take"),
        (blob({"a": entry("U8", [8], 0, 8), "b": entry("U8", [8], 4, 12)}), "inside the one"),
        (blob({"a": entry("U8", [8], 0, 8)}, 4), "only 4 follow"),
    ],
)
def test_a_hostile_header_is_refused_by_name(data: bytes, said: str) -> None:
    with pytest.raises(ModelFileError, match=said) as caught:
        parse(data)
    assert caught.value.field


def test_a_tensor_twice_is_refused() -> None:
    one = json.dumps(entry("U8", [1], 0, 1))
    raw = f'{{"a": {one}, "a": {one}}}'.encode()
    with pytest.raises(ModelFileError, match="twice"):
        parse(len(raw).to_bytes(8, "little") + raw + bytes(1))


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.language_model.embed_tokens_per_layer.weight", "layer_embedding"),
        ("lm_head.weight", "output"),
        ("model.layers.3.self_attn.q_proj.weight", "attention"),
        ("model.layers.3.self_attn.kv_a_proj_with_mqa.weight_scale_inv", "attention"),
        ("model.layers.3.self_attn.q_norm.weight", "norm"),
        ("model.layers.3.input_layernorm.weight", "norm"),
        ("model.layers.3.mlp.gate_proj.weight", "ffn"),
        ("model.layers.3.mlp.gate.weight", "router"),
        ("model.layers.3.mlp.router.bias", "router"),
        ("model.layers.3.mlp.experts.17.up_proj.qweight", "experts"),
        ("model.layers.3.mlp.experts.gate_up_proj_blocks", "experts"),
        ("model.layers.3.mlp.shared_experts.up_proj.weight", "shared_experts"),
        ("model.layers.3.mlp.shared_expert.up_proj.weight", "shared_experts"),
        ("model.layers.3.linear_attn.in_proj_qkvz.weight", "recurrent"),
        ("backbone.layers.3.mixer.in_proj.weight", "recurrent"),
        ("backbone.layers.3.mixer.q_proj.weight", "attention"),
        ("model.layers.61.self_attn.o_proj.weight", "mtp"),
        ("mtp.layers.0.mlp.up_proj.weight", "mtp"),
        ("model.visual.blocks.0.attn.qkv.weight", "projector"),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", "projector"),
        ("multi_modal_projector.mm_input_projection_weight", "projector"),
    ],
)
def test_roles(name: str, role: str) -> None:
    match = safetensors._LAYER.search(name)
    layer = int(match[1]) if match else None
    assert safetensors.role_of(name, layer, 61) == role


@pytest.mark.parametrize(
    ("files", "copy"),
    [
        (["model.safetensors", "config.json"], ["model.safetensors"]),
        (
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "original/model--00001-of-00007.safetensors",
                "metal/model.bin",
            ],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            # Shards of an earlier upload were left behind, and some of another that was cut.
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model-00001-of-00003.safetensors",
                "model-00002-of-00003.safetensors",
                "model-00003-of-00003.safetensors",
                "model-00002-of-00009.safetensors",
                "consolidated.safetensors",
            ],
            [
                "model-00001-of-00003.safetensors",
                "model-00002-of-00003.safetensors",
                "model-00003-of-00003.safetensors",
            ],
        ),
        (
            ["consolidated.safetensors", "model-00001-of-00001.safetensors"],
            ["model-00001-of-00001.safetensors"],
        ),
        (["consolidated.safetensors", "params.json"], ["consolidated.safetensors"]),
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model-00001-of-00001.bin"], ["pytorch_model-00001-of-00001.bin"]),
        (["adapter_model.safetensors", "model.safetensors"], ["model.safetensors"]),
        (["onnx/model.onnx", "model.safetensors"], ["model.safetensors"]),
        (
            ["model.safetensors", "model-00001-of-00002.safetensors"],
            ["model.safetensors"],
        ),
        (["training_args.bin"], []),
    ],
)
def test_one_copy_of_a_repository(files: list[str], copy: list[str]) -> None:
    assert list(safetensors.one_copy(files)) == copy


def _checkpoint(folder: Path) -> int:
    """A folder like a small Llama's, with an MTP block, a vision tower and a duplicate copy."""
    config = dict(CATALOG["llama3.2-1b"]) | {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "intermediate_size": 16,
        "vocab_size": 32,
    }
    (folder / "config.json").write_text(json.dumps(config))
    first = {
        "model.embed_tokens.weight": entry("BF16", [32, 8], 0, 512),
        "model.layers.0.self_attn.q_proj.weight": entry("BF16", [8, 8], 512, 640),
        "model.layers.1.mlp.up_proj.weight": entry("BF16", [16, 8], 640, 896),
    }
    second = {
        "model.layers.2.mlp.up_proj.weight": entry("BF16", [16, 8], 0, 256),
        "model.visual.blocks.0.weight": entry("BF16", [10], 256, 276),
    }
    (folder / "model-00001-of-00002.safetensors").write_bytes(blob(first))
    (folder / "model-00002-of-00002.safetensors").write_bytes(blob(second))
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.safetensors").write_bytes(blob(first))
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def test_a_checkpoint_folder_is_counted_once_and_by_part(tmp_path: Path) -> None:
    on_disk = _checkpoint(tmp_path)
    spec = describe_folder(tmp_path)
    assert (spec.weight_bytes, spec.mtp_bytes, spec.projector_bytes) == (896, 256, 20)
    assert spec.file_bytes == on_disk
    assert spec.tied_embeddings
    found = weights(spec)
    assert (found.total, found.low, found.high, found.method) == (896, 896, 896, "file")
    assert found.layers == (128, 256)
    origin = spec.origin("weight_bytes")
    assert origin is not None
    assert origin.confidence == "exact"
    assert describe(tmp_path) == describe(tmp_path / "config.json") == spec


def test_a_folder_without_config_names_the_gguf_files_in_it(tmp_path: Path) -> None:
    for name in ("m.gguf", "n.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"no config\.json") as caught:
        describe(tmp_path)
    assert "m.gguf" in str(caught.value.hint)


def test_a_config_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"config\.json"):
        describe(tmp_path)


def test_a_chat_template_beside_the_config(tmp_path: Path) -> None:
    _checkpoint(tmp_path)
    template = {"chat_template": "{% if tools %}{{ enable_thinking }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(template))
    spec = describe_folder(tmp_path)
    assert spec.chat_template
    assert (spec.capabilities.tools, spec.capabilities.thinking) == (True, True)
