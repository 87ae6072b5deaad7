"""The weights that the real vLLM loaded and the pool of cache that it made of one GiB.

The rows of tests/fixtures/oracle/vllm.csv are measured by `python scripts/accuracy.py
--measure-vllm PYTHON`, which takes minutes and an environment of its own; here they are compared.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from enginekit.catalog import describe, hf_config
from enginekit.facts.model import ModelSpec
from enginekit.sizing.kv_cache import vllm_pool
from enginekit.sizing.weights import weights
from tests.oracle.vllm_models import BATCHED, CONFIGS

with (Path(__file__).parents[1] / "fixtures" / "oracle" / "vllm.csv").open() as _file:
    ROWS = list(csv.DictReader(_file))


def test_several_layouts_were_loaded() -> None:
    assert len(ROWS) >= 5
    assert {"smollm2-135m", "gemma3-1b"} <= {row["model"] for row in ROWS}


def _spec(name: str) -> ModelSpec:
    return hf_config.to_spec(CONFIGS[name], name=name) if name in CONFIGS else describe(name)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["model"])
def test_weights_are_those_that_vllm_holds(row: dict[str, str]) -> None:
    """Equal to 48 bytes, but for granite's: vLLM rounds its vocabulary up to a multiple of 64."""
    theirs = int(row["weights"])
    assert weights(_spec(row["model"]), "bf16").total == pytest.approx(theirs, rel=0.0002)


def test_weights_are_those_of_the_file() -> None:
    """SmolLM2 came from a file; nothing is added to its tensors, and nothing left out."""
    (row,) = [row for row in ROWS if row["file"] != "0"]
    assert row["weights"] == row["file"]
    assert weights(describe(row["model"]), "bf16").total == int(row["file"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["model"])
def test_blocks_tokens_and_requests_are_vllms_own(row: dict[str, str]) -> None:
    name, length, room = row["model"], int(row["length"]), int(row["pool"])
    block = int(row["block_tokens"])
    pool = vllm_pool(_spec(name), length, block_tokens=block, batched_tokens=BATCHED)
    # vLLM does not round the tokens of models with windows to blocks.
    assert 0 <= int(row["tokens"]) - pool.tokens(room) < block
    assert pool.requests(room) == pytest.approx(float(row["requests"]), abs=0.015)


_LFM2 = {
    "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "hidden_size": 1024,
    "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 8,
    "intermediate_size": 6656, "block_dim": 1024, "block_ff_dim": 6656,
    "block_auto_adjust_ff_dim": True, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0,
    "conv_L_cache": 3, "conv_bias": False, "vocab_size": 65536,
    "max_position_embeddings": 128000, "tie_word_embeddings": True,
    "layer_types": ["full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "dtype", "cache", "held", "tokens", "requests"),
    [
        (CONFIGS["qwen2.5-0.5b"], "bf16", "fp8", 988065536, 174720, 21.33),
        (CONFIGS["qwen2.5-0.5b"], "f32", "float32", 1976131072, 43648, 5.33),
        (_LFM2, "bf16", "auto", 708967936, 82160, 10.03),
    ],
    ids=["fp8 cache", "float32", "ten convolutions in groups of six"],
)
def test_other_types_and_a_hybrid(
    config: dict[str, Any], dtype: str, cache: str, held: int, tokens: int, requests: float
) -> None:
    """Real vLLM 0.32 on the processor, a pool of 1 GiB, 8192 tokens, `kv_cache_dtype="fp8"` and
    `dtype="float32"` by `tests/oracle/vllm_loaded.py`, dummy weights."""
    spec = hf_config.to_spec(config, name="m")
    size = weights(spec, "bf16").total * (2 if dtype == "f32" else 1)
    assert size == pytest.approx(held, rel=0.0002)
    pool = vllm_pool(spec, 8192, dtype=cache, block_tokens=128, batched_tokens=BATCHED)
    assert pool.requests(1 << 30) == pytest.approx(requests, abs=0.015)
    # With groups it prints requests times their length, of a whole number of blocks.
    assert abs(tokens - pool.tokens(1 << 30)) < 128
