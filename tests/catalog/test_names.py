"""Names: every spelling that people use finds its entry, and a near miss is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from enginekit.catalog import _table, catalog_names, describe, find, get, suggestions
from enginekit.errors import ModelFileError, ModelNotFound
from enginekit.sizing.quantization import weight_format
from enginekit.sizing.weights import weights
from tests.catalog.configs import CATALOG


@pytest.mark.parametrize(
    ("written", "entry", "quantization"),
    [
        ("llama3.1", "llama3.1-8b", ""),
        ("llama3.1:8b", "llama3.1-8b", ""),
        ("LLAMA3.1:latest", "llama3.1-8b", ""),
        ("llama3.1:70b", "llama3.1-70b", ""),
        ("qwen3", "qwen3-8b", ""),
        ("qwen3:8b", "qwen3-8b", ""),
        ("qwen3:8b-q8_0", "qwen3-8b", "Q8_0"),
        ("llama3.1:8b-instruct-q4_K_M", "llama3.1-8b", "Q4_K_M"),
        ("Qwen/Qwen3-8B", "qwen3-8b", ""),
        ("Qwen3-8B", "qwen3-8b", ""),
        ("hf://Qwen/Qwen3-8B", "qwen3-8b", ""),
        ("unsloth/Qwen3-8B-GGUF", "qwen3-8b", ""),
        ("hf.co/unsloth/Qwen3-8B-GGUF:Q5_K_M", "qwen3-8b", "Q5_K_M"),
        ("unsloth/Qwen3-8B-GGUF:UD-Q4_K_XL", "qwen3-8b", "Q4_K_M"),
        ("mlc-ai/Qwen3-8B-q4f16_1-MLC", "qwen3-8b", ""),
        ("smollm2:135m", "smollm2-135m", ""),
        ("smollm2", "smollm2-1.7b", ""),
        ("gpt-oss:20b", "gpt-oss-20b", ""),
        ("deepseek-r1:14b", "deepseek-r1-distill-qwen-14b", ""),
        ("nomic-embed-text", "nomic-embed-text-v1.5", ""),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama3.1-8b", ""),
        ("meta-llama/Meta-Llama-3.1-70B-Instruct", "llama3.1-70b", ""),
        ("llama 3.1 8b", "llama3.1-8b", ""),
        ("llama_3.1_8b_instruct", "llama3.1-8b", ""),
        ("llama3", "llama3-8b", ""),
        ("gptoss-20b", "gpt-oss-20b", ""),
        ("gptoss:120b", "gpt-oss-120b", ""),
        ("mistral-7b-instruct", "mistral-7b-v0.3", ""),
        ("deepseekv3", "deepseek-v3", ""),
        ("qwen 3 8b", "qwen3-8b", ""),
        ("phi-4", "phi4", ""),
        ("glm4.7", "glm-4.7", ""),
        ("Qwen3-4B-Instruct-2507", "qwen3-4b-2507", ""),
        ("unsloth/Qwen3-4B-Instruct-2507-GGUF:Q8_0", "qwen3-4b-2507", "Q8_0"),
    ],
)
def test_spellings(written: str, entry: str, quantization: str) -> None:
    found = get(written)
    assert (found.name, found.quantization) == (entry, quantization)


def test_every_entry_is_found_by_each_of_its_own_names() -> None:
    for name, row in _table.rows().items():
        assert get(name).name == name
        for column in ("hf_repo", "gguf_repo", "ollama_tag", "mlc_repo"):
            if row[column]:
                assert find(row[column]) is not None, (name, column)


def test_no_alias_means_two_models() -> None:
    seen: dict[str, str] = {}
    for name, row in _table.rows().items():
        for alias in filter(None, row["aliases"].lower().split(";")):
            assert seen.setdefault(alias, name) == name
            assert alias == name or alias not in _table.rows(), alias


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("lama3.1", "llama3.1-8b"),
        ("qwen3-8", "qwen3-8b"),
        ("gema3-27b", "gemma3-27b"),
        ("Qwen/Qwen3-8C", "qwen3-8b"),
        ("deepseekv4", "deepseek-v3"),
        ("llama3-18b", "llama3-8b"),
    ],
)
def test_a_near_miss_is_named(wrong: str, near: str) -> None:
    assert near in suggestions(wrong)
    with pytest.raises(ModelNotFound, match="did you mean") as caught:
        describe(wrong)
    assert near in caught.value.near
    assert caught.value.hint


@pytest.mark.parametrize(
    ("wrong", "kin"),
    [
        ("llama3.1:13b", "llama3.1-"),
        ("qwen3:7b", "qwen3-"),
        ("gemma3:13b", "gemma3-"),
        ("gpt-oss:40b", "gpt-oss-"),
        ("qwen2.5-coder:70b", "qwen2.5-coder-"),
    ],
)
def test_a_size_that_does_not_exist_names_the_sizes_that_do(wrong: str, kin: str) -> None:
    assert find(wrong) is None
    near = suggestions(wrong)
    assert near[0].startswith(kin)
    assert near[1].startswith(kin)


def test_nonsense_has_no_suggestion() -> None:
    with pytest.raises(ModelNotFound, match="no model 'zzzzqqq'") as caught:
        describe("zzzzqqq")
    assert "did you mean" not in str(caught.value)
    assert caught.value.near == ()


def test_a_quantization_in_the_name_is_kept_and_sized() -> None:
    spec = describe("qwen3:8b-q8_0")
    assert spec.quantization == "Q8_0"
    assert weights(spec).total == weights(describe("qwen3:8b"), "Q8_0").total


def test_a_path_is_never_mistaken_for_a_name(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        describe(str(tmp_path / "llama3.1"))
    with pytest.raises(ModelFileError, match="does not exist"):
        describe("missing.gguf")


def test_the_same_object_comes_back() -> None:
    assert describe("llama3.1") is describe("llama3.1:8b")


def test_every_row_is_complete_and_can_be_sized() -> None:
    assert len(catalog_names()) >= 119
    for name in catalog_names():
        spec = describe(name)
        assert spec.hidden > 0
        assert spec.vocab > 1000
        assert spec.context_length >= 512
        assert spec.names.hf, name
        assert spec.license, name
        assert spec.origin("layers") is not None
        assert weights(spec, "Q4_K_M").total > 0
        assert spec.capabilities.embedding is not None


def test_kv_heads_divide_heads() -> None:
    for name in catalog_names():
        for layer in describe(name).layers:
            if layer.attention in ("full", "sliding", "chunked"):
                assert layer.heads % layer.kv_heads == 0, name


def test_unsure_rows_say_so() -> None:
    spec = describe("gemma4-12b")
    assert any("approx" in note for note in spec.notes)
    assert not describe("llama3.1-8b").notes


def test_a_format_in_a_repository_name_is_understood() -> None:
    assert weight_format("AWQ") is not None
    found = find("Qwen/Qwen3-8B-AWQ")
    assert found is not None
    assert (found.name, found.quantization) == ("qwen3-8b", "awq-int4-g128")


def test_a_folder_beside_us_needs_no_dot_but_gives_way_to_the_catalog(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "llama3.1", "llama_3.1"):
        (tmp_path / name).mkdir()
        config = CATALOG["llama3.2-1b"] | {"num_hidden_layers": 3}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    assert describe("mine").n_layers == 3
    assert describe("llama3.1").n_layers == 32
    assert describe("llama_3.1").n_layers == 3
    assert describe("llama 3.1").n_layers == 32
    assert describe("./llama3.1").n_layers == 3


def test_a_name_longer_than_any_file_is_a_model_that_is_not_there():
    with pytest.raises(ModelNotFound):
        describe("a" * 300)


def test_no_name_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound):
        describe("")


def test_names_that_users_write_are_not_kept_for_ever() -> None:
    assert find.cache_info().maxsize == 4096
