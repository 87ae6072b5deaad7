"""Older builds of llama-server beside the newest: what they planned for the same files.

tests/fixtures/oracle/builds.csv is the `memory breakdown` of llama-server built from source (b11434;
b10488, which Ollama 0.33 carries), `-c 16384 -np 4 --kv-unified -v`, for header-only files, and the
size of the compute buffer. Weights and cache follow the same rules in all three builds.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from enginekit.sizing.compute import llamacpp_compute
from enginekit.sizing.kv_cache import llamacpp_cache
from enginekit.sizing.weights import weights
from tests.oracle.log import MIB
from tests.oracle.models import specs

with (Path(__file__).parents[1] / "fixtures" / "oracle" / "builds.csv").open() as _file:
    ROWS = list(csv.DictReader(_file))

TABLE_TWICE = frozenset(("gemma4",))


def test_two_builds_of_ten_architectures() -> None:
    assert {row["build"] for row in ROWS} == {"10488", "11434"}
    assert len({specs()[row["model"]].architecture for row in ROWS}) >= 10


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['build']}-{row['model']}")
def test_an_older_build_plans_the_same(row: dict[str, str]) -> None:
    """Its buffer is up to a fifth smaller, or 5 MiB larger; the total never differs by 1.3 %."""
    spec, slots = specs()[row["model"]], int(row["slots"])
    found = weights(spec, "F16")
    model = found.total + (found.embedding if spec.architecture in TABLE_TWICE else 0)
    cache = llamacpp_cache(spec, int(row["context"]), slots=slots)
    compute = llamacpp_compute(
        spec, cache.context, outputs=slots, slots=slots, sliding_cells=cache.sliding_cells
    ).total
    assert model / MIB == pytest.approx(float(row["weights"]), abs=1.01)
    assert cache.total // MIB == int(row["cache"])
    theirs = float(row["compute"])
    assert theirs - 6.1 <= compute / MIB <= 1.27 * theirs
    total = float(row["weights"]) + float(row["cache"]) + theirs
    assert abs((model + cache.total + compute) / MIB - total) <= 0.013 * total + 2
