"""What loading adds beyond the file: slots of their own, copies of host weights, whole shards, pads.

Each rule is one that published loads showed (tests/fixtures/published); here it is seen in the plan.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginekit.catalog import describe, hf_config
from enginekit.facts.machine import Gpu, Machine, Memory
from enginekit.facts.model import ModelSpec
from enginekit.sizing.allocate import Allocation, Setting
from enginekit.sizing.budget import devices
from enginekit.sizing.compute import compiled_compute, compiled_planned, llamacpp_compute
from enginekit.sizing.kv_cache import llamacpp_cache
from enginekit.sizing.policy import COMPILED, CONTEXT, GIB, MIB, PAGED, TIERED, WARMED, Policy
from enginekit.sizing.pool import Pooling, Shards
from enginekit.sizing.shards import padded, whole
from enginekit.sizing.terms import allocated_devices
from tests.catalog.configs import OTHERS


def machine(gib: float, count: int = 1, vendor: str = "nvidia", **changes: object) -> Machine:
    gpu = Gpu(index=0, vendor=vendor, name="card", total_bytes=int(gib * GIB), **changes)  # type: ignore[arg-type]
    gpus = tuple(replace(gpu, index=index) for index in range(count))
    return Machine(gpus=gpus, memory=Memory(total_bytes=512 * GIB, available_bytes=500 * GIB))


def allocation(name: str, policy: Policy = CONTEXT, **options: object) -> Allocation:
    on = machine(80, **options)  # type: ignore[arg-type]
    return Allocation(describe(name), policy, devices(on, policy), 512)


@pytest.mark.parametrize("policy", [CONTEXT, TIERED], ids=lambda policy: policy.name)
@pytest.mark.parametrize("name", ["gemma3-27b", "gpt-oss-20b", "qwen3.5-9b", "llama3.1-8b"])
def test_each_user_has_a_cache_and_windows_of_its_own(name: str, policy: Policy) -> None:
    """`-np 4`, which the command gives, turns `--kv-unified` off: four windows, four micro-batches."""
    sizer = allocation(name, policy)
    setting = Setting("Q4_K_M", 8192, 4, "f16")
    gpu, _ = sizer.needs(setting, sizer.whole(1))
    apart = llamacpp_cache(sizer.spec, 4 * 8192, slots=4, unified=False)
    assert gpu.attention + gpu.state == apart.total
    shared = llamacpp_cache(sizer.spec, 4 * 8192, slots=4, unified=True)
    assert (apart.total > shared.total) == any(layer.window for layer in sizer.spec.layers)


def test_a_mask_is_as_wide_as_one_slots_cache() -> None:
    """Qwen3-Coder-30B: 300.75 MiB with one slot of 4096, 304.75 with sixteen (strix-halo-guide)."""
    sizer = allocation("qwen3-coder-30b-a3b")
    one, many = (
        sizer.needs(Setting("Q4_K_M", 4096, users, "f16"), sizer.whole(1))[0].compute[1]
        for users in (1, 16)
    )
    assert one == many


def test_a_model_without_attention_has_no_mask() -> None:
    spec = describe("qwen3.5-9b")
    bare = replace(spec, layers=tuple(replace(layer, attention="none") for layer in spec.layers))
    assert llamacpp_compute(bare, 131072).mask == 0 < llamacpp_compute(spec, 131072).mask


@pytest.mark.parametrize(
    ("quantization", "mib"), [("Q8_0", 816), ("Q6_K", 630), ("F16", 1536), ("Q4_K_M", 1062)]
)
def test_a_gpu_holds_a_copy_of_one_matrix_of_experts_in_host_memory(
    quantization: str, mib: int
) -> None:
    """Qwen3-235B; with mixed types two matrices, because the smaller one's place is too small."""
    sizer = allocation("qwen3-235b-a22b")
    setting = Setting(quantization, 32768, 1, "f16")
    kept, moved = sizer.whole(1), sizer.without_experts(sizer.n)
    extra = sizer.needs(setting, moved)[0].compute[1] - sizer.needs(setting, kept)[0].compute[1]
    assert extra / MIB == pytest.approx(mib, rel=0.02)
    assert sizer.copied(quantization, kept) == 0


def test_the_search_counts_the_copy() -> None:
    """`excess` is a fast road to the same sums as the tables that people see."""
    sizer = allocation("qwen3-235b-a22b")
    setting = Setting("Q4_K_M", 32768, 2, "f16")
    for place in (sizer.without_experts(40), sizer.without_experts(94), sizer._placed(1, 60, 0)):
        plans = allocated_devices(sizer, setting, place)
        short = max(
            max(sum(term.expected for term in one.terms.values()) + one.margin,
                sum(term.high for term in one.terms.values())) - one.limit
            for one in plans
        )  # fmt: skip
        assert sizer.excess(setting, place) == pytest.approx(short, abs=64)


def test_only_the_first_gpu_holds_it_and_a_mac_none() -> None:
    two = allocation("qwen3-235b-a22b", count=2)
    first, second, _ = two.needs(Setting("Q8_0", 32768, 1, "f16"), two.without_experts(94))
    assert first.compute[1] - second.compute[1] == 816 * MIB
    mac = allocation("qwen3-235b-a22b", vendor="apple")
    assert mac.copied("Q8_0", mac.without_experts(94)) == 0


def _mla(name: str) -> ModelSpec:
    return hf_config.to_spec(OTHERS[name][0], name=name)


def test_latent_attention_is_not_divided() -> None:
    """DeepSeek-R1 in AWQ over 16 GPUs: 21.21 GiB on each (vllm-project/vllm#14447)."""
    spec = describe("deepseek-v3")
    on = machine(23.58, 16)
    sizer = Pooling(spec, PAGED, devices(on, PAGED))
    fixed = sizer.fixed(
        Setting("awq-int4-g128", 4096, 1, "auto"), Shards(sizer.devices.gpus, 16, 1)
    )
    assert fixed.weights[1] / GIB == pytest.approx(21.21, rel=0.005)
    assert whole(describe("llama3.1-8b"), "bf16", 8) == 0
    assert whole(_mla("deepseek-v2-lite"), "bf16", 1) == 2 * 27 * 16 * 512 * 256


def test_fewer_kv_heads_than_gpus_are_whole_on_each() -> None:
    spec = describe("qwen2.5-1.5b")
    lost = 28 * 1536 * 2 * 128 * (1 - 2 / 4) * 2
    assert whole(spec, "bf16", 4) == lost
    assert whole(spec, "bf16", 2) == 0


@pytest.mark.parametrize(
    ("capability", "tensor", "gib"),
    [((8, 0), 1, 65.97), ((9, 0), 1, 64.38), ((8, 0), 4, 4 * 17.22), (None, 1, 65.97)],
)
def test_experts_are_padded_for_their_kernel(
    capability: tuple[int, int] | None, tensor: int, gib: float
) -> None:
    """gpt-oss-120b (vllm-project/vllm#23278 and #33155, dennislee22/vLLM-benchmarking)."""
    sizer = Pooling(
        describe("gpt-oss-120b"),
        PAGED,
        devices(machine(80, tensor, compute_capability=capability), PAGED),
    )
    table = sizer.weights("mxfp4", tensor)
    size = table.layers[-1] + table.embedding + table.tail - table.tied_copy
    assert size / GIB == pytest.approx(gib, rel=0.005)


def test_other_models_are_not_padded() -> None:
    assert padded(describe("qwen3-30b-a3b"), (256, 128), 1, None) == 1.0
    assert padded(describe("llama3.1-8b"), (256, 128), 2, None) == 1.0
    assert padded(describe("gpt-oss-20b"), None, 2, None) == 1.0


def test_tgi_leaves_a_tenth_of_the_gpu_and_not_of_what_is_left() -> None:
    """`get_free_memory(device, MEMORY_FRACTION * TGI_WIGGLE_ROOM)` takes the total (TGI 3.3)."""
    sizer = Pooling(describe("llama3.1-8b"), WARMED, devices(machine(80), WARMED))
    place, setting = sizer.places()[0], Setting("bf16", 8192, 1, "auto")
    fixed = sizer.fixed(setting, place).total(1)
    assert sizer.room(setting, place) == int(0.9 * 80 * GIB) - fixed


def test_mlc_workspaces_are_its_own_arithmetic() -> None:
    """Llama-3-8B, chunks of 8192, 48 sequences: 1471.08 MiB beside parameters and cache, which the
    log counts with 210.06 MiB of the cache's own; planned buffers were not doubled yet."""
    spec = describe("llama3.1-8b")
    planned = compiled_planned(spec, 8192)
    assert planned == 1248 * MIB
    all_of_it = compiled_compute(spec, 8192, 48)
    assert (all_of_it - planned) / MIB == pytest.approx(1471.08 + 210.06, abs=0.02)


def test_mlc_compiles_smaller_chunks_for_models_that_plan_every_logit() -> None:
    sizes = {}
    for name in ("llama3.2-3b", "qwen2.5-3b"):
        sizer = Pooling(describe(name), COMPILED, devices(machine(24), COMPILED))
        sizes[name] = sizer.rows(sizer.places()[0], 1)[0]
    assert sizes == {"llama3.2-3b": 8192, "qwen2.5-3b": 2048}


@pytest.mark.parametrize("policy", [PAGED, WARMED, COMPILED], ids=lambda policy: policy.name)
def test_the_part_that_sees_loads_with_the_checkpoint(policy: Policy) -> None:
    """Gemma 4 26B is 48.07 GiB on disk, 1.07 of them the vision tower; MLC compiles text alone."""
    spec = describe("gemma4-26b-a4b")
    setting = Setting("q4f16_1" if policy is COMPILED else "bf16", 4096, 1, "auto")
    seen = 0 if policy is COMPILED else 2 * spec.tower_params
    for images, size in ((True, seen), (False, 0)):
        sizer = Pooling(spec, policy, devices(machine(80), policy), images=images)
        fixed = sizer.fixed(setting, Shards(sizer.devices.gpus[:1], 1, 1))
        batched = sizer.rows(Shards(sizer.devices.gpus[:1], 1, 1), 1)[0]
        kept = 2 * batched * spec.hidden if size and policy is PAGED else 0
        assert fixed.projector == (size, size + kept, size + 4 * kept)
        blind = Pooling(replace(spec, tower_params=0), policy, sizer.devices)
        bare = blind.fixed(setting, Shards(sizer.devices.gpus[:1], 1, 1))
        assert fixed.total(1) - bare.total(1) == size + kept
        if policy is PAGED and images:
            assert round((fixed.weights[1] + size) / GIB, 2) == 48.07


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("gemma3-27b", 27.43),
        ("qwen2.5-vl-7b", 8.29),
        ("qwen3-vl-8b", 8.77),
        ("ministral3-3b", 3.85),
        ("devstral-small-2-24b", 24.01),
        ("llama4-scout-109b", 108.64),
    ],
)
def test_text_and_tower_come_to_the_published_count(name: str, billions: float) -> None:
    spec = describe(name)
    assert round((spec.params_total + spec.tower_params) / 1e9, 2) == billions
