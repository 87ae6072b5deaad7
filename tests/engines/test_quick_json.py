"""A reply is the same with orjson, which reads the common event, and without it."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enginekit.engines import _json, _openai_decode
from enginekit.engines.ollama import decode as ollama_decode
from enginekit.types import Chunk
from tests.drivers.toy import toy

orjson = pytest.importorskip("orjson")

DECODERS = {
    _openai_decode: lambda: _openai_decode.OpenAIDecoder(toy("http://127.0.0.1:1")),
    ollama_decode: lambda: ollama_decode.OllamaDecoder(toy("http://127.0.0.1:1")),
}


def read(module, body: bytes, *, quick: bool) -> tuple[list[Chunk], str]:
    decoder = DECODERS[module]()
    decoder._quick, decoder._exact = (orjson.loads, False) if quick else (_json.plain, True)
    chunks = decoder.feed(body)
    if not decoder.done and decoder.failure is None:
        chunks += decoder.eof()
    return chunks, repr(decoder.failure)


def same_both_ways(module, body: bytes) -> list[Chunk]:
    plain, quick = read(module, body, quick=False), read(module, body, quick=True)
    assert repr(quick) == repr(plain)
    return quick[0]


TEXTS = st.text() | st.sampled_from(["\ud83d", "😀", "\x00", "<think>", ""])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=6,
)
DELTAS = st.fixed_dictionaries({"content": TEXTS}, optional={"role": VALUES, "reasoning": TEXTS})
EVENTS = st.fixed_dictionaries(
    {"id": st.just("x"), "choices": st.lists(st.fixed_dictionaries({"delta": DELTAS}), max_size=2)},
    optional={"usage": VALUES, "extra": VALUES},
)
LINES = st.fixed_dictionaries(
    {
        "model": st.just("m"),
        "created_at": VALUES,
        "done": st.booleans(),
        "message": st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXTS}),
    },
    optional={"eval_count": VALUES},
)


calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def written(events, escaped: bool) -> list[bytes]:
    return [
        json.dumps(event, ensure_ascii=escaped).encode("utf-8", "surrogatepass") for event in events
    ]


@calm
@given(st.lists(EVENTS, max_size=4), st.booleans(), st.binary(max_size=3))
def test_openai_events(events, escaped, dirt):
    lines = [b"data: " + event + b"\n\n" for event in written(events, escaped)]
    same_both_ways(_openai_decode, b"".join(lines) + b"data: " + dirt + b"\n\n")


@calm
@given(st.lists(LINES, max_size=4), st.booleans(), st.binary(max_size=3))
def test_ollama_lines(events, escaped, dirt):
    same_both_ways(ollama_decode, b"\n".join([*written(events, escaped), dirt, b""]))


@pytest.mark.parametrize(
    "payload",
    [
        b'{"a": 1} {"b": 2}',
        b'{"a": NaN}',
        b'{"a": 1',
        b'"\xff"',
        b"",
        b"[" * 2000 + b"]" * 2000,
        b'{"choices": [{"delta": {"content": "\\ud83d"}}]}',
    ],
)
@pytest.mark.parametrize("module", DECODERS, ids=lambda module: module.__name__)
def test_what_orjson_refuses_gets_a_second_opinion(module, payload):
    framed = payload + b"\n" if module is ollama_decode else b"data: " + payload + b"\n\n"
    same_both_ways(module, framed)


def test_integers_of_a_tool_call_keep_every_digit():
    call = {"function": {"name": "f", "arguments": {"n": 2**70}}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    line = {"model": "m", "created_at": "", "message": message, "done": True, "done_reason": "stop"}
    chunks = same_both_ways(ollama_decode, json.dumps(line).encode() + b"\n")
    assert json.loads(chunks[-1].end.tool_calls[0].arguments) == {"n": 2**70}


def test_orjson_is_used_if_it_is_there(monkeypatch):
    assert _json.quickest.__wrapped__() is orjson.loads
    monkeypatch.setitem(sys.modules, "orjson", None)
    assert _json.quickest.__wrapped__() is _json.plain
