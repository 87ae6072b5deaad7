"""Parsers under fuzz: whatever the bytes, the outcome is a fact or an error of ours.

A few hundred examples by default, 100,000 each in a soak run.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginekit.catalog import _gguf_spec, gguf, hf_config, ollama_show, safetensors
from enginekit.errors import ModelFileError, ModelNotFound
from enginekit.sizing.kv_cache import llamacpp_cache, vllm_pool
from enginekit.sizing.weights import weights
from tests.catalog.configs import CATALOG, OTHERS
from tests.catalog.gguf_writer import header, text
from tests.support.soak import fuzz, seconds

pytestmark = pytest.mark.timeout(seconds(120))

PLAIN = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.attention.head_count": [4, 4],
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 512,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
}
GGUF = header(PLAIN, [("token_embd.weight", (64, 3), "F16"), ("blk.0.x.weight", (64, 2), "F32")])
MEMORY = 1 << 22
"""No parser may ask for more than this of a small file."""


def read_gguf(data: bytes, size: int | None) -> None:
    def read(offset: int, length: int) -> bytes:
        assert length <= MEMORY
        return data[offset : offset + length]

    try:
        found = gguf.parse(read, size=size)
        spec = _gguf_spec.to_spec(found)
    except ModelFileError:
        return
    weights(spec)
    llamacpp_cache(spec, 4096)


@fuzz(300)
@given(
    cut=st.integers(0, len(GGUF)),
    patches=st.lists(st.tuples(st.integers(0, len(GGUF) - 1), st.binary(max_size=9)), max_size=4),
    known=st.booleans(),
)
def test_a_damaged_gguf_is_read_or_refused(
    cut: int, patches: list[tuple[int, bytes]], known: bool
) -> None:
    data = bytearray(GGUF)
    for at, patch in patches:
        data[at : at + len(patch)] = patch
    read_gguf(bytes(data[:cut]), cut if known else None)


@fuzz(300)
@given(
    counts=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    body=st.binary(max_size=300),
    order=st.sampled_from(["<", ">"]),
)
def test_random_bytes_after_a_good_start(counts: tuple[int, int], body: bytes, order: str) -> None:
    small = (counts[0] % 4, counts[1] % 4) if body and body[0] % 2 else counts
    data = b"GGUF" + struct.pack(order + "IQQ", 3, *small) + body
    read_gguf(data, len(data))


AWKWARD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 4096, 2**31, 2**53 + 1, 2**63, 2**64 - 1, -(2**70),
    0.0, -0.0, 0.5, 1.0, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"),
    "", "a", "0", "64", "-1", "F16", "BF16", "llama", "full_attention", "sliding_attention", "\0",
    [], [0], [1, 1], [None], ["a"], [[1]], [0, 2**64], [True, False], [-1, 1.5],
    {}, {"": None}, {"a": [1]}, {"bits": 0}, {"quant_method": "awq"}, {"0": {"0": {}}},
)  # fmt: skip
"""What a value could wrongly be; one choice costs a tenth of what composing it does."""

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=6),
)
COMPOSED = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
NEAR = st.integers(-3, 70)
AWKWARD_ONES = st.sampled_from(AWKWARD)
VALUES = st.one_of(AWKWARD_ONES, NEAR, AWKWARD_ONES, st.lists(NEAR, max_size=3), COMPOSED)
CONFIGS = [*CATALOG.values(), *(config for config, *_ in OTHERS.values())]
KEYS = sorted({key for config in CONFIGS for key in [*config, *config.get("text_config", {})]})


@fuzz(300)
@given(
    base=st.sampled_from(CONFIGS),
    changes=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
    nested=st.booleans(),
)
def test_a_config_with_wrong_values_is_read_or_refused(
    base: dict[str, Any], changes: dict[str, Any], nested: bool
) -> None:
    config = {**base, **changes}
    if nested and isinstance(base.get("text_config"), dict):
        config = {**base, "text_config": {**base["text_config"], **changes}}
    try:
        spec = hf_config.to_spec(config)
    except ModelFileError:
        return
    assert 0 < spec.n_layers <= 2048
    found = weights(spec, "Q4_K_M")
    assert 0 <= found.low <= found.total <= found.high
    cache = llamacpp_cache(spec, 4096)
    assert 0 <= cache.low <= cache.total <= cache.high
    assert vllm_pool(spec, 4096).request >= 0


@fuzz(300)
@given(config=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=12), VALUES, max_size=5))
def test_any_json_object_is_a_config_or_an_error(config: dict[str, Any]) -> None:
    try:
        spec = hf_config.to_spec(config)
    except ModelFileError:
        return
    assert spec.layers


TENSOR = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}


@fuzz(300)
@given(
    entry=st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.one_of(st.sampled_from(["BF16", "I32", "Q9"]), VALUES),
            "shape": st.one_of(st.lists(st.integers(-2, 2**65), max_size=3), VALUES),
            "data_offsets": st.one_of(st.lists(st.integers(-2, 2**65), max_size=3), VALUES),
        },
    ),
    other=VALUES,
    length=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
)
def test_a_safetensors_header_with_wrong_values(
    entry: dict[str, Any], other: Any, length: int | None
) -> None:
    raw = json.dumps({"a": {**TENSOR, **entry}, "b": other}).encode()
    data = (len(raw) if length is None else length).to_bytes(8, "little") + raw

    def read(offset: int, count: int) -> bytes:
        assert count <= safetensors.MAX_HEADER
        return data[offset : offset + count]

    try:
        found = safetensors.parse(read, size=len(data) + 12)
    except ModelFileError:
        return
    assert all(tensor.bytes >= 0 for tensor in found)


@fuzz(300)
@given(raw=st.binary(max_size=200), length=st.integers(0, 300))
def test_random_bytes_as_safetensors(raw: bytes, length: int) -> None:
    data = length.to_bytes(8, "little") + raw
    try:
        found = safetensors.parse(
            lambda offset, count: data[offset : offset + count], size=len(data)
        )
    except ModelFileError:
        return
    assert sum(tensor.bytes for tensor in found) <= len(raw) - length


@fuzz(300)
@given(
    info=st.dictionaries(st.sampled_from(sorted(PLAIN)), VALUES, max_size=6),
    details=VALUES,
    tensors=VALUES,
)
def test_any_ollama_answer_is_described_or_refused(
    info: dict[str, Any], details: Any, tensors: Any
) -> None:
    show = {"model_info": {**PLAIN, **info}, "details": details, "tensors": tensors}
    try:
        spec = ollama_show.to_spec(show, name="m", size=1_000_000)
    except ModelFileError:
        return
    assert weights(spec).total >= 0


@fuzz(300)
@given(name=st.text(max_size=40))
def test_any_name_is_found_or_not(name: str) -> None:
    from enginekit.catalog import find, get

    if find(name) is None:
        with pytest.raises(ModelNotFound):
            get(name)


def test_a_header_that_claims_a_vocabulary_of_millions_is_bounded() -> None:
    """Four million empty strings are the most that is walked over; one more is refused."""
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    body = text("k") + struct.pack("<IIQ", 9, 8, gguf.MAX_STRINGS + 1)
    with pytest.raises(ModelFileError, match="more than"):
        gguf.parse(lambda offset, length: (start + body)[offset : offset + length])
