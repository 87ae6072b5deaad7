"""Compute buffers against llama.cpp's dry runs and vLLM's published profiling results."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from enginekit.catalog import describe
from enginekit.facts.machine import Gpu, Machine, Memory
from enginekit.sizing.allocate import Setting
from enginekit.sizing.budget import devices
from enginekit.sizing.compute import llamacpp_compute, llamacpp_host, pool_compute, rows_of
from enginekit.sizing.kv_cache import llamacpp_cache
from enginekit.sizing.policy import GIB, MIB, PAGED, WARMED
from enginekit.sizing.pool import Pooling

with (Path(__file__).parent / "compute_mib.csv").open() as _file:
    ROWS = list(csv.DictReader(_file))


LATER = {"gemma4-e2b": 17.5}
"""MiB that b11549 takes beside what b11434, whose rows these are, took: a second copy of the inputs
per layer. The oracle (`tests/oracle`) asks the newer one."""


def compute(name: str, context: int, slots: int, outputs: int, *, flash: bool = True) -> float:
    spec = describe(name)
    cells = llamacpp_cache(spec, context, slots=slots).sliding_cells
    found = llamacpp_compute(spec, context, outputs=outputs, sliding_cells=cells, flash=flash)
    return found.total / MIB


def test_there_are_45_models() -> None:
    assert len(ROWS) == 45


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["model"])
def test_server_buffers_are_the_dry_runs(row: dict[str, str]) -> None:
    """llama-server, four slots: every model at 8k and 128k, to the printed MiB."""
    later = LATER.get(row["model"], 0.0)
    for column, context in (("server_8k", 8192), ("server_128k", 131072)):
        theirs = float(row[column]) + later
        assert compute(row["model"], context, 4, 4) == pytest.approx(theirs, abs=1.5)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["model"])
def test_buffers_with_all_logits_or_without_flash_attention(row: dict[str, str]) -> None:
    """llama-cli and llama-bench keep a logit row per token; never under by more than 2 %."""
    full = compute(row["model"], 8192, 1, 512) / float(row["full_logits_8k"])
    plain = compute(row["model"], 8192, 1, 512, flash=False) / float(row["no_flash_8k"])
    assert 0.98 < full < 1.08
    assert 0.97 < plain < 1.09


def test_without_flash_attention_the_scores_of_a_layer_are_alive() -> None:
    """Llama-3.1-8B at 32k: 2164 MiB instead of 330 (dry run)."""
    assert compute("llama3.1-8b", 32768, 1, 512) == pytest.approx(330, rel=0.05)
    assert compute("llama3.1-8b", 32768, 1, 512, flash=False) == pytest.approx(2164, rel=0.02)


@pytest.mark.parametrize(
    ("model", "measured"),
    [
        ("deepseek-v3.2", {1024: 530, 2048: 654, 16384: 682, 24576: 698, 65536: 906, 163840: 1290}),
        ("glm-5.2", {1024: 410, 4096: 572, 16384: 596, 18432: 640, 57344: 764, 163840: 1180}),
    ],
)
def test_a_sparse_indexer_keeps_a_mask_and_the_chosen_cells(
    model: str, measured: dict[int, int]
) -> None:
    """Both models in llama.cpp's own dry plan, one slot; at every context to the MiB."""
    for context, mib in measured.items():
        assert compute(model, context, 1, 1) == pytest.approx(mib, abs=0.5), context


def test_where_the_indexers_scores_do_not_fit_into_a_gap_the_law_is_an_upper_bound() -> None:
    """DeepSeek-V3.2 between 24k and 36k, dry plan: up to 16 MiB less."""
    for context, mib in {26624: 814, 30720: 822, 32768: 826}.items():
        assert mib <= compute("deepseek-v3.2", context, 1, 1) <= mib + 17


@pytest.mark.parametrize(("ubatch", "measured"), [(512, 132), (2048, 568)])
def test_a_cuda_build_stays_up_to_15_per_cent_below(ubatch: int, measured: int) -> None:
    """Qwen3.8-27B at 4096 tokens on CUDA, GenerelSchwerz/llama.cpp pull request 62."""
    spec = describe("qwen3.8-27b")
    law = llamacpp_compute(spec, 4096, ubatch=ubatch).total / MIB
    assert 0.84 * law <= measured <= law


def test_the_buffer_grows_with_micro_batch_and_pipeline_copies() -> None:
    spec = describe("llama3.1-8b")
    one = llamacpp_compute(spec, 8192)
    assert llamacpp_compute(spec, 8192, ubatch=2048).total == 4 * one.total
    assert llamacpp_compute(spec, 8192, copies=4).mask == 4 * one.mask
    # Each further copy of what the GPU before hands over: a row of the hidden width per token.
    assert llamacpp_compute(spec, 8192, copies=4).passed == 3 * 4 * 512 * spec.hidden
    assert one.passed == 0
    assert llamacpp_host(spec, 8192)[2] > llamacpp_host(spec, 4096)[2]


# llm-d-benchmark, config_explorer/empirical-vllm-memory-results.md: H100 (79.18 GiB visible),
# utilization 0.9 (0.95 in the last row, by its sum), max_model_len 16000, 1024 sequences. GiB.
VLLM = [
    ("qwen3-0.6b", "bf16", 1.12, 5.56, 0.14, 64.45),
    ("llama3.1-8b", "bf16", 14.99, 4.76, 0.13, 51.38),
    ("qwen3-32b", "bf16", 61.03, 5.64, 0.14, 4.45),
    ("gpt-oss-20b", "mxfp4", 13.47, 7.38, 0.13, 50.28),
    ("gpt-oss-120b", "mxfp4", 64.38, 7.38, 0.13, 3.33),
]


def h100(count: int = 1) -> Machine:
    gpu = Gpu(
        index=0,
        vendor="nvidia",
        name="H100",
        total_bytes=int(79.18 * GIB),
        compute_capability=(9, 0),
    )
    return Machine(
        name="h100",
        gpus=tuple(replace(gpu, index=index) for index in range(count)),
        memory=Memory(total_bytes=512 * GIB),
    )


@pytest.mark.parametrize("row", VLLM, ids=lambda row: row[0])
def test_vllm_memory_is_what_was_measured(row: tuple[str, str, float, float, float, float]) -> None:
    name, quantization, weights, activation, other, left = row
    policy = replace(PAGED, utilization=0.95 if name == "gpt-oss-120b" else 0.9)
    sizer = Pooling(describe(name), policy, devices(h100(), policy), eager=True)
    place = sizer.places()[0]
    setting = Setting(quantization, 16000, 1, "auto")
    fixed = sizer.fixed(setting, place)
    assert fixed.weights[1] / GIB == pytest.approx(weights, rel=0.02)
    assert fixed.compute[1] / GIB == pytest.approx(activation, rel=0.03)
    assert fixed.compute[0] <= activation * GIB <= fixed.compute[2]
    assert fixed.runtime[1] / GIB == pytest.approx(other, abs=0.02)
    measured = weights + activation + other
    assert fixed.total(1) / GIB == pytest.approx(measured, rel=0.05)
    assert fixed.total(1) >= 0.98 * measured * GIB
    assert sizer.room(setting, place) / GIB == pytest.approx(left, abs=0.9)


def test_a_70b_in_fp8_needs_two_h100() -> None:
    """TP1 misses 1.44 GiB, TP2 leaves 32.0 GiB of cache on each GPU (measured)."""
    spec = describe("llama3.3-70b")
    policy = replace(PAGED, utilization=0.9)
    sizer = Pooling(spec, policy, devices(h100(2), policy), eager=True)
    one, two = sizer.places()
    setting = Setting("fp8", 16000, 1, "auto")
    assert sizer.fixed(setting, one).weights[1] / GIB == pytest.approx(67.72, rel=0.02)
    assert sizer.fixed(setting, two).weights[1] / GIB == pytest.approx(33.88, rel=0.02)
    assert sizer.excess(setting, one) > 0
    assert sizer.excess(setting, two) < 0
    assert sizer.room(setting, two) / GIB == pytest.approx(32.0, rel=0.05)


def test_rows_follow_the_size_of_the_gpu() -> None:
    assert rows_of(PAGED, 24 * GIB) == (2048, 256)
    assert rows_of(PAGED, 80 * GIB) == (8192, 1024)
    assert rows_of(PAGED, 180 * GIB) == (16384, 1024)
    assert rows_of(WARMED, 24 * GIB) == (4096, 128)


def test_fewer_sequences_free_what_the_sampler_peaks_at() -> None:
    """`--max-num-seqs 64` frees 4 to 7 GiB on an 80 GB card."""
    for name in ("llama3.1-8b", "gpt-oss-20b"):
        spec = describe(name)
        many = pool_compute(spec, PAGED, sequences=1024, batched_tokens=8192)
        few = pool_compute(spec, PAGED, sequences=64, batched_tokens=8192)
        assert 3.5 * GIB < many[1] - few[1] < 7.2 * GIB
