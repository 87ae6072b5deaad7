"""Speeds against published measurements, and what must hold for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginekit.catalog import describe
from enginekit.hardware import preset
from enginekit.sizing.outcome import Rate
from enginekit.sizing.plan import plan
from enginekit.sizing.policy import PAGED
from enginekit.sizing.speed import PREFILL, Stage, efficiency


def decode(model: str, machine: str, **options: object) -> Rate:
    found = plan(describe(model), preset(machine), context=2048, **options).speed.decode  # type: ignore[arg-type]
    assert found is not None
    return found


# One stream of llama.cpp; sources: normiebench 3 and 40, dmatora 10 and 12, llmfit's cache.
@pytest.mark.parametrize(
    ("model", "machine", "quantization", "measured"),
    [
        ("llama3.1-8b", "m4-16", "Q4_K_M", 20.87),
        ("llama3.1-8b", "m1-max-64", "Q4_K_M", 46.2),
        ("qwen3.8-27b", "m1-max-64", "Q3_K_M", 12.63),
        ("qwen3.6-27b", "m4-max-128", "Q4_K_M", 21.84),
        ("llama3.1-8b", "rtx3080", "Q4_K_M", 111.95),
        ("qwen3-8b", "rtx3090", "Q4_K_M", 133.0),
        ("qwen3.5-27b", "rtx4090", "Q4_K_M", 46.69),
        ("llama3.1-8b", "rtx4090", "Q6_K", 93),
        ("qwen3-8b", "rtx5090", "Q4_K_M", 227.1),
        ("qwen3.6-27b", "rtx7900xtx", "Q4_K_M", 28.3),
    ],
)
def test_measured_decoding_lies_in_the_band(
    model: str, machine: str, quantization: str, measured: float
) -> None:
    machine = {"rtx7900xtx": "rx7900xtx"}.get(machine, machine)
    rate = decode(model, machine, quantization=quantization)
    assert 0.95 * rate.low <= measured <= 1.05 * rate.high
    assert rate.expected == pytest.approx(measured, rel=0.35)


@pytest.mark.parametrize(
    ("model", "machine", "quantization", "measured"),
    [
        ("llama3.1-8b", "rtx3080", "Q4_K_M", 3807),
        ("llama3.1-8b", "rtx4090", "Q6_K", 4668),
        ("llama3.1-8b", "m4-16", "Q4_K_M", 225),
        ("llama3.1-8b", "m1-max-64", "Q4_K_M", 500),
    ],
)
def test_measured_prompt_speed_lies_in_the_band(
    model: str, machine: str, quantization: str, measured: float
) -> None:
    found = plan(describe(model), preset(machine), context=2048, quantization=quantization)
    rate = found.speed.prefill
    assert rate is not None
    assert rate.low <= measured <= rate.high


def test_a_full_context_halves_the_speed_of_an_8b_at_32k() -> None:
    """4.0 GiB of cache on top of 4.3 GiB of weights."""
    found = plan(describe("llama3.1-8b"), preset("rtx4090"), context=32768).speed
    assert found.decode is not None
    assert found.decode_full is not None
    assert found.decode_full.expected / found.decode.expected == pytest.approx(0.52, abs=0.05)


def test_a_mixture_reads_its_active_experts_only() -> None:
    mixture = decode("qwen3-30b-a3b", "rtx5090")
    dense = decode("qwen3-32b", "rtx5090")
    assert 3 < mixture.expected / dense.expected < 8


def test_a_batch_wins_less_on_a_mixture() -> None:
    """At 16 streams Qwen3-30B-A3B already touches 64 % of its experts."""
    gains = []
    for name in ("qwen3-14b", "qwen3-30b-a3b"):
        found = plan(describe(name), preset("h100"), policy=PAGED, context=2048, users=16).speed
        assert found.decode is not None
        assert found.decode_total is not None
        gains.append(found.decode_total.expected / found.decode.expected)
    assert gains[0] > 8
    assert gains[1] < gains[0]


def test_experts_in_ram_cost_the_time_to_read_them_there() -> None:
    spec = describe("qwen3-30b-a3b")
    found = plan(spec, preset("rtx3060-12"), context=8192)
    assert found.where == "experts in RAM"
    whole = plan(spec, preset("rtx4090"), context=8192)
    assert found.speed.decode is not None
    assert whole.speed.decode is not None
    assert found.speed.decode.expected < whole.speed.decode.expected


def test_an_unknown_bandwidth_gives_no_number() -> None:
    machine = preset("cpu-64")
    blind = replace(machine, cpu=replace(machine.cpu, bandwidth_bytes_per_second=None))
    found = plan(describe("llama3.1-8b"), blind, context=2048).speed
    assert found.decode is None
    assert "not known" in found.reason


def test_the_finest_quantizations_decode_slower_than_their_size() -> None:
    stage = Stage(backend="metal", bandwidth=400_000_000_000, flops=None, weights=1,
                  weights_batch=1, cache_per_token=0)  # fmt: skip
    spec = describe("llama3.1-8b")
    assert efficiency(stage, spec, "IQ2_XXS")[1] < efficiency(stage, spec, "Q4_K_M")[1]


def test_bands_are_ordered() -> None:
    assert all(low < middle < high for low, middle, high in PREFILL.values())
    for machine in ("rtx4090", "4xrtx4090", "m3-max-128", "raspberry-pi-5"):
        found = plan(describe("llama3.1-8b"), preset(machine), context=4096).speed
        for rate in (found.decode, found.decode_full, found.decode_total, found.prefill):
            assert rate is not None
            assert 0 < rate.low <= rate.expected <= rate.high
        low, expected, high = found.load_seconds
        assert 0 < low < expected < high
