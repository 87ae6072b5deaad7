"""The weights that the real vLLM loaded and the pool of cache that it made of one GiB.

The rows of tests/fixtures/oracle/vllm.csv are measured by `python scripts/accuracy.py
--measure-vllm PYTHON`, which takes minutes and an environment of its own; here they are compared.
"""

from __future__ import annotations

import csv
from pathlib import Path

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
