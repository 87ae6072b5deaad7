"""What a command names when the name is a user's own: quoted, converted, or of the right repository."""

from __future__ import annotations

import ast
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from enginekit.catalog import describe
from enginekit.facts.model import ModelNames, ModelSpec
from enginekit.hardware import preset
from enginekit.kit import planning
from enginekit.sizing.plan import plan
from enginekit.sizing.policy import CONTEXT, DEPLOYED, PAGED, TIERED, WARMED, Policy
from enginekit.sizing.quoting import in_program, quoted
from tests.catalog.configs import CATALOG

CARD = preset("rtx4090")
ODD = ["/m/it's here", '/m/a "b"', "/m/$HOME `x`", "/m/back\\slash", "/m/both ' and \" of them"]


@pytest.mark.parametrize("path", [*ODD, "/m/plain"])
@pytest.mark.parametrize("policy", [PAGED, WARMED, CONTEXT])
def test_a_local_path_is_one_word_of_the_command(policy: Policy, path: str) -> None:
    spec = replace(describe("qwen3-8b"), format="gguf" if policy is CONTEXT else "safetensors")
    made = plan(spec, CARD, policy=policy, context=2048, source=path)
    assert path in shlex.split(made.command)


@pytest.mark.parametrize("path", [*ODD, "/m/plain"])
def test_a_local_path_is_a_literal_of_ray_serves_program(path: str) -> None:
    spec = replace(describe("qwen3-8b"), format="safetensors")
    made = plan(spec, CARD, policy=DEPLOYED, context=2048, source=path)
    # Inside double quotes a shell also unescapes $ and `, which shlex leaves as they are.
    program = shlex.split(made.command)[2].replace("\\$", "$").replace("\\`", "`")
    literals = [
        node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)
    ]
    assert path in literals


def test_a_pair_of_files_reaches_ollama_as_two_lines() -> None:
    spec = replace(
        describe("gemma3-12b"),
        format="gguf",
        quantization="Q4_K_M",
        projector_file="/m 2/it's.gguf",
    )
    made = plan(spec, CARD, policy=TIERED, context=2048, source="/m 1/m.gguf")
    words = shlex.split(made.command.split("then: ")[1])
    assert words[:4] == ["printf", "FROM %s\\n", "/m 1/m.gguf", "/m 2/it's.gguf"]


def test_words_that_need_no_quotes_stay_as_they_are() -> None:
    assert quoted("/m/Qwen3-8B") == in_program("/m/Qwen3-8B") == "/m/Qwen3-8B"
    assert quoted("~/my models/x.gguf") == "~/'my models/x.gguf'"
    assert quoted("C:\\models\\x.gguf") == "C:\\models\\x.gguf"
    assert quoted("C:\\my models\\x.gguf") == '"C:\\my models\\x.gguf"'


def _checkpoint() -> ModelSpec:
    return replace(
        describe("qwen3-8b"),
        name="me/Q",
        format="safetensors",
        quantization="bf16",
        names=ModelNames(hf="me/Q"),
    )


@pytest.mark.parametrize("source", ["", "/m/Q"])
def test_ollama_is_told_the_file_that_converting_makes_and_not_a_checkpoint(source: str) -> None:
    made = plan(_checkpoint(), CARD, policy=TIERED, context=2048, source=source)
    assert made.quantization == "Q4_K_M"
    assert "echo FROM Q-Q4_K_M.gguf | ollama create NAME" in made.command
    assert any("convert it first" in note for note in made.notes)
    assert "ollama run hf.co" not in made.command


def test_the_revision_of_a_gguf_repository_goes_to_no_other() -> None:
    names = ModelNames(hf="Qwen/Qwen3-8B", gguf="o/Q-GGUF", gguf_file="Q.gguf", revision="abc123")
    file = replace(describe("qwen3-8b"), format="gguf", quantization="Q4_K_M", names=names)
    for policy in (PAGED, WARMED, DEPLOYED):
        for hf in ("Qwen/Qwen3-8B", ""):
            spec = replace(file, names=replace(names, hf=hf))
            made = plan(spec, CARD, policy=policy, context=2048)
            assert "abc123" not in made.command
    other = replace(_checkpoint(), names=ModelNames(hf="me/Q", revision="v2"))
    assert "--revision v2" in plan(other, CARD, policy=PAGED, context=2048).command
    placed = plan(other, CARD, policy=PAGED, context=2048, quantization="awq")
    assert "OWNER/Q-AWQ" in placed.command
    assert "revision" not in placed.command


def test_a_folder_below_one_called_gguf_is_loaded_and_nothing_else_said(tmp_path: Path) -> None:
    folder = tmp_path / "gguf" / "Q"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CATALOG["llama3.2-1b"]), "utf-8")
    made = planning.plan(str(folder), hardware="rtx4090", engine="vllm", context=2048)
    assert str(folder) in made.command
    assert not any("is not loaded" in note for note in made.notes)


@pytest.mark.parametrize("end", ["BF16", "bf16"])
def test_a_checkpoint_named_in_16_bits_is_not_the_publishers_in_4(end: str) -> None:
    name = f"unsloth/gpt-oss-20b-{end}"
    made = planning.plan(name, hardware="h100", engine="vllm", context=2048)
    assert made.quantization == "bf16"
    assert f"vllm serve {name} " in made.command + " "
    weights = next(fit.weight_bytes for fit in made.quantizations if fit.name == "bf16")
    assert weights > 40e9
    made = planning.plan(name, hardware="h100", engine="vllm", context=2048, quantization="fp8")
    assert f"vllm serve {name} --quantization fp8" in " ".join(sorted_first(made.command))
    file = planning.plan("unsloth/gpt-oss-20b-GGUF:F16", hardware="h100", engine="vllm")
    assert file.quantization == "mxfp4"


def sorted_first(command: str) -> list[str]:
    """The command with its flag of quantization right behind the model."""
    words = shlex.split(command)
    flag = words.index("--quantization")
    return [*words[:3], *words[flag : flag + 2]]


@pytest.mark.parametrize("end", ["FP8", "AWQ"])
def test_a_placeholder_for_16_bits_does_not_call_itself_by_another_format(end: str) -> None:
    made = planning.plan(
        f"Qwen/Qwen3-8B-{end}", hardware="rtx4090", engine="vllm", quantization="bf16", context=2048
    )
    assert "vllm serve OWNER/Qwen3-8B " in made.command
    note = "OWNER/Qwen3-8B stands for a checkpoint in 16 bits: bring one, its name is not known"
    assert note in made.notes
    assert not any("GGUF" in note for note in made.notes)
