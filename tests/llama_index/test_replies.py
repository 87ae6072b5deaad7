"""Replies and chunks become LlamaIndex responses; nothing is lost, broken JSON stays broken."""

from __future__ import annotations

import pytest
from llama_index.core.base.llms.types import TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.llms import ChatMessage, ChatResponse

from enginekit.llama_index import BadReply, EngineKitLLM
from enginekit.llama_index import _replies as replies
from enginekit.types import (
    Chunk,
    End,
    Receipt,
    Reply,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)

USAGE = Usage(prompt_tokens=7, completion_tokens=5, total_tokens=12, reasoning_tokens=2)
END = End(finish_reason="stop", raw_finish_reason="stop", usage=USAGE, model="tiny", id="1")


def receipt() -> Receipt:
    return Receipt(engine="vllm", engine_version="0.32", url="http://x")


def write(*chunks: Chunk) -> list[ChatResponse]:
    writer = replies.StreamWriter(receipt(), "tiny", with_receipt=True)
    return [writer.write(chunk) for chunk in chunks]


def test_unchecked_objects_equal_checked_ones_on_this_version() -> None:
    """Else streams silently take the slow way; a new llama-index-core must be looked at."""
    assert replies._make is replies._unchecked
    assert replies.same_object(
        replies._builder(replies._unchecked), replies._builder(replies._checked)
    )


def test_a_difference_would_be_noticed() -> None:
    one = replies._builder(replies._unchecked)
    one.message.__dict__.pop("additional_kwargs")
    assert not replies.same_object(one, replies._builder(replies._checked))


def test_stream_objects_survive_copy_dump_and_validation() -> None:
    for response in write(Chunk(text="a", reasoning="b"), Chunk(end=END)):
        assert ChatResponse.model_validate(response.model_dump()).message == response.message
        assert response.model_copy(deep=True) == response
        assert str(response.message) == "assistant: a"
        response.message.blocks = [TextBlock(text="changed")]
        assert response.message.content == "changed"


def test_earlier_responses_do_not_change_when_later_ones_come() -> None:
    first, second, last = write(
        Chunk(reasoning="x"), Chunk(text="a", reasoning="y"), Chunk(end=END)
    )
    assert [b.content for b in first.message.blocks if isinstance(b, ThinkingBlock)] == ["x"]
    assert [b.content for b in second.message.blocks if isinstance(b, ThinkingBlock)] == ["xy"]
    assert first.message.content == ""
    assert last.message.content == "a"
    assert last.message.blocks[0] == ThinkingBlock(content="xy", num_tokens=2)


def test_raw_of_the_last_item() -> None:
    last = write(Chunk(text="a"), Chunk(end=END))[-1]
    assert last.delta == ""
    assert last.raw["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "reasoning_tokens": 2,
    }
    assert (last.raw["model"], last.raw["engine"], last.raw["id"]) == ("tiny", "vllm", "1")
    assert last.raw["receipt"]["engine_version"] == "0.32"
    assert last.additional_kwargs["total_tokens"] == 12


def test_usage_that_was_lost_is_not_invented() -> None:
    end = End(finish_reason="stop", repairs=("usage lost: …",))
    last = write(Chunk(text="a"), Chunk(end=end))[-1]
    assert "usage" not in last.raw
    assert last.additional_kwargs == {}
    assert last.raw["receipt"]["repairs"] == ["usage lost: …"]


def test_text_that_comes_with_the_end_is_kept() -> None:
    """A server may put its last text and the finish reason into one event."""
    last = write(Chunk(text="a"), Chunk(text="b", reasoning="r", end=END))[-1]
    assert (last.delta, last.message.content) == ("b", "ab")
    assert last.additional_kwargs["thinking_delta"] == "r"


def test_logprobs_are_cumulative_and_take_the_alternatives() -> None:
    plain = TokenLogprob(token="a", logprob=-0.5)
    top = TokenLogprob(token="é", logprob=-1.0, top=(plain, TokenLogprob(token="é", logprob=-1.0)))
    first, second, last = write(
        Chunk(text="a", logprobs=(plain,)), Chunk(text="é", logprobs=(top,)), Chunk(end=END)
    )
    assert first.logprobs is not None
    assert second.logprobs is not None
    assert [len(place) for place in first.logprobs] == [1]
    assert [len(place) for place in second.logprobs] == [1, 2]
    assert second.logprobs[1][1].bytes == list("é".encode())
    assert last.logprobs == second.logprobs


def test_alternatives_of_n_are_in_raw() -> None:
    reply = Reply(text="a", end=END, receipt=receipt(), alternatives=("b", "c"))
    assert replies.chat_response(reply, "m", with_receipt=False).raw["alternatives"] == ["b", "c"]


# ---------------------------------------------------------------------------------- tool calls


LLM = EngineKitLLM(engine="vllm", model="tiny")


def call_stream(*pieces: str, finish: str = "tool_calls") -> list[ChatResponse]:
    deltas = [
        ToolCallDelta(0, "c1" if n == 0 else None, "f" if n == 0 else None, piece)
        for n, piece in enumerate(pieces)
    ]
    text = "".join(pieces)
    from enginekit.engines._decoder import arguments_problem

    problem = arguments_problem(text)
    if finish == "length":
        problem = "the reply was cut by the token limit inside this call"
    end = End(
        finish_reason=finish,  # type: ignore[arg-type]
        usage=USAGE,
        tool_calls=(ToolCall(id="c1", name="f", arguments=text, problem=problem),),
    )
    return write(*(Chunk(tool_calls=(delta,)) for delta in deltas), Chunk(end=end))


def test_partial_calls_are_read_as_far_as_they_go() -> None:
    responses = call_stream("", '{"a": "x', 'y", "b": [1', ", 2]}")
    seen = [
        [c.tool_kwargs for c in LLM.get_tool_calls_from_response(r, error_on_no_tool_call=False)]
        for r in responses
    ]
    assert seen == [
        [{}],
        [{"a": "x"}],
        [{"a": "xy", "b": [1]}],
        [{"a": "xy", "b": [1, 2]}],
        [{"a": "xy", "b": [1, 2]}],
    ]
    ids = {
        c.tool_id
        for r in responses
        for c in LLM.get_tool_calls_from_response(r, error_on_no_tool_call=False)
    }
    assert ids == {"c1"}


@pytest.mark.parametrize(
    ("pieces", "finish"),
    [
        (('{"a": "x',), "tool_calls"),
        (('{"a": "x',), "length"),
        (('{"a": "x"}',), "length"),
        (("[1, 2]",), "tool_calls"),
        (("not json",), "stop"),
    ],
    ids=["half", "half, cut", "whole, yet cut", "a list", "no JSON"],
)
@pytest.mark.parametrize("must", [True, False])
def test_broken_arguments_never_become_an_empty_call(
    pieces: tuple[str, ...], finish: str, must: bool
) -> None:
    last = call_stream(*pieces, finish=finish)[-1]
    with pytest.raises(BadReply, match="'f'") as caught:
        LLM.get_tool_calls_from_response(last, error_on_no_tool_call=must)
    assert caught.value.partial == "".join(pieces)
    assert isinstance(caught.value, ValueError), "LlamaIndex's callers catch ValueError"
    (block,) = [b for b in last.message.blocks if isinstance(b, ToolCallBlock)]
    assert block.tool_kwargs == "".join(pieces), "what the model wrote is still there"


def test_no_call_at_all() -> None:
    answer = ChatResponse(message=ChatMessage(role="assistant", content="no"), raw={})
    assert LLM.get_tool_calls_from_response(answer, error_on_no_tool_call=False) == []
    with pytest.raises(BadReply, match="at least one tool call"):
        LLM.get_tool_calls_from_response(answer)


def test_two_calls_grow_side_by_side() -> None:
    responses = write(
        Chunk(text="hm"),
        Chunk(tool_calls=(ToolCallDelta(0, "a", "f", '{"x"'),)),
        Chunk(tool_calls=(ToolCallDelta(0, None, None, ": 1}"), ToolCallDelta(1, "b", "f", "{"))),
    )
    blocks = responses[-1].message.blocks
    assert isinstance(blocks[0], TextBlock)
    assert [
        (b.tool_call_id, b.tool_kwargs) for b in blocks[1:] if isinstance(b, ToolCallBlock)
    ] == [
        ("a", '{"x": 1}'),
        ("b", "{"),
    ]


def test_extra_calls_are_dropped_aloud() -> None:
    calls = [ToolCallBlock(tool_call_id=i, tool_name="f", tool_kwargs={}) for i in "ab"]
    message = ChatMessage(
        role="assistant",
        blocks=[TextBlock(text="t"), *calls],
        additional_kwargs={"tool_calls": [{"id": "a"}, {"id": "b"}]},
    )
    whole = ChatResponse(message=message, raw={})
    kept = LLM._validate_chat_with_tools_response(whole, [])
    assert [type(b) for b in kept.message.blocks] == [TextBlock, ToolCallBlock]
    assert kept.message.additional_kwargs["tool_calls"] == [{"id": "a"}]
    assert kept.additional_kwargs["dropped_tool_calls"] == 1
    assert len(whole.message.blocks) == 3
    assert LLM._validate_chat_with_tools_response(whole, [], True) is whole
