"""Weights against llama-quantize's own dry runs, and against published checkpoints."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from enginekit.catalog import _table, describe
from enginekit.facts.model import Layer, ModelSpec, WeightGroup
from enginekit.sizing.mixture import Mixture, category
from enginekit.sizing.tensors import active_parameters, blueprint, parameters
from enginekit.sizing.weights import read_per_token, typical_bits, weights

HERE = Path(__file__).parent
MIB, GIB = 2**20, 2**30


def _dry_runs() -> list[tuple[str, str, int]]:
    """(model, label, MiB) of llama-quantize --dry-run b11434 over header-only files."""
    with (HERE / "weights_mib.csv").open() as file:
        return [
            (row["model"], label, int(value))
            for row in csv.DictReader(file)
            for label, value in row.items()
            if label != "model" and value
        ]


def _sixteen_bits(name: str) -> ModelSpec:
    """The model as llama-quantize saw it there: a 16-bit copy, not what was published in MXFP4."""
    return replace(describe(name), native_format="")


def _published() -> list[dict[str, str]]:
    with (HERE / "catalog_facts.csv").open() as file:
        return list(csv.DictReader(file))


def test_there_are_458_dry_runs_of_45_models() -> None:
    runs = _dry_runs()
    assert (len(runs), len({run[0] for run in runs})) == (458, 45)


@pytest.mark.parametrize("model", sorted({run[0] for run in _dry_runs()}))
def test_each_label_equals_the_dry_run_to_the_mebibyte(model: str) -> None:
    spec = _sixteen_bits(model)
    for name, label, mib in _dry_runs():
        if name == model:
            assert round(weights(spec, label, imatrix=False).total / MIB) == mib, label


# The further labels of one model, in bits per weight to two digits.
LLAMA_8B = {
    "Q5_K_S": 5.57,
    "Q5_1": 6.04,
    "Q5_0": 5.57,
    "Q4_K_S": 4.67,
    "Q4_1": 5.10,
    "IQ4_NL": 4.68,
    "Q3_K_L": 4.30,
    "Q3_K_S": 3.64,
    "IQ3_M": 3.76,
    "IQ3_S": 3.66,
    "IQ3_XS": 3.50,
    "IQ3_XXS": 3.37,
    "Q2_K_S": 2.97,
    "IQ2_M": 2.93,
    "IQ2_S": 2.74,
    "IQ2_XS": 2.59,
    "IQ1_M": 2.15,
    "IQ1_S": 2.00,
    "TQ2_0": 2.52,
    "TQ1_0": 2.19,
}


@pytest.mark.parametrize("label", sorted(LLAMA_8B))
def test_the_rarer_labels_of_one_model(label: str) -> None:
    spec = describe("llama3.1-8b")
    bits = weights(spec, label, imatrix=False).total * 8 / parameters(spec)
    assert bits == pytest.approx(LLAMA_8B[label], abs=0.0051)


@pytest.mark.parametrize(
    "row",
    [row for row in _published() if row["q4_k_m_mib"].isdigit()],
    ids=lambda row: row["name"],
)
def test_the_catalogs_q4_k_m_column(row: dict[str, str]) -> None:
    mib = weights(_sixteen_bits(row["name"]), "Q4_K_M").total / MIB
    # granite-3.0 has four fewer tokens than the model its figure was copied from.
    assert mib == pytest.approx(int(row["q4_k_m_mib"]), rel=0.0005, abs=0.51)


# Published counts that include a vision tower or MTP blocks, or rest on dimensions that are unsure.
APPROXIMATE = {
    "llama4-scout-109b": 0.012,
    "glm-5.2": 0.015,
    "nemotron3-super-120b-a12b": 0.025,
    "qwen3.5-4b": 0.10,
    "nomic-embed-text-v1.5": 0.003,
    "bge-m3": 0.003,
    "mxbai-embed-large-v1": 0.004,
    "all-minilm-l6-v2": 0.01,
    "embeddinggemma-300m": 0.06,
}


@pytest.mark.parametrize("row", _published(), ids=lambda row: row["name"])
def test_parameters_counted_from_tensors_equal_the_published_number(row: dict[str, str]) -> None:
    spec = describe(row["name"])
    tolerance = APPROXIMATE.get(row["name"], 0.0006)
    assert parameters(spec) / 1e9 == pytest.approx(float(row["params_total_b"]), rel=tolerance)


def test_the_catalog_states_what_its_dimensions_add_up_to() -> None:
    """A slip in a row (layers, widths, experts) shows as a wrong parameter count."""
    for name in _table.rows():
        spec = describe(name)
        if spec.causal:
            assert spec.params_total == parameters(spec), name
            assert spec.params_active == active_parameters(spec), name


# Sizes of published repositories (GiB), from the sources named in docs.
CHECKPOINTS = [
    ("llama3.1-8b", "bf16", 14.96),
    ("qwen3-8b", "awq", 5.68),
    ("llama3.3-70b", "fp8", 67.72),
    ("gpt-oss-20b", "mxfp4", 12.82),
    ("gpt-oss-120b", "mxfp4", 60.8),
    ("nemotron-70b", "mlx-4bit", 39.69e9 / GIB),
    ("qwen3-0.6b", "bf16", 1.12),
    ("qwen3-32b", "bf16", 61.03),
]


@pytest.mark.parametrize(("model", "quantization", "gib"), CHECKPOINTS)
def test_other_formats_match_published_checkpoints(
    model: str, quantization: str, gib: float
) -> None:
    assert weights(describe(model), quantization).total / GIB == pytest.approx(gib, rel=0.01)


def test_the_parts_add_up_to_the_whole() -> None:
    for name in ("qwen3-30b-a3b", "gemma4-e2b", "deepseek-v3", "qwen3.5-9b"):
        spec = describe(name)
        found = weights(spec, "Q4_K_M")
        outside = sum(
            found.roles.get(role, 0) for role in ("embedding", "layer_embedding", "output")
        )
        assert sum(found.roles.values()) == found.total
        # What is left outside the blocks is one norm and Gemma's projection of the small table.
        assert 0 <= found.total - outside - sum(found.layers) < 0.02 * found.total
        assert sum(found.layer_experts) == found.experts
        assert found.low <= found.total <= found.high


def test_more_bits_are_never_smaller() -> None:
    order = ["IQ1_S", "IQ2_XXS", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16"]
    for name in ("llama3.1-8b", "qwen3-30b-a3b", "gpt-oss-20b", "smollm2-135m"):
        sizes = [weights(describe(name), label).total for label in order]
        if name == "gpt-oss-20b":  # 2880 divides into no block of 256: Q2_K falls back to Q4_0
            assert sizes[-3:] == sorted(sizes[-3:])
        else:
            assert sizes == sorted(sizes)


def test_an_importance_matrix_changes_the_labels_that_look_at_it() -> None:
    spec = describe("llama3.1-8b")
    assert weights(spec, "Q4_0", imatrix=True).total > weights(spec, "Q4_0").total
    assert weights(spec, "IQ4_XS").total < weights(spec, "IQ4_XS", imatrix=False).total
    assert weights(spec, "Q4_K_M", imatrix=True).total == weights(spec, "Q4_K_M").total


@pytest.mark.parametrize("label", ["IQ3_XXS", "IQ4_XS", "IQ4_NL", "Q4_0", "Q5_0"])
def test_a_file_with_or_without_a_matrix_is_in_the_range(label: str) -> None:
    for name in ("llama3.1-8b", "llama3.1-70b", "qwen2.5-3b", "mistral-7b-v0.3"):
        found = weights(describe(name), label)
        for matrix in (False, True):
            assert found.low <= weights(describe(name), label, imatrix=matrix).total <= found.high


def test_experts_that_were_published_in_mxfp4_stay_so_whatever_the_label() -> None:
    spec = describe("gpt-oss-20b")
    experts = {weights(spec, label).experts for label in ("F16", "Q8_0", "Q4_K_M", "Q2_K")}
    assert experts == {weights(spec, "MXFP4_MOE").experts}
    # A fine-tune that was published in 16 bits is another model, and its experts are quantized too.
    whole = weights(replace(spec, native_format=""), "Q4_K_M")
    assert whole.experts > weights(spec, "Q4_K_M").experts


@pytest.mark.parametrize("name", ["gpt-oss-20b", "gpt-oss-120b"])
def test_no_label_of_gpt_oss_reaches_above_a_wider_one(name: str) -> None:
    """All that differs is what is no expert; the ladder of a plan then says yes, tight, no."""
    labels = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q2_K", "IQ2_XXS")
    tops = [weights(describe(name), label).high for label in labels]
    assert tops == sorted(tops, reverse=True)
    assert weights(describe(name), "MXFP4_MOE").high <= tops[0]


def test_an_unknown_quantization_names_some_that_exist() -> None:
    with pytest.raises(ValueError, match=r"'Q4_K_Z'.*Q4_K_M.*awq"):
        weights(describe("llama3.1-8b"), "Q4_K_Z")


def test_experts_in_use_decide_what_a_step_reads() -> None:
    spec = describe("qwen3-30b-a3b")
    found = weights(spec, "Q4_K_M")
    one, many = read_per_token(spec, found), read_per_token(spec, found, batch=16)
    assert one == pytest.approx(
        found.total - found.embedding - found.experts * (1 - 8 / 128), rel=1e-6
    )
    # At batch 16 a layer of 128 experts, 8 per token, touches 64 per cent of them.
    touched = 1 - (found.total - found.embedding - many) / found.experts
    assert touched == pytest.approx(0.644, abs=0.001)


def test_the_row_lookup_tables_of_e_models_are_not_read() -> None:
    spec = describe("gemma4-e2b")
    found = weights(spec, "Q4_K_M")
    assert read_per_token(spec, found) == found.total - found.layer_embedding
    assert found.layer_embedding > 0.5 * found.total


def test_a_size_without_a_tensor_table_is_spread_by_shape() -> None:
    known = describe("llama3.1-8b")
    spec = ModelSpec(
        name="x",
        architecture="llama",
        layers=known.layers,
        hidden=known.hidden,
        vocab=known.vocab,
        context_length=8192,
        quantization="Q4_K_M",
        weight_bytes=5_000_000_000,
    )
    found = weights(spec)
    assert (found.total, found.low, found.high) == (5_000_000_000,) * 3
    assert found.method == "file"
    assert sum(found.layers) < found.total < sum(found.layers) * 1.3


def test_a_tensor_table_is_summed_and_can_be_requantized() -> None:
    """A header is a blueprint: shapes from the file, types from another label."""
    known = describe("llama3.2-1b")
    groups = tuple(
        WeightGroup(
            name=(f"blk.{layer}." if layer >= 0 else "") + f"{shape.name}.weight"
            if not shape.fixed
            else f"blk.{layer}.{shape.name}",
            role=shape.role,
            type="F16" if not shape.fixed else shape.fixed,
            elements=shape.elements,
            bytes=shape.elements * (4 if shape.fixed == "F32" else 2),
            layer=layer if layer >= 0 else None,
            shape=(shape.row, shape.rows, shape.matrices),
        )
        for shape in blueprint(known)
        for layer in shape.layers
    )
    spec = ModelSpec(
        name="from a file",
        architecture="llama",
        layers=known.layers,
        hidden=known.hidden,
        vocab=known.vocab,
        context_length=known.context_length,
        tied_embeddings=True,
        quantization="F16",
        weights=groups,
        weight_bytes=sum(group.bytes for group in groups),
    )
    assert weights(spec).total == weights(known, "F16").total
    assert weights(spec, "Q4_K_M").total == weights(known, "Q4_K_M").total


def test_without_dimensions_the_parameter_count_has_to_do() -> None:
    spec = ModelSpec(
        name="?",
        architecture="?",
        layers=(),
        hidden=0,
        vocab=0,
        context_length=0,
        params_total=8_030_000_000,
    )
    found = weights(spec, "Q4_K_M")
    assert found.method == "bits per weight"
    assert found.low < weights(describe("llama3.1-8b"), "Q4_K_M").total < found.high
    assert typical_bits("Q4_K_M", 70_000_000_000) == 4.82


def test_an_architecture_without_rules_gets_a_wide_range() -> None:
    known = describe("llama3.1-8b")
    spec = ModelSpec(
        name="new",
        architecture="brand-new",
        layers=known.layers,
        hidden=known.hidden,
        vocab=known.vocab,
        context_length=8192,
    )
    found = weights(spec, "Q8_0")
    assert found.high / found.low > 1.3
    assert "brand-new" in found.reason


def test_eight_experts_raise_keys_and_values() -> None:
    types = {
        shape.name: kind for shape, _, kind in Mixture(describe("mixtral-8x7b"), "Q4_K_M").assign()
    }
    assert types["attn_k"] == types["attn_v"] == "Q8_0"
    assert types["attn_output"] == "Q5_K"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ffn_gate_up_exps", "gate"),
        ("ffn_down_shexp", "down"),
        ("attn_v_b", "other"),
        ("attn_kv_b", "v"),
        ("per_layer_token_embd", "token_embd"),
    ],
)
def test_categories_follow_llama_quantize(name: str, kind: str) -> None:
    assert category(name) == kind


def test_a_spec_without_weights_or_layers_costs_nothing_to_hash() -> None:
    spec = describe("deepseek-v3")
    assert hash(spec) == hash(describe("deepseek-v3"))
    assert isinstance(spec.layers[0], Layer)
