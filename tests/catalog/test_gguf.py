"""The GGUF reader: what it reads, against an independent writer, and what it refuses."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFWriter

from enginekit.catalog import _gguf_spec, describe, gguf
from enginekit.errors import ModelFileError
from enginekit.facts.model import ModelSpec
from enginekit.sizing.kv_cache import llamacpp_cache
from enginekit.sizing.weights import weights
from tests.catalog.gguf_keys import keys_of
from tests.catalog.gguf_writer import header, tensors_of


def parse(data: bytes, size: int | None = -1) -> gguf.GgufHeader:
    """Parse from memory; the size is that of the data unless said otherwise."""
    known = len(data) if size == -1 else size
    return gguf.parse(lambda offset, length: data[offset : offset + length], size=known)


def spec_of(metadata: dict[str, Any], tensors: Any = ()) -> ModelSpec:
    return _gguf_spec.to_spec(parse(header(metadata, tensors), None))


LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 256,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.feed_forward_length": 512,
    "llama.context_length": 4096,
    "tokenizer.ggml.tokens": ["a", "bb", "", "é"],
    "tokenizer.ggml.scores": [0.0, 1.0, 2.0, 3.0],
    "tokenizer.chat_template": "{% if tools %}{% endif %}<think>",
}
TABLE = [
    ("token_embd.weight", (256, 4), "F16"),
    ("blk.0.attn_q.weight", (256, 256), "Q8_0"),
    ("blk.1.ffn_down.weight", (512, 256), "Q4_K"),
    ("output_norm.weight", (256,), "F32"),
]


# ------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_in_both_byte_orders(version: int, order: str) -> None:
    found = parse(header(LLAMA, TABLE, version=version, order=order), None)
    assert (found.version, found.little_endian) == (version, order == "<")
    assert found.metadata["llama.block_count"] == 2
    assert found.counts["tokenizer.ggml.tokens"] == 4
    assert found.metadata["tokenizer.ggml.scores"] == (0.0, 1.0, 2.0, 3.0)
    assert [tensor.name for tensor in found.tensors] == [row[0] for row in TABLE]
    assert [tensor.bytes for tensor in found.tensors] == [
        2 * 256 * 4,
        256 * 256 // 32 * 34,
        512 * 256 // 256 * 144,
        4 * 256,
    ]


@pytest.mark.parametrize("window", [16, 33, 100, 1 << 20])
def test_the_size_of_a_read_does_not_matter(window: int) -> None:
    data = header(LLAMA, TABLE)

    def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    found = gguf.parse(read, size=None, window=window)
    assert found.tensors == parse(data, None).tensors
    assert found.counts == parse(data, None).counts


@pytest.mark.parametrize("endianess", [GGUFEndian.LITTLE, GGUFEndian.BIG])
def test_files_of_the_gguf_package_read_alike(tmp_path: Path, endianess: GGUFEndian) -> None:
    """Written by llama.cpp's own writer and compared with its own reader, tensor by tensor."""
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama", endianess=endianess)
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_context_length(512)
    writer.add_token_list([f"token {i}" for i in range(1000)])
    writer.add_token_scores([0.5] * 1000)
    writer.add_chat_template("hello")
    writer.add_array("llama.rope.dimension_sections", [1, 2, 3, 4])
    rng = np.random.default_rng(1)
    writer.add_tensor("token_embd.weight", rng.random((1000, 64)).astype(np.float16))
    writer.add_tensor("blk.0.attn_q.weight", rng.random((64, 64)).astype(np.float32))
    writer.add_tensor(
        "blk.0.ffn_up.weight",
        np.zeros((128, 64 // 32 * 34), dtype=np.uint8),
        raw_dtype=GGMLQuantizationType.Q8_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, witness = gguf.read_file(path), GGUFReader(path)
    assert found.missing == 0
    assert found.data_offset == witness.data_offset
    ours = {t.name: (t.shape, t.type, t.bytes) for t in found.tensors}
    theirs = {
        t.name: (tuple(int(n) for n in t.shape), t.tensor_type.name, int(t.n_bytes))
        for t in witness.tensors
    }
    assert ours == theirs
    assert found.metadata["llama.rope.dimension_sections"] == (1, 2, 3, 4)
    assert found.counts["tokenizer.ggml.tokens"] == 1000


def test_a_40_gb_file_costs_a_little_of_it(tmp_path: Path) -> None:
    """A sparse file stands in: only the header is read, though the vocabulary is a real one."""
    path = tmp_path / "huge.gguf"
    metadata = LLAMA | {
        "tokenizer.ggml.tokens": [f"token{i:06d}" for i in range(150_000)],
        "tokenizer.ggml.merges": [f"a{i} b{i}" for i in range(280_000)],
    }
    data = header(metadata, TABLE)
    path.write_bytes(data)
    os.truncate(path, 40 << 30)
    read = 0
    with path.open("rb", buffering=0) as file:

        def counted(offset: int, length: int) -> bytes:
            nonlocal read
            file.seek(offset)
            piece = file.read(length)
            read += len(piece)
            return piece

        found = gguf.parse(counted, size=40 << 30)
    assert found.counts["tokenizer.ggml.merges"] == 280_000
    assert len(data) <= read < len(data) + (2 << 20) < 30_000_000


def test_long_arrays_of_numbers_are_stepped_over_without_reading() -> None:
    scores = [0.0] * 300_000
    data = header({"general.architecture": "llama", "tokenizer.ggml.scores": scores})
    offsets = []

    def read(offset: int, length: int) -> bytes:
        offsets.append(offset)
        return data[offset : offset + length]

    found = gguf.parse(read, size=len(data), window=64)
    assert found.counts["tokenizer.ggml.scores"] == 300_000
    assert "tokenizer.ggml.scores" not in found.metadata
    assert len(offsets) < 10


def test_split_files_are_one_model(tmp_path: Path) -> None:
    parts = [TABLE[:2], TABLE[2:]]
    for number, part in enumerate(parts, start=1):
        metadata = {"split.no": number - 1, "split.count": 2, "split.tensors.count": 4}
        metadata = LLAMA | metadata if number == 1 else metadata
        data = header(metadata, part)
        path = tmp_path / f"m-{number:05d}-of-00002.gguf"
        path.write_bytes(data + bytes(parse(data, None).end - len(data)))
    whole = parse(header(LLAMA, TABLE), None)
    for number in (1, 2):
        found = gguf.read_file(tmp_path / f"m-{number:05d}-of-00002.gguf")
        assert (found.parts, found.data_bytes, found.missing) == (2, whole.data_bytes, 0)
        assert found.metadata["general.architecture"] == "llama"


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(header(LLAMA | {"split.count": 2}))
    with pytest.raises(ModelFileError, match=r"m-00002-of-00002\.gguf.*does not exist"):
        gguf.read_file(tmp_path / "m-00001-of-00002.gguf")


def test_a_part_without_its_number_says_how_to_name_it(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(header(LLAMA | {"split.count": 3}))
    with pytest.raises(ModelFileError, match="one of 3 parts") as caught:
        gguf.read_file(tmp_path / "m.gguf")
    assert "00001-of-00003" in str(caught.value.hint)


def test_a_cut_download_is_described_and_said_to_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    data = header(LLAMA, TABLE)
    path.write_bytes(data + bytes(100))
    spec = describe(path)
    assert spec.weight_bytes == parse(data, None).data_bytes
    assert any("download is incomplete" in note for note in spec.notes)


def test_a_projector_beside_the_only_model_belongs_to_it(tmp_path: Path) -> None:
    for name in ("model.gguf", "mmproj-model-f16.gguf"):
        (tmp_path / name).write_bytes(header(LLAMA, TABLE))
    spec = describe(tmp_path / "model.gguf")
    assert spec.projector_bytes == (tmp_path / "mmproj-model-f16.gguf").stat().st_size
    assert spec.capabilities.vision
    (tmp_path / "another.gguf").write_bytes(header(LLAMA, TABLE))
    assert describe(tmp_path / "model.gguf").projector_bytes == 0


# ------------------------------------------------------------------------------ header to facts


ROUND_TRIP = [
    "llama3.1-8b",
    "smollm2-135m",
    "qwen3-30b-a3b",
    "gemma2-9b",
    "gemma3-27b",
    "gemma4-31b",
    "gemma4-e2b",
    "gemma4-26b-a4b",
    "gpt-oss-20b",
    "deepseek-v3",
    "glm-4.7-flash",
    "qwen3.5-27b",
    "qwen3.5-35b-a3b",
    "qwen3-next-80b-a3b",
    "nemotron3-nano-30b-a3b",
    "mixtral-8x7b",
    "phi4",
    "command-r-35b",
]


@pytest.mark.parametrize("name", ROUND_TRIP)
def test_a_header_says_the_same_as_the_catalog(name: str) -> None:
    """Written with llama.cpp's keys and shapes, read back: equal layers, weights and caches."""
    # The file is in 16 bits throughout, also where the publisher's is not.
    known = replace(describe(name), native_format="")
    spec = spec_of(keys_of(known), tensors_of(known))
    assert spec.known_layout
    assert spec.layers == known.layers
    assert (spec.hidden, spec.vocab, spec.tied_embeddings) == (
        known.hidden,
        known.vocab,
        known.tied_embeddings,
    )
    assert spec.params_total == known.params_total
    assert spec.params_active == known.params_active
    assert spec.quantization == "F16"
    assert weights(spec).total == spec.weight_bytes == weights(known, "F16").total
    for label in ("Q4_K_M", "IQ2_XXS"):
        assert weights(spec, label).total == weights(known, label).total
    for slots in (1, 4):
        ours, theirs = (llamacpp_cache(x, 8192, slots=slots).total for x in (spec, known))
        assert ours == theirs


def test_capabilities_come_from_the_template() -> None:
    spec = spec_of(LLAMA, TABLE)
    assert (spec.capabilities.tools, spec.capabilities.thinking) == (True, True)
    assert spec.chat_template
    assert spec.vocab == 4


def test_experts_of_early_mixtral_files_are_experts() -> None:
    metadata = LLAMA | {"llama.expert_count": 2, "llama.expert_used_count": 1}
    table = [*TABLE, *((f"blk.0.ffn_up.{n}.weight", (256, 512), "F16") for n in range(2))]
    spec = spec_of(metadata, table)
    assert [layer.moe for layer in spec.layers] == [True, False]
    assert spec.params_total - spec.params_active == 256 * 512


def test_mtp_blocks_are_counted_apart() -> None:
    metadata = LLAMA | {"llama.block_count": 3, "llama.nextn_predict_layers": 1}
    table = [*TABLE, ("blk.2.attn_q.weight", (256, 256), "F16")]
    spec = spec_of(metadata, table)
    assert (spec.n_layers, spec.mtp_layers, spec.mtp_bytes) == (2, 1, 2 * 256 * 256)
    assert spec.weight_bytes == spec_of(LLAMA, TABLE).weight_bytes


def test_legacy_deepseek_files_without_latent_keys_cost_71_times_more() -> None:
    known = describe("deepseek-v3")
    modern = keys_of(known)
    legacy = modern | {
        "deepseek2.attention.key_length": 192,
        "deepseek2.attention.value_length": 128,
        "deepseek2.attention.head_count_kv": 128,
    }
    del legacy["deepseek2.attention.key_length_mla"]
    ratio = (
        llamacpp_cache(spec_of(legacy), 4096).total / llamacpp_cache(spec_of(modern), 4096).total
    )
    assert ratio == pytest.approx(71.1, abs=0.1)


def test_an_unknown_architecture_has_exact_weights_and_no_precise_cache() -> None:
    metadata = {key.replace("llama", "brandnew"): item for key, item in LLAMA.items()}
    metadata["general.architecture"] = "brandnew"
    spec = spec_of(metadata, TABLE)
    assert not spec.known_layout
    assert spec.weight_bytes == spec_of(LLAMA, TABLE).weight_bytes
    cache = llamacpp_cache(spec, 4096)
    assert cache.low < cache.total < cache.high
    assert "unknown attention layout" in cache.reason
    assert "unknown attention layout: brandnew" in spec.notes


@pytest.mark.parametrize(
    ("arch", "extra", "kinds"),
    [
        ("falcon-h1", {"ssm.inner_size": 512}, {("full", True)}),
        ("mamba", {"attention.head_count": 0}, {("none", True)}),
        ("bert", {}, {("none", False)}),
        ("jamba", {"attention.head_count_kv": [0, 2]}, {("none", True), ("full", False)}),
        ("deci", {"attention.head_count_kv": [2, 0]}, {("full", False), ("none", False)}),
    ],
)
def test_kinds_of_layers(arch: str, extra: dict[str, Any], kinds: set[tuple[str, bool]]) -> None:
    metadata = {key.replace("llama", arch): item for key, item in LLAMA.items()}
    metadata |= {f"{arch}.{key}": item for key, item in extra.items()}
    metadata["general.architecture"] = arch
    spec = spec_of(metadata, TABLE)
    assert {(layer.attention, layer.recurrent) for layer in spec.layers} == kinds


def test_phi3_ignores_its_window_as_llama_cpp_does() -> None:
    metadata = {key.replace("llama", "phi3"): item for key, item in LLAMA.items()}
    metadata |= {"general.architecture": "phi3", "phi3.attention.sliding_window": 128}
    assert {layer.attention for layer in spec_of(metadata, TABLE).layers} == {"full"}
