"""What an engine with a pool is told and refuses: batches, splits, the GPUs it may see."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginekit.catalog import describe
from enginekit.facts.machine import Machine
from enginekit.facts.model import ModelSpec
from enginekit.hardware import preset
from enginekit.sizing.budget import devices
from enginekit.sizing.compute import rows_of
from enginekit.sizing.plan import plan
from enginekit.sizing.policy import COMPILED, GIB, PAGED, WARMED, Policy
from enginekit.sizing.pool import Pooling
from enginekit.sizing.split import tensor_split


def _busy_first(name: str) -> Machine:
    """Two cards, 3 GiB free on the first."""
    machine = preset(name)
    return replace(machine, gpus=(replace(machine.gpus[0], free_bytes=3 * GIB), *machine.gpus[1:]))


def test_an_a100_of_80_gb_has_the_batches_of_small_gpus() -> None:
    assert rows_of(PAGED, 80 * GIB, "NVIDIA A100-SXM4-80GB") == (2048, 256)
    assert rows_of(PAGED, 80 * GIB, "NVIDIA H100 80GB HBM3") == (8192, 1024)
    spec = describe("llama3.1-70b")
    made = plan(spec, preset("2xa100-80"), policy=PAGED, context=8192)
    other = plan(spec, preset("2xh100"), policy=PAGED, context=8192)
    used = [p.devices[0].terms["compute"].expected / GIB for p in (made, other)]
    assert used[0] < 1.5 < 4 < used[1]


@pytest.mark.parametrize("policy", [PAGED, WARMED, COMPILED])
@pytest.mark.parametrize("name", ["phi-4", "llama3.1-70b", "qwen3-0.6b", "gemma3-27b"])
def test_heads_of_every_layer_divide_or_are_copied(name: str, policy: Policy) -> None:
    spec = describe(name)
    for count in range(1, 17):
        tensor, pipeline = tensor_split(spec, count, policy.replicates_heads, policy.pipelines)
        assert tensor * pipeline <= count
        for layer in spec.layers:
            assert layer.heads % tensor == 0
            copied = policy.replicates_heads and tensor % layer.kv_heads == 0
            assert layer.kv_heads % tensor == 0 or copied


def test_ten_heads_of_keys_are_not_divided_by_four() -> None:
    """vLLM's and TGI's assertions; four copies of two heads are vLLM's only."""
    phi = describe("phi-4")
    assert {layer.kv_heads for layer in phi.layers} == {10}
    assert tensor_split(phi, 4) == (2, 2)
    made = plan(phi, preset("8xh100"), policy=PAGED, users=64)
    assert "--tensor-parallel-size 2 " in made.command + " "
    assert made.fits
    two = _with_kv_heads(describe("llama3.1-8b"), 2)
    assert tensor_split(two, 4, replicates=True) == (4, 1)
    assert tensor_split(two, 4, replicates=False) == (2, 2)
    latent = describe("deepseek-v3")
    assert latent.mla is not None
    assert tensor_split(latent, 8, replicates=False) == (8, 1)


@pytest.mark.parametrize("policy", [WARMED, COMPILED], ids=lambda rules: rules.name)
@pytest.mark.parametrize(
    ("name", "hardware"), [("qwen3-235b-a22b", "8xh100"), ("llama3.1-70b", "3xa100-80")]
)
def test_no_stages_are_planned_that_the_command_cannot_ask_for(
    name: str, hardware: str, policy: Policy
) -> None:
    """TGI has none: what its shards cannot hold does not fit."""
    made = plan(describe(name), preset(hardware), policy=policy)
    assert made.pipeline_parallel == 1
    assert len(made.devices) == made.tensor_parallel > 1
    assert "stage" not in made.split
    # A command that needs weights first is in a note.
    flag = policy.flags["tensor"].format(made.tensor_parallel)
    assert any(flag in said for said in (made.command, *made.notes))
    assert plan(describe(name), preset(hardware), policy=PAGED).pipeline_parallel == (
        1 if hardware == "8xh100" else 3
    )


def test_more_gpus_are_as_many_as_are_used() -> None:
    spec = describe("qwen3-30b-a3b")
    assert {layer.kv_heads for layer in spec.layers} == {4}
    for policy, counts in ((WARMED, []), (COMPILED, ["4"]), (PAGED, ["16"])):
        made = plan(spec, preset("rtx3060"), policy=policy, context=4096)
        more = [fix.change for fix in made.fixes if fix.cost == "hardware"]
        assert [change.split(" x ")[0] for change in more] == counts, policy.name


def _with_kv_heads(spec: ModelSpec, count: int) -> ModelSpec:
    return replace(spec, layers=tuple(replace(layer, kv_heads=count) for layer in spec.layers))


def test_as_many_sequences_as_users_are_planned_and_asked_for() -> None:
    spec, machine = describe("qwen3-0.6b"), preset("rtx4090")
    few = plan(spec, machine, policy=PAGED, users=256, context=256)
    many = plan(spec, machine, policy=PAGED, users=400, context=256)
    assert "--max-num-seqs" not in few.command
    assert "--max-num-seqs 400" in many.command
    asked = plan(spec, machine, policy=PAGED, users=400, context=256, sequences=400)
    assert many.devices[0].terms["compute"] == asked.devices[0].terms["compute"]
    assert many.devices[0].terms["compute"].expected > few.devices[0].terms["compute"].expected
    tgi = plan(spec, machine, policy=WARMED, users=400, context=256)
    assert "--max-concurrent-requests 400" in tgi.command
    assert "--max-batch-size" not in tgi.command


@pytest.mark.parametrize("sequences", [128, 200, 400])
def test_every_user_is_admitted_whatever_the_batch(sequences: int) -> None:
    """TGI answers 429 to those beyond `--max-concurrent-requests`, 128 unless told."""
    spec, machine = describe("qwen3-0.6b"), preset("rtx4090")
    made = plan(spec, machine, policy=WARMED, users=200, context=256, sequences=sequences)
    words = made.command.split()
    assert words[words.index("--max-batch-size") + 1] == str(sequences)
    assert words[words.index("--max-concurrent-requests") + 1] == "200"
    few = plan(spec, machine, policy=WARMED, users=128, context=256, sequences=sequences)
    assert "--max-concurrent-requests" not in few.command


def test_a_batch_holds_a_token_of_every_sequence() -> None:
    """vLLM refuses `max_num_batched_tokens` below `max_num_seqs`."""
    made = plan(describe("smollm2-135m"), preset("rtx4090"), policy=PAGED, users=3000, context=64)
    assert "--max-num-seqs 3000 --max-num-batched-tokens 3000" in made.command


@pytest.mark.parametrize(
    ("name", "policy", "variable"),
    [
        ("2xrtx4090", PAGED, "CUDA_VISIBLE_DEVICES=1 vllm serve "),
        ("2xrtx4090", WARMED, "CUDA_VISIBLE_DEVICES=1 text-generation-launcher "),
        ("2xrtx4090", COMPILED, "CUDA_VISIBLE_DEVICES=1 mlc_llm serve "),
        ("8xmi300x", PAGED, "HIP_VISIBLE_DEVICES=1 vllm serve "),
    ],
)
def test_an_engine_is_shown_the_gpus_that_the_plan_takes(
    name: str, policy: Policy, variable: str
) -> None:
    spec = describe("llama3.1-8b")
    made = plan(spec, _busy_first(name), policy=policy, context=4096)
    assert made.fits
    assert [device.index for device in made.devices] == [1]
    assert made.command.startswith(variable)
    assert "VISIBLE" not in plan(spec, preset(name), policy=policy, context=4096).command


def test_numbers_of_unlike_gpus_are_those_of_the_driver() -> None:
    machine = _busy_first("2xrtx4090")
    first = replace(machine.gpus[0], name="NVIDIA GeForce RTX 3060")
    machine = replace(machine, gpus=(first, machine.gpus[1]))
    made = plan(describe("llama3.1-8b"), machine, policy=PAGED, context=4096)
    assert made.command.startswith("CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=1 vllm ")


def test_slices_of_one_card_have_no_number_that_cuda_takes() -> None:
    machine = _busy_first("2xrtx4090")
    machine = replace(machine, gpus=tuple(replace(gpu, index=1) for gpu in machine.gpus))
    sizer = Pooling(describe("llama3.1-8b"), PAGED, devices(machine, PAGED))
    assert len(sizer.devices.gpus) == 2
    made = plan(describe("llama3.1-8b"), machine, policy=PAGED, context=4096)
    assert "VISIBLE" not in made.command


def test_users_beyond_the_sequences_that_were_asked_for_wait() -> None:
    spec = describe("qwen3-0.6b")
    made = plan(spec, preset("rtx4090"), policy=PAGED, users=64, context=256, sequences=16)
    assert "16 requests run at once: the others of 64 wait" in made.notes
    made = plan(spec, preset("rtx4090"), policy=PAGED, users=16, context=256, sequences=16)
    assert not any("wait" in note for note in made.notes)


def test_the_cpu_build_has_batches_of_its_own() -> None:
    """EngineArgs.get_batch_defaults: 2048 tokens and 128 sequences, whatever the memory."""
    machine = replace(preset("8xh100"), gpus=())
    sizer = Pooling(describe("qwen3-0.6b"), PAGED, devices(machine, PAGED))
    (place,) = sizer.places()
    assert place.total > 160 * GIB
    assert sizer.default_rows(place) == (2048, 128)
