"""The name of the model in the command of a plan: what an engine really finds, or a file to bring."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from enginekit.catalog import catalog_names, describe
from enginekit.facts.model import ModelNames
from enginekit.hardware import preset
from enginekit.sizing.plan import plan
from enginekit.sizing.policy import CONTEXT, PAGED, TIERED

LARGE = preset("8xb300")


@pytest.mark.parametrize("name", catalog_names())
def test_no_command_names_what_nobody_has(name: str) -> None:
    model = describe(name)
    llamacpp = plan(model, LARGE, policy=CONTEXT).command
    assert re.search(r" -hf [\w.-]+/[\w.-]+:[A-Z0-9_]+ ", llamacpp + " "), llamacpp
    assert f" -hf {model.names.gguf}:" in llamacpp
    ollama = plan(model, LARGE, policy=TIERED).command
    known = model.names.ollama or f"hf.co/{model.names.gguf}:"
    assert f"ollama run {known}" in ollama
    vllm = plan(model, LARGE, policy=PAGED).command
    assert not vllm or f"vllm serve {model.names.hf}" in vllm


@pytest.mark.parametrize(
    ("name", "asked", "label", "run"),
    [
        ("qwen3-8b", None, "Q4_K_M", "qwen3:8b"),
        ("qwen3-8b", "Q8_0", "Q8_0", "hf.co/unsloth/Qwen3-8B-GGUF:Q8_0"),
        ("llama3.2-1b", None, "Q8_0", "llama3.2:1b"),
        ("llama3.2-1b", "Q4_K_M", "Q4_K_M", "hf.co/unsloth/Llama-3.2-1B-Instruct-GGUF:Q4_K_M"),
        ("nomic-embed-text-v1.5", None, "F16", "nomic-embed-text"),
        ("gpt-oss-20b", None, "MXFP4_MOE", "gpt-oss:20b"),
        ("smollm3-3b", None, "Q4_K_M", "hf.co/unsloth/SmolLM3-3B-GGUF:Q4_K_M"),
    ],
)
def test_an_ollama_tag_is_planned_with_what_it_holds_and_named_for_nothing_else(
    name: str, asked: str | None, label: str, run: str
) -> None:
    found = plan(describe(name), preset("rtx3090"), policy=TIERED, quantization=asked)
    assert found.quantization == label
    assert found.command.endswith(f"ollama run {run}")


def test_a_file_of_a_native_format_is_asked_for_by_its_own_word() -> None:
    found = plan(describe("gpt-oss-20b"), preset("rtx3090"), policy=CONTEXT)
    assert " -hf ggml-org/gpt-oss-20b-GGUF:MXFP4 " in found.command


def test_a_model_without_a_known_repository_is_a_file_to_bring() -> None:
    model = replace(describe("qwen3-8b"), name="me/mine", names=ModelNames(hf="me/mine"))
    command = plan(model, preset("rtx3090"), policy=CONTEXT).command
    assert command.startswith("llama-server -m mine-Q4_K_M.gguf ")


def test_what_the_hub_has_in_several_files_only_is_said() -> None:
    said = " ".join(plan(describe("glm-4.6"), preset("8xb300"), policy=TIERED).notes)
    assert "takes no split file" in said
    assert "split file" not in " ".join(plan(describe("smollm3-3b"), LARGE, policy=TIERED).notes)


def test_a_reranker_is_started_as_one() -> None:
    for name in ("qwen3-reranker-0.6b", "bge-reranker-v2-m3"):
        assert "--reranking" in plan(describe(name), preset("rtx3090"), policy=CONTEXT).command


def test_some_of_several_gpus_are_named_or_llama_cpp_takes_them_all() -> None:
    spec = describe("llama3.1-70b")
    made = plan(spec, preset("8xrtx4090"), context=8192)
    assert made.where == "several GPUs"
    assert " -dev CUDA0,CUDA1" in made.command
    assert len([device for device in made.devices if device.index >= 0]) == 2
    assert "-dev" not in plan(spec, preset("2xrtx4090"), context=8192).command
    mixed = preset("2xrtx4090")
    other = replace(preset("rtx3090").gpus[0], index=1)
    mixed = replace(mixed, gpus=(mixed.gpus[0], other))
    assert "-dev" not in plan(describe("llama3.1-8b"), mixed, context=8192).command


def test_a_checkpoint_is_no_file_for_llama_cpp() -> None:
    """`llama-server -m FOLDER` starts nothing: the file is named that converting makes."""
    model = replace(describe("llama3.1-8b"), name="mine", format="safetensors", names=ModelNames())
    made = plan(model, preset("rtx4090"), source="/data/mine")
    assert " -m mine-Q4_K_M.gguf " in made.command
    assert any("convert_hf_to_gguf.py" in note for note in made.notes)
    served = plan(model, preset("rtx4090"), policy=PAGED, source="/data/mine")
    assert "vllm serve /data/mine" in served.command
    assert not any("convert" in note for note in served.notes)
