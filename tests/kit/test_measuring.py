"""A real load corrects the next plan, and the plan says so."""

from __future__ import annotations

import json

import pytest

from enginekit.errors import ConfigError
from enginekit.kit import planning
from enginekit.kit.measuring import measure
from enginekit.sizing.calibration import Measurement
from tests.support.models import scripted_gguf
from tests.support.scripted import write_gguf


@pytest.fixture(autouse=True)
def own_files(tmp_path, monkeypatch):
    monkeypatch.setenv("ENGINEKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("ENGINEKIT_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.mark.embedded
def test_a_load_on_real_llamacpp_is_measured_and_remembered():
    found = measure(scripted_gguf(), context=2048, users=2)
    assert found.taken["cache"] == found.estimated["cache"]
    assert found.taken["weights"] == pytest.approx(found.estimated["weights"], rel=0.02)
    (kept,) = planning.measurements()
    assert (kept.term, kept.measured) == ("compute", found.taken["compute"])
    notes = planning.plan(scripted_gguf(), context=2048, users=2).notes
    assert any("corrected by 1 measured load of llamacpp" in note for note in notes)


def test_what_was_measured_moves_the_next_plan_of_this_computer_only(monkeypatch):
    monkeypatch.setattr("enginekit.launch._platform.installed_version", lambda: "2026.10.1")
    plain = planning.plan("smollm2:135m", context=4096)
    same = {
        "engine": "llamacpp",
        "version": "2026.10.1",
        "architecture": "llama",
        "term": "compute",
    }
    backend = plain.devices[0].backend
    planning.remember(Measurement(**same, backend=backend, estimated=100, measured=150))

    def compute(**settings) -> int:
        made = planning.plan("smollm2:135m", context=4096, **settings)
        return made.devices[0].terms["compute"].expected

    before = plain.devices[0].terms["compute"].expected
    assert compute() == pytest.approx(before * 1.5, rel=1e-6)
    assert compute(calibrated=False) == before
    elsewhere = planning.plan("smollm2:135m", context=4096, hardware="raspberry-pi-5")
    assert not any("corrected" in note for note in elsewhere.notes)


def test_a_damaged_line_of_the_file_is_passed_over():
    planning.calibration_file().parent.mkdir(parents=True)
    good = {
        "engine": "llamacpp",
        "version": "1",
        "architecture": "llama",
        "backend": "cpu",
        "term": "compute",
        "estimated": 100,
        "measured": 150,
    }
    lines = [
        b'{"engine": "llamacpp"}',
        b"nonsense",
        b"\x00\xff torn",
        json.dumps(good | {"estimated": "100"}).encode(),
        json.dumps(good).encode(),
        b"[" * 100_000,
    ]
    planning.calibration_file().write_bytes(b"\n".join(lines))
    assert planning.measurements() == [Measurement(**good)]
    assert planning.plan("smollm2:135m", context=4096).verdict == "fits"


@pytest.mark.embedded
def test_a_measured_load_that_cannot_be_kept_is_shown_all_the_same():
    planning.calibration_file().mkdir(parents=True)
    found = measure(scripted_gguf(), context=1024)
    assert found.taken["compute"]
    assert "not kept for later plans" in found.problem
    assert planning.measurements() == []


@pytest.mark.embedded
def test_a_model_that_embeds_is_measured_as_it_will_serve(tmp_path):
    """A text as long as the context in one micro-batch, and a row of logits for each token."""
    path = write_gguf(tmp_path / "embedder.gguf", pooling=1)
    found = measure(path, context=2048)
    assert found.taken["compute"] == pytest.approx(found.estimated["compute"], abs=8 << 20)
    assert found.taken["compute"] > 2 * measure(scripted_gguf(), context=2048).taken["compute"]
    assert "--embeddings" in found.plan.command


def test_what_does_not_fit_is_not_loaded(monkeypatch):
    real = planning.machine_of("raspberry-pi-5")
    monkeypatch.setattr("enginekit.kit.planning.machine_of", lambda _: real)
    with pytest.raises(ConfigError, match="is not loaded"):
        measure(scripted_gguf(), context=2048, users=1_000_000)
