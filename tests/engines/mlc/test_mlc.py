"""The MLC engine on recordings of the real one: replies, refusals, careful bodies, silence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginekit.engine import Decoder, Target
from enginekit.engines.mlc import MLC
from enginekit.engines.mlc.decode import PROSE, MLCDecoder, MLCWholeDecoder, parse_calls
from enginekit.engines.mlc.facts import unusable
from enginekit.errors import (
    BadOutput,
    BadRequest,
    ContextOverflow,
    EngineTimeout,
    ModelNotFound,
    StreamTruncated,
    Unauthorized,
    Unreachable,
    Unsupported,
)
from enginekit.facts.engine import ServerFacts
from enginekit.types import (
    ChatRequest,
    CompletionRequest,
    Constraint,
    EmbedRequest,
    ImagePart,
    Message,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from tests.engines import goldens
from tests.engines.dialect.test_receipts import BARE, chats, check, completions, encode
from tests.engines.recordings import Recording, answer, decode, load, play

HERE = Path(__file__).parent
TARGET = Target(base_url="http://server")
USER = Message(role="user", content="Say hi.")
WEATHER = Tool(
    name="get_weather",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
LISTED = {"GET /v1/models": load("mlc", "models")}
FACTS: ServerFacts = play(MLC(TARGET).probe(), LISTED)


def engine(facts: ServerFacts | None = FACTS, **options: Any) -> MLC:
    return MLC(TARGET, facts=facts, options=options)


def chat(*messages: Message, **more: Any) -> ChatRequest:
    return ChatRequest(model="tiny", messages=messages or (USER,), **more)


def body(request: Any, **options: Any) -> dict[str, Any]:
    return dict(engine(**options).encode(request).call.json)


def decoder(recording: Recording) -> Decoder:
    return (MLCDecoder if recording.streamed else MLCWholeDecoder)(
        engine(),
        choices=recording.request.get("n") or 1,
        path=recording.path,
        wants_usage=bool((recording.request.get("stream_options") or {}).get("include_usage")),
    )


# ------------------------------------------------------------------------------------ recordings


def test_every_recorded_reply() -> None:
    """`replies.txt` says what each of them is."""
    told = goldens.reply_table("mlc", decoder, lambda r: r.path.endswith("/completions"))
    goldens.check_table(HERE / "replies.txt", told)
    assert len(told) > 150


def test_every_recorded_refusal() -> None:
    """`refusals.txt` says what each of them means: double-encoded, lists of details, bare text."""
    goldens.check_refusals(engine(), "mlc", HERE / "refusals.txt")


@pytest.mark.parametrize(
    "name", ["chat_stream_usage", "chat_unicode", "completion_stream", "m_schema_stream"]
)
def test_stream_cut_and_split_at_every_byte(name: str) -> None:
    """Before the finish reason a typed error, after it the whole text."""
    recording = load("mlc", name)
    if not recording.streamed:
        goldens.body_cut_everywhere(recording, decoder)
        return
    goldens.cut_everywhere(
        recording, decoder, goldens.last_finish(recording, goldens.finish_reason)
    )
    goldens.split_everywhere(recording, decoder)


@pytest.mark.parametrize("name", ["chat", "f_tools_by_schema", "completion"])
def test_body_cut_at_every_byte(name: str) -> None:
    """A plain reply is whole or an error."""
    goldens.body_cut_everywhere(load("mlc", name), decoder)


def test_a_dead_engine_is_silent_and_the_time_limit_keeps_the_text() -> None:
    """The recorded stream stops without EOF or error: the driver's EngineTimeout gets the text."""
    stream = load("mlc", "x_stream_running")
    reading = decoder(stream)
    chunks = reading.feed(stream.body)
    assert chunks
    reading.abort(EngineTimeout("silent", phase="between tokens", budget=1.0))
    assert isinstance(reading.failure, EngineTimeout)
    assert reading.failure.partial == "".join(chunk.text for chunk in chunks)
    torn = decode(decoder(stream), [stream.body])
    assert isinstance(torn.failure, StreamTruncated)


def test_a_prompt_that_fills_the_window_is_an_overflow() -> None:
    """200, no text, no tokens, finish reason length."""
    full = load("mlc", "m_text_ids_1024")
    assert full.status == 200
    failure = decode(decoder(full), [full.body]).failure
    assert isinstance(failure, ContextOverflow)


def test_arguments_come_as_objects() -> None:
    """And leave as JSON text."""
    called = load("mlc", "f_tools_by_schema_two")
    end = decode(decoder(called), [called.body]).end
    assert end is not None
    assert [(call.name, call.parsed()) for call in end.tool_calls] == [
        ("get_weather", {"city": "Rome"}),
        ("add", {"a": 1, "b": 2}),
    ]


def test_what_is_no_call_is_bad_output() -> None:
    """The server's own sentence in place of the text."""
    prose = load("mlc", "f_tools_by_schema_prose")
    assert isinstance(decode(decoder(prose), [prose.body]).failure, BadOutput)


@pytest.mark.parametrize(
    ("status", "content", "kind", "facts"),
    [
        (
            400,
            b'"{\\"object\\":\\"error\\",\\"message\\":\\"Request prompt has 1025 tokens in total, '
            b'larger than the model input length limit 1024.\\",\\"code\\":400}"',
            ContextOverflow,
            {"limit": 1024, "requested": 1025},
        ),
        (
            400,
            b'"{\\"object\\":\\"error\\",\\"message\\":\\"The requested model \\\\\\"x\\\\\\" is '
            b'not served.\\",\\"code\\":400}"',
            ModelNotFound,
            {"model": "x"},
        ),
        (500, b"Internal Server Error", BadRequest, {}),
        (401, b'{"detail":"Invalid API Key"}', Unauthorized, {}),
        (404, b'{"detail":"Not Found"}', Unsupported, {"feature": "/path"}),
    ],
)
def test_row(status: int, content: bytes, kind: type[Exception], facts: dict[str, Any]) -> None:
    """Rows of the fact sheet."""
    error = engine().failure(status, {}, content, path="/path")
    assert type(error) is kind
    for name, value in facts.items():
        assert getattr(error, name) == value


# ------------------------------------------------------------------------------------ receipts


@pytest.mark.parametrize("facts", [FACTS, BARE], ids=["probed", "bare"])
@pytest.mark.parametrize("native", [False, True])
@settings(max_examples=60, deadline=None)
@given(request=st.one_of(chats, completions), stream=st.booleans())
def test_every_field_is_accounted_for(
    facts: ServerFacts, native: bool, request: Any, stream: bool
) -> None:
    """Random requests: refused with a rule, or every field in one entry and the body as it says."""
    made = engine(facts, native_tools=native, tool_history="text")
    encoded = encode(made, request, stream)
    if encoded is not None:
        check(request, encoded.receipt, encoded.call.json)
        assert "user" not in encoded.call.json
        assert "" not in (encoded.call.json.get("stop") or ())


def test_the_plainest_chat() -> None:
    """Nothing but what was asked for."""
    assert body(chat()) == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Say hi."}],
        "stream": False,
    }


@pytest.mark.parametrize(
    ("field", "value", "sent", "outcome"),
    [
        ("max_tokens", 9, {"max_tokens": 9}, "sent"),
        ("stop", ("a", ""), {"stop": ["a"]}, "translated"),
        ("stop", ("",), {}, "translated"),
        ("top_k", 5, {}, "omitted"),
        ("repetition_penalty", 1.1, {}, "omitted"),
        ("presence_penalty", 0.0, {"presence_penalty": 0.0}, "sent"),
        ("logit_bias", {5: 2.0}, {"logit_bias": {"5": 2.0}}, "translated"),
        ("top_logprobs", 5, {"logprobs": True, "top_logprobs": 5}, "translated"),
        ("n", 2, {"n": 2}, "sent"),
    ],
)
def test_parameters(field: str, value: Any, sent: dict[str, Any], outcome: str) -> None:
    """One name for the length, and nothing that the server ignores."""
    encoded = engine().encode(chat(sampling=Sampling(**{field: value})))
    extra = {
        key: inner
        for key, inner in encoded.call.json.items()
        if key not in ("model", "messages", "stream")
    }
    assert extra == sent
    assert encoded.receipt.outcome(f"sampling.{field}") == outcome


@pytest.mark.parametrize(
    "more",
    [
        {"sampling": Sampling(top_logprobs=6)},
        {"sampling": Sampling(logprobs=True, top_logprobs=20)},
        {"sampling": Sampling(temperature=-1)},
        {"sampling": Sampling(max_tokens=0)},
        {"sampling": Sampling(n=0)},
        {"sampling": Sampling(logit_bias={1: 101.0})},
        {"engine_options": {"user": "ann"}},
        {"engine_options": {"stop": ""}},
        {"engine_options": {"stop": ["a", ""]}},
        {"engine_options": {"top_logprobs": 6}},
        {"constraint": Constraint(kind="json_schema", value={})},
        {"constraint": Constraint(kind="json_schema", value={"type": "nonsense"})},
        {"constraint": Constraint(kind="regex", value="a")},
        {"constraint": Constraint(kind="grammar", value="a")},
        {"tools": (Tool(name="f", parameters={"properties": {"a": {"type": "date"}}}),)},
        {"lora": "x"},
        {"template_options": {"x": 1}},
        {"context_window": 4096},
    ],
)
def test_what_would_end_the_engine_or_be_ignored_is_refused(more: dict[str, Any]) -> None:
    """Three of these were recorded to hang the server for every client."""
    with pytest.raises((Unsupported, BadRequest)):
        body(chat(**more))


def test_completions() -> None:
    """`suffix` is no fill-in-the-middle, an empty prompt is a 500, logprobs end at five."""
    request = CompletionRequest(model="tiny", prompt="San", echo=True)
    assert body(request)["echo"] is True
    for broken in (
        replace(request, suffix="x"),
        replace(request, prompt=""),
        replace(request, sampling=Sampling(top_logprobs=6)),
    ):
        with pytest.raises((Unsupported, BadRequest)):
            body(broken)
    logged = body(replace(request, sampling=Sampling(logprobs=True, top_logprobs=2)))
    assert logged["logprobs"] == 2


@pytest.mark.parametrize(
    ("schema", "fine"),
    [
        ({}, False),
        ({"title": "x"}, False),
        ("{}", False),
        ({"type": "object"}, True),
        ({"anyOf": [{"type": "string"}, {"type": ["integer", "null"]}]}, True),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}}, False),
        (
            {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/A"}},
                "$defs": {"A": {"type": "string"}},
            },
            True,
        ),
        ({"type": "string", "pattern": "(("}, False),
        ({"type": "array", "items": {"type": "thing"}}, False),
        ({"enum": ["a"]}, True),
    ],
)
def test_unusable_schemas(schema: Any, fine: bool) -> None:
    """What the grammar compiler would choke on never leaves."""
    assert (unusable(schema) is None) is fine


# ------------------------------------------------------------------------------------ messages


def test_one_system_message_at_the_start() -> None:
    """Anywhere else it is a 400; role developer a 422."""
    wire = body(
        chat(
            USER,
            Message(role="developer", content="Be brief."),
            Message(role="system", content="Be kind."),
        )
    )["messages"]
    assert [message["role"] for message in wire] == ["system", "user"]
    assert wire[0]["content"] == "Be brief.\n\nBe kind."


def test_tool_history_is_refused_with_the_recorded_reason() -> None:
    """Before anything is sent; the option tells it as text."""
    call = ToolCall(id="1", name="get_weather", arguments='{"city": "Rome"}')
    history = (
        USER,
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="21", tool_call_id="1", tool_name="get_weather"),
    )
    for messages in (history, history[:2], (USER, history[2])):
        with pytest.raises(Unsupported, match="not supported yet") as caught:
            body(chat(*messages))
        assert caught.value.feature == "tools"
        assert "tool_history" in str(caught.value.hint)
    refused = load("mlc", "m_tool_calls_dict_args")
    assert isinstance(engine().failure(refused.status, {}, refused.body), Unsupported)
    encoded = engine(tool_history="text").encode(chat(*history))
    roles = [message["role"] for message in encoded.call.json["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert encoded.receipt.outcome("messages") == "translated"


def test_images_in_user_messages_only() -> None:
    """Others are a 400."""
    see = (TextPart(text="see"), ImagePart(data=b"x"))
    part = body(chat(Message(role="user", content=see)))["messages"][0]["content"][1]
    assert part["image_url"]["url"].startswith("data:")
    with pytest.raises(Unsupported, match="only user messages"):
        body(chat(Message(role="assistant", content=see)))


# ------------------------------------------------------------------------------------ tools


def test_tools_are_emulated_by_a_schema() -> None:
    """They would not reach the prompt; the schema goes as a string."""
    for mode in ("auto", "required"):
        encoded = engine().encode(chat(tools=(WEATHER,), tool_choice=ToolChoice(mode=mode)))
        sent = encoded.call.json
        assert "tools" not in sent
        assert sent["response_format"]["type"] == "json_object"
        assert json.loads(sent["response_format"]["schema"])
        assert "get_weather" in sent["messages"][0]["content"]
        assert encoded.receipt.outcome("tools") == "emulated"
    piece = {"content": '{"name": "get_weather", "arguments": {"city": "Rome"}}'}
    reply = {"id": "x", "choices": [{"index": 0, "message": piece, "finish_reason": "stop"}]}
    end = decode(encoded.decoder(), [json.dumps(reply).encode()]).end
    assert end is not None
    assert (end.finish_reason, end.tool_calls[0].parsed()) == ("tool_calls", {"city": "Rome"})


def test_native_tools_are_streamed_and_read_from_python_text() -> None:
    """With the option: `tools` are sent, and the recorded text becomes a call at the end."""
    encoded = engine(native_tools=True).encode(chat(tools=(WEATHER,)))
    assert encoded.call.json["tools"][0]["function"]["name"] == "get_weather"
    assert encoded.call.json["stream"] is True
    assert "positional arguments" in encoded.receipt.notes[0]
    stream = load("mlc", "m_tools_by_schema_stream")
    assert b'"tool_calls":[' not in stream.body
    decoded = decode(encoded.decoder(), [stream.body])
    assert decoded.text == ""
    assert decoded.end is not None
    assert decoded.end.finish_reason == "tool_calls"
    assert [(call.name, call.parsed()) for call in decoded.end.tool_calls] == [
        ("get_weather", {"city": "Rome"})
    ]
    assert decoded.calls == [("get_weather", '{"city": "Rome"}')]


def test_native_prose_is_an_answer_cut_or_not() -> None:
    """The server ends every answer to tools with `tool_calls`: the counts tell a cut one."""
    stream = load("mlc", "f_chat_tools_named_stream")
    used = 16
    for limit, reason in ((used, "length"), (900, "stop")):
        encoded = engine(native_tools=True).encode(
            chat(tools=(WEATHER,), sampling=Sampling(max_tokens=limit))
        )
        usage = json.dumps(
            {"id": "x", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": used}}
        )
        counted = stream.body.replace(
            b"data: [DONE]", b"data: " + usage.encode() + b"\n\ndata: [DONE]"
        )
        decoded = decode(encoded.decoder(), [counted])
        assert decoded.end is not None
        assert decoded.end.finish_reason == reason
        assert decoded.text
        assert PROSE in decoded.end.repairs
    torn = decode(encoded.decoder(), [stream.body[:-400]])
    assert isinstance(torn.failure, StreamTruncated)
    assert torn.text == torn.failure.partial


def test_prose_is_given_out_as_it_comes_and_a_call_is_held_back() -> None:
    """A call of a tool, or a list of strings, may still become one; other text may not."""
    encoded = engine(native_tools=True).encode(chat(tools=(WEATHER,)), stream=True)

    def given(*pieces: str) -> str:
        reading = encoded.decoder()
        text = ""
        for piece in pieces:
            event = {"id": "x", "choices": [{"index": 0, "delta": {"content": piece}}]}
            chunks = reading.feed(f"data: {json.dumps(event)}\n\n".encode())
            text += "".join(chunk.text for chunk in chunks)
        return text

    assert given("Hel", "lo") == "Hello"
    assert given("get", " up") == "get up"
    assert given(" get_wea", "ther(city='Rome'") == ""
    assert given("[", ' "get') == ""
    assert given("[", "1]") == "[1]"


def test_forced_calls_are_emulated_even_with_native_tools() -> None:
    """422 for required, and named only shortens the prompt."""
    for choice in (ToolChoice(mode="required"), ToolChoice(mode="named", name="get_weather")):
        sent = body(chat(tools=(WEATHER,), tool_choice=choice), native_tools=True)
        assert "tools" not in sent
        assert "tool_choice" not in sent
    hidden = body(chat(tools=(WEATHER,), tool_choice=ToolChoice(mode="none")))
    assert "response_format" not in hidden


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("f(a=1)", [("f", '{"a": 1}', True)]),
        (
            '["f(a=\'x\')", "g(b=[1, 2])"]',
            [("f", '{"a": "x"}', True), ("g", '{"b": [1, 2]}', True)],
        ),
        ("f()", [("f", "{}", True)]),
        ("f('Rome')", [("f", "{}", False)]),
        ("f(a=open('x'))", [("f", "{}", False)]),
        ("f(**x)", [("f", "{}", False)]),
        ("f(a={1, 2})", [("f", "{}", False)]),
        ("hello there", None),
        ("[5]", None),
        ('["hello"]', None),
        ('["f(a=1', None),
        ("a.b(c=1)", None),
        ("", None),
        ("(" * 5000, None),
    ],
)
def test_parse_calls(text: str, calls: Any) -> None:
    """Literals only, nothing is evaluated; what was positional is a problem, never lost."""
    found = parse_calls(text)
    if calls is None:
        assert found is None
    else:
        assert [(name, made, problem is None) for name, made, problem in found or ()] == calls


# ------------------------------------------------------------------------------------ constraints


def test_constraints() -> None:
    """A schema as a string, choices by an enum, JSON that must be an object."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
    sent = body(chat(constraint=Constraint(kind="json_schema", value=schema)))["response_format"]
    assert sent == {"type": "json_object", "schema": json.dumps(schema)}
    encoded = engine().encode(chat(constraint=Constraint(kind="choice", value=("yes", "no"))))
    assert encoded.receipt.outcome("constraint") == "emulated"

    def reply(content: str, reason: str = "stop") -> bytes:
        message = {"message": {"content": content}, "index": 0, "finish_reason": reason}
        return json.dumps({"id": "x", "choices": [message], "usage": None}).encode()

    assert decode(encoded.decoder(), [reply('{"answer": "yes"}')]).text == "yes"
    cut = decode(encoded.decoder(), [reply('{"ans', "length")]).failure
    assert isinstance(cut, BadOutput)
    assert "one of the choices" in str(cut)
    plain = engine().encode(chat(constraint=Constraint(kind="json")))
    assert plain.call.json["response_format"] == {"type": "json_object"}
    assert decode(plain.decoder(), [reply('{"a": 1}')]).failure is None
    assert isinstance(decode(plain.decoder(), [reply("[1]")]).failure, BadOutput)
    assert isinstance(decode(plain.decoder(), [reply("{oops")]).failure, BadOutput)


def test_an_array_came_back_in_json_mode() -> None:
    """Recorded: `json_object` gives any JSON value."""
    recording = load("mlc", "chat_json_object")
    encoded = engine().encode(chat(constraint=Constraint(kind="json")))
    decoded = decode(encoded.decoder(), [recording.body])
    assert decoded.text.startswith("[ 645235")
    assert decoded.end is not None
    assert decoded.end.finish_reason == "length"
    whole = recording.body.replace(b'"length"', b'"stop"')
    assert isinstance(decode(encoded.decoder(), [whole]).failure, BadOutput)


# ------------------------------------------------------------------------------------ probing


def test_probe_tells_that_the_window_is_unknown() -> None:
    """And how to say it."""
    assert FACTS.context_window is None
    assert FACTS.version is None
    assert "mlc-chat-config.json" in FACTS.notes[0]
    told = play(MLC(TARGET, options={"context_window": 4096}).probe(), LISTED)
    assert told.context_window == told.models[0].context_window == 4096
    assert engine(told).encode(chat(context_window=4096)).receipt.outcome("context_window")


def test_ready_asks_the_engine() -> None:
    """`/v1/models` stays 200 when the engine is dead: `/metrics` goes through it."""
    assert play(engine().ready("m"), {"GET /metrics": load("mlc", "m_metrics")}) is True
    for error in (Unreachable("refused"), EngineTimeout("silent")):
        operation = engine().ready("m")
        assert next(operation).path == "/metrics"
        with pytest.raises(StopIteration) as stop:
            operation.throw(error)
        assert stop.value.value is False
    with pytest.raises(Unauthorized):
        play(engine().ready("m"), {"GET /metrics": answer({"detail": "Invalid API Key"}, 401)})


def test_recognise() -> None:
    """By the owner of its models."""
    assert play(MLC.recognise(TARGET), LISTED) is True
    for other in (
        load("rayserve", "models").answer,
        load("vllm", "models").answer,
        answer({"data": None}),
        answer({}, 404),
        replace(answer(None), body=b"<html>"),
    ):
        assert play(MLC.recognise(TARGET), {"GET /v1/models": other}) is False


def test_metrics_are_mlcs_own_text() -> None:
    """Tabs, comments, no queue."""
    busy = play(engine().load_state(), {"GET /metrics": load("mlc", "m_metrics")})
    assert (busy.prompt_tokens_total, busy.generated_tokens_total) == (153, 53)
    assert (busy.running, busy.waiting, busy.kv_cache_usage) == (None, None, None)
    assert busy.extra["last_finished_request_ttft_s"] > 0


def test_embed() -> None:
    """With an embedding model; else the server's refusal names the flags."""
    request = EmbedRequest(model="tiny", texts=("a",))
    reply = {"data": [{"index": 0, "embedding": [0.5]}], "model": "tiny"}
    made = play(engine().embed(request), {"POST /v1/embeddings": answer(reply)})
    assert made.vectors == [[0.5]]
    with pytest.raises(Unsupported) as caught:
        play(engine().embed(request), {"POST /v1/embeddings": load("mlc", "embeddings")})
    assert "--embedding-model" in str(caught.value.hint)
    with pytest.raises(Unsupported):
        play(engine().embed(replace(request, truncate=True)), {})


@pytest.mark.parametrize("name", ["tokenize", "detokenize", "count_tokens"])
def test_absent_routes(name: str) -> None:
    """Refused without a request."""
    given: Any = {"tokenize": "a", "detokenize": [1], "count_tokens": chat()}[name]
    with pytest.raises(Unsupported):
        play(getattr(engine(), name)(given), {})
