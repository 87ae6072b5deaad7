"""What MLC LLM's source says it can send and no recording has.

Files are those of mlc-ai/mlc-llm at 79d603f, below python/mlc_llm unless they say otherwise.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginekit.engine import Target
from enginekit.engines.mlc import MLC
from enginekit.engines.mlc.decode import MLCDecoder, MLCWholeDecoder, parse_calls
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineFault,
    ModelNotFound,
    StreamTruncated,
    Unauthorized,
    Unsupported,
)
from enginekit.facts.engine import ServerFacts
from enginekit.types import ChatRequest, CompletionRequest, Message, Sampling, Tool
from tests.engines.recordings import Decoded, answer, decode, play

TARGET = Target(base_url="http://server")
WEATHER = Tool(name="get_weather", parameters={"type": "object", "properties": {}})
USER = Message(role="user", content="Say hi.")


def doubled(message: str, code: int) -> bytes:
    """`create_error_response` of protocol/error_protocol.py: a JSON string that holds JSON."""
    return json.dumps(json.dumps({"object": "error", "message": message, "code": code})).encode()


REFUSALS = [  # every `create_error_response` and `BadRequestError` a request to /v1 can meet
    # protocol/openai_api_protocol.py
    (400, "System prompt at position 1 in the message list is invalid.", BadRequest),
    (400, "Non-tool message having `tool_call_id` is invalid.", BadRequest),
    (400, "Non-user message having a list of content is invalid.", BadRequest),
    (400, "Non-assistant message having `tool_calls` is invalid.", BadRequest),
    (400, "Assistant message having `tool_calls` is not supported yet.", Unsupported),
    (400, "Only 'function' tool choice is supported", BadRequest),
    (400, "Only one tool is supported when tool_choice is specified", BadRequest),
    (400, "The tool_choice function f is not found in the tools list", BadRequest),
    (400, "Invalid tool_choice value: any", BadRequest),
    (400, "Only 'function' tool type is supported", BadRequest),
    # serve/engine_utils.py
    (400, 'Request fields "best_of" are not supported right now.', BadRequest),
    (
        400,
        "Request prompt has 1025 tokens in total, larger than the model input length limit 1024.",
        ContextOverflow,
    ),
    (400, "Invalid request prompt []", BadRequest),
    # serve/entrypoints/openai_entrypoints.py
    (400, 'The requested model "x" is not served as an embedding model.', Unsupported),
    (400, 'The requested model "x" is not served.', ModelNotFound),
    (400, 'The requested model "None" is not served.', ModelNotFound),
    (400, "The request has disconnected", BadRequest),
    (500, "Embedding inference failed: out of memory", EngineFault),
]


@pytest.mark.parametrize(("status", "message", "kind"), REFUSALS)
def test_every_refusal(status: int, message: str, kind: type[Exception]) -> None:
    """The text decides, once it is out of its two layers of JSON."""
    error = MLC(TARGET).failure(status, {}, doubled(message, status), path="/v1/x")
    assert type(error) is kind
    assert message in str(error)
    assert "\\" not in str(error)


DETAILS = [  # the `ValueError`s of the validators in protocol/openai_api_protocol.py
    "Penalty value should be in range [-2, 2].",
    "Logit bias value should be in range [-100, 100], while value 101 is given for token id 1",
    '"top_logprobs" must be in range [0, 20]',
    '"logprobs" must be True to support "top_logprobs"',
    '"logprobs" must be in range [0, 5]',
    "stream must be set to True when stream_options is present",
    "DebugConfig.special_request requires stream=True",
    "DebugConfig.special_request requires include_usage in stream_options",
    "Input list must not be empty.",
]


@pytest.mark.parametrize("message", DETAILS)
def test_every_validator(message: str) -> None:
    """pydantic's list of details under 422, with where it was."""
    detail = {"type": "value_error", "loc": ["body", "n"], "msg": f"Value error, {message}"}
    error = MLC(TARGET).failure(422, {}, json.dumps({"detail": [detail]}).encode(), path="/v1/x")
    assert type(error) is BadRequest
    assert f"body.n: Value error, {message}" in str(error)


def test_the_key() -> None:
    """`verify_api_key` of serve/entrypoints/openai_entrypoints.py."""
    error = MLC(TARGET).failure(401, {}, b'{"detail":"Invalid API Key"}', path="/v1/models")
    assert type(error) is Unauthorized


# ------------------------------------------------------------------------------------ replies


def sse(*events: Any) -> bytes:
    return b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events)


DONE = b"data: [DONE]\n\n"


def text_event(text: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """A `CompletionResponse` as `process_completion_stream_output` (serve/engine_base.py) makes it."""
    choice = {"finish_reason": reason, "index": 0, "logprobs": None, "text": text, **more}
    return {"id": "cmpl-1", "choices": [choice], "created": 1, "model": None, "usage": None}


def chat_event(text: str, reason: str | None = None, index: int = 0) -> dict[str, Any]:
    """A `ChatCompletionStreamResponse`, likewise."""
    delta = {
        "content": text,
        "role": "assistant",
        "name": None,
        "tool_calls": None,
        "tool_call_id": None,
    }
    choice = {"finish_reason": reason, "index": index, "delta": delta, "logprobs": None}
    return {"id": "chatcmpl-1", "choices": [choice], "system_fingerprint": "", "usage": None}


def usage_event(prompt: int, made: int) -> dict[str, Any]:
    """The last chunk; `extra` is filled with `--enable-debug` only."""
    extra = {"ttft_s": 0.1, "decode_tokens_per_s": 3.0}
    usage = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
    return {"id": "chatcmpl-1", "choices": [], "usage": {**usage, "extra": extra}}


def test_a_preempted_completion_is_no_whole_answer() -> None:
    """`CompletionResponseChoice.finish_reason` may be `preempt` (cpp/serve/engine_actions)."""
    stream = decode(
        MLCDecoder(MLC(TARGET)), [sse(text_event("San"), text_event("", "preempt")) + DONE]
    )
    plain = decode(
        MLCWholeDecoder(MLC(TARGET)), [json.dumps(text_event("San", "preempt")).encode()]
    )
    for decoded in (stream, plain):
        assert isinstance(decoded.failure, StreamTruncated)
        assert decoded.failure.partial == "San"


def test_a_chat_that_cannot_be_written_breaks_off() -> None:
    """`abort` and `preempt` are no finish reasons of a chat: writing them raises, under way."""
    stream = decode(MLCDecoder(MLC(TARGET)), [sse(chat_event("Hel"), chat_event("lo"))])
    assert isinstance(stream.failure, StreamTruncated)
    assert stream.failure.partial == "Hello"


def test_an_answer_of_nothing_at_all() -> None:
    """`completion_stream_generator` sends the end mark alone when there was no first chunk."""
    assert isinstance(decode(MLCDecoder(MLC(TARGET)), [DONE]).failure, StreamTruncated)


def test_choices_end_one_by_one_and_the_counts_are_of_all() -> None:
    """A choice without news is left out of its event (`process_chat_completion_stream_output`)."""
    body = sse(
        chat_event("a"),
        chat_event("b", "stop", 1),
        chat_event("c", "length"),
        usage_event(3, 4),
    )
    read = decode(MLCDecoder(MLC(TARGET), choices=2), [body + DONE])
    assert read.end is not None
    assert (read.text, read.end.finish_reason) == ("ac", "length")
    assert read.end.usage is not None
    assert read.end.usage.completion_tokens == 4
    missing = decode(MLCDecoder(MLC(TARGET), choices=2), [body.replace(b'"stop"', b"null") + DONE])
    assert isinstance(missing.failure, StreamTruncated)


def test_logprobs_of_completions() -> None:
    """`CompletionLogProbs`: one object per token with its alternatives, no offsets."""
    logprobs = {
        "text_offset": None,
        "token_logprobs": [-0.5, -1.0],
        "tokens": ["a", "b"],
        "top_logprobs": [{"a": -0.5, "x": -2.0}, {}],
    }
    body = json.dumps(text_event("ab", "stop", logprobs=logprobs)).encode()
    (chunk, _) = decode(MLCWholeDecoder(MLC(TARGET)), [body]).chunks
    assert [(entry.token, entry.logprob) for entry in chunk.logprobs or ()] == [
        ("a", -0.5),
        ("b", -1.0),
    ]
    assert [len(entry.top) for entry in chunk.logprobs or ()] == [2, 0]


def test_the_echo_comes_first_and_has_no_finish_reason() -> None:
    """`echo_response` of `process_completion_request`; usage null until the last event."""
    request = CompletionRequest(model="m", prompt="San", echo=True)
    encoded = MLC(TARGET, facts=ServerFacts()).encode(request, stream=True)
    body = sse(text_event("San"), text_event(" Jose", "length"), usage_event(1, 1))
    read = decode(encoded.decoder(), [body + DONE])
    assert read.text == "San Jose"
    assert isinstance(decode(encoded.decoder(), [sse(text_event("San"))]).failure, StreamTruncated)


# ------------------------------------------------------------------------------------ tools


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("['f(a=1)', 'g()']", ["f", "g"]),
        ("['f(a=\"x\")']", ["f"]),
        ('["f(a=1)"]', ["f"]),
        ("['f(a=1)'", None),
        ("[f(a=1)]", None),
        ("[__import__('os')]", None),
        ("['f()', 3]", None),
        ("[]", None),
        ("[" * 10000, None),
    ],
)
def test_lists_of_calls(text: str, names: list[str] | None) -> None:
    """The server reads them with `ast.literal_eval` (`convert_function_str_to_json`): Python
    quotes will do."""
    found = parse_calls(text)
    assert (found and [name for name, _, _ in found]) == names


def tools_stream(text: str, prompt: int, made: int, window: int | None) -> Decoded:
    facts = ServerFacts(context_window=window)
    request = ChatRequest(model="m", messages=(USER,), tools=(WEATHER,), sampling=Sampling())
    encoded = MLC(TARGET, facts=facts, options={"native_tools": True}).encode(request)
    body = sse(*map(chat_event, text), chat_event("", "tool_calls"), usage_event(prompt, made))
    return decode(encoded.decoder(), [body + DONE])


def test_a_list_in_python_quotes_is_held_back_and_read() -> None:
    read = tools_stream("['get_weather(city=\"Rome\")']", 10, 9, None)
    assert read.text == ""
    assert read.end is not None
    assert [(call.name, call.parsed()) for call in read.end.tool_calls] == [
        ("get_weather", {"city": "Rome"})
    ]


@pytest.mark.parametrize(("made", "reason"), [(53, "stop"), (54, "length")])
def test_an_answer_to_tools_that_filled_the_window_was_cut(made: int, reason: str) -> None:
    """`tool_calls` whatever ended it; at prompt + answer = window the engine ends every answer
    (cpp/serve/request_state.cc)."""
    read = tools_stream("It is sunny", 10, made, 64)
    assert read.end is not None
    assert read.end.finish_reason == reason
    unknown = tools_stream("It is sunny", 10, made, None)
    assert unknown.end is not None
    assert unknown.end.finish_reason == "stop"


def test_models_for_chat_and_for_embeddings_are_listed_together() -> None:
    """`ServerContext.get_model_list` (serve/server/server_context.py)."""
    listed = [{"id": name, "object": "model", "owned_by": "MLC-LLM"} for name in ("a", "b")]
    facts = play(
        MLC(TARGET).probe(), {"GET /v1/models": answer({"object": "list", "data": listed})}
    )
    assert [card.id for card in facts.models] == ["a", "b"]
