"""What servers of the dialect send that the recorded versions do not.

Each case names where it was seen or written: a source file at a version, or an issue. The decoders
are shared, so what one server does is read from every server.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginekit.engine import Engine, Target
from enginekit.engines._openai_decode import OpenAIDecoder, OpenAIWholeDecoder
from enginekit.engines.llamacpp import LlamaCpp
from enginekit.engines.llamacpp.infill import InfillDecoder
from enginekit.engines.tgi import TGI
from enginekit.engines.tgi.decode import TGIWholeDecoder
from enginekit.engines.vllm import VLLM
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineFault,
    MalformedReply,
    Overloaded,
    StreamTruncated,
    Unreachable,
)
from enginekit.types import CompletionRequest
from tests.engines.recordings import Decoded, decode

TARGET = Target(base_url="http://server")
LC, VL, TG = LlamaCpp(TARGET), VLLM(TARGET), TGI(TARGET)
DONE = b"[DONE]"
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}


def piece(delta: Any, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice], **more}


def call(**more: Any) -> dict[str, Any]:
    return piece({"tool_calls": [more]})


def written(*events: Any) -> bytes:
    texts = (e if isinstance(e, bytes) else json.dumps(e).encode() for e in events)
    return b"".join(b"data: " + text + b"\n\n" for text in texts)


def stream(body: bytes, engine: Engine = VL) -> Decoded:
    """The same from one piece and byte by byte."""
    whole = decode(OpenAIDecoder(engine), [body])
    slow = decode(OpenAIDecoder(engine), [body[i : i + 1] for i in range(len(body))])
    assert (type(slow.failure), slow.text) == (type(whole.failure), whole.text)
    return whole


def whole(body: Any, engine: Engine = VL) -> Decoded:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode(OpenAIWholeDecoder(engine), [content])


ANSWER = {
    "id": "c",
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi\n\nyou"},
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}

# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("kind", [OpenAIDecoder, InfillDecoder])
def test_an_error_in_a_field_of_that_name(kind: Any) -> None:
    """llama-server wrote `error: {…}` in place of `data: {…}` until mid 2025
    (ggml-org/llama.cpp, examples/server/utils.hpp at 15ae7dd, `server_sent_event`)."""
    fault = b'error: {"code":500,"message":"Compute error.","type":"server_error"}\n\n'
    text = {"content": "Hi", "stop": False} if kind is InfillDecoder else piece({"content": "Hi"})
    got = decode(kind(LC), [written(text) + fault])
    assert type(got.failure) is EngineFault
    assert "Compute error." in str(got.failure)
    assert got.failure.partial == "Hi"


def test_an_overflow_in_a_field_of_that_name() -> None:
    """Before anything was generated: it is the refusal that it would be under a status of 400."""
    fault = {
        "code": 400,
        "message": "the request exceeds the available context size. try increasing the context "
        "size or enable context shift",
        "type": "invalid_request_error",
    }
    got = stream(b"error: " + json.dumps(fault).encode() + b"\n\n", LC)
    assert type(got.failure) is ContextOverflow


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"detail": "Internal Server Error"}, "Internal Server Error"),
        (
            {"detail": [{"loc": ["body", "n"], "msg": "too large", "type": "t"}]},
            "body.n: too large",
        ),
        ({"message": "it broke", "code": 500}, "it broke"),
        ({"object": "error", "message": "it broke", "code": 500}, "it broke"),
        ({"object": "error", "message": "it broke"}, "it broke"),
        ({"type": "server_error", "message": "it broke", "code": None}, "it broke"),
        ({"message": "it broke", "status": 500}, "it broke"),
        ({"error": "it broke"}, "it broke"),
        ({"error": {"message": "it broke"}}, "it broke"),
        ({"error": {"msg": "it broke"}}, "it broke"),
    ],
)
def test_an_error_event_in_any_envelope(event: Any, said: str) -> None:
    """vLLM before 0.11 (entrypoints/openai/serving_engine.py, `create_streaming_error_response`),
    FastAPI's own, and gateways: the message is kept, whatever follows."""
    for body in (written(piece({"content": "Hi"}), event, DONE), written(event)):
        got = stream(body)
        assert isinstance(got.failure, EngineFault)
        assert said in str(got.failure)
    alone = whole(event)
    assert isinstance(alone.failure, EngineFault)
    assert said in str(alone.failure)


@pytest.mark.parametrize("event", [{"status": 503}, {"status": 503, "code": None}, {"code": 503}])
@pytest.mark.parametrize("enveloped", [True, False])
def test_a_status_is_a_code(event: Any, enveloped: bool) -> None:
    """A gateway's error under 200, with the HTTP status it means."""
    error = {"message": "no healthy upstream", **event}
    said = {"error": error} if enveloped else error
    for got in (stream(written(said)), whole(said)):
        assert isinstance(got.failure, Overloaded)
        assert got.failure.retryable


NEWS: list[Any] = [
    {"message": "queued", "status": 102},
    {"message": "queued", "status": "waiting"},
    {"type": "ping"},
    {"type": "ping", "message": "keepalive"},
    {"message": "processing"},
    {"message": "queued", "code": 200},
    {"object": "status", "message": "queued", "code": 0},
]
"""Events of gateways that are no piece of the reply and no error: nothing says that they are one.
Named faults, not recordings: no engine known to us sends any of them."""


@pytest.mark.parametrize("event", NEWS)
def test_news_between_the_pieces_ends_nothing(event: Any) -> None:
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    for body in (
        written(event, piece({"content": "Hi"}), event, end, DONE),
        written(piece({"content": "Hi"}), end, event, DONE),
    ):
        got = stream(body)
        assert got.failure is None
        assert got.text == "Hi"
        assert got.end is not None


def test_a_message_that_came_to_nothing_is_no_silence() -> None:
    """Whether it was an error nobody can tell; the reply is cut all the same, and the error says it."""
    news = {"message": "upstream went away"}
    for body in (
        written(piece({"content": "Hi"}), news),
        written(piece({"content": "Hi"}), news, DONE),
        written(news),
    ):
        got = stream(body)
        assert isinstance(got.failure, StreamTruncated)
        assert "upstream went away" in str(got.failure)
    assert "upstream went away" in str(whole(news).failure)


def test_a_named_event_is_an_error_like_any_other() -> None:
    got = stream(b'event: error\ndata: {"error":{"message":"it broke","code":400}}\n\n')
    assert type(got.failure) is BadRequest


# ------------------------------------------------------------------------------------ framing


def test_a_document_where_a_stream_was_asked_for() -> None:
    """SGLang with tools (sgl-project/sglang issue 2810), and gateways: the answer is the answer,
    and the receipt says how it came."""
    for body in (json.dumps(ANSWER).encode(), json.dumps(ANSWER, indent=1).encode() + b"\n"):
        got = stream(body)
        assert got.failure is None
        assert got.text == "Hi\n\nyou"
        assert got.end is not None
        assert got.end.usage is not None
        assert any("in one piece" in repair for repair in got.end.repairs)


def test_a_document_that_is_no_answer_is_an_error() -> None:
    """An error under 200, half a reply, a reply without its end, a page."""
    assert type(stream(b'{"error":{"message":"no","code":400}}').failure) is BadRequest
    body = json.dumps(ANSWER).encode()
    for cut in range(1, len(body)):
        assert stream_once(body[:cut]).failure is not None
    unfinished = {**ANSWER, "choices": [{**ANSWER["choices"][0], "finish_reason": None}]}  # type: ignore[index]
    assert stream(json.dumps(unfinished).encode()).failure is not None
    page = stream(b"<html><body>Welcome</body></html>")
    assert type(page.failure) is MalformedReply
    assert "Welcome" in str(page.failure)


def stream_once(body: bytes) -> Decoded:
    return decode(OpenAIDecoder(VL), [body])


def test_a_stream_where_a_document_was_asked_for() -> None:
    """unslothai/unsloth issue 6570; other servers ping in between."""
    events = [
        piece({"role": "assistant", "content": ""}),
        piece({"content": "Hi"}),
        {"type": "ping"},
        piece({}, "stop"),
        {"id": "c", "choices": [], "usage": USAGE},
    ]
    got = whole(b": ping\n\n" + written(*events, DONE))
    assert got.failure is None
    assert got.text == "Hi"
    assert got.end is not None
    assert got.end.usage is not None
    assert any("streamed" in repair for repair in got.end.repairs)
    assert whole(written(*events[:3], DONE)).failure is not None
    assert whole(written(*events[:2], {"error": "it broke"}, DONE)).failure is not None


def test_a_stream_where_a_document_was_asked_for_is_cut_like_any_stream() -> None:
    """Broken after its finish reason it is whole, and its counts are lost; before, the text is kept."""
    head = written(piece({"content": "Hi"}), piece({"content": " you"}))
    for broken, failed in ((head, True), (head + written(piece({}, "stop")), False)):
        decoder = OpenAIWholeDecoder(VL)
        chunks = [*decoder.feed(broken), *decoder.abort(Unreachable("reset"))]
        if failed:
            assert isinstance(decoder.failure, StreamTruncated)
            assert decoder.failure.partial == "Hi you"
            assert chunks == []
        else:
            assert decoder.failure is None
            assert "".join(chunk.text for chunk in chunks) == "Hi you"
            assert chunks[-1].end is not None
            assert any("usage lost" in repair for repair in chunks[-1].end.repairs)


def test_an_end_mark_behind_a_document() -> None:
    """decolua/9router issue 3492."""
    body = json.dumps(ANSWER).encode() + b"data: [DONE]\n\n"
    assert whole(body).text == stream(body).text == "Hi\n\nyou"


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        ({"stopped_eos": True, "stopped_limit": False}, "stop"),
        ({"stopped_limit": True}, "length"),
        ({"stop_type": "limit"}, "length"),
        ({"stop_type": "word", "stopping_word": "."}, "stop"),
    ],
)
def test_completions_in_the_native_form(ended: Any, reason: str) -> None:
    """llama-server until the end of 2024 (ggml-org/llama.cpp pull request 10974): no choices, no end
    mark, and how it ended in one of two ways."""
    events = [
        {"content": "Hi", "stop": False, "id_slot": 0},
        {"content": " you", "stop": False, "id_slot": 0},
        {"content": "", "stop": True, "tokens_evaluated": 9, "tokens_predicted": 2, **ended},
    ]
    encoded = LC.encode(CompletionRequest(model="m", prompt="Say hi."), stream=True)
    got = decode(encoded.decoder(), [written(*events)])
    assert got.failure is None
    assert got.text == "Hi you"
    assert got.end is not None
    assert got.end.finish_reason == reason
    assert got.end.usage is not None
    assert (got.end.usage.prompt_tokens, got.end.usage.completion_tokens) == (9, 2)
    assert decode(encoded.decoder(), [written(*events[:2])]).failure is not None


# ------------------------------------------------------------------------------------ tool calls

PARTS = [
    ("f", "a", '{"x": 1}'),
    ("g", "b", '{"y": 2}'),
]


def test_several_calls_that_all_have_the_index_0() -> None:
    """Ollama's imitation (ollama/ollama issue 15457), LiteLLM before it (BerriAI/litellm issue
    33678), NVIDIA Dynamo (ai-dynamo/dynamo pull request 4723): a call each, and in one event too."""
    items = [
        {"index": 0, "id": at, "type": "function", "function": {"name": name, "arguments": text}}
        for name, at, text in PARTS
    ]
    for events in ([call(**item) for item in items], [piece({"tool_calls": items})]):
        got = stream(written(*events, piece({}, "tool_calls"), DONE))
        assert got.end is not None
        assert [(c.name, c.id, c.arguments) for c in got.end.tool_calls] == PARTS
        assert got.calls == [(name, text) for name, _, text in PARTS]


def test_several_calls_in_several_events_and_no_index_at_all() -> None:
    """As above before the index came (ollama/ollama issue 7881): two events of two calls each."""
    names = iter("fghi")
    events = []
    for _ in range(2):
        items = [
            {"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}}
            for name in (next(names), next(names))
        ]
        events.append(piece({"tool_calls": items}))
    got = stream(written(*events, piece({}, "tool_calls"), DONE))
    assert got.end is not None
    assert [(c.id, c.name, c.arguments) for c in got.end.tool_calls] == [
        (name, name, "{}") for name in "fghi"
    ]


def test_an_id_that_changes_with_every_piece_is_one_call() -> None:
    """Servers made after an early vLLM, whose `DeltaToolCall` (entrypoints/openai/protocol.py) had a
    new id and the index -1 by default; a draft of its gpt-oss streams repeated the name as well
    (vllm-project/vllm pull request 23522)."""
    for name, index in ((None, 0), ("f", 0), (None, -1)):
        events = [
            call(index=index, id="a", function={"name": "f", "arguments": ""}),
            call(index=index, id="b", function={"name": name, "arguments": '{"x":'}),
            call(index=index, id="c", function={"name": name, "arguments": " 1}"}),
        ]
        got = stream(written(*events, piece({}, "tool_calls"), DONE))
        assert got.end is not None
        assert [(c.name, c.id, c.arguments) for c in got.end.tool_calls] == [("f", "a", '{"x": 1}')]


def test_a_last_piece_that_names_the_call_again() -> None:
    """vLLM's GLM parsers (vllm-project/vllm issue 44098, pull request 31438): id, type and name
    again, the rest of the arguments, and the finish reason, all in one event."""
    head = call(index=0, id="a", type="function", function={"name": "f", "arguments": '{"x"'})
    tail = {"index": 0, "id": "a", "type": "function"}
    end = piece({"tool_calls": [{**tail, "function": {"name": "f", "arguments": ": 1}"}}]}, "stop")
    got = stream(written(head, end, DONE))
    assert got.end is not None
    assert got.end.finish_reason == "tool_calls"
    assert [(c.name, c.arguments) for c in got.end.tool_calls] == [("f", '{"x": 1}')]


def test_pieces_with_empty_ids_and_names() -> None:
    """ollama/ollama issue 7881 for the missing index; empty words for missing ones are common."""
    events = [
        call(id="a", type="function", function={"name": "f", "arguments": ""}),
        call(id="", function={"name": "", "arguments": '{"x"'}),
        call(id="", function={"name": "", "arguments": ": 1}"}),
    ]
    got = stream(written(*events, piece({}, "tool_calls"), DONE))
    assert got.end is not None
    assert [(c.name, c.id, c.arguments) for c in got.end.tool_calls] == [("f", "a", '{"x": 1}')]


def test_a_call_that_is_no_list() -> None:
    """TGI before 3.3 (huggingface/text-generation-inference v3.0.0, router/src/lib.rs,
    `ToolCallDelta`)."""
    one = {"index": 0, "id": "", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    got = stream(written(piece({"role": "assistant", "tool_calls": one}, "eos_token"), DONE), TG)
    assert got.end is not None
    assert [(c.name, c.arguments) for c in got.end.tool_calls] == [("f", "{}")]


def test_a_call_whose_id_is_a_number_and_arguments_an_object() -> None:
    """TGI 2.0 (v2.0.0, router/src/lib.rs: `ToolCall.id` is u32)."""
    function = {"description": None, "name": "f", "arguments": {"x": 1}}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": 0, "type": "function", "function": function}],
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "eos_token"}
    body = json.dumps({"id": "", "choices": [choice], "usage": USAGE}).encode()
    got = decode(TGIWholeDecoder(TG), [body])
    assert got.end is not None
    assert got.end.finish_reason == "tool_calls"
    (made,) = got.end.tool_calls
    assert (made.name, json.loads(made.arguments), made.problem) == ("f", {"x": 1}, None)


# ------------------------------------------------------------------------------------ text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("", ""),
        ([{"type": "text", "text": "Hi"}, {"type": "text", "text": " you"}], "Hi you"),
        ([], ""),
        ({"type": "text", "text": "Hi"}, "Hi"),
    ],
)
def test_content_in_any_shape(content: Any, text: str) -> None:
    """Null first (llama-server), parts (Mistral's own form), one part by itself."""
    got = stream(written(piece({"role": "assistant", "content": content}), piece({}, "stop"), DONE))
    assert got.failure is None
    assert got.text == text


def test_thinking_under_two_names_at_once_is_said_once() -> None:
    """vLLM sent both while it renamed the one to the other (vllm-project/vllm pull requests 27752
    and 33402); mlx-vlm does (Blaizzy/mlx-vlm pull request 1411)."""
    both = piece({"reasoning": "Hm.", "reasoning_content": "Hm."})
    got = stream(written(both, piece({"content": "Hi"}, "stop"), DONE))
    assert (got.reasoning, got.text) == ("Hm.", "Hi")


@pytest.mark.parametrize(
    "logprobs",
    [
        {"content": [{"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": []}]},
        {"content": [{"token": "Hi", "logprob": -0.5}], "refusal": None},
        {"tokens": ["Hi"], "token_logprobs": [-0.5], "top_logprobs": None, "text_offset": [0]},
        {"tokens": ["Hi"], "token_logprobs": [-0.5], "top_logprobs": [None]},
        [{"token": "Hi", "logprob": -0.5}],
    ],
)
def test_log_probabilities_in_any_shape(logprobs: Any) -> None:
    event = piece({"content": "Hi"}, "stop")
    event["choices"][0]["logprobs"] = logprobs
    got = stream(written(event, DONE))
    assert got.failure is None
    found = [entry for chunk in got.chunks for entry in chunk.logprobs or ()]
    assert [(entry.token, entry.logprob) for entry in found] == [("Hi", -0.5)]


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}, {"content": []}, []])
def test_no_log_probabilities_in_any_shape(logprobs: Any) -> None:
    event = piece({"content": "Hi"}, "stop")
    event["choices"][0]["logprobs"] = logprobs
    got = stream(written(event, DONE))
    assert got.failure is None
    assert all(chunk.logprobs is None for chunk in got.chunks)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 9, "completion_tokens": 2},
        {**USAGE, "prompt_tokens_details": None, "completion_tokens_details": None},
        {**USAGE, "prompt_tokens_details": {}, "completion_tokens_details": {}},
        {**USAGE, "prompt_tokens_details": [], "extra": {"ttft_s": 0.1}},
        {"prompt_tokens": 9.0, "completion_tokens": 2.0, "total_tokens": None},
    ],
)
@pytest.mark.parametrize("choices", [[], None])
def test_counts_in_any_shape(usage: Any, choices: Any) -> None:
    """In an event with empty choices, null choices, or none at all."""
    for extra in ({"choices": choices}, {}):
        last = {"id": "c", "usage": usage, **extra}
        got = stream(written(piece({"content": "Hi"}), piece({}, "stop"), last, DONE))
        assert got.end is not None
        assert got.end.usage is not None
        counts = got.end.usage
        assert (counts.prompt_tokens, counts.completion_tokens, counts.total_tokens) == (9, 2, 11)


@pytest.mark.parametrize("finish", ["", None])
def test_an_empty_finish_reason_is_none(finish: Any) -> None:
    """TGI's completions say `""` until the end (v2.0.0, router/src/server.rs)."""
    body = written(piece({"content": "Hi"}, finish), DONE)
    assert stream(body).failure is not None
    body = written(piece({"content": "Hi"}, finish), piece({}, "stop"), DONE)
    assert stream(body).text == "Hi"
