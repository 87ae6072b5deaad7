"""What sees is part of a plan wherever the command shown loads it, and only there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginekit.catalog import catalog_names, describe
from enginekit.facts.machine import Gpu, Machine, Memory
from enginekit.facts.model import Capabilities
from enginekit.hardware import preset
from enginekit.sizing.allocate import Allocation, Setting
from enginekit.sizing.budget import devices
from enginekit.sizing.outcome import Plan
from enginekit.sizing.plan import plan
from enginekit.sizing.policy import COMPILED, CONTEXT, GIB, PAGED, TIERED, WARMED, Policy
from enginekit.sizing.projector import ENCODERS, nearest, projector, weights
from enginekit.sizing.terms import allocated_devices

SEES = "gemma3-12b"
ENCODERS_OF = [
    name
    for name in catalog_names()
    if describe(name).tower_params and describe(name).projector_files != (("none", 0),)
]
"""Models that see and have a projector file."""


def made(name: str, hardware: str, policy: Policy = CONTEXT, **options: object) -> Plan:
    return plan(describe(name), preset(hardware), policy=policy, **options)  # type: ignore[arg-type]


def machine(gib: float, count: int = 1) -> Machine:
    gpu = Gpu(index=0, vendor="nvidia", name="card", total_bytes=int(gib * GIB))
    gpus = tuple(replace(gpu, index=index) for index in range(count))
    return Machine(gpus=gpus, memory=Memory(total_bytes=256 * GIB, available_bytes=250 * GIB))


def test_tgi_loads_it_whatever_is_wanted() -> None:
    wanted, unwanted = (
        made(SEES, "h100", WARMED, context=8192, images=images) for images in (True, False)
    )
    seen = projector(describe(SEES), WARMED, wanted.quantization)
    assert (
        wanted.devices[0].terms["projector"].expected == seen[1] >= 2 * describe(SEES).tower_params
    )
    assert unwanted.devices == wanted.devices
    assert any(note.startswith("images are counted") for note in unwanted.notes)


@pytest.mark.parametrize("policy", [CONTEXT, TIERED, PAGED], ids=lambda rules: rules.name)
def test_a_plan_counts_the_projector_and_says_so(policy: Policy) -> None:
    # Ollama has no flag that leaves it out, but a model made from the text's file alone has none.
    switch = policy.flags.get("text_only", "")
    source = "" if switch else "m.gguf"
    with_images, without = (
        made(SEES, "h100", policy, context=8192, images=images, source=source)
        for images in (True, False)
    )
    seen = projector(describe(SEES), policy, with_images.quantization)
    # vLLM's profiling run on 80 GB also holds 8192 vectors of 16 bits that the encoder made.
    kept = 2 * 8192 * describe(SEES).hidden if policy is PAGED else 0
    assert with_images.devices[0].terms["projector"].expected == seen[1] + kept
    assert seen[1] >= 2 * describe(SEES).tower_params
    assert "projector" not in without.devices[0].terms
    assert with_images.devices[0].used.expected - without.devices[0].used.expected == seen[1] + kept
    assert with_images.most_users <= without.most_users
    assert any(note.startswith("images are counted") for note in with_images.notes)
    assert any(note.startswith("for text only") for note in without.notes)
    assert switch not in with_images.command.split()
    assert not switch or switch in without.command.split()


def test_a_text_model_has_neither_note_nor_flag() -> None:
    for images in (True, False):
        found = made("llama3.1-8b", "rtx4090", images=images)
        assert "projector" not in found.devices[0].terms
        assert "--no-mmproj" not in found.command
        assert not any("images" in note for note in found.notes)


def test_mlc_compiles_text_alone_but_for_some_architectures() -> None:
    spec = describe(SEES)
    assert weights(spec, COMPILED, "q4f16_1") == 0
    assert not any("images" in note for note in made(SEES, "h100", COMPILED).notes)
    for architecture in COMPILED.towers:
        seeing = replace(spec, architecture=architecture)
        assert weights(seeing, COMPILED, "q4f16_1") == 2 * spec.tower_params


def test_an_unknown_projector_is_said_plainly() -> None:
    spec = replace(
        describe(SEES), tower_params=0, projector_files=(), capabilities=Capabilities(vision=True)
    )
    found = plan(spec, preset("rtx4090"))
    assert any("size is not known" in note for note in found.notes)


@pytest.mark.parametrize(
    ("kinds", "quantization", "taken"),
    [
        (("BF16", "F16", "F32"), "Q4_K_M", "BF16"),
        (("F16", "Q8_0"), "Q4_K_M", "Q8_0"),
        (("F16", "Q8_0"), "Q8_0", "Q8_0"),
        (("F16", "Q8_0"), "F16", "F16"),
        (("F16", "Q8_0"), "BF16", "F16"),
        (("F32",), "IQ2_XXS", "F32"),
    ],
)
def test_hf_takes_the_projector_nearest_to_the_model(
    kinds: tuple[str, ...], quantization: str, taken: str
) -> None:
    """Not the most exact one: `-hf` compares the labels' first digits."""
    assert nearest(kinds, quantization) == taken


def test_a_projector_of_eight_bits_is_for_llama_cpps_own_download_alone() -> None:
    spec = replace(describe(SEES), projector_files=(("F16", 800), ("Q8_0", 500)))
    assert weights(spec, CONTEXT, "Q4_K_M") == 500
    assert weights(spec, CONTEXT, "F16") == 800
    assert weights(spec, TIERED, "Q4_K_M") == 800
    assert weights(spec, PAGED, "bf16") == 2 * spec.tower_params


def test_only_the_first_gpu_holds_it() -> None:
    spec = describe("qwen3.5-27b")
    sizer = Allocation(spec, CONTEXT, devices(machine(24, 2), CONTEXT), 512)
    first, second, host = sizer.needs(Setting("Q4_K_M", 8192, 1, "f16"), sizer.whole(2))
    assert first.projector == projector(spec, CONTEXT, "Q4_K_M")
    assert second.projector == host.projector == (0, 0, 0)


@pytest.mark.parametrize(("policy", "on_host"), [(CONTEXT, False), (TIERED, True)])
def test_with_layers_in_host_memory_ollama_keeps_it_there(policy: Policy, on_host: bool) -> None:
    sizer = Allocation(describe(SEES), policy, devices(machine(8), policy), 512)
    setting = Setting("Q4_K_M", 4096, 1, "f16")
    gpu, host = sizer.needs(setting, sizer._placed(1, 20, 0))
    assert bool(host.projector[1]) == on_host != bool(gpu.projector[1])


@pytest.mark.parametrize("policy", [CONTEXT, TIERED], ids=lambda rules: rules.name)
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("images", [True, False])
def test_the_search_counts_what_the_table_shows(policy: Policy, count: int, images: bool) -> None:
    spec = describe("qwen3-vl-32b")
    found = devices(machine(16, count), policy)
    sizer = Allocation(spec, policy, found, 512, images=images)
    places = [sizer.whole(0), sizer.whole(count), sizer._placed(count, 20, 0)]
    for place in places:
        for quantization in ("F16", "Q4_K_M"):
            setting = Setting(quantization, 16384, 2, "f16")
            short = max(
                max(
                    sum(term.expected for term in one.terms.values()) + one.margin,
                    sum(term.high for term in one.terms.values()),
                )
                - one.limit
                for one in allocated_devices(sizer, setting, place)
            )
            assert sizer.excess(setting, place) == pytest.approx(short, abs=64)


def test_without_layers_on_the_gpu_the_command_keeps_the_projector_off_it_too() -> None:
    """llama.cpp would put it on the GPU whatever `-ngl` says."""
    small = machine(2)
    found = plan(describe(SEES), small, context=4096)
    assert found.where == "CPU"
    assert "-ngl 0" in found.command
    assert "--no-mmproj-offload" in found.command
    assert "projector" in found.devices[-1].terms
    bare = plan(describe(SEES), small, context=4096, images=False).command.split()
    assert "--no-mmproj" in bare
    assert "--no-mmproj-offload" not in bare


def test_leaving_images_out_is_offered_where_it_helps() -> None:
    spec = describe(SEES)
    need = plan(spec, machine(80), context=8192).devices[0]
    # Just too little for all, enough for text.
    short = machine((need.used.expected + need.margin - 200 * 2**20) / GIB)
    found = plan(spec, short, context=8192)
    assert found.where != "one GPU" or found.verdict != "fits"
    fix = next(fix for fix in found.fixes if fix.flags == "--no-mmproj")
    assert fix.change == "text only"
    assert "GiB" in fix.cost
    assert plan(spec, short, context=8192, images=False).where == "one GPU"


def test_engines_without_the_switch_do_not_offer_it() -> None:
    for policy in (TIERED, WARMED):
        found = made("gemma3-27b", "rtx4080", policy, context=8192)
        assert not any("images" in fix.cost for fix in found.fixes)


def test_a_local_file_is_served_with_the_projector_beside_it() -> None:
    spec = replace(describe(SEES), projector_bytes=850_000_000, projector_file="/m/mmproj.gguf")

    def command(policy: Policy, **options: bool) -> str:
        found = plan(spec, preset("rtx4090"), policy=policy, source="/m/model.gguf", **options)
        return found.command

    assert "-m /m/model.gguf --mmproj /m/mmproj.gguf" in command(CONTEXT)
    assert "'FROM %s\\n' /m/model.gguf /m/mmproj.gguf | ollama" in command(TIERED)
    for policy in (CONTEXT, TIERED):
        assert "mmproj" not in command(policy, images=False)


@pytest.mark.parametrize("policy", [CONTEXT, TIERED, PAGED])
def test_more_memory_without_images_for_every_model_that_sees(policy: Policy) -> None:
    for name in catalog_names():
        spec = describe(name)
        if not spec.tower_params:
            continue
        seeing, blind = (
            plan(spec, preset("8xh100"), policy=policy, context=8192, images=images)
            for images in (True, False)
        )
        assert seeing.most_users <= blind.most_users, name
        assert seeing.largest_context <= blind.largest_context, name


@pytest.mark.parametrize("name", [*ENCODERS_OF])
def test_the_encoders_memory_is_known_for_every_model_that_sees(name: str) -> None:
    spec = describe(name)
    assert spec.architecture in ENCODERS
    assert weights(spec, CONTEXT, "Q4_K_M") >= 1.05 * spec.tower_params
    assert weights(spec, CONTEXT, "F16") == pytest.approx(2 * spec.tower_params, rel=0.05) or (
        # An encoder of one matrix, which the converter leaves in 32 bits.
        name == "gemma4-12b"
    )


def test_a_model_whose_projector_llama_cpp_does_not_convert() -> None:
    spec = describe("kimi-k3")
    assert weights(spec, CONTEXT, "Q4_K_M") == weights(spec, TIERED, "Q4_K_M") == 0
    assert weights(spec, PAGED, "mxfp4") == 2 * spec.tower_params
    found = plan(spec, preset("8xb300"))
    assert any("no projector" in note for note in found.notes)


def test_without_flash_attention_the_encoder_needs_far_more() -> None:
    spec = describe("qwen3.5-27b")
    with_flash, without = (projector(spec, CONTEXT, "Q4_K_M", flash=on) for on in (True, False))
    # 4657.81 MiB instead of 248.10 in two logs of the same projector.
    assert without[1] - with_flash[1] == pytest.approx((4657.81 - 248.10) * 2**20, rel=0.001)
    shown = plan(spec, preset("h100"), flash=False, context=4096).devices[0].terms["projector"]
    assert shown.expected == without[1]
