"""The checkpoint or file in a command is the one that was planned, or a placeholder that says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginekit.catalog import describe
from enginekit.facts.model import ModelNames, ModelSpec
from enginekit.hardware import preset
from enginekit.sizing.plan import plan
from enginekit.sizing.policy import CONTEXT, PAGED, TIERED, WARMED, Policy

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
