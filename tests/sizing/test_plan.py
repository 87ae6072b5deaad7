"""Plans against published figures, one machine at a time."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from enginekit.catalog import catalog_names, describe
from enginekit.facts.engine import EngineProfile
from enginekit.facts.machine import Cgroup, Gpu, Machine, Memory
from enginekit.facts.model import ModelSpec
from enginekit.hardware import preset, preset_names
from enginekit.sizing.allocate import Allocation
from enginekit.sizing.budget import devices, reserve
from enginekit.sizing.calibration import Measurement, calibrate
from enginekit.sizing.outcome import Plan
from enginekit.sizing.plan import plan
from enginekit.sizing.policy import (
    COMPILED,
    CONTEXT,
    GIB,
    MIB,
    PAGED,
    POLICIES,
    TIERED,
    WARMED,
    Policy,
    policy_of,
)
from enginekit.sizing.split import layered

KIB = 1024


def made(model: str, machine: str, **options: object) -> Plan:
    return plan(describe(model), preset(machine), **options)  # type: ignore[arg-type]


def card(gib: float, count: int = 1, **changes: object) -> Machine:
    gpu = Gpu(index=0, vendor="nvidia", name="card", total_bytes=int(gib * GIB),
              bandwidth_bytes_per_second=936_000_000_000)  # fmt: skip
    gpus = tuple(replace(gpu, index=index, **changes) for index in range(count))  # type: ignore[arg-type]
    return Machine(name="card", gpus=gpus, memory=Memory(total_bytes=64 * GIB))


# Largest f16 contexts that the arithmetic of a byte-exact dry run leaves, in tokens.
@pytest.mark.parametrize(
    ("model", "machine", "low", "high"),
    [
        ("qwen2.5-14b", "rtx4070", 13_000, 16_000),
        ("qwen2.5-14b", "rtx4080", 32_000, 38_000),
        ("qwen3-32b", "rtx4090", 16_000, 20_000),
        ("llama3.1-70b", "2xrtx3090", 16_000, 22_000),
        ("mistral-large-123b", "4xrtx4090", 45_000, 70_000),
    ],
)
def test_largest_contexts_of_the_usual_pairs(model: str, machine: str, low: int, high: int) -> None:
    found = made(model, machine, quantization="Q4_K_M", context=4096)
    assert found.fits
    assert low <= found.largest_context <= high


def test_a_quantized_cache_doubles_the_context() -> None:
    plain = made("qwen3-32b", "rtx4090", context=4096)
    small = made("qwen3-32b", "rtx4090", context=4096, cache_type="q8_0")
    assert small.largest_context == pytest.approx(plain.largest_context * 32 / 17, rel=0.1)


def test_a_model_without_grouped_heads_fills_the_card_with_cache() -> None:
    """Command-R 35B needs 1.25 MiB a token: under 2.7k tokens are left on 24 GB."""
    found = made("command-r-35b", "rtx4090", context=4096)
    assert found.where == "partly on GPU"
    whole = made("command-r-35b", "rtx4090", context=1024)
    assert whole.where == "one GPU"


def test_the_same_model_needs_very_different_memory_on_two_machines() -> None:
    """Ollama's context tiers: 5.3 GiB on a 16 GB card, about 21 GiB on a 48 GB card."""
    small = made("llama3.1-8b", "rtx4080", policy=TIERED)
    large = made("llama3.1-8b", "rtx-a6000", policy=TIERED)
    assert small.context == 4096
    assert large.context == 131072
    assert small.devices[0].used.expected / GIB == pytest.approx(5.3, rel=0.05)
    assert large.devices[0].used.expected / GIB == pytest.approx(21, rel=0.05)
    assert made("llama3.1-8b", "rtx4090", policy=TIERED).context == 32768


@pytest.mark.parametrize(
    ("name", "gib"), [("llama3.1-8b", 14.9), ("qwen3-8b", 15.3), ("qwen3-14b", 27.5)]
)
def test_weights_of_a_plan_are_weights_of_the_file(name: str, gib: float) -> None:
    found = made(name, "h100", quantization="F16", context=4096)
    gpu, host = found.devices
    embedded = gpu.terms["weights"].expected + host.terms["weights"].expected
    assert embedded / GIB == pytest.approx(gib, rel=0.02)


def test_a_tied_table_is_held_twice_on_a_gpu_and_once_on_a_cpu() -> None:
    spec = describe("llama3.2-1b")
    size = plan(spec, preset("cpu-64"), context=4096)
    twice = plan(spec, preset("rtx4090"), context=4096)
    table = 128256 * 2048 * 210 // 256
    on_gpu = sum(device.terms["weights"].expected for device in twice.devices)
    assert on_gpu - size.devices[0].terms["weights"].expected == table


def test_a_mac_of_8_gb_runs_an_8b_model_barely() -> None:
    found = made("llama3.1-8b", "m1-8", context=4096)
    assert found.devices[0].limit / GIB == pytest.approx(5.33, abs=0.01)
    assert next(q for q in found.quantizations if q.name == "Q4_K_M").verdict == "tight"
    whole = sum(device.used.expected for device in found.devices)
    assert whole / GIB == pytest.approx(5.2, rel=0.07)


def test_eight_h100_cannot_hold_deepseek_v3_in_fp8_but_eight_h200_can() -> None:
    options = {"policy": PAGED, "quantization": "fp8-block", "context": 8192}
    small = made("deepseek-v3", "8xh100", **options)
    assert small.verdict == "no"
    assert small.binding.startswith("weights")
    assert made("deepseek-v3", "8xh200", **options).fits


def test_experts_go_to_ram_before_layers_do() -> None:
    found = made("qwen3-30b-a3b", "rtx3060-12", context=8192)
    assert found.where == "experts in RAM"
    assert 0 < found.host_expert_layers < 48
    assert found.host_layers == 0
    assert f"--n-cpu-moe {found.host_expert_layers}" in found.command
    assert found.devices[0].terms["cache"].expected == 768 * MIB


def test_layers_go_to_ram_where_there_are_no_experts() -> None:
    found = made("llama3.1-70b", "rtx4090", context=8192)
    assert found.where == "partly on GPU"
    # llama.cpp counts the output as one more: `-ngl 41` would leave layer 39 on the host.
    assert found.command.endswith(f"-ngl {80 - found.host_layers + 1}")
    gpu = found.devices[0]
    layer = gpu.terms["weights"].high // (80 - found.host_layers)
    assert gpu.used.high + layer > gpu.limit, "one more layer would not be safe"


def test_what_would_make_it_fit_is_ranked_by_what_is_lost() -> None:
    found = made("llama3.1-8b", "rtx4080", context=49152, users=2)
    kinds = [fix.change.split()[0] for fix in found.fixes]
    assert kinds[0] == "q8_0"
    assert kinds[1:4] == ["1", "context", "Q3_K_M"] or kinds[1:3] == ["1", "context"]
    assert found.fixes[0].flags == "-ctk q8_0 -ctv q8_0"


def test_fewer_sequences_are_the_first_advice_for_a_pool() -> None:
    found = plan(describe("qwen3-32b"), card(78), policy=PAGED, context=8192)
    assert not found.fits
    assert found.fixes[0].change.startswith("max_num_seqs")
    rows = int(found.fixes[0].change.split()[1])
    again = plan(describe("qwen3-32b"), card(78), policy=PAGED, context=8192, sequences=rows)
    assert again.fits
    assert f"--max-num-seqs {rows}" in again.command


def test_more_of_the_same_gpu_is_the_advice_when_nothing_else_helps() -> None:
    found = made("llama3.1-405b", "rtx4090")
    assert found.verdict == "no"
    (fix,) = found.fixes
    count = int(fix.change.split()[0])
    again = made("llama3.1-405b", f"{count}xrtx4090")
    assert again.fits
    assert again.where == "several GPUs"


def test_tensor_parallelism_divides_heads_evenly() -> None:
    found = made("phi4", "8xh100", policy=PAGED, context=8192)
    assert found.tensor_parallel == 1
    big = made("llama3.1-70b", "8xh100", policy=PAGED, context=8192)
    assert big.tensor_parallel == 4
    assert "--tensor-parallel-size 4" in big.command


def test_pool_tokens_are_bytes_divided_by_bytes_per_token() -> None:
    found = made("llama3.1-8b", "h100", policy=PAGED, context=8192)
    pool = found.devices[0].pool
    assert found.pool_tokens == pytest.approx(pool / (128 * KIB), rel=0.01)
    assert found.most_users == pytest.approx(found.pool_tokens / 8192, abs=3)


def test_memory_that_others_hold_shrinks_the_pool_and_shows_in_the_command() -> None:
    busy = card(24, free_bytes=18 * GIB, used_bytes=6 * GIB)
    found = plan(describe("qwen3-4b"), busy, policy=PAGED, context=4096)
    assert found.devices[0].limit == 18 * GIB
    assert "--gpu-memory-utilization 0.75" in found.command


def test_a_hidden_or_unsuited_gpu_is_left_out_with_a_reason() -> None:
    hidden = card(24, visible=False)
    assert devices(hidden, CONTEXT).gpus == ()
    assert "hidden" in devices(hidden, CONTEXT).excluded[0]
    old = card(24, compute_capability=(6, 1))
    assert "compute capability 6.1" in devices(old, PAGED).excluded[0]
    assert devices(old, CONTEXT).gpus
    mac = made("llama3.1-8b", "m3-max-128", policy=PAGED)
    assert mac.where in ("CPU", "nowhere")


def test_an_engine_without_a_cpu_build_says_that_it_needs_a_gpu() -> None:
    found = made("llama3.1-8b", "cpu-64", policy=WARMED)
    assert found.verdict == "no"
    assert "no CPU build" in found.binding
    assert found.to_dict()["devices"] == []


def test_a_control_group_is_the_budget_inside_a_container() -> None:
    memory = Memory(
        total_bytes=64 * GIB,
        available_bytes=60 * GIB,
        cgroup=Cgroup(version=2, limit_bytes=8 * GIB, current_bytes=1 * GIB),
    )
    host = devices(Machine(memory=memory), CONTEXT).host
    assert host.limit == 7 * GIB
    assert host.margin == 8 * GIB // 20
    assert plan(describe("llama3.1-8b"), Machine(memory=memory), context=4096).fits
    assert not plan(describe("qwen3-14b"), Machine(memory=memory), context=4096).fits


def test_the_reserve_counts_what_the_system_already_uses() -> None:
    assert reserve(64 * GIB, 64 * GIB)[0] == 64 * GIB * 15 // 100
    assert reserve(64 * GIB, 40 * GIB)[0] == GIB
    assert reserve(8 * GIB, 8 * GIB)[0] == 2 * GIB
    assert reserve(1024 * GIB, 1024 * GIB)[0] == 32 * GIB


def test_shared_memory_is_never_counted_twice() -> None:
    """On Strix Halo and Macs the GPU's bytes come out of the host's."""
    found = made("qwen3-235b-a22b", "strix-halo-128", quantization="Q3_K_M", context=8192)
    used = sum(device.used.expected for device in found.devices)
    assert found.verdict != "fits" or used <= preset("strix-halo-128").memory.total_bytes  # type: ignore[operator]
    assert made("llama3.1-70b", "m3-max-128", context=8192).where == "one GPU"
    assert made("llama3.1-405b", "m3-max-128", context=4096).verdict == "no"


def test_metal_limits_the_tokens_of_a_compiled_pool() -> None:
    assert made("llama3.1-8b", "m3-max-128", policy=COMPILED).largest_context == 32768


def test_a_measured_load_corrects_the_same_engine_only() -> None:
    spec = describe("llama3.1-8b")
    machine = preset("rtx4090")
    seen = [
        Measurement(engine="llamacpp", version="b1", architecture="llama", backend="cuda",
                    term="compute", estimated=100, measured=measured)
        for measured in (80, 90, 95)
    ]  # fmt: skip
    key = {"engine": "llamacpp", "architecture": "llama", "backend": "cuda"}
    right = calibrate(seen, version="b1", **key)
    other = calibrate(seen, version="b2", **key)
    plain = plan(spec, machine, context=8192)
    corrected = plan(spec, machine, context=8192, calibration=right)
    before = plain.devices[0].terms["compute"].expected
    assert corrected.devices[0].terms["compute"].expected == pytest.approx(before * 0.9, abs=2)
    assert any("3 measured loads of llamacpp b1" in note for note in corrected.notes)
    assert plan(spec, machine, context=8192, calibration=other).notes == plain.notes


def test_absurd_measurements_are_no_correction() -> None:
    one = Measurement(engine="e", version="1", architecture="a", backend="cpu", term="compute",
                      estimated=100, measured=900)  # fmt: skip
    none = calibrate([one], engine="e", version="1", architecture="a", backend="cpu")
    assert none.factors == {}
    assert none.sentence == ""


def test_a_profile_names_its_policy_or_its_memory_implies_one() -> None:
    implied = policy_of(EngineProfile(name="x", title="X", wire=""))
    assert implied == replace(CONTEXT, command="", flags={}, notes=implied.notes)
    implied = policy_of(EngineProfile(name="x", title="X", wire="", memory="preallocate"))
    assert implied == replace(PAGED, command="", flags={}, notes=implied.notes)
    assert policy_of(EngineProfile(name="x", title="X", wire="", sizing="warmed-pool")) is WARMED


@pytest.mark.parametrize("options", [{"users": 0}, {"context": 0}, {"quantization": "Q9"}])
def test_nonsense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        made("llama3.1-8b", "rtx4090", **options)


def test_a_model_of_which_only_the_size_is_known_still_gets_a_plan() -> None:
    spec = ModelSpec(name="odd", architecture="?", layers=(), hidden=0, vocab=0,
                     context_length=0, params_total=7_000_000_000, known_layout=False)  # fmt: skip
    for policy in POLICIES.values():
        name = "rtx4090" if "nvidia" in policy.backends else "m3-max-128"
        found = plan(spec, preset(name), policy=policy, context=4096)
        assert found.devices[0].terms["weights"].expected > 0
        assert any("unknown attention layout" in note for note in found.notes)


def test_encoders_keep_no_cache() -> None:
    found = made("bge-m3", "rtx4060")
    assert "cache" not in found.devices[0].terms
    assert found.fits


def test_a_plan_takes_few_steps() -> None:
    """Calls of Python functions, which no load of the machine changes; benchmarks/sizing.py has times."""
    calls: list[int] = []

    def count(frame: object, event: str, argument: object) -> None:
        if event == "call":
            calls[-1] += 1

    specs = [describe(name) for name in catalog_names()[::3]]
    machines = [preset(name) for name in preset_names()[::6]]
    pairs = [(spec, machine) for spec in specs for machine in machines]
    for spec, machine in pairs:
        plan(spec, machine)
        calls.append(0)
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            plan(spec, machine)
        finally:
            sys.setprofile(before)
    assert sum(calls) / len(calls) < 1100
    assert max(calls) < 3000


@pytest.mark.parametrize(
    ("model", "policy", "expected"),
    [
        ("deepseek-v3", PAGED, "fp8-block"),
        ("kimi-k2.6", PAGED, "w4a16-g32"),
        ("gpt-oss-120b", PAGED, "mxfp4"),
        ("gpt-oss-20b", CONTEXT, "MXFP4_MOE"),
        ("deepseek-v3", CONTEXT, "Q4_K_M"),
        ("llama3.1-8b", PAGED, "bf16"),
    ],
)
def test_the_usual_format_is_the_one_that_is_published(
    model: str, policy: Policy, expected: str
) -> None:
    """DeepSeek-V3 ships in FP8, Kimi K2.6 in INT4, gpt-oss in MXFP4: nothing wider is offered."""
    found = made(model, "8xh200", policy=policy)
    assert found.quantization == expected
    if policy is PAGED:
        assert found.quantizations[0].name == expected
    assert not any("format; this engine loads" in note for note in found.notes)


def test_what_does_not_fit_has_no_speed() -> None:
    found = made("llama3.1-405b", "rtx4090")
    assert found.verdict == "no"
    assert found.speed.decode is None
    assert found.speed.prefill is None
    assert found.speed.reason == "it does not fit"


def test_only_what_is_wholly_on_gpus_is_pipelined() -> None:
    """llama.cpp keeps one copy of its inputs where layers or experts are in host memory."""
    sizer = Allocation(
        describe("qwen3-30b-a3b"), CONTEXT, devices(preset("4xrtx4090"), CONTEXT), 512
    )
    assert sizer.whole(4).copies == 4
    assert sizer.whole(1).copies == 1
    assert sizer.without_experts(3).copies == 1
    assert layered(sizer.n, sizer.devices.gpus, 5).copies == 1


def test_a_cuda_context_is_that_of_the_generation() -> None:
    def context(machine: str) -> int:
        found = plan(describe("llama3.1-8b"), preset(machine), context=4096).devices[0]
        return found.terms["runtime"].expected

    assert context("rtx3090") < context("rtx4090") < context("rtx5090")
