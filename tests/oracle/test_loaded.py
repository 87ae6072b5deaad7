"""A small real model on the real llama.cpp: its log's figures and the process's memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginekit.catalog import describe
from enginekit.sizing.calibration import Measurement, calibrate
from enginekit.sizing.compute import llamacpp_compute
from enginekit.sizing.kv_cache import llamacpp_cache
from enginekit.sizing.policy import CONTEXT
from enginekit.sizing.weights import weights
from tests.oracle.conftest import needs_llamacpp
from tests.oracle.load import Loaded, load
from tests.oracle.log import MIB
from tests.oracle.test_settings import SETTINGS, estimate, sent
from tests.support import models

pytestmark = [needs_llamacpp, pytest.mark.embedded]


def _check(path: Path, context: int, slots: int) -> tuple[Loaded, int]:
    """The log's figures are ours; returns the load and our compute buffer in bytes."""
    spec, got = describe(path), load(path, context, slots)
    cache = llamacpp_cache(spec, context, slots=slots)
    compute = llamacpp_compute(spec, cache.context, outputs=slots).total
    assert abs(weights(spec).total / MIB - got.plan.model) < 1.01
    assert sum(mib for *_, mib in got.plan.caches) == pytest.approx(cache.total / MIB, abs=0.02)
    assert got.plan.compute_exact == pytest.approx(compute / MIB, rel=0.15, abs=0.5)
    known = weights(spec).total + cache.total + compute
    highest = known + CONTEXT.runtime["cpu"][2]
    assert 0.98 * got.resident <= highest
    # The cache of a load without requests may not have been touched: those pages are not resident.
    assert highest <= got.resident + cache.total + 300 * MIB
    return got, compute


def test_a_model_of_one_layer() -> None:
    _check(models.scripted_gguf(), 2048, 1)


@pytest.mark.parametrize(("context", "slots"), [(2048, 1), (8192, 4)])
def test_smollm2_takes_what_was_estimated(context: int, slots: int) -> None:
    _check(models.smollm2(), context, slots)


@pytest.mark.parametrize(
    "words",
    ["-ctk q4_0 -ctv q4_0", "-ub 2048", "-np 4", "-fa off", "--embeddings --pooling mean"],
)
def test_a_setting_of_a_real_load(words: str) -> None:
    path, given = models.smollm2(), SETTINGS[words]
    spec = describe(path)
    got = load(path, 4096, given.get("slots", 1), sent(given))
    cache, compute = estimate(spec, given, 4096)
    assert sum(mib for *_, mib in got.plan.caches) == pytest.approx(cache / MIB, abs=0.02)
    assert got.plan.compute_exact == pytest.approx(compute / MIB, rel=0.05, abs=0.5)
    highest = weights(spec).total + cache + compute + CONTEXT.runtime["cpu"][2]
    # Pages of cache and buffer that no request has touched are not resident.
    assert 0.98 * got.resident <= highest <= got.resident + cache + compute + 300 * MIB


def test_a_measured_load_corrects_the_next_estimate_of_the_same_kind() -> None:
    """The factor that a real load gives lies near one, and applies to nothing else."""
    got, compute = _check(models.scripted_gguf(), 2048, 1)
    kind = {"engine": "llamacpp", "version": "b1", "architecture": "llama", "backend": "cpu"}
    measured = Measurement(
        **kind, term="compute", estimated=compute, measured=int(got.plan.compute_exact * MIB)
    )
    found = calibrate([measured], **kind)
    assert found.factors["compute"] == pytest.approx(got.plan.compute_exact * MIB / compute)
    assert 0.85 < found.factors["compute"] < 1.15
    assert found.sentence.startswith("corrected by 1 measured load of llamacpp b1")
    assert calibrate([measured], **kind | {"version": "b2"}).factors == {}
