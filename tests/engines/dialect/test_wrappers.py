"""Decoders around decoders: stops, thinking, prefill, lifted calls, wherever the text is cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st

from enginekit.engine import Target
from enginekit.engines._emulate import LiftedCall, LiftedString, as_text, call_schema, call_text
from enginekit.engines._openai_decode import OpenAIDecoder, OpenAIWholeDecoder
from enginekit.engines._think import AnswerInReasoning, ThinkSplitter
from enginekit.engines._wrap import Echo, FirstCallOnly, Inner, PrefixStrip, StopCutter, TokenLimit
from enginekit.engines.vllm import VLLM
from enginekit.errors import BadOutput, StreamTruncated
from enginekit.types import Message, Tool, ToolCall
from tests.engines.recordings import Decoded, decode

ENGINE = VLLM(Target(base_url="http://server"))
Wrap = Callable[[Inner], Any]


def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n"


USAGE = {"prompt_tokens": 1, "completion_tokens": 9, "total_tokens": 10}
LAST = b"data: " + json.dumps({"id": "x", "choices": [], "usage": USAGE}).encode() + b"\n\n"


def stream(
    texts: Sequence[str], wrap: Wrap, *, finish: str = "stop", key: str = "content"
) -> Decoded:
    """One event a piece, each fed by itself, through the wrapped decoder."""
    pieces = [event({key: text}) for text in texts]
    pieces += [event({}, finish), LAST, b"data: [DONE]\n\n"]
    return decode(wrap(OpenAIDecoder(ENGINE)), pieces)


def whole(text: str, wrap: Wrap, *, finish: str = "stop") -> Decoded:
    """The same text as a plain reply."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    body = json.dumps({"id": "x", "choices": [choice], "usage": USAGE}).encode()
    return decode(wrap(OpenAIWholeDecoder(ENGINE)), [body])


def pieces_of(text: str, cuts: Sequence[int]) -> list[str]:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(places)] or [""]


def given(**strategies: Any) -> Callable[[Any], Any]:
    """`hypothesis.given` without a deadline: two busy cores make any deadline a lie."""
    return lambda test: settings(deadline=None, max_examples=60)(
        hypothesis_given(**strategies)(test)
    )


cuts = st.lists(st.integers(0, 80), max_size=8)


# ------------------------------------------------------------------------------------ stops


@given(
    text=st.text("abX<>", max_size=30),
    stops=st.lists(st.text("abX<>", min_size=1, max_size=4), min_size=1, max_size=5),
    cuts=cuts,
)
def test_stop_strings_cut_as_if_the_text_were_whole(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    """However the text arrives: everything before the stop string that is complete first."""
    places = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(places)[1]] if places else text
    for decoded in (
        stream(pieces_of(text, cuts), lambda inner: StopCutter(inner, stops)),
        whole(text, lambda inner: StopCutter(inner, stops)),
    ):
        assert decoded.failure is None
        assert decoded.text == expected
        assert decoded.end is not None
        assert decoded.end.finish_reason == "stop"
        assert bool(decoded.end.repairs) == bool(places)


def test_a_stop_ends_the_reading_at_once() -> None:
    """The rest is not waited for, and the receipt says that the counts were not."""
    decoded = stream(["one two", " three", " four"], lambda inner: StopCutter(inner, [" th"]))
    assert decoded.text == "one two"
    assert decoded.end is not None
    assert decoded.end.usage is None
    assert "' th'" in decoded.end.repairs[0]
    assert "not waited for" in decoded.end.repairs[0]


def test_held_back_text_comes_out_when_the_stream_breaks() -> None:
    """Text that might have become a stop string is not lost with the connection."""
    decoder = StopCutter(OpenAIDecoder(ENGINE), ["STOP"])
    decoded = decode(decoder, [event({"content": "text ST"})])
    assert isinstance(decoded.failure, StreamTruncated)
    assert decoded.text == "text ST"


def test_token_limit_counts_chunks() -> None:
    """The limit ends the reply with `length`; a reply that ends by itself is left alone."""
    cut = stream(["a", "b", "c"], lambda inner: TokenLimit(inner, 2))
    assert (cut.text, cut.end and cut.end.finish_reason) == ("ab", "length")
    free = stream(["a", "b"], lambda inner: TokenLimit(inner, 3))
    assert (free.text, free.end and free.end.finish_reason) == ("ab", "stop")


# ------------------------------------------------------------------------------------ thinking


@given(cuts=cuts)
@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\nGreet them.</think>\n\nHello", "Greet them.", "Hello"),
        ("\n<think>a < b </th> c</think>d", "a < b </th> c", "d"),
        ("<think></think>Hi", "", "Hi"),
        ("<think>\n\n</think>\n\nHi <think>no</think>", "", "Hi <think>no</think>"),
        ("<think>cut in the mid", "cut in the mid", ""),
        ("The tag <think> is text", "", "The tag <think> is text"),
        ("<thinking>", "", "<thinking>"),
        ("  plain", "", "  plain"),
        ("<th", "", "<th"),
    ],
)
def test_think_tags(text: str, reasoning: str, answer: str, cuts: list[int]) -> None:
    """A leading block is reasoning wherever the bytes were cut; anything else is text."""
    for decoded in (stream(pieces_of(text, cuts), ThinkSplitter), whole(text, ThinkSplitter)):
        assert (decoded.reasoning, decoded.text) == (reasoning, answer)
        assert decoded.end is not None
        assert bool(decoded.end.repairs) == text.lstrip().startswith("<think>")


def test_a_server_that_splits_by_itself_is_left_alone() -> None:
    """After the server's own reasoning a tag in the text is text."""
    pieces = [event({"reasoning": "hm"}), event({"content": "<think>x"}), event({}, "stop")]
    decoded = decode(ThinkSplitter(OpenAIDecoder(ENGINE)), pieces)
    assert (decoded.reasoning, decoded.text) == ("hm", "<think>x")


def test_an_answer_that_is_all_reasoning_is_given_as_text() -> None:
    """vLLM's reasoning parsers take a reply without tags for thinking: a declared repair."""
    decoded = stream(["Hello", " there"], AnswerInReasoning, key="reasoning")
    assert decoded.text == "Hello there"
    assert decoded.end is not None
    assert "whole answer for thinking" in decoded.end.repairs[0]
    assert stream(["Hm"], AnswerInReasoning, key="reasoning", finish="length").text == ""


# ------------------------------------------------------------------------------------ prefill


@given(cuts=cuts, prefix=st.text("Hi th", max_size=6))
def test_prefill_is_taken_back(cuts: list[int], prefix: str) -> None:
    """The text that the server repeats is cut off, and only if it is really there."""
    for answer, expected in ((prefix + "ere", "ere"), ("XX" + prefix, "XX" + prefix)):
        decoded = stream(pieces_of(answer, cuts), lambda inner: PrefixStrip(inner, prefix))
        assert decoded.text == (expected if prefix else answer)


def test_echo_puts_the_prompt_in_front() -> None:
    """Once, and also when the model says nothing."""
    assert stream(["b", "c"], lambda inner: Echo(inner, "a")).text == "abc"
    assert stream([], lambda inner: Echo(inner, "a")).text == "a"


# ------------------------------------------------------------------------------------ calls


def test_first_call_only() -> None:
    """Further calls are dropped, and the receipt says how many."""
    calls = [
        {"index": i, "id": f"c{i}", "function": {"name": "f", "arguments": "{}"}} for i in range(3)
    ]
    pieces = [event({"tool_calls": [call]}) for call in calls] + [event({}, "tool_calls"), LAST]
    decoded = decode(FirstCallOnly(OpenAIDecoder(ENGINE)), pieces)
    assert decoded.calls == [("f", "{}")]
    assert decoded.end is not None
    assert [call.id for call in decoded.end.tool_calls] == ["c0"]
    assert decoded.end.repairs[0].startswith("2 further tool calls dropped")


def lifted(inner: Inner) -> LiftedCall:
    return LiftedCall(inner, ENGINE, {"f", "g"}, turn=3)


def lifted_or_answer(inner: Inner) -> LiftedCall:
    return LiftedCall(inner, ENGINE, {"f", "g"}, turn=3, answer=True)


ARGUMENTS = '{"city": "R\\"}o{m\\\\e", "list": [{"a": 1}], "é": "\\u00e9"}'


@given(cuts=cuts)
@pytest.mark.parametrize("space", ["", " ", "\n  "])
def test_a_call_is_lifted_wherever_the_text_is_cut(space: str, cuts: list[int]) -> None:
    """Braces and quotes inside strings do not end the arguments; white space may be anywhere."""
    text = (
        f'{space}{{{space}"name"{space}:{space}"f",{space}"arguments":{space}{ARGUMENTS}{space}}}'
    )
    for wrap in (lifted, lifted_or_answer):
        decoded = stream(pieces_of(text, cuts), wrap)
        assert decoded.failure is None
        assert decoded.text == ""
        assert decoded.calls == [("f", ARGUMENTS)]
        assert decoded.end is not None
        call = decoded.end.tool_calls[0]
        assert (call.name, call.arguments, call.problem) == ("f", ARGUMENTS, None)
        assert decoded.end.finish_reason == "tool_calls"
        assert decoded.end.usage is not None


@given(cuts=cuts, answer=st.text(max_size=20))
def test_an_answer_is_lifted_wherever_the_text_is_cut(answer: str, cuts: list[int]) -> None:
    """Escapes, surrogate pairs included, survive any cut."""
    for text in (
        json.dumps({"answer": answer}),
        json.dumps({"answer": answer}, ensure_ascii=False),
    ):
        decoded = stream(pieces_of(text, cuts), lifted_or_answer)
        assert decoded.failure is None
        assert decoded.text == answer
        assert decoded.calls == []


def test_arguments_stream_as_they_come() -> None:
    """The caller sees the arguments grow, not one piece at the end."""
    texts = ['{"name": "f", "arg', 'uments": {"a"', ": 1", "}}"]
    decoded = stream(texts, lifted)
    pieces = [delta.arguments for chunk in decoded.chunks for delta in chunk.tool_calls]
    assert pieces == ['{"a"', ": 1", "}"]


def test_keys_in_another_order_are_read_at_the_end() -> None:
    """A server that does not keep the order of the schema costs the streaming only."""
    decoded = stream(['{"arguments": {"a": 1},', ' "name": "g"}'], lifted)
    assert decoded.calls == [("g", '{"a": 1}')]


@pytest.mark.parametrize(
    "text", ["{}", "", "Hello", '{"name": "f"}', '{"name": "h", "arguments": {}}', "[]"]
)
def test_no_call_where_one_was_required_is_bad_output(text: str) -> None:
    """Whatever it is instead, it is never an answer; the error holds the text."""
    decoded = stream([text], lifted)
    assert isinstance(decoded.failure, BadOutput)
    assert decoded.failure.partial == text
    assert decoded.end is None
    assert "max_tokens" not in (decoded.failure.hint or "")


def test_a_call_cut_by_the_token_limit() -> None:
    """Before the name: BadOutput with the hint. After it: a call that says it is broken."""
    early = stream(['{"na'], lifted, finish="length")
    assert isinstance(early.failure, BadOutput)
    assert early.failure.hint == "raise max_tokens"
    late = stream(['{"name": "f", "arguments": {"a": '], lifted, finish="length")
    assert late.end is not None
    assert late.end.finish_reason == "length"
    assert "token limit" in (late.end.tool_calls[0].problem or "")
    padded = stream(['{"name": "f", "arguments": {}', "   "], lifted, finish="length")
    assert padded.end is not None
    assert padded.end.tool_calls[0].problem is None


@given(cuts=cuts, value=st.text(max_size=20))
def test_a_json_string_loses_its_quotes(value: str, cuts: list[int]) -> None:
    """What a pattern in a schema gives is a JSON string: the caller gets the text."""
    assert stream(pieces_of(json.dumps(value), cuts), string_of()).text == value


def string_of(*choices: str) -> Wrap:
    return lambda inner: LiftedString(inner, ENGINE, choices=choices, hint="do this")


@given(cuts=cuts, text=st.sampled_from(["Hello there!", ' {"a": 1}', '"green"', '"re', ""]))
def test_what_is_no_allowed_json_string_is_no_answer(text: str, cuts: list[int]) -> None:
    """A server that does not apply the schema answers in prose: not one letter of it passes."""
    decoded = stream(pieces_of(text, cuts), string_of("red", "blue"))
    assert isinstance(decoded.failure, BadOutput)
    assert decoded.failure.hint == "do this"
    assert decoded.end is None
    if not text.startswith('"'):
        assert decoded.text == ""


def test_a_choice_that_the_limit_cut_is_what_came() -> None:
    """`length` says that it is not whole."""
    assert stream(['"bl'], string_of("red", "blue"), finish="length").text == "bl"


# ------------------------------------------------------------------------------------ schemas


def test_the_schema_of_one_call() -> None:
    """One tool needs no anyOf; the name comes first, so that arguments can stream."""
    schema = call_schema([Tool(name="f", parameters={"properties": {"a": {"type": "integer"}}})])
    assert list(schema["properties"]) == ["name", "arguments"]
    assert schema["properties"]["name"] == {"const": "f"}
    assert schema["properties"]["arguments"]["type"] == "object"
    assert schema["required"] == ["name", "arguments"]
    assert schema["additionalProperties"] is False


def test_definitions_move_to_the_root() -> None:
    """`#/$defs/…` of a tool's own schema would point into nothing below another root."""
    parameters = {
        "type": "object",
        "properties": {"p": {"$ref": "#/$defs/P"}, "q": {"items": [{"$ref": "#/definitions/Q"}]}},
        "$defs": {"P": {"properties": {"next": {"$ref": "#/$defs/P"}}}},
        "definitions": {"Q": {"type": "string"}},
    }
    schema = call_schema([Tool(name="f", parameters=parameters), Tool(name="g")], answer=True)
    arguments = schema["anyOf"][0]["properties"]["arguments"]
    assert arguments["properties"]["p"] == {"$ref": "#/$defs/f.P"}
    assert arguments["properties"]["q"] == {"items": [{"$ref": "#/$defs/f.Q"}]}
    assert schema["$defs"] == {
        "f.P": {"properties": {"next": {"$ref": "#/$defs/f.P"}}},
        "f.Q": {"type": "string"},
    }
    assert len(schema["anyOf"]) == 3


def test_tools_are_described_and_history_is_told() -> None:
    """For a template that knows no tools, all of it is text."""
    text = call_text([Tool(name="add", description="Adds.")])
    assert '"name": "add"' in text
    assert "Adds." in text
    told = as_text(
        [
            Message(role="assistant", tool_calls=(ToolCall(id="1", name="f", arguments="{}"),)),
            Message(role="tool", content="42", tool_name="f"),
            Message(role="tool", content="boom", tool_name="f", tool_error=True),
        ]
    )
    assert [(message.role, message.content) for message in told] == [
        ("assistant", '{"name": "f", "arguments": {}}'),
        ("user", "Result of f: 42"),
        ("user", "Error from f: boom"),
    ]
