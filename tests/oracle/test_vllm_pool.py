"""The pool of cache that the real vLLM made of one GiB, from tests/fixtures/oracle/vllm.csv.

Measured by `python scripts/accuracy.py --measure-vllm PYTHON`, which takes minutes and an
environment of its own; here the rows are compared.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from enginekit.catalog import describe, hf_config
from enginekit.sizing.kv_cache import vllm_pool
from tests.oracle.vllm_models import BATCHED, CONFIGS

with (Path(__file__).parents[1] / "fixtures" / "oracle" / "vllm.csv").open() as _file:
    ROWS = list(csv.DictReader(_file))


def test_several_layouts_were_loaded() -> None:
    assert len(ROWS) >= 5
    assert {"smollm2-135m", "gemma3-1b"} <= {row["model"] for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["model"])
def test_blocks_tokens_and_requests_are_vllms_own(row: dict[str, str]) -> None:
    name, length, room = row["model"], int(row["length"]), int(row["pool"])
    spec = hf_config.to_spec(CONFIGS[name], name=name) if name in CONFIGS else describe(name)
    block = int(row["block_tokens"])
    pool = vllm_pool(spec, length, block_tokens=block, batched_tokens=BATCHED)
    # vLLM does not round the tokens of models with windows to blocks.
    assert 0 <= int(row["tokens"]) - pool.tokens(room) < block
    assert pool.requests(room) == pytest.approx(float(row["requests"]), abs=0.015)
