"""Replies and chunks become LangChain messages that survive being merged."""

from __future__ import annotations

import functools
import json
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessageChunk
from langchain_core.utils.json import parse_partial_json

from enginekit.langchain._replies import ChunkWriter, compact_receipt, to_result, unmendable
from enginekit.types import (
    Chunk,
    End,
    Entry,
    Receipt,
    Reply,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)


def receipt() -> Receipt:
    return Receipt(
        engine="llamacpp",
        engine_version="b1",
        url="http://127.0.0.1:8080",
        entries=[
            Entry("messages", "sent", "r.messages", "messages"),
            Entry("sampling.max_tokens", "translated", "r.max", "n_predict"),
            Entry("tool_choice", "emulated", "r.choice", "response_format", "by a schema"),
            Entry("sampling.top_k", "omitted", "r.top_k", "", "no such field"),
        ],
        defaults={"temperature": 0.8},
    )


def end(**more: Any) -> End:
    return End(
        **{
            "finish_reason": "stop",
            "raw_finish_reason": "eos",
            "usage": Usage(7, 5, 12, cached_tokens=3, reasoning_tokens=2),
            "timings": Timings(prompt=0.25, generation=1.5),
            "model": "served-name",
            "id": "chatcmpl-1",
            "system_fingerprint": "fp",
            **more,
        }
    )


def written(*chunks: Chunk) -> list[AIMessageChunk]:
    writer = ChunkWriter(receipt(), model="asked-name", with_receipt=True)
    return [made.message for chunk in chunks for made in writer.write(chunk)]  # type: ignore[misc]


def merged(*chunks: Chunk) -> AIMessageChunk:
    return functools.reduce(operator.add, written(*chunks))


# ---------------------------------------------------------------------------------- whole replies


def test_a_whole_reply_carries_everything_we_know() -> None:
    reply = Reply(
        text="Hello",
        reasoning="greet",
        end=end(),
        receipt=receipt(),
        logprobs=(TokenLogprob("Hello", -0.5, b"Hello", 1, (TokenLogprob("Hi", -1.0),)),),
        alternatives=("Hi",),
    )
    first, second = to_result(reply, model="asked", with_receipt=True).generations
    message: Any = first.message
    assert message.content == "Hello"
    assert message.additional_kwargs == {"reasoning_content": "greet"}
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]
    assert message.usage_metadata == {
        "input_tokens": 7,
        "output_tokens": 5,
        "total_tokens": 12,
        "input_token_details": {"cache_read": 3},
        "output_token_details": {"reasoning": 2},
    }
    metadata = message.response_metadata
    assert metadata["model_name"] == "served-name"
    assert metadata["model_provider"] == "enginekit"
    assert (metadata["finish_reason"], metadata["raw_finish_reason"]) == ("stop", "eos")
    assert (metadata["engine"], metadata["engine_version"]) == ("llamacpp", "b1")
    assert (metadata["id"], metadata["system_fingerprint"]) == ("chatcmpl-1", "fp")
    assert metadata["timings"] == {"prompt": 0.25, "generation": 1.5}
    assert metadata["logprobs"]["content"][0] == {
        "token": "Hello",
        "logprob": -0.5,
        "bytes": [72, 101, 108, 108, 111],
        "top_logprobs": [{"token": "Hi", "logprob": -1.0, "bytes": None}],
    }
    assert second.text == "Hi"


def test_the_receipt_is_grouped_by_outcome_and_json_able() -> None:
    made = compact_receipt(receipt())
    assert json.loads(json.dumps(made)) == made
    assert made == {
        "engine": "llamacpp",
        "url": "http://127.0.0.1:8080",
        "sent": ["messages"],
        "translated": {"sampling.max_tokens": "n_predict"},
        "emulated": {"tool_choice": "by a schema"},
        "omitted": {"sampling.top_k": "no such field"},
        "defaults": {"temperature": 0.8},
    }


def test_what_enginekit_itself_needs_on_the_wire_is_told_apart() -> None:
    made = Receipt(engine="x")
    made.entries.append(Entry("-", "sent", "x.stream", "stream"))
    assert compact_receipt(made) == {"engine": "x", "url": "", "sent": [], "added": ["stream"]}


def test_broken_arguments_are_an_invalid_call_and_never_an_empty_one() -> None:
    good = ToolCall(id="c1", name="add", arguments='{"a": 1}')
    empty = ToolCall(id="c2", name="now", arguments="")
    broken = ToolCall(id="c3", name="add", arguments='{"a": ', problem="cut")
    reply = Reply(text="", end=end(), receipt=receipt(), tool_calls=(good, empty, broken))
    message: Any = to_result(reply, model="m", with_receipt=False).generations[0].message
    assert [(c["id"], c["args"]) for c in message.tool_calls] == [("c1", {"a": 1}), ("c2", {})]
    (invalid,) = message.invalid_tool_calls
    assert (invalid["id"], invalid["args"], invalid["error"]) == ("c3", '{"a": ', "cut")
    assert "receipt" not in message.response_metadata


# ---------------------------------------------------------------------------------- streams


def test_scalars_and_usage_come_once_on_the_last_chunk() -> None:
    chunks = written(Chunk(text="Hel"), Chunk(text="lo"), Chunk(end=end()))
    assert [chunk.content for chunk in chunks] == ["Hel", "lo", ""]
    assert [chunk.chunk_position for chunk in chunks] == [None, None, "last"]
    assert [bool(chunk.response_metadata) for chunk in chunks] == [False, False, True]
    assert [chunk.usage_metadata is not None for chunk in chunks] == [False, False, True]
    total = functools.reduce(operator.add, chunks)
    assert total.content == "Hello"
    assert total.response_metadata["model_name"] == "served-name"
    assert total.usage_metadata is not None
    assert total.usage_metadata["total_tokens"] == 12


def test_reasoning_pieces_add_up() -> None:
    total = merged(Chunk(reasoning="2+"), Chunk(reasoning="2"), Chunk(text="4"), Chunk(end=end()))
    assert total.additional_kwargs == {"reasoning_content": "2+2"}
    assert [b["type"] for b in total.content_blocks] == ["reasoning", "text"]


def test_logprobs_of_pieces_add_up() -> None:
    total = merged(
        Chunk(text="a", logprobs=(TokenLogprob("a", -0.1),)),
        Chunk(text="b", logprobs=(TokenLogprob("b", -0.2),)),
        Chunk(end=end()),
    )
    rows = total.response_metadata["logprobs"]["content"]
    assert [row["token"] for row in rows] == ["a", "b"]


def test_parallel_calls_of_one_tool_stay_apart() -> None:
    calls = tuple(ToolCall(id=f"c{i}", name="add", arguments=f'{{"a": {i}}}') for i in range(2))
    total = merged(
        Chunk(tool_calls=(ToolCallDelta(0, "c0", "add", '{"a"'),)),
        Chunk(tool_calls=(ToolCallDelta(1, "c1", "add", '{"a": 1}'),)),
        Chunk(tool_calls=(ToolCallDelta(0, None, None, ": 0}"),)),
        Chunk(end=end(tool_calls=calls)),
    )
    assert [(c["id"], c["name"], c["args"]) for c in total.tool_calls] == [
        ("c0", "add", {"a": 0}),
        ("c1", "add", {"a": 1}),
    ]
    assert {piece["index"] for piece in total.tool_call_chunks} == {1000, 1001}


def test_text_and_a_tool_piece_of_one_event_are_two_chunks() -> None:
    chunks = written(Chunk(text="so: ", tool_calls=(ToolCallDelta(0, "c", "f", ""),)))
    assert [(c.content, len(c.tool_call_chunks)) for c in chunks] == [("so: ", 0), ("", 1)]


def test_calls_that_come_only_with_the_end_are_streamed_too() -> None:
    call = ToolCall(id="c1", name="add", arguments='{"a": 1}')
    total = merged(Chunk(end=end(tool_calls=(call,))))
    assert [(c["id"], c["args"]) for c in total.tool_calls] == [("c1", {"a": 1})]


CUT = [
    "",
    "{",
    '{"a',
    '{"a": "x',
    '{"a": "x\\',
    '{"a": [1, {"b": 2',
    '{"a": [1, 2',
    '{"a": 1}',
    '{"a": "}"',
    "not json",
]


@pytest.mark.parametrize("arguments", CUT)
def test_a_cut_call_stays_invalid_after_merging(arguments: str) -> None:
    """LangChain repairs partial JSON: without care `{"a": "x` would become a valid call."""
    total = merged(
        Chunk(tool_calls=(ToolCallDelta(0, "c1", "add", arguments),)),
        Chunk(
            end=end(
                finish_reason="length",
                tool_calls=(ToolCall(id="c1", name="add", arguments=arguments, problem="cut"),),
            )
        ),
    )
    assert total.tool_calls == []
    assert [call["id"] for call in total.invalid_tool_calls] == ["c1"]


@given(st.text(alphabet='{}[]":,\\ a1', max_size=30))
def test_no_arguments_at_all_can_be_mended_once_spoilt(arguments: str) -> None:
    spoilt = arguments + unmendable(arguments)
    try:
        repaired = parse_partial_json(spoilt)
    except ValueError:
        return
    assert not isinstance(repaired, dict), f"{spoilt!r} was repaired to {repaired!r}"


def test_only_the_broken_one_of_two_calls_is_spoilt() -> None:
    whole = ToolCall(id="c0", name="add", arguments='{"a": 0}')
    cut = ToolCall(id="c1", name="add", arguments='{"a": ', problem="cut")
    total = merged(
        Chunk(tool_calls=(ToolCallDelta(2, "c0", "add", '{"a": 0}'),)),
        Chunk(tool_calls=(ToolCallDelta(5, "c1", "add", '{"a": '),)),
        Chunk(end=end(finish_reason="length", tool_calls=(whole, cut))),
    )
    assert [c["id"] for c in total.tool_calls] == ["c0"]
    assert [c["id"] for c in total.invalid_tool_calls] == ["c1"]


def test_repairs_that_the_end_reports_are_in_the_streams_receipt() -> None:
    total = merged(Chunk(text="a"), Chunk(end=end(usage=None, repairs=("usage lost",))))
    assert total.response_metadata["receipt"]["repairs"] == ["usage lost"]
    assert total.usage_metadata is None
