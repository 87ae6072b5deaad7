"""Recorded `/api/show` answers of a real Ollama, and constructed ones for what they leave out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enginekit.catalog import describe, describe_ollama
from enginekit.errors import ModelFileError
from enginekit.sizing.kv_cache import llamacpp_cache
from enginekit.sizing.weights import weights
from tests.catalog.gguf_keys import keys_of

HERE = Path(__file__).parent / "recordings"


def recorded(name: str) -> dict[str, Any]:
    """The body of a recording (Ollama 0.33.0-rc2)."""
    recording = json.loads((HERE / f"{name}.json").read_text())
    found: dict[str, Any] = json.loads("".join(row[1] for row in recording["response"]["chunks"]))
    return found


@pytest.mark.parametrize("name", ["show", "show_verbose"])
def test_a_recorded_answer(name: str) -> None:
    tags = {row["name"]: row["size"] for row in recorded("tags")["models"]}
    spec = describe_ollama(recorded(name), "native", size=tags["native:latest"])
    assert (spec.architecture, spec.n_layers, spec.hidden) == ("llama", 1, 128)
    assert (spec.vocab, spec.context_length, spec.tied_embeddings) == (309, 4096, False)
    # The server counts the parameters itself; all are F32 here.
    assert spec.params_total == 194176
    assert spec.weight_bytes == 4 * 194176 < spec.file_bytes == tags["native:latest"]
    assert weights(spec).total == spec.weight_bytes
    assert (spec.capabilities.tools, spec.capabilities.thinking) == (True, False)
    assert llamacpp_cache(spec, 4096).total == 4096 * 2 * 4 * 32 * 2


def test_a_recorded_embedding_model() -> None:
    spec = describe_ollama(recorded("show_embed"), "embed")
    assert spec.capabilities.embedding
    assert not spec.capabilities.tools


def sparse(name: str) -> dict[str, Any]:
    """An answer as older servers give it: no tensors, the tokenizer's arrays null."""
    known = describe(name)
    info = keys_of(known) | {
        "tokenizer.ggml.tokens": None,
        "general.parameter_count": known.params_total,
    }
    return {
        "model_info": info,
        "details": {"family": "llama", "quantization_level": "Q4_K_M", "parameter_size": "8.0B"},
        "capabilities": ["completion", "tools"],
        "template": "{{ .Prompt }}",
    }


def test_what_an_answer_leaves_out_comes_from_the_catalog() -> None:
    known = describe("llama3.1-8b")
    spec = describe_ollama(sparse("llama3.1-8b"), "llama3.1:latest", size=4_920_753_328)
    assert (spec.vocab, spec.tied_embeddings) == (known.vocab, known.tied_embeddings)
    assert spec.layers == known.layers
    origin = spec.origin("vocab")
    assert origin is not None
    assert origin.confidence == "catalog"
    found = weights(spec)
    assert (found.total, found.label, found.method) == (4_920_753_328, "Q4_K_M", "file")


def test_another_model_under_a_known_name_is_not_filled() -> None:
    """Anyone can call a small model llama3.1; only equal dimensions make it the same."""
    spec = describe_ollama(sparse("smollm2-135m"), "llama3.1:latest", size=100_000_000)
    assert spec.vocab == 0
    assert spec.n_layers == 30


def test_without_tensors_or_size_the_parameter_count_has_to_do() -> None:
    show = sparse("smollm2-135m")
    del show["model_info"]["general.parameter_count"]
    show["details"]["parameter_size"] = "134.5M"
    spec = describe_ollama(show, "mine")
    assert spec.params_total == 134_500_000
    assert weights(spec).method == "bits per weight"


@pytest.mark.parametrize(
    ("show", "said"),
    [
        ({}, "no model_info"),
        ({"model_info": []}, "no model_info"),
        ({"model_info": {}}, "general.architecture is missing"),
        (
            {"model_info": keys_of(describe("llama3.1-8b")), "tensors": [{"type": "?"}]},
            "malformed",
        ),
        (
            {"model_info": keys_of(describe("llama3.1-8b")) | {"llama.block_count": 1 << 50}},
            "block_count",
        ),
        (
            {
                "model_info": keys_of(describe("llama3.1-8b"))
                | {"llama.block_count": [float("inf")]}
            },
            "block_count",
        ),
    ],
)
def test_a_malformed_answer_is_refused(show: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelFileError, match=said):
        describe_ollama(show, "m")
