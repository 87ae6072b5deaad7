"""Hostile GGUF files: an error that names the field, and never memory, time or a wrong number."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from enginekit.catalog import describe, gguf
from enginekit.errors import ModelFileError
from enginekit.kit import planning
from enginekit.sizing.kv_cache import llamacpp_cache
from tests.catalog.gguf_writer import header, text, value
from tests.catalog.test_gguf import LLAMA, TABLE, parse, spec_of


def _raw(tensors: int = 0, pairs: int = 0, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + body


def _tensor(
    name: str = "a", dims: tuple[int, ...] = (32,), kind: int = 0, rank: int | None = None
) -> bytes:
    count = len(dims) if rank is None else rank
    head = text(name) + struct.pack("<I", count)
    return head + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, 0)


HOSTILE = {
    "empty": (b"", "magic"),
    "wrong magic": (b"GGML" + bytes(100), "magic"),
    "a zip": (b"PK\x03\x04" + bytes(100), "zip"),
    "version 1": (_raw(version=1), "version"),
    "version 4": (_raw(version=4), "version"),
    "2^60 tensors": (_raw(tensors=1 << 60), "tensor_count"),
    "2^60 pairs": (_raw(pairs=1 << 60), "metadata_kv_count"),
    "2^63 pairs": (_raw(pairs=1 << 63), "metadata_kv_count"),
    "a key of 2^60 bytes": (_raw(pairs=1, body=struct.pack("<Q", 1 << 60) + bytes(20)), "key 0"),
    "an empty key": (_raw(pairs=1, body=text("") + value(1)), "empty"),
    "a key that is no text": (_raw(pairs=1, body=text(b"\xff\xfe") + value(1)), "UTF-8"),
    "a key twice": (_raw(pairs=2, body=2 * (text("k") + value(1))), "twice"),
    "value type 99": (_raw(pairs=1, body=text("k") + struct.pack("<IQ", 99, 0)), "type 99"),
    "array type 99": (_raw(pairs=1, body=text("k") + struct.pack("<IIQ", 9, 99, 1)), "type 99"),
    "an array of arrays": (
        _raw(pairs=1, body=text("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(30)),
        "array of arrays",
    ),
    "2^60 strings": (_raw(pairs=1, body=text("k") + struct.pack("<IIQ", 9, 8, 1 << 60)), "k"),
    "2^60 numbers": (_raw(pairs=1, body=text("k") + struct.pack("<IIQ", 9, 6, 1 << 60)), "k"),
    "a string past the end": (
        _raw(pairs=1, body=text("k") + struct.pack("<IIQ", 9, 8, 1) + struct.pack("<Q", 1 << 62)),
        "k",
    ),
    "a text value of 2^40": (
        _raw(pairs=1, body=text("k") + struct.pack("<IQ", 8, 1 << 40)),
        "k",
    ),
    "no dimensions": (_raw(1, body=_tensor(dims=()) + bytes(8)), "0 dimensions"),
    "five dimensions": (_raw(1, body=_tensor(dims=(32, 1, 1, 1, 1))), "5 dimensions"),
    "2^32 - 1 dimensions": (_raw(1, body=_tensor(rank=(1 << 32) - 1)), "dimensions"),
    "a dimension of zero": (_raw(1, body=_tensor(dims=(32, 0))), "absurd"),
    "dimensions that overflow": (_raw(1, body=_tensor(dims=(1 << 40, 1 << 40))), "absurd"),
    "tensor type 99": (_raw(1, body=_tensor(kind=99)), "type 99"),
    "a removed tensor type": (_raw(1, body=_tensor(kind=4)), "type 4"),
    "a row of half a block": (_raw(1, body=_tensor(dims=(100,), kind=12)), "Q4_K blocks"),
    "a tensor twice": (_raw(2, body=2 * _tensor()), "twice"),
    "a tensor without a name": (_raw(1, body=_tensor(name="") + bytes(8)), "empty"),
    "a name of 300 letters": (_raw(1, body=_tensor(name="x" * 300)), "300 bytes"),
    "cut in the tensor table": (_raw(1, body=_tensor()[:-4] + b""), "bytes"),
    "alignment of 33": (header(LLAMA | {"general.alignment": 33}), "general.alignment"),
    "alignment of zero": (header(LLAMA | {"general.alignment": 0}), "general.alignment"),
}


@pytest.mark.parametrize("case", sorted(HOSTILE))
@pytest.mark.parametrize("size_known", [True, False])
def test_a_hostile_header_is_refused_by_name(case: str, size_known: bool) -> None:
    data, said = HOSTILE[case]
    with pytest.raises(ModelFileError, match=said) as caught:
        parse(data, -1 if size_known else None)
    assert caught.value.field


def test_an_error_names_file_field_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(_raw(pairs=1, body=text("some.key") + struct.pack("<IQ", 8, 1 << 40)))
    with pytest.raises(ModelFileError, match=r"bad\.gguf: some\.key at byte 52: .*1099511627776"):
        gguf.read_file(path)


@pytest.mark.parametrize("length", range(0, 400, 7))
def test_every_truncation_is_an_error_of_ours(length: int) -> None:
    data = header(LLAMA, TABLE)
    with pytest.raises(ModelFileError):
        parse(data[:length])


def test_a_string_array_of_millions_stops_before_it_costs_memory() -> None:
    """A server that feeds zeros for ever: the count is refused before the first string is read."""
    body = text("k") + struct.pack("<IIQ", 9, 8, 1 << 40)
    start = _raw(pairs=1, body=body)
    calls = []

    def endless(offset: int, length: int) -> bytes:
        calls.append(length)
        return (start[offset:] + bytes(length))[:length]

    with pytest.raises(ModelFileError, match="more than"):
        gguf.parse(endless, size=None)
    assert len(calls) <= 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"general.architecture": ""}, "general.architecture"),
        ({"general.architecture": "clip"}, "projector"),
        ({"llama.block_count": 10**9}, "block_count"),
        ({"llama.block_count": 0}, "0 layers"),
        ({"llama.block_count": "two"}, "number was expected"),
        ({"llama.embedding_length": 1 << 40}, "embedding_length"),
        ({"llama.attention.head_count_kv": [1]}, "2 layers need 2 values"),
        ({"llama.attention.head_count": [1, -3]}, "head_count"),
        ({"llama.attention.key_length": 1 << 30}, "key_length"),
    ],
)
def test_absurd_keys_are_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelFileError, match=said):
        spec_of(LLAMA | change, TABLE)


def test_a_missing_key_is_named() -> None:
    metadata = dict(LLAMA)
    del metadata["llama.embedding_length"]
    with pytest.raises(ModelFileError, match=r"llama\.embedding_length is missing"):
        spec_of(metadata, TABLE)


def test_a_lora_adapter_is_no_model() -> None:
    with pytest.raises(ModelFileError, match="LoRA adapter"):
        spec_of(LLAMA | {"general.type": "adapter"})


def _offsets(*offsets: int) -> bytes:
    """A model with F32 tensors of 1024 bytes at these offsets."""
    pairs = b"".join(text(key) + value(item) for key, item in LLAMA.items())
    rows = b"".join(
        text(f"t{n}") + struct.pack("<IQIQ", 1, 256, 0, offset) for n, offset in enumerate(offsets)
    )
    return b"GGUF" + struct.pack("<IQQ", 3, len(offsets), len(LLAMA)) + pairs + rows + bytes(9000)


@pytest.mark.parametrize(
    ("offsets", "said"),
    [
        ((0, 992), r"tensor t1 at byte \d+: its offset 992 is inside t0, which ends at 1024"),
        ((0, 0), "its offset 0 is inside t0"),
        ((2048, 0, 1056), "tensor t0 .*its offset 2048 is inside t2"),
        ((0, 1025), "its offset 1025 is no multiple of 32"),
    ],
)
def test_tensors_that_share_bytes_or_begin_off_the_alignment(offsets: Any, said: str) -> None:
    """llama.cpp refuses them too; their sum would be no size of anything."""
    with pytest.raises(ModelFileError, match=said):
        parse(_offsets(*offsets))
    assert parse(_offsets(2048, 0, 1024)).data_bytes == 3 * 1024


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"general.alignment": 1 << 40}, "general.alignment .*more than the 1048576 allowed"),
        ({"general.alignment": True}, "general.alignment .*True is not a power of two"),
        ({"general.architecture": "\x1b[31mred"}, r"general.architecture is '\\x1b"),
        ({"general.type": "imatrix"}, "an importance matrix"),
        ({"general.type": "mmproj"}, "projector"),
        ({"llama.block_count": 2.5}, "whole number"),
        ({"llama.embedding_length": 0}, "embedding_length is 0"),
        ({"llama.attention.head_count": 0}, "head_count is 0: a llama attends with heads"),
        ({"llama.attention.head_count": None, "llama.attention.head_count_kv": None}, "head_count is None: a llama attends with heads"),
        ({"llama.attention.head_count_kv": 0}, "keep no cache"),
        ({"llama.attention.head_count": 5, "llama.attention.head_count_kv": 3}, "5 heads cannot share 3 KV heads"),
        ({"llama.attention.head_count": 1 << 19}, "of 0 keep no cache"),
        ({"llama.attention.head_count_kv": [-1] * 8000}, "head_count_kv is -1: 0 to 1048576 is possible"),
        ({"llama.attention.sliding_window_pattern": 1, "llama.attention.head_count_kv": [1] * 1}, "2 layers need 2 values"),
    ],
)  # fmt: skip
def test_what_would_make_a_precise_wrong_number_is_refused(change: Any, said: str) -> None:
    metadata = {key: item for key, item in (LLAMA | change).items() if item is not None}
    with pytest.raises(ModelFileError, match=said) as caught:
        spec_of(metadata, TABLE)
    assert len(str(caught.value)) < 300


def test_a_name_is_shown_as_plain_text() -> None:
    found = spec_of(LLAMA | {"general.name": "\x1b[31mred\n" + "x" * 500}, TABLE)
    assert found.name.startswith("[31mred x")
    assert len(found.name) <= 200


def test_an_unknown_architecture_without_heads_has_a_range_for_its_cache() -> None:
    plain = {
        key.replace("llama.", "odd."): item for key, item in LLAMA.items() if "head" not in key
    }
    spec = spec_of(plain | {"general.architecture": "odd"}, TABLE)
    found = llamacpp_cache(spec, 4096)
    assert found.low == 0 < found.high
    assert found.high == 4096 * 2 * 2 * 2 * spec.hidden  # K and V in 2 bytes, 2 layers
    assert "unknown attention layout" in found.reason


@pytest.mark.parametrize("kind", ["numbers", "texts", "strings"])
def test_values_that_are_kept_are_bounded(kind: str) -> None:
    """Half a gigabyte of header may be read; what stays in memory of it may not take that much."""
    many = 1 << 14
    if kind == "numbers":
        one = struct.pack("<IIQ", 9, 0, 8192) + bytes(8192)
    elif kind == "texts":
        one = struct.pack("<I", 8) + text("x" * (1 << 20))
    else:
        one = struct.pack("<IIQ", 9, 8, 1 << 21) + bytes(8 << 21)
    start = _raw(pairs=many)
    served = {}

    def read(offset: int, length: int) -> bytes:
        """The pairs one after the other, made as they are asked for."""
        out = bytearray()
        while len(out) < length:
            at = offset + len(out)
            if at < len(start):
                out += start[at:]
                continue
            index, inside = divmod(at - len(start), 16 + len(one))
            out += (text(f"{index:08d}") + one)[inside:]
        served[offset] = length
        return bytes(out[:length])

    with pytest.raises(ModelFileError, match="more than"):
        gguf.parse(read, size=None)
    assert sum(served.values()) < 100 << 20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("m.gguf", "config.json"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ModelFileError, match="is no regular file"):
            describe(tmp_path / name)
    with pytest.raises(ModelFileError, match="is a folder"):
        gguf.read_file(tmp_path)


def test_a_folder_of_one_gguf_file_is_that_model(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "m-Q8_0.gguf").write_bytes(header(LLAMA, TABLE))
    (tmp_path / "mmproj-F16.gguf").write_bytes(b"x" * 100)
    assert describe(tmp_path).n_layers == 2
    monkeypatch.chdir(tmp_path)
    assert describe(".").n_layers == 2
    assert " -m m-Q8_0.gguf " in planning.plan(".", hardware="rtx4090").command
    # Repositories of GGUF files often carry the original's configuration along.
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert describe(tmp_path).format == "gguf"
    assert " -m m-Q8_0.gguf " in planning.plan(".", hardware="rtx4090").command
    (tmp_path / "config.json").unlink()
    (tmp_path / "qwen3-8b").mkdir()
    assert " -hf " in planning.plan("qwen3-8b", hardware="rtx4090").command
    (tmp_path / "other.gguf").write_bytes(header(LLAMA, TABLE))
    with pytest.raises(ModelFileError, match=r"2 GGUF files: m-Q8_0\.gguf, other\.gguf") as told:
        describe(tmp_path)
    assert str(told.value.hint).startswith("enginekit plan ")
