"""The name of the model in the command of a plan: what an engine really finds, or a file to bring."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from enginekit.catalog import catalog_names, describe
from enginekit.facts.model import ModelNames
from enginekit.hardware import preset
from enginekit.sizing.advice import bits
from enginekit.sizing.plan import plan
from enginekit.sizing.policy import COMPILED, CONTEXT, PAGED, TIERED, Policy
from enginekit.sizing.quantization import gguf_label

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


def _mlc(name: str, hardware: str = "rtx4090", **settings):
    return plan(describe(name), preset(hardware), policy=COMPILED, **settings)


@pytest.mark.parametrize(
    ("name", "hardware", "label"),
    [
        ("llama3.1-8b", "rtx4090", "q4f16_1"),
        ("llama3.1-70b", "2xa100-80", "q3f16_1"),
        ("smollm2-135m", "rtx4090", "q0f16"),
    ],
)
def test_a_repository_for_mlc_is_named_and_planned_with_what_it_holds(
    name: str, hardware: str, label: str
) -> None:
    made = _mlc(name, hardware)
    assert made.quantization == label
    assert made.command.startswith(f"mlc_llm serve HF://{describe(name).names.mlc} ")
    assert f"-{label}-MLC " in made.command


@pytest.mark.parametrize("name", catalog_names())
def test_mlc_is_given_one_option_of_settings(name: str) -> None:
    """`--overrides` given twice keeps only the last (argparse)."""
    model = describe(name)
    found = plan(model, LARGE, policy=COMPILED)
    assert found.command.count("--overrides") <= 1
    assert bool(found.command) == bool(model.names.mlc)
    for fix in found.fixes:
        assert not fix.flags or re.fullmatch(r'--overrides "[a-z_=0-9;.]+"', fix.flags)


def test_mlc_is_told_to_hold_more_than_one_modest_request() -> None:
    """By cpp/serve/config.cc `local` holds min(context, 8192) tokens over all sequences."""
    alone = _mlc("llama3.1-8b", context=4096)
    assert alone.command.endswith('-MLC --overrides "context_window_size=4096"')
    assert alone.pool_tokens == 4096
    several = _mlc("llama3.1-8b", context=4096, users=8)
    settings = '"context_window_size=4096;max_num_sequence=8"'
    assert several.command.endswith(f"-MLC --mode server --overrides {settings}")
    assert several.pool_tokens == 8 * 4096
    assert "--mode server" in _mlc("llama3.1-8b", context=16384).command


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("qwen3-14b", None, "no q4f16_1 weights for it are known"),
        ("llama3.1-8b", "q3f16_1", "q4f16_1-MLC holds q4f16_1"),
    ],
)
def test_weights_that_nobody_compiled_are_no_command_but_a_note(name, asked, said) -> None:
    made = _mlc(name, quantization=asked, context=16384)
    assert made.command == ""
    (note,) = [each for each in made.notes if "convert_weight" in each]
    assert said in note
    assert f"--quantization {made.quantization}" in note
    assert "`mlc_llm serve DIR --mode server --overrides" in note


def test_a_folder_of_compiled_weights_is_served() -> None:
    model = replace(describe("llama3.1-8b"), format="mlc", quantization="q3f16_1")
    made = plan(model, preset("rtx4090"), policy=COMPILED, source="/data/mine")
    assert made.command.startswith("mlc_llm serve /data/mine ")


@pytest.mark.parametrize(
    ("name", "label"),
    [("embeddinggemma-300m", "Q8_0"), ("qwen3-embedding-0.6b", "Q8_0"), ("gemma3-12b", "Q4_K_M")],
)
def test_a_repository_with_few_files_is_asked_for_one_that_it_has(name: str, label: str) -> None:
    """llama.cpp's `find_best_model` has no other file for a label that is not there."""
    made = plan(describe(name), preset("rtx4090"), policy=CONTEXT)
    assert f" -hf {describe(name).names.gguf}:{label} " in made.command
    assert not any("has no" in note for note in made.notes)


_PAIR = "printf 'FROM %s\\n' {} mmproj.gguf |"


@pytest.mark.parametrize(
    ("how", "policy", "command"),
    [
        ("lacking", CONTEXT, "-m {} --mmproj mmproj.gguf"),
        ("revision", CONTEXT, "-m {} --mmproj mmproj.gguf"),
        ("unknown", CONTEXT, "-m {} --mmproj mmproj.gguf"),
        ("lacking", TIERED, _PAIR),
        ("revision", TIERED, _PAIR),
    ],
)
def test_a_projector_that_is_counted_is_in_the_command_of_a_file_to_bring(
    how: str, policy: Policy, command: str
) -> None:
    model, label = describe("gemma3-12b"), "IQ4_XS"
    file, where = "gemma-3-12b-it-IQ4_XS.gguf", f"an mmproj file of {model.names.gguf}"
    if how == "revision":
        file, label = "gemma-3-12b-it-Q4_K_M.gguf", "Q4_K_M"
        names = replace(model.names, gguf_file=file, revision="0123abc")
        model = replace(model, names=names, quantization=label, format="gguf")
    if how == "unknown":
        file, where = "gemma3-12b-IQ4_XS.gguf", "convert_hf_to_gguf.py --mmproj"
        model = replace(model, names=ModelNames())
    made, blind = (
        plan(model, preset("rtx4090"), policy=policy, quantization=label, context=4096,
             images=images, source="" if images or policy is CONTEXT else "x.gguf")
        for images in (True, False)
    )  # fmt: skip
    assert "projector" in made.devices[0].terms
    assert command.format(file) in made.command
    (note,) = [each for each in made.notes if each.startswith("mmproj.gguf stands for")]
    assert where in note
    assert "projector" not in blind.devices[0].terms
    assert "mmproj.gguf" not in " ".join((blind.command, *blind.notes))


def test_a_file_that_the_repository_has_not_got_is_one_to_bring() -> None:
    model, machine = describe("gemma3-12b"), preset("rtx4090")
    made = plan(model, machine, policy=CONTEXT, quantization="IQ4_XS")
    assert " -m gemma-3-12b-it-IQ4_XS.gguf --mmproj mmproj.gguf " in made.command
    (note,) = [each for each in made.notes if "no IQ4_XS file" in each]
    assert "ggml-org/gemma-3-12b-it-GGUF" in note
    assert "Q4_K_M, Q8_0, F16" in note
    own = plan(model, machine, policy=CONTEXT, quantization="IQ4_XS", source="/data/a.gguf")
    assert not any("no IQ4_XS file" in each for each in own.notes)
    tagged = plan(describe("embeddinggemma-300m"), machine, policy=TIERED)
    assert tagged.command.endswith("ollama run embeddinggemma")
    assert tagged.quantization == "BF16"


def test_labels_of_the_catalog_are_those_of_llama_quantize_in_order() -> None:
    for name in catalog_names():
        labels = describe(name).names.gguf_labels
        assert all(gguf_label(label) == label for label in labels)
        sizes = [bits(label) for label in labels]
        assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("name", "settings", "context", "batch"),
    [
        ("bge-m3", {}, 8192, "-b 8192 -ub 8192"),
        ("bge-m3", {"context": 4096}, 4096, "-b 4096 -ub 4096"),
        ("bge-large-en-v1.5", {}, 512, "-ub 2048"),
        ("bge-m3", {"ubatch": 1024}, 1024, "-ub 1024"),
        ("qwen3-reranker-0.6b", {}, 2048, "-ub 2048"),
        ("qwen3-reranker-0.6b", {"context": 4096}, 4096, "-b 4096 -ub 4096"),
        ("qwen3-embedding-0.6b", {}, 32768, "-ub 2048"),  # its last token stands for the text
    ],
)
def test_a_text_that_is_planned_fits_into_one_batch(name, settings, context, batch) -> None:
    """llama-server: "input is too large to process. increase the physical batch size"."""
    made = plan(describe(name), preset("rtx4090"), policy=CONTEXT, **settings)
    assert made.context == context
    assert f" -c {context} " in made.command
    assert f" {batch} " in made.command
    assert not any("is refused" in note for note in made.notes)


@pytest.mark.parametrize(
    ("name", "policy", "settings", "largest"),
    [
        ("qwen3-reranker-0.6b", CONTEXT, {}, 2048),
        ("qwen3-reranker-0.6b", CONTEXT, {"context": 4096}, 4096),
        ("qwen3-reranker-0.6b", TIERED, {}, 2048),
        ("bge-m3", CONTEXT, {}, 8192),
        ("bge-m3", CONTEXT, {"context": 1024}, 2048),
        ("bge-m3", CONTEXT, {"context": 8192, "ubatch": 1024}, 1024),
        ("bge-m3", TIERED, {}, 2048),
        ("qwen3-embedding-0.6b", CONTEXT, {}, 32768),  # its last token stands for the text
    ],
)
def test_no_context_is_promised_beyond_what_the_batch_takes(
    name, policy, settings, largest
) -> None:
    """A larger batch has a larger buffer: 40960 tokens of this reranker need 27 GiB of it."""
    made = plan(describe(name), preset("rtx4090"), policy=policy, **settings)
    assert made.largest_context == largest
    again = plan(describe(name), preset("rtx4090"), policy=policy, context=largest)
    assert again.fits
    assert not any("is refused" in note for note in again.notes)


def test_the_buffer_is_that_of_the_batch_and_what_it_refuses_is_said() -> None:
    model, machine = describe("bge-m3"), preset("rtx4090")
    whole = plan(model, machine, policy=CONTEXT).devices[0].terms["compute"].expected
    short = plan(model, machine, policy=CONTEXT, context=2048).devices[0].terms["compute"].expected
    assert whole > 3.5 * short
    less = plan(model, machine, policy=CONTEXT, context=8192, ubatch=1024)
    assert any("more than 1024 tokens is refused" in note for note in less.notes)
    ollama = plan(model, machine, policy=TIERED)
    assert ollama.context == 2048
    assert ollama.context_reason == "a text must fit into one batch"


def _layers_on_host(command: str, counted: int) -> int:
    """llama-model.cpp: `i_gpu_start = max(n_layer_all + 1 - n_gpu_layers, 0)`, the output last."""
    found = re.search(r"(?:-ngl|num_gpu) (\d+)", command)
    assert found, command
    return max(counted + 1 - int(found[1]), 0)


@pytest.mark.parametrize("policy", [CONTEXT, TIERED], ids=lambda policy: policy.name)
def test_the_layers_of_a_command_are_those_of_the_plan(policy: Policy) -> None:
    made = plan(describe("llama3.1-70b"), preset("rtx4090"), policy=policy, context=8192)
    assert made.where == "partly on GPU"
    assert made.host_layers > 0
    assert _layers_on_host(made.command, 80) == made.host_layers


def test_the_mtp_blocks_of_a_file_count_as_layers() -> None:
    model = replace(describe("llama3.1-70b"), format="gguf", quantization="Q4_K_M", mtp_layers=2)
    made = plan(model, preset("rtx4090"), context=8192)
    assert made.host_layers > 0
    assert _layers_on_host(made.command, 82) == made.host_layers


def test_all_layers_are_more_than_99_of_a_deep_model() -> None:
    made = plan(describe("llama3.1-405b"), LARGE, context=8192)
    assert made.where in ("one GPU", "several GPUs")
    assert _layers_on_host(made.command, 126) == 0


def test_pipeline_stages_are_told_in_words() -> None:
    wide = plan(describe("llama3.1-70b"), preset("8xh100"), policy=PAGED, context=8192)
    assert wide.split == "tensor parallel over 4 GPUs"
    both = plan(describe("phi4"), preset("g4dn.12xlarge"), policy=PAGED, context=8192)
    assert (both.tensor_parallel, both.pipeline_parallel) == (2, 2)
    assert both.split == "2 pipeline stages, each tensor parallel over 2 GPUs"
    three = preset("rtx3090")
    gpus = tuple(replace(three.gpus[0], index=index) for index in range(3))
    staged = plan(describe("qwen3-32b"), replace(three, gpus=gpus), policy=PAGED, context=8192)
    assert (staged.tensor_parallel, staged.pipeline_parallel) == (1, 3)
    assert staged.split == "3 pipeline stages, each on one GPU"
