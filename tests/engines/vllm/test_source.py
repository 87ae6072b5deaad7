"""What vLLM's source says it can send and no recording has.

Files are those of vLLM 0.32.0, below vllm/entrypoints unless they say otherwise; older versions are
named where a text or a name is theirs.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from enginekit.engine import Answer, Budgets, Target
from enginekit.engines._openai_decode import OpenAIDecoder, OpenAIWholeDecoder
from enginekit.engines.vllm import VLLM
from enginekit.engines.vllm.facts import tool_capabilities
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineFault,
    ModelNotFound,
    Overloaded,
    StreamTruncated,
    Unsupported,
)
from enginekit.facts.engine import ServerFacts
from enginekit.operations import open_reply
from enginekit.types import UNSET, ChatRequest, Constraint, Message, Tool, ToolChoice
from tests.engines.recordings import decode, play

TARGET = Target(base_url="http://server")


def enveloped(message: str, type: str, code: int, param: str | None = None) -> bytes:
    """`ErrorResponse` of serve/engine/protocol.py."""
    error = {"message": message, "type": type, "param": param, "code": code}
    return json.dumps({"error": error}).encode()


def bare(message: str, type: str, code: int, param: str | None = None) -> bytes:
    """The same before 0.11: nothing around it."""
    error = {"object": "error", "message": message, "type": type, "param": param, "code": code}
    return json.dumps(error).encode()


ERRORS = [  # serve/exception_handling/error_response.py and vllm/exceptions.py
    (503, "ServiceUnavailableError", "Request failed; please retry", Overloaded),
    (503, "Service Unavailable", "The engine is currently busy and cannot accept", Overloaded),
    (503, "Service Unavailable", "The engine has reached its prefill token backlog", Overloaded),
    (500, "InternalServerError", "Internal server error", EngineFault),
    (500, "InternalServerError", "No output received from the engine.", EngineFault),
    (501, "NotImplementedError", "beam search is not implemented", Unsupported),
    (422, "UnprocessableEntityError", "image (parameter=image_url)", BadRequest),
    (400, "BadRequestError", "LoRA adapter 'x' was found but could not be loaded.", BadRequest),
    (400, "BadRequestError", "The decoder prompt cannot be empty", BadRequest),
    (409, "Conflict", "A profiling session is already active.", BadRequest),
    (404, "NotFoundError", "The model `x` does not exist. Valid aliases: a, b.", ModelNotFound),
]


@pytest.mark.parametrize("envelope", [enveloped, bare])
@pytest.mark.parametrize(("status", "type", "message", "kind"), ERRORS)
def test_every_kind_of_error(
    envelope: Any, status: int, type: str, message: str, kind: type[Exception]
) -> None:
    """As an answer, in the envelope of today and the older one, and as an event of a stream."""
    engine = VLLM(TARGET)
    told = envelope(message, type, status)
    error = engine.failure(status, {}, told, path="/v1/chat/completions")
    assert error.__class__ is kind
    assert message in str(error)
    event = told if envelope is enveloped else b'{"error": %s}' % told
    stream = decode(OpenAIDecoder(engine), [b"data: %s\n\ndata: [DONE]\n\n" % event])
    if status != 404:  # never inside a stream
        assert stream.failure.__class__ is kind


CONTEXT = "This model's maximum context length is 2048 tokens. "
OVERFLOWS = [
    # vllm/renderers/params.py
    (CONTEXT + "However, your prompt contains 3000 input tokens, which exceeds this", 3000),
    (CONTEXT + "However, your prompt contains at least 2049 input tokens, which exceeds", 2049),
    (
        CONTEXT + "However, your prompt contains 99999 characters (more than 16384 characters, "
        "which is the upper bound for 2048 input tokens). Please reduce the length of the input",
        None,  # characters are no tokens
    ),
    # vllm/v1/engine/input_processor.py
    (
        "The decoder prompt (length 3000) is longer than the maximum model length of 2048. Make",
        3000,
    ),
    (
        "The decoder prompt (length 2048) plus the number of requested output tokens (at least 1) "
        "is longer than the maximum model length of 2048. Make sure that `max_model_len` is",
        2048,
    ),
    # 0.10 to 0.12
    (CONTEXT + "However, your request has 3000 input tokens. Please reduce the length of", 3000),
    (
        "'max_tokens' or 'max_completion_tokens' is too large: 2040. This model's maximum context "
        "length is 2048 tokens and your request has 12 input tokens (2040 > 2048 - 12).",
        2052,
    ),
    # before
    (
        CONTEXT + "However, you requested 2500 tokens (500 in the messages, 2000 in the "
        "completion). Please reduce the length of the messages or completion.",
        2500,
    ),
    (CONTEXT + "However, you requested 3000 tokens in the messages, Please reduce", 3000),
]


@pytest.mark.parametrize(("message", "requested"), OVERFLOWS)
def test_what_does_not_fit(message: str, requested: int | None) -> None:
    """Both numbers wherever the server gives them, and never characters for tokens."""
    error = VLLM(TARGET).failure(400, {}, enveloped(message, "BadRequestError", 400))
    assert isinstance(error, ContextOverflow)
    assert (error.limit, error.requested) == (2048, requested)


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        ("0.8.5.post1", {"guided_{}"}),
        ("0.10.2", {"guided_{}"}),
        ("0.11.0", {"structured_outputs"}),
        ("0.12.0rc1", {"structured_outputs"}),
        ("0.32.0", {"structured_outputs"}),
        ("1.0.0", {"structured_outputs"}),
        (None, {"guided_{}", "structured_outputs"}),
        # Built without tags, and a server like vLLM that counts its own versions.
        ("0.1.dev1+g5cac6d5", {"guided_{}", "structured_outputs"}),
        ("0.1.2", {"guided_{}", "structured_outputs"}),
        ("0.2.7", {"guided_{}", "structured_outputs"}),
    ],
)
@pytest.mark.parametrize(
    ("kind", "value"), [("regex", "[ab]+"), ("choice", ("a", "b")), ("grammar", 'root ::= "a"')]
)
def test_what_constrains_the_text_by_version(
    version: str | None, fields: set[str], kind: Any, value: Any
) -> None:
    """`structured_outputs` came with 0.11 (pull request 22772), `guided_*` went with 0.12 (pull
    request 29326); each is ignored under 200 where it is not known."""
    engine = VLLM(TARGET, facts=ServerFacts(version=version))
    messages = (Message(role="user", content="Hi"),)
    constraint = Constraint(kind=kind, value=value)
    encoded = engine.encode(ChatRequest(model="m", messages=messages, constraint=constraint))
    body = encoded.call.json
    wanted = {field.format(kind) for field in fields}
    assert {key for key in body if key.startswith(("guided", "structured"))} == wanted
    for key in wanted:
        said = body[key] if key.startswith("guided") else body[key][kind]
        assert said == (list(value) if kind == "choice" else value)


@pytest.mark.parametrize(
    ("version", "field"),
    [
        ("0.5.5", "guided_json"),
        ("0.6.3.post1", "guided_json"),
        ("0.6.4", "response_format"),
        ("0.32.0", "response_format"),
        ("0.1.dev1+g123", "response_format"),
        ("0.1.dev11222+gabc1234.d20251101", "response_format"),
        ("0.1.2", "response_format"),
        (None, "response_format"),
    ],
)
def test_how_a_schema_goes_out_by_version(version: str | None, field: str) -> None:
    """A version that tells nothing is taken for a new one, which ignores `guided_json` under 200:
    one built without tags is `0.1.devN+g…` (setuptools-scm), whatever it was built from."""
    engine = VLLM(TARGET, facts=ServerFacts(version=version))
    messages = (Message(role="user", content="Hi"),)
    constraint = Constraint(kind="json_schema", value={"type": "object"})
    body = engine.encode(ChatRequest(model="m", messages=messages, constraint=constraint)).call.json
    assert {"guided_json", "response_format"} & set(body) == {field}


def test_the_version_that_is_not_known_yet_is_taken_for_a_new_one() -> None:
    """Before the probe: the field of today."""
    messages = (Message(role="user", content="Hi"),)
    constraint = Constraint(kind="regex", value="a")
    encoded = VLLM(TARGET).encode(ChatRequest(model="m", messages=messages, constraint=constraint))
    assert encoded.call.json["structured_outputs"] == {"regex": "a"}
    assert "guided_regex" not in encoded.call.json


def test_a_stop_string_that_was_found_is_told() -> None:
    """`stop_reason` stands beside the finish reason, with or without counts in the choice."""
    event = {
        "id": "c",
        "choices": [
            {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop", "stop_reason": "END"}
        ],
    }
    body = b"data: " + json.dumps(event).encode() + b"\n\ndata: [DONE]\n\n"
    got = decode(OpenAIDecoder(VLLM(TARGET)), [body])
    assert got.end is not None
    assert got.end.extra["stop_reason"] == "END"


def test_a_server_that_is_scaling_is_busy() -> None:
    """serve/elastic_ep/middleware.py: the error is a string."""
    told = b'{"error":"The model is currently scaling. Please try again later."}'
    assert isinstance(VLLM(TARGET).failure(503, {}, told), Overloaded)


# ------------------------------------------------------------------------------------ replies


def whole(message: dict[str, Any], reason: str | None, **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    return json.dumps({"id": "chatcmpl-1", "choices": [choice], **more}).encode()


TOOLS = (Tool(name="f", description="d", parameters={"type": "object", "properties": {}}),)


def invalid(said: str, content: str = "x") -> str:
    """How FastAPI's handler renders what a validator of the request raised (0.6 to 0.8)."""
    asked = {"messages": [{"role": "user", "content": content}], "tool_choice": "required"}
    return str(
        [
            {
                "type": "value_error",
                "loc": ("body",),
                "msg": f"Value error, {said}",
                "input": asked,
                "ctx": {"error": ValueError(said)},
            }
        ]
    )


NAMED = '`tool_choice` must either be a named tool, "auto", or "none".'
OLD = [
    # entrypoints/openai/protocol.py of 0.6.4 to 0.8.2, `check_tool_usage`; serving_chat.py has a
    # text of its own for it, which no request reaches
    (ToolChoice(mode="required"), invalid(NAMED), "0.8.2"),
    (ToolChoice(mode="required"), NAMED, "0.8.2"),
    # the same of 0.6.0 to 0.6.3
    (
        ToolChoice(mode="required"),
        invalid(
            '`tool_choice` must either be a named tool or "auto". `tool_choice="none" is not supported.'
        ),
        "0.6.3",
    ),
    # entrypoints/openai/protocol.py of 0.4 to 0.5, `check_tool_choice`
    (ToolChoice(mode="required"), "Currently only named tools are supported.", "0.5.5"),
    (UNSET, "Currently only named tools are supported.", "0.5.5"),
]


@pytest.mark.parametrize(("choice", "said", "version"), OLD)
@pytest.mark.parametrize("envelope", [enveloped, bare])
def test_what_an_old_version_cannot_force_is_asked_for_by_a_schema(
    choice: Any, said: str, version: str, envelope: Any
) -> None:
    """Refused before anything is generated; asked once more in its own words, and not again."""
    engine = VLLM(TARGET, facts=ServerFacts(version=version).with_told(tool_capabilities(True)))
    request = ChatRequest(
        model="m", messages=(Message(role="user", content="x"),), tools=TOOLS, tool_choice=choice
    )
    refusal = engine.failure(400, {}, envelope(said, "BadRequestError", 400))
    assert isinstance(refusal, Unsupported)
    operation = open_reply(engine, request, stream=False, budgets=Budgets())
    first = next(operation)
    field = "response_format" if version == "0.8.2" else "guided_json"  # `ResponseFormat` of 0.6.4
    assert field not in first.encoded.call.json
    again = operation.throw(refusal)
    body = again.encoded.call.json
    assert field in body
    assert "tools" not in body
    with pytest.raises(StopIteration):
        operation.send("the stream")
    asked = next(open_reply(engine, request, stream=False, budgets=Budgets()))
    assert asked.encoded.call.json == body, "what was refused is remembered"
    named = replace(request, tool_choice=ToolChoice(mode="named", name="f"))
    if "Currently" not in said:
        plain = next(open_reply(engine, named, stream=False, budgets=Budgets()))
        assert "tools" in plain.encoded.call.json, "the other choices are as they were"


@pytest.mark.parametrize(
    "said",
    [
        # 0.8.3 and later, of a choice that is none; and a caller who quotes the old text
        'Invalid value for `tool_choice`: x! Only named tools, "none", "auto" or "required" are '
        "supported.",
        "When using `tool_choice`, `tools` must be set.",
    ],
)
def test_what_a_new_version_says_of_a_choice_is_no_lack(said: str) -> None:
    for message in (said, invalid(said), invalid(said, NAMED)):
        refusal = VLLM(TARGET).failure(400, {}, enveloped(message, "BadRequestError", 400))
        assert type(refusal) is BadRequest


@pytest.mark.parametrize(
    ("reason", "told"),
    [("stop", "stop"), ("length", "length"), ("repetition", "length")],
)
def test_every_finish_reason(reason: str, told: str) -> None:
    """`FINISH_REASON_STRINGS` of vllm/v1/engine/__init__.py; `error` becomes a 500."""
    end = decode(OpenAIWholeDecoder(VLLM(TARGET)), [whole({"content": "a"}, reason)]).end
    assert end is not None
    assert (end.finish_reason, end.raw_finish_reason) == (told, reason)


def test_an_aborted_reply_is_no_answer() -> None:
    """`abort` is a finish reason under HTTP 200: what came is a part, whoever aborted it."""
    plain = decode(OpenAIWholeDecoder(VLLM(TARGET)), [whole({"content": "a"}, "abort")])
    assert isinstance(plain.failure, StreamTruncated)
    assert plain.failure.partial == "a"


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thinking_by_both_names(field: str) -> None:
    """`ChatMessage.reasoning`; `reasoning_content` before 0.12."""
    plain = whole({"content": "42", field: "hm"}, "stop")
    assert decode(OpenAIWholeDecoder(VLLM(TARGET)), [plain]).reasoning == "hm"
    delta = {"choices": [{"index": 0, "delta": {field: "hm"}, "finish_reason": None}]}
    stream = decode(OpenAIDecoder(VLLM(TARGET)), [b"data: %s\n\n" % json.dumps(delta).encode()])
    assert stream.reasoning == "hm"


def test_what_else_an_answer_may_carry() -> None:
    """Fields of `ChatCompletionResponse` beside OpenAI's do no harm, nulls neither."""
    usage = {
        "prompt_tokens": 5,
        "total_tokens": 5,
        "completion_tokens": None,
        "prompt_tokens_details": {"cached_tokens": None, "created_cache_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    body = whole(
        {"content": None, "refusal": None, "annotations": None, "audio": None, "tool_calls": []},
        "stop",
        usage=usage,
        service_tier=None,
        prompt_logprobs=[None, {"7": {"logprob": -0.5, "rank": 1, "decoded_token": "a"}}],
        kv_transfer_params={"remote_block_ids": [1]},
        metrics={"time_to_first_token_ms": 3.0},
    )
    end = decode(OpenAIWholeDecoder(VLLM(TARGET)), [body]).end
    assert end is not None
    assert end.usage is not None
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (5, 0)
    assert end.extra["metrics"] == {"time_to_first_token_ms": 3.0}


def test_a_piece_of_a_call_without_a_function() -> None:
    """In `DeltaToolCall` (generate/base/protocol.py) all but the index may be missing."""
    pieces: list[dict[str, Any]] = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f"}},
        {"index": 0},
        {"index": 0, "function": None},
        {"index": 0, "function": {"name": None, "arguments": None}},
        {"index": 0, "function": {"arguments": '{"x": 1}'}},
    ]
    events = [
        {"choices": [{"index": 0, "delta": {"tool_calls": [piece]}, "finish_reason": None}]}
        for piece in pieces
    ]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    body = b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events)
    end = decode(OpenAIDecoder(VLLM(TARGET)), [body + b"data: [DONE]\n\n"]).end
    assert end is not None
    assert [(call.id, call.name, call.arguments) for call in end.tool_calls] == [
        ("a", "f", '{"x": 1}')
    ]


@pytest.mark.parametrize("name", ["kv_cache_usage_perc", "gpu_cache_usage_perc"])
def test_the_gauge_of_the_cache_by_both_names(name: str) -> None:
    """vllm/v1/metrics/loggers.py; the second is the older one. Two engines are averaged."""
    text = f'vllm:{name}{{engine="0"}} 0.5\nvllm:{name}{{engine="1"}} 0.3\n'
    told = Answer(status=200, headers={}, body=text.encode())
    assert play(VLLM(TARGET).load_state(), {"GET /metrics": told}).kv_cache_usage == 0.4
