"""config.json: the catalog and published numbers are its witnesses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enginekit.catalog import _table, describe_folder, hf_config
from enginekit.errors import ModelFileError
from enginekit.sizing.kv_cache import bytes_per_token, llamacpp_cache, state_bytes
from enginekit.sizing.weights import weights
from tests.catalog.configs import CATALOG, OTHERS

LLAMA = CATALOG["llama3.1-8b"]
RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parent / "recordings" / "configs.json").read_text("utf-8")
)["models"]
"""Published files that ai-dynamo/aiconfigurator carries, cut down to what sizes a model."""
WITNESSES = CATALOG | {name: model["config"] for name, model in RECORDED.items()}


@pytest.mark.parametrize("name", sorted(WITNESSES))
def test_a_config_describes_the_model_of_the_catalog(name: str) -> None:
    spec, known = hf_config.to_spec(WITNESSES[name], name=name), _table.spec(name)
    assert spec.known_layout
    assert spec.layers == known.layers
    for field in (
        "architecture",
        "hidden",
        "context_length",
        "experts",
        "mla",
        "recurrent",
        "tied_embeddings",
        "per_layer_embedding",
        "causal",
    ):
        assert getattr(spec, field) == getattr(known, field), field
    # Gemma 3's checkpoint has 64 more rows than its tokenizer; converters cut them off.
    assert spec.vocab - known.vocab == (64 if name.startswith("gemma3") else 0)
    assert spec.params_total == pytest.approx(known.params_total, rel=0.0002)
    assert spec.params_active == pytest.approx(known.params_active, rel=0.0002)
    assert llamacpp_cache(spec, 8192).total == llamacpp_cache(known, 8192).total


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_families_beyond_the_catalog(name: str) -> None:
    config, billions, per_token, state = OTHERS[name]
    spec = hf_config.to_spec(config, name=name)
    assert spec.known_layout
    assert spec.params_total / 1e9 == pytest.approx(billions, rel=0.01)
    assert bytes_per_token(spec) == per_token
    assert state_bytes(spec) == state


QUANTIZATIONS: list[tuple[str, dict[str, Any]]] = [
    ("fp8-block", {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    ("fp8", {"quant_method": "fp8"}),
    ("fp8", {"quant_method": "fbgemm_fp8"}),
    ("awq-int4-g128", {"quant_method": "awq", "bits": 4, "group_size": 128}),
    ("gptq-int8-g32", {"quant_method": "gptq", "bits": 8, "group_size": 32}),
    ("gptq-int4-g128", {"quant_method": "gptq", "bits": 4, "group_size": -1}),
    ("mxfp4", {"quant_method": "mxfp4"}),
    ("bnb-nf4", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ("bnb-int8", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    (
        "bnb-nf4-double",
        {"quant_method": "bitsandbytes", "bnb_4bit_use_double_quant": True},
    ),
    ("nvfp4", {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    ("nvfp4", {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}),
    (
        "w4a16-g32",
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}},
        },
    ),
    (
        "int8",
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"g": {"weights": {"num_bits": 8}, "input_activations": {}}},
        },
    ),
    (
        "fp8",
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float"}}},
        },
    ),
    ("bf16", {"quant_method": "something-new"}),
]


@pytest.mark.parametrize(("label", "config"), QUANTIZATIONS)
def test_quantization_configs_become_one_word_that_can_be_sized(
    label: str, config: dict[str, Any]
) -> None:
    spec = hf_config.to_spec(LLAMA | {"quantization_config": config})
    assert spec.quantization == label
    assert weights(spec).total > 0


@pytest.mark.parametrize(
    ("extra", "label"),
    [
        ({"quantization": {"bits": 4, "group_size": 64}}, "mlx-4bit"),
        ({"quantization": {"bits": 8, "group_size": 32}}, "mlx-8bit-g32"),
        ({"torch_dtype": "float16"}, "fp16"),
        ({"dtype": "bfloat16"}, "bf16"),
        ({}, "bf16"),
    ],
)
def test_mlx_and_plain_types(extra: dict[str, Any], label: str) -> None:
    spec = hf_config.to_spec(LLAMA | extra)
    assert spec.quantization == label
    assert spec.format == ("mlx" if label.startswith("mlx") else "safetensors")


def test_modelopts_own_file() -> None:
    quant = {"quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    assert hf_config.to_spec(LLAMA, quant_config=quant).quantization == "nvfp4"


def test_a_window_that_is_switched_off_does_not_count() -> None:
    config = CATALOG["qwen2.5-7b"]
    assert not any(layer.window for layer in hf_config.to_spec(config).layers)
    on = config | {"use_sliding_window": True}
    assert all(layer.window == 32768 for layer in hf_config.to_spec(on).layers)


def test_yarn_extends_the_context_once() -> None:
    rope = {"factor": 4.0, "original_max_position_embeddings": 32768, "rope_type": "yarn"}
    config = CATALOG["qwen2.5-7b"]
    assert hf_config.to_spec(config | {"rope_scaling": rope}).context_length == 131072
    done = config | {"rope_scaling": rope, "max_position_embeddings": 131072}
    assert hf_config.to_spec(done).context_length == 131072


def test_nemotron_lists_its_blocks_instead_of_letters() -> None:
    config = dict(CATALOG["nemotron3-nano-30b-a3b"])
    words = {"M": "mamba", "E": "moe", "*": "attention"}
    letters = config.pop("hybrid_override_pattern")
    del config["num_hidden_layers"]
    listed = config | {"layers_block_type": [words[letter] for letter in letters]}
    assert hf_config.to_spec(listed).layers == _table.spec("nemotron3-nano-30b-a3b").layers


def test_blocks_without_attention_keep_nothing() -> None:
    config = LLAMA | {
        "model_type": "nemotron-nas",
        "num_hidden_layers": 3,
        "block_configs": [
            {"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": 2.625}},
            {
                "attention": {"no_op": True, "n_heads_in_group": None},
                "ffn": {"intermediate_size": 7168},
            },
            {"attention": {"n_heads_in_group": 4}, "ffn": {"no_op": True}},
        ],
    }
    spec = hf_config.to_spec(config)
    assert [layer.kv_heads for layer in spec.layers] == [4, 0, 8]
    assert [layer.ffn for layer in spec.layers] == [7168, 7168, 0]


def test_an_unknown_model_type_has_an_unknown_layout() -> None:
    spec = hf_config.to_spec(LLAMA | {"model_type": "brand_new"})
    assert not spec.known_layout
    assert {layer.attention for layer in spec.layers} == {"unknown"}
    assert "unknown attention layout: brand_new" in spec.notes


def test_an_unknown_kind_of_layer_is_not_guessed() -> None:
    kinds = ["full_attention"] * 31 + ["quantum_attention"]
    assert not hf_config.to_spec(LLAMA | {"layer_types": kinds}).known_layout


def test_sparse_attention_by_name_keeps_the_same_cache() -> None:
    """transformers 5 writes the kind of each layer into a GLM 5.2 (nvidia/GLM-5.2-NVFP4)."""
    config = CATALOG["deepseek-v3"] | {"model_type": "glm_moe_dsa", "index_head_dim": 128}
    count = config["num_hidden_layers"]
    named = config | {"layer_types": ["deepseek_sparse_attention"] * count}
    assert hf_config.to_spec(named).layers == hf_config.to_spec(config).layers


def test_experts_behind_a_narrow_projection() -> None:
    """Kimi K3: 896 experts of 3072 read 3584 of the 7168 features."""
    config = CATALOG["deepseek-v3"] | {"routed_expert_hidden_size": 3584}
    spec = hf_config.to_spec(config)
    assert spec.experts is not None
    assert spec.experts.latent == 3584
    assert spec.params_total < hf_config.to_spec(CATALOG["deepseek-v3"]).params_total


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"num_key_value_heads": float("nan")}, "num_key_value_heads"),
        ({"intermediate_size": float("inf")}, "intermediate_size"),
        ({"head_dim": 10**9}, "head_dim"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"hybrid_override_pattern": "MXM"}, "hybrid_override_pattern"),
        ({"attn_type_list": [1]}, "attn_type_list"),
    ],
)
def test_absurd_fields_are_refused_by_name(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelFileError, match=field) as caught:
        hf_config.to_spec(LLAMA | change)
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["time_step_rank", "mamba_dt_rank"])
@pytest.mark.parametrize("value", [-(2**70), -1, 2**30, "160", True])
def test_an_absurd_rank_of_mambas_step_is_refused_by_name(name: str, value: object) -> None:
    """Found by 100,000 examples: -2^70 made weights of minus 10^26 bytes."""
    config = next(config for config, *_ in OTHERS.values() if config["model_type"] == "mamba")
    config = {key: item for key, item in config.items() if key != "time_step_rank"}
    hf_config.to_spec(config | {name: "auto"})
    with pytest.raises(ModelFileError, match=name):
        hf_config.to_spec(config | {name: value})


def test_a_list_is_no_config() -> None:
    with pytest.raises(ModelFileError, match="JSON object"):
        hf_config.to_spec([])  # type: ignore[arg-type]


def test_capabilities() -> None:
    spec = hf_config.to_spec(CATALOG["gemma4-26b-a4b"], chat_template="{{ tools }}")
    assert (spec.capabilities.vision, spec.capabilities.audio) == (True, None)
    assert (spec.capabilities.tools, spec.capabilities.thinking) == (True, False)
    assert hf_config.to_spec(LLAMA).chat_template is None


def test_a_model_that_attends_has_heads() -> None:
    """Without them neither the cache nor the weights of its layers could be told."""
    with pytest.raises(ModelFileError, match="num_attention_heads is 0") as caught:
        hf_config.to_spec({**CATALOG["llama3.2-1b"], "num_attention_heads": 0})
    assert caught.value.field == "num_attention_heads"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 16.5}, "num_hidden_layers is 16.5: a whole number"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_attention_heads": 5, "num_key_value_heads": 3}, "5 heads cannot share 3 KV heads"),
        ({"num_attention_heads": 60000, "head_dim": None}, "KV heads of 0 keep no cache"),
        ({"model_type": ["llama"]}, "model_type is"),
        ({"model_type": "\x1b[31mred"}, r"model_type is '\\x1b"),
    ],
)
def test_what_would_make_a_precise_wrong_number_is_refused(change: Any, said: str) -> None:
    config = {**CATALOG["llama3.2-1b"], **change}
    with pytest.raises(ModelFileError, match=said):
        hf_config.to_spec(config)


def test_an_unknown_architecture_that_states_no_heads_has_a_range_for_its_cache() -> None:
    """A cache of nought for thousands of users would be a precise wrong number."""
    spec = hf_config.to_spec(
        {"model_type": "frobnicate", "hidden_size": 2048, "vocab_size": 9, "num_hidden_layers": 16}
    )
    found = llamacpp_cache(spec, 4096)
    assert found.low == 0
    assert found.high == 4096 * 16 * 2 * 2 * 2048


def test_a_config_that_would_take_all_memory_is_not_read(tmp_path: Path) -> None:
    """Fifty megabytes of empty objects would become over a gigabyte of them."""
    (tmp_path / "config.json").write_bytes(b'{"a":[' + b"{}," * (16 << 20) + b"{}]}")
    with pytest.raises(ModelFileError, match="larger than 16 MiB"):
        describe_folder(tmp_path)
