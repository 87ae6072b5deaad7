"""The checkpoint or file in a command is the one that was planned, or a placeholder that says so."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from enginekit import registry
from enginekit.catalog import describe
from enginekit.facts.engine import EngineProfile
from enginekit.facts.model import ModelNames, ModelSpec
from enginekit.hardware import preset
from enginekit.kit import planning
from enginekit.sizing.advice import NO_SWITCH
from enginekit.sizing.plan import plan
from enginekit.sizing.policy import (
    COMPILED,
    CONTEXT,
    PAGED,
    TIERED,
    WARMED,
    Policy,
    policy_of,
)

CARD = preset("rtx4090")


def _command(spec: ModelSpec, policy: Policy, **asked: str) -> str:
    return plan(spec, CARD, policy=policy, context=2048, **asked).command + " "  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B-AWQ"])
def test_a_repository_that_names_its_format_stays_the_one_to_load(name: str) -> None:
    for policy, option in ((PAGED, "vllm serve "), (WARMED, "--model-id ")):
        command = _command(describe(name), policy)
        assert f"{option}{name} " in command
        assert "quantiz" not in command
    # In 16 bits, or in another format, it is not that repository.
    assert name not in _command(describe(name), PAGED, quantization="int8")


def test_what_an_engine_makes_while_it_loads_is_asked_of_it() -> None:
    spec = describe("qwen3-8b")
    assert "vllm serve Qwen/Qwen3-8B " in _command(spec, PAGED, quantization="fp8")
    assert "--quantization fp8 " in _command(spec, PAGED, quantization="fp8")
    assert "--quantize fp8 " in _command(spec, WARMED, quantization="fp8")
    assert "--quantize bitsandbytes-nf4 " in _command(spec, WARMED, quantization="bnb-nf4")
    native = plan(describe("deepseek-v3"), preset("8xh200"), policy=PAGED, context=2048)
    assert native.quantization.startswith("fp8")
    assert "OWNER" not in native.command
    assert "--quantization" not in native.command


@pytest.mark.parametrize(
    "name", ["ministral3-3b", "ministral3-8b", "ministral3-14b", "devstral-small-2-24b"]
)
def test_a_repository_in_fp8_is_counted_in_fp8_and_its_gguf_files_as_ever(name: str) -> None:
    """model.safetensors of Ministral-3-3B-Instruct-2512 is 4.67 GB with the tower's 16 bits."""
    spec = describe(name)
    for policy in (PAGED, WARMED):
        made = plan(spec, preset("h100"), policy=policy, context=4096)
        assert made.quantization == "fp8"
        assert "OWNER" not in made.command
        assert "quantiz" not in made.command
    if name == "ministral3-3b":
        size = next(fit.weight_bytes for fit in made.quantizations if fit.name == "fp8")
        assert round((size + 2 * spec.tower_params) / 1e9, 2) == 4.67
    for policy in (CONTEXT, TIERED):
        made = plan(spec, preset("h100"), policy=policy, context=4096)
        assert made.quantization == "Q4_K_M"
        assert made == plan(
            replace(spec, native_format=""), preset("h100"), policy=policy, context=4096
        )


@pytest.mark.parametrize("policy", [PAGED, WARMED])
@pytest.mark.parametrize("label", ["awq", "gptq-int4-g128", "nvfp4"])
def test_a_format_without_a_known_checkpoint_is_a_placeholder(label: str, policy: Policy) -> None:
    made = plan(describe("llama3.1"), CARD, policy=policy, quantization=label, context=2048)
    shown = f"OWNER/Llama-3.1-8B-Instruct-{label.split('-')[0].upper()}"
    assert f" {shown} " in made.command
    assert "meta-llama" not in made.command
    assert any(note.startswith(f"{shown} stands for a checkpoint in") for note in made.notes)
    folder = plan(
        describe("llama3.1"),
        CARD,
        policy=policy,
        quantization=label,
        context=2048,
        source="/data/m",
    )
    assert "/data/m" not in folder.command


def test_a_checkpoint_that_was_looked_at_is_the_one_to_load() -> None:
    spec = replace(
        describe("llama3.1"),
        name="me/mine-AWQ",
        format="safetensors",
        quantization="awq-int4-g128",
        names=ModelNames(hf="me/mine-AWQ", revision="v2"),
    )
    command = _command(spec, PAGED)
    assert command.startswith("vllm serve me/mine-AWQ ")
    assert "--revision v2 " in command
    assert "--revision v2 " in _command(spec, WARMED)


def test_a_gguf_repository_is_planned_in_16_bits_where_gguf_is_not_loaded() -> None:
    made = plan(_file("M-Q4_K_M.gguf"), CARD, policy=PAGED, context=2048)
    assert made.quantization == "bf16"
    assert made.command.startswith("vllm serve OWNER/M ")
    assert any("in 16 bits, not as a GGUF file" in note for note in made.notes)


def _file(path: str, revision: str = "", label: str = "Q4_K_M") -> ModelSpec:
    return replace(
        describe("llama3.1"),
        name="o/M-GGUF",
        format="gguf",
        quantization=label,
        names=ModelNames(gguf="o/M-GGUF", gguf_file=path, revision=revision),
    )


@pytest.mark.parametrize(
    ("path", "llamacpp", "ollama"),
    [
        ("M-Q4_K_M.gguf", "-hf o/M-GGUF:Q4_K_M ", "hf.co/o/M-GGUF:Q4_K_M "),
        ("M-UD-Q4_K_XL.gguf", "-hf o/M-GGUF -hff M-UD-Q4_K_XL.gguf ", "o/M-GGUF:UD-Q4_K_XL "),
        ("sub/M-Q4_K_M.gguf", "-hf o/M-GGUF -hff sub/M-Q4_K_M.gguf ", "o/M-GGUF:Q4_K_M "),
        ("M-UD-Q4_K_M.gguf", "-hf o/M-GGUF -hff M-UD-Q4_K_M.gguf ", "o/M-GGUF:UD-Q4_K_M "),
        ("weights.gguf", "-hf o/M-GGUF -hff weights.gguf ", "o/M-GGUF:weights.gguf "),
        (
            "M-Q4_K_M-00001-of-00002.gguf",
            "-hf o/M-GGUF:Q4_K_M ",
            "hf.co/o/M-GGUF:Q4_K_M ",
        ),
    ],
)
def test_the_file_that_was_planned_is_the_one_in_the_command(
    path: str, llamacpp: str, ollama: str
) -> None:
    assert llamacpp in _command(_file(path), CONTEXT)
    assert ollama in _command(_file(path), TIERED)
    # Another quantization is another file of the repository.
    assert "-hf o/M-GGUF:Q8_0 " in _command(_file(path), CONTEXT, quantization="Q8_0")


def test_a_file_of_another_revision_is_one_to_bring() -> None:
    spec = _file("sub/M-Q4_K_M.gguf", revision="abc")
    for policy in (CONTEXT, TIERED):
        made = plan(spec, CARD, policy=policy, context=2048)
        assert "M-Q4_K_M.gguf" in made.command
        assert "o/M-GGUF" not in made.command
        download = "hf download o/M-GGUF sub/M-Q4_K_M.gguf --revision abc"
        assert any(download in note for note in made.notes)


def _profile(name: str) -> EngineProfile:
    return registry.engine_class(name).profile


@pytest.mark.parametrize(
    ("name", "rules", "title"),
    [
        ("sglang", "vLLM", "SGLang"),
        ("lmdeploy", "vLLM", "LMDeploy"),
        ("lmstudio", "llama.cpp", "LM Studio"),
        ("modelrunner", "llama.cpp", "Docker Model Runner"),
    ],
)
def test_an_engine_without_rules_of_its_own_has_no_command_of_another(
    name: str, rules: str, title: str
) -> None:
    policy = policy_of(_profile(name))
    made = plan(describe("llama3.1"), CARD, policy=policy, users=200, context=16384)
    assert made.command == ""
    assert not any(fix.flags for fix in made.fixes)
    note = f"sized by the rules of {rules}; enginekit knows no command of {title}"
    assert note in made.notes
    same = plan(describe("llama3.1"), CARD, policy=PAGED if rules == "vLLM" else CONTEXT, users=200,
                context=16384)  # fmt: skip
    assert made.devices == same.devices


@pytest.mark.parametrize("name", ["sglang", "lmdeploy", "lmstudio", "modelrunner"])
def test_an_engine_whose_flags_are_not_known_is_planned_for_text_alone(name: str) -> None:
    policy, spec = policy_of(_profile(name)), describe("gemma3-12b")
    seeing, blind = (
        plan(spec, preset("h100"), policy=policy, context=8192, images=images)
        for images in (True, False)
    )
    assert "projector" in seeing.devices[0].terms
    assert "projector" not in blind.devices[0].terms
    assert NO_SWITCH not in blind.notes


@pytest.mark.parametrize(
    ("name", "model"),
    [("ollama", "gemma3-12b"), ("tgi", "gemma3-12b"), ("mlc", "qwen3-vl-8b")],
)
def test_an_engine_that_always_sees_is_said_to(name: str, model: str) -> None:
    policy, spec = policy_of(_profile(name)), describe(model)
    made = plan(spec, preset("h100"), policy=policy, context=8192, images=False)
    assert "projector" in made.devices[0].terms
    assert NO_SWITCH in made.notes


def test_ray_serve_is_told_by_its_program_and_not_by_vllm_serve() -> None:
    policy = policy_of(_profile("rayserve"))
    spec = describe("llama3.1-70b")
    made = plan(spec, preset("2xa100-80"), policy=policy, context=8192, quantization="fp8")
    first, program = shlex.split(made.command)[1:]
    assert first == "-c"
    compile(program, "command", "exec")
    assert "model_id='meta-llama/Llama-3.1-70B-Instruct'" in program
    assert "engine_kwargs=dict(max_model_len=8192" in program
    assert "quantization='fp8'" in program
    two = plan(spec, preset("2xa100-80"), policy=policy, context=8192, cache_type="fp8")
    assert "max_model_len=8192, tensor_parallel_size=2, kv_cache_dtype='fp8')" in two.command
    assert (
        two.devices
        == plan(spec, preset("2xa100-80"), policy=PAGED, context=8192, cache_type="fp8").devices
    )
    assert policy_of(_profile("vllm")) is PAGED
    assert policy_of(_profile("llamacpp")) is CONTEXT


def test_a_gguf_repository_of_the_catalog_is_said_not_to_be_loaded() -> None:
    name = "unsloth/Qwen3-8B-GGUF"
    made = planning.plan(name, hardware="rtx4090", engine="vllm", context=2048)
    assert "vllm serve Qwen/Qwen3-8B " in made.command
    assert f"{name} is not loaded: planned as the publisher's checkpoint" in made.notes
    assert "not loaded" not in " ".join(planning.plan(name, hardware="rtx4090").notes)


def test_mlx_is_planned_on_apple_alone_and_in_its_own_formats() -> None:
    policy = policy_of(_profile("mlxlm"))
    made = plan(describe("llama3.1"), preset("m3-max-128"), policy=policy, context=8192)
    assert made.fits
    assert made.quantization == "mlx-4bit"
    assert (made.command, made.devices[0].backend) == ("", "metal")
    assert not any("stands for" in note for note in made.notes)
    other = plan(describe("llama3.1"), CARD, policy=policy, context=8192)
    assert other.verdict == "no"
    assert "no build of the engine for nvidia" in other.binding


def test_the_limit_of_tokens_on_metal_is_named_where_it_decides() -> None:
    machine = preset("m3-max-128")
    made = plan(describe("qwen3-8b"), machine, policy=COMPILED, context=40960)
    assert made.verdict == "no"
    assert made.binding == "the engine's limit of 32768 tokens over all sequences on Metal"
    assert f"40960 tokens are beyond {made.binding}" in made.notes
    assert made.largest_context == 32768
    within = plan(describe("qwen3-8b"), machine, policy=COMPILED, context=32768)
    assert within.fits
    assert "limit of" not in " ".join((within.binding, *within.notes))


@pytest.mark.parametrize("policy", [TIERED, WARMED])
def test_what_no_flag_leaves_out_is_counted_though_nobody_wants_images(policy: Policy) -> None:
    spec = describe("gemma3-12b")
    machine = preset("rtx6000-ada")
    usual = plan(spec, machine, policy=policy, context=4096)
    made = plan(spec, machine, policy=policy, context=4096, images=False)
    assert "projector" in made.devices[0].terms
    assert (made.devices, made.command) == (usual.devices, usual.command)
    assert [note for note in made.notes if note not in usual.notes] == [NO_SWITCH]
    text = plan(describe("llama3.1"), machine, policy=policy, context=4096, images=False)
    assert NO_SWITCH not in text.notes


def test_a_file_alone_is_planned_without_what_it_does_not_load() -> None:
    made = plan(
        describe("gemma3-12b"), CARD, policy=TIERED, context=4096, images=False, source="m.gguf"
    )
    assert "projector" not in made.devices[0].terms
    assert NO_SWITCH not in made.notes
