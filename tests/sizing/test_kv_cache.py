"""The attention cache against llama.cpp's own figures, and the rules one by one."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginekit.catalog import describe
from enginekit.facts.model import Layer, ModelSpec
from enginekit.sizing.kv_cache import (
    CACHE_TYPES,
    bytes_per_token,
    cell_bytes,
    llamacpp_cache,
    mlc_cache,
    row_bytes,
    state_bytes,
    vllm_pool,
)

HERE = Path(__file__).parent
MIB = 2**20


def _dry_runs() -> list[tuple[str, int, str, int, int]]:
    """(model, context, type, slots, MiB) as llama.cpp b11434 prints it, cut to whole MiB."""
    with (HERE / "cache_mib.csv").open() as file:
        found = []
        for row in csv.DictReader(file):
            for key, value in row.items():
                if key != "model":
                    context, kind, slots = key.split(":")
                    found.append((row["model"], int(context), kind, int(slots), int(value)))
        return found


def _facts() -> list[dict[str, str]]:
    with (HERE / "catalog_facts.csv").open() as file:
        return list(csv.DictReader(file))


def test_there_are_315_dry_runs() -> None:
    assert len(_dry_runs()) == 315


@pytest.mark.parametrize("model", sorted({run[0] for run in _dry_runs()}))
def test_every_dry_run_is_reproduced(model: str) -> None:
    spec = describe(model)
    for name, context, kind, slots, mib in _dry_runs():
        if name == model:
            cache = llamacpp_cache(spec, context, type_k=kind, type_v=kind, slots=slots)
            assert cache.total // MIB == mib, (context, kind, slots)
            assert cache.low == cache.total == cache.high


@pytest.mark.parametrize("row", _facts(), ids=lambda row: row["name"])
def test_per_token_figures_of_the_catalog(row: dict[str, str]) -> None:
    def number(key: str) -> float:
        return float(row[key]) if row[key] not in ("-", "?") else 0.0

    spec = describe(row["name"])
    if row["name"] == "glm-5.2":
        # The source leaves the indexer out, though it names it: the first two layers and one in four
        # of the rest have one (llama.cpp, src/models/glm-dsa.cpp).
        assert bytes_per_token(spec) == number("kv_bytes_per_token_f16") + 21 * 128 * 2
    else:
        assert bytes_per_token(spec) == number("kv_bytes_per_token_f16")
    local = sum(cell_bytes(layer) for layer in spec.layers if layer.window)
    assert local == number("swa_kv_bytes_per_cell_f16")
    assert spec.cached_layers == int(row["kv_layers"])
    if row["recurrent_mib_per_seq"] not in ("-", "?"):
        assert state_bytes(spec) / MIB == pytest.approx(number("recurrent_mib_per_seq"), abs=0.051)


def test_contexts_are_rounded_up_to_256() -> None:
    spec = describe("llama3.1-8b")
    assert llamacpp_cache(spec, 1).context == 256
    assert llamacpp_cache(spec, 257).total == llamacpp_cache(spec, 512).total


def test_zero_means_the_trained_context() -> None:
    spec = describe("llama3.1-8b")
    assert llamacpp_cache(spec, 0).context == 131072


def test_slots_share_the_context_but_not_the_state() -> None:
    dense, hybrid = describe("llama3.1-8b"), describe("qwen3.5-27b")
    assert (
        llamacpp_cache(dense, 8192, slots=4, unified=False).total
        == llamacpp_cache(dense, 8192, slots=4).total
        == llamacpp_cache(dense, 8192).total
    )
    assert llamacpp_cache(hybrid, 8192, slots=4).recurrent == 4 * state_bytes(hybrid)


def test_separate_slots_are_each_rounded_up() -> None:
    cache = llamacpp_cache(describe("llama3.1-8b"), 1000, slots=3, unified=False)
    assert cache.context == 3 * 512


def test_the_window_is_honoured_only_where_llama_cpp_does() -> None:
    """Mistral 7B v0.1 has a window in its config; llama.cpp allocates the whole context."""
    plain = describe("mistral-7b-v0.3")
    layers = tuple(replace(x, attention="sliding", window=4096) for x in plain.layers)
    windowed = replace(plain, layers=layers)
    assert llamacpp_cache(windowed, 32768).total == llamacpp_cache(plain, 32768).total
    assert vllm_pool(windowed, 32768).request < vllm_pool(plain, 32768).request


def test_swa_full_and_micro_batch() -> None:
    spec = describe("gemma3-27b")
    assert llamacpp_cache(spec, 32768, swa_full=True).sliding_cells == 32768
    assert llamacpp_cache(spec, 32768, ubatch=2048).sliding_cells == 1024 + 2048
    assert llamacpp_cache(spec, 32768).sliding_cells == 1024 + 512


def test_the_split_by_layers_adds_up() -> None:
    for name in ("gemma3-27b", "qwen3.5-35b-a3b", "deepseek-v3"):
        spec = describe(name)
        cache = llamacpp_cache(spec, 8192, slots=2)
        assert sum(cache.layers(spec)) == cache.total


@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        ("f16", 2),
        ("q8_0", 1.0625),
        ("q5_1", 0.75),
        ("q4_0", 0.5625),
        ("iq4_nl", 0.5625),
        ("fp8", 1),
    ],
)
def test_bytes_per_element(kind: str, factor: float) -> None:
    assert row_bytes(1024, kind) == 1024 * factor


def test_an_unknown_cache_type_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'q9_0'.*q8_0"):
        llamacpp_cache(describe("llama3.1-8b"), 4096, type_k="q9_0")


def test_encoders_keep_nothing() -> None:
    for name in ("bge-m3", "nomic-embed-text-v1.5", "embeddinggemma-300m"):
        assert llamacpp_cache(describe(name), 8192).total == 0


def _unknown() -> ModelSpec:
    layer = Layer(attention="unknown", heads=32, kv_heads=8, key_dim=128, value_dim=128)
    return ModelSpec(
        name="new",
        architecture="brand-new",
        layers=(layer,) * 32,
        hidden=4096,
        vocab=32000,
        context_length=8192,
        known_layout=False,
    )


def test_an_unknown_layout_gives_a_range_and_says_so() -> None:
    cache = llamacpp_cache(_unknown(), 8192)
    assert cache.low == 0
    assert cache.high == 4 * cache.total
    assert "unknown attention layout (brand-new)" in cache.reason
    pool = vllm_pool(_unknown(), 8192)
    assert pool.low == 0
    assert pool.high > pool.request
    assert "unknown attention layout" in pool.reason


def test_vllm_divides_heads_until_one_is_left() -> None:
    spec = describe("qwen2.5-1.5b")  # two KV heads
    one, two, four = (vllm_pool(spec, 4096, tensor_parallel=n).per_token for n in (1, 2, 4))
    assert (two, four) == (one // 2, one // 2)


def test_vllm_never_divides_a_latent() -> None:
    spec = describe("deepseek-v3")
    assert vllm_pool(spec, 4096, tensor_parallel=8).per_token == bytes_per_token(spec)


def test_vllm_pool_tokens_are_whole_blocks() -> None:
    spec = describe("llama3.1-8b")
    pool = vllm_pool(spec, 16000)
    # 51.38 GiB were left for the cache on an H100 at utilization 0.9.
    available = round(51.38 * 2**30)
    assert pool.tokens(available) % 16 == 0
    assert pool.tokens(available) == available // (131072 * 16) * 16
    assert pool.requests(available) == pytest.approx(available / (131072 * 16000), rel=0.001)


def test_vllm_pool_tokens_of_a_windowed_model_are_for_full_requests() -> None:
    spec = describe("gemma3-27b")
    pool = vllm_pool(spec, 32768)
    assert pool.request > pool.per_token * 32768
    assert pool.tokens(3 * pool.request) == 3 * 32768


def test_vllm_halves_a_quantized_cache() -> None:
    spec = describe("llama3.1-8b")
    assert vllm_pool(spec, 4096, dtype="fp8").per_token * 2 == vllm_pool(spec, 4096).per_token


def test_vllm_state_takes_whole_pages() -> None:
    spec = describe("qwen3.5-27b")
    pool = vllm_pool(spec, 16)
    page = 16 * 2 * 4 * 256 * 2
    state = pool.request - pool.per_token * 16
    assert state % page == 0
    assert state >= 48 * 4 * 128 * 6144


def test_pipeline_stages_divide_the_cache() -> None:
    spec = describe("llama3.1-70b")
    assert vllm_pool(spec, 4096, pipeline_parallel=2).per_token == bytes_per_token(spec) // 2


def test_mlc_counts_its_bookkeeping() -> None:
    assert mlc_cache(describe("llama3.1-8b"), 1000) == 1000 * 131072 + 1250


@given(
    context=st.integers(1, 2**20),
    more=st.integers(0, 2**16),
    slots=st.integers(1, 64),
    unified=st.booleans(),
    kind=st.sampled_from(["f32", "f16", "q8_0", "q4_0"]),
    name=st.sampled_from(["gemma3-4b", "qwen3.5-9b", "deepseek-v3", "gpt-oss-20b", "phi4"]),
)
def test_a_longer_context_never_costs_less(
    context: int, more: int, slots: int, unified: bool, kind: str, name: str
) -> None:
    spec = describe(name)
    short = llamacpp_cache(spec, context, slots=slots, unified=unified, type_k=kind, type_v=kind)
    long = llamacpp_cache(
        spec, context + more, slots=slots, unified=unified, type_k=kind, type_v=kind
    )
    assert short.total <= long.total
    assert short.context >= context
    assert short.attention + short.sliding + short.recurrent == short.total


def test_every_cache_type_of_llama_cpp_is_there() -> None:
    wanted = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"}
    assert wanted <= set(CACHE_TYPES)


def test_index_keys_of_minimax_m3_are_counted() -> None:
    """57 of its 60 layers keep a key of 128 beside 4 heads of 128 with K and V."""
    spec = describe("minimax-m3")
    assert [bool(layer.indexer_dim) for layer in spec.layers] == [False] * 3 + [True] * 57
    found = llamacpp_cache(spec, 4096)
    assert found.total == 4096 * 2 * (60 * 2 * 4 * 128 + 57 * 128)
    assert found.high == found.total
