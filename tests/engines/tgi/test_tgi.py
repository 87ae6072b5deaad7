"""The TGI engine on recordings of the real one: replies, refusals, bodies, probing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginekit.engine import Decoder, Target
from enginekit.engines.tgi import TGI
from enginekit.engines.tgi.decode import (
    DECIDED,
    HALF,
    GenerateDecoder,
    GenerateWholeDecoder,
    TGIDecoder,
    TGIWholeDecoder,
)
from enginekit.engines.tgi.facts import facts_of, judge_version
from enginekit.engines.tgi.schema import NotInlinable, alternation, inlined, single_types
from enginekit.errors import (
    BadOutput,
    BadRequest,
    ContextOverflow,
    EngineDied,
    EngineFault,
    Overloaded,
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
from tests.engines import goldens, recordings
from tests.engines.dialect.test_receipts import BARE, chats, check, completions, encode
from tests.engines.recordings import Recording, answer, decode, load, play

HERE = Path(__file__).parent
TARGET = Target(base_url="http://server")
USER = Message(role="user", content="Say hi.")
WEATHER = Tool(name="get_weather", parameters={"type": "object", "properties": {}})
FACTS: ServerFacts = play(TGI(TARGET).probe(), {"GET /info": load("tgi", "t_info")})
NATIVE = ("/generate", "/generate_stream")


def engine(facts: ServerFacts | None = FACTS, **options: Any) -> TGI:
    return TGI(TARGET, facts=facts, options=options)


def chat(*messages: Message, **more: Any) -> ChatRequest:
    return ChatRequest(model="any", messages=messages or (USER,), **more)


def text(**more: Any) -> CompletionRequest:
    return CompletionRequest(model="any", **{"prompt": "San", **more})


def body(request: Any, **more: Any) -> dict[str, Any]:
    return dict(engine().encode(request, **more).call.json)


def generates(recording: Recording) -> bool:
    routes = (*NATIVE, "/v1/chat/completions", "/v1/completions")
    return recording.path in routes and not recording.name.startswith("scene_wire")


def decoder(recording: Recording) -> Decoder:
    if recording.path in NATIVE:
        kind: Any = GenerateDecoder if recording.streamed else GenerateWholeDecoder
        return kind(engine(), path=recording.path, logprobs=True)  # type: ignore[no-any-return]
    prompt = recording.request.get("prompt")
    return (TGIDecoder if recording.streamed else TGIWholeDecoder)(
        engine(),
        choices=len(prompt) if isinstance(prompt, list) else 1,
        path=recording.path,
        wants_usage=bool((recording.request.get("stream_options") or {}).get("include_usage")),
    )


# ------------------------------------------------------------------------------------ recordings


def test_every_recorded_reply() -> None:
    """`replies.txt` says what each of them is, errors under HTTP 200 and deaths among them."""
    told = goldens.reply_table("tgi", decoder, generates)
    goldens.check_table(HERE / "replies.txt", told)
    assert len(told) > 250


def test_every_recorded_refusal() -> None:
    """`refusals.txt` says what each of them means."""
    goldens.check_refusals(engine(), "tgi", HERE / "refusals.txt")


def native_end(event: Any) -> bool:
    return event.get("generated_text") is not None


@pytest.mark.parametrize(
    "name", ["chat_stream_usage", "chat_unicode", "t_v1_completion_usage_stream"]
)
def test_v1_stream_cut_and_split_at_every_byte(name: str) -> None:
    """Before the finish reason a typed error, after it the whole text."""
    recording = load("tgi", name)
    if not recording.streamed:
        goldens.body_cut_everywhere(recording, decoder)
        return
    goldens.cut_everywhere(
        recording, decoder, goldens.last_finish(recording, goldens.finish_reason)
    )
    goldens.split_everywhere(recording, decoder)


@pytest.mark.parametrize("name", ["t_generate_stream", "t_generate_stream_details"])
def test_native_stream_cut_and_split_at_every_byte(name: str) -> None:
    """The same for `/generate_stream`, whose terminal fact is a non-null `generated_text`."""
    recording = load("tgi", name)
    goldens.cut_everywhere(recording, decoder, goldens.last_finish(recording, native_end))
    goldens.split_everywhere(recording, decoder)


@pytest.mark.parametrize("name", ["chat", "t_v1_pick_required", "t_generate", "t_best_of_details"])
def test_body_cut_at_every_byte(name: str) -> None:
    """A plain reply is whole or an error."""
    goldens.body_cut_everywhere(load("tgi", name), decoder)


def test_a_tool_stream_is_complete_with_done_and_json() -> None:
    """No finish reason ever comes: `[DONE]` after arguments that parse is the end, EOF is not."""
    stream = next(r for r in recordings.scene("tgi", "scene_s_tool") if r.streamed)
    end = decode(decoder(stream), [stream.body]).end
    assert end is not None
    assert end.finish_reason == "tool_calls"
    assert [(call.name, json.loads(call.arguments)) for call in end.tool_calls] == [
        ("get_weather", {"city": "Rome"})
    ]
    assert end.tool_calls[0].id != "0"
    torn = stream.body[: stream.body.index(b"data: [DONE]")]
    assert isinstance(decode(decoder(stream), [torn]).failure, StreamTruncated)
    stray = load("tgi", "t_v1_pick_required_stream_usage")
    assert isinstance(decode(decoder(stray), [stray.body]).failure, BadOutput)


def test_a_broken_tool_stream_is_bad_output() -> None:
    """Pieces cut out of raw text: `{` alone, or a stray comma."""
    for pieces in ("{", "{ , }", ""):
        delta = {"tool_calls": [{"index": 0, "id": "0", "function": {"name": "f"}}]}
        delta["tool_calls"][0]["function"]["arguments"] = pieces  # type: ignore[index]
        event = json.dumps({"id": "", "choices": [{"index": 0, "delta": delta}]})
        stream = f"data: {event}\n\ndata: [DONE]\n\n".encode()
        assert isinstance(decode(TGIDecoder(engine()), [stream]).failure, BadOutput)


def test_an_empty_tool_stream_is_no_answer() -> None:
    """Nothing but `[DONE]`, under HTTP 200."""
    stream = load("tgi", "t_v1_tools_cut_stream")
    assert stream.body == b"data: [DONE]\n\n"
    assert isinstance(decode(decoder(stream), [stream.body]).failure, StreamTruncated)


def test_an_empty_text_with_tokens_counted_is_lost_text() -> None:
    """The last token was half a character: bad output whole, the text itself when streamed."""
    lost = load("tgi", "t_v1_tools_empty_required")
    assert b'"completion_tokens":8' in lost.body
    failure = decode(decoder(lost), [lost.body]).failure
    assert isinstance(failure, BadOutput)
    assert "8 tokens were generated" in str(failure)


def test_the_native_route_gives_the_text_of_the_tokens_then() -> None:
    """`generated_text` is empty, `details.tokens` is not: a declared repair."""
    tokens = [{"id": 1, "text": "Hi", "logprob": -1.0, "special": False}]
    whole = {
        "generated_text": "",
        "details": {"finish_reason": "length", "generated_tokens": 2, "tokens": tokens},
    }
    decoded = decode(GenerateWholeDecoder(engine()), [json.dumps(whole).encode()])
    assert decoded.text == "Hi"
    assert decoded.end is not None
    assert decoded.end.repairs == (HALF,)
    event = {"index": 1, "token": tokens[0], "generated_text": "", "details": None}
    stream = f"data:{json.dumps(event)}\n\n".encode()
    decoded = decode(GenerateDecoder(engine()), [stream])
    assert decoded.text == "Hi"
    assert decoded.end is not None
    assert decoded.end.repairs == (HALF,)


@pytest.mark.parametrize(
    ("scene", "kind"),
    [
        ("scene_kill_shard", EngineDied),
        ("scene_s_fail_mid", EngineFault),
        ("scene_s_incomplete", EngineFault),
        ("scene_overload", Overloaded),
        ("scene_no_grammar", Unsupported),
        ("scene_kill_router", StreamTruncated),
    ],
)
def test_deaths_and_errors_inside_streams(scene: str, kind: type[Exception]) -> None:
    """Under HTTP 200 and a constant 422 inside: the message tells them apart."""
    streams = [r for r in recordings.scene("tgi", scene) if r.streamed and generates(r)]
    failures = [decode(decoder(stream), [stream.body]).failure for stream in streams]
    assert streams
    assert any(type(failure) is kind for failure in failures)
    assert all(
        failure is None or isinstance(failure, kind | StreamTruncated) for failure in failures
    )


def test_keep_alive_comments_are_no_events() -> None:
    """Every 15 s of silence, also before the first token."""
    stream = next(r for r in recordings.scene("tgi", "scene_s_keepalive") if r.streamed)
    assert b"\n:\n" in stream.body or stream.body.startswith(b":")
    assert decode(decoder(stream), [stream.body]).failure is None


@pytest.mark.parametrize(
    ("status", "content", "kind", "facts"),
    [
        (401, b"", Unauthorized, {}),
        (413, b"length limit exceeded", BadRequest, {}),
        (415, b"Expected request with `Content-Type: application/json`", BadRequest, {}),
        (503, b'{"error":"unhealthy","error_type":"healthcheck"}', EngineDied, {}),
        (
            424,
            b'{"error":"Request failed during generation: Server error: CUDA out of memory",'
            b'"error_type":"generation"}',
            EngineFault,
            {},
        ),
        (
            200,
            b'{"error":{"message":"Input validation error: `inputs` tokens + `max_new_tokens` must '
            b'be <= 60. Given: 9 `inputs` tokens and 52 `max_new_tokens`","http_status_code":422}}',
            ContextOverflow,
            {"limit": 60, "requested": 61},
        ),
        (
            422,
            b'{"error":"Input validation error: `inputs` must have less than 40 tokens. Given: 41",'
            b'"error_type":"validation"}',
            ContextOverflow,
            {"limit": 40, "requested": 41},
        ),
        (
            422,
            b'{"error":"Input validation error: `inputs` cannot be empty"}',
            BadRequest,
            {},
        ),
    ],
)
def test_row(status: int, content: bytes, kind: type[Exception], facts: dict[str, Any]) -> None:
    """Rows of the fact sheet, the two context errors with both numbers."""
    error = engine().failure(status, {}, content)
    assert type(error) is kind
    for name, value in facts.items():
        assert getattr(error, name) == value


# ------------------------------------------------------------------------------------ receipts


@pytest.mark.parametrize("facts", [FACTS, BARE], ids=["probed", "bare"])
@settings(max_examples=100, deadline=None)
@given(request=st.one_of(chats, completions), stream=st.booleans())
def test_every_field_is_accounted_for(facts: ServerFacts, request: Any, stream: bool) -> None:
    """Random requests: refused with a rule, or every field in one entry and the body as it says."""
    encoded = encode(engine(facts, images=True), request, stream)
    if encoded is not None:
        check(request, encoded.receipt, encoded.call.json)


def test_the_plainest_chat() -> None:
    """`model` is never the caller's; the reply is streamed even when it is wanted whole."""
    encoded = engine().encode(chat())
    assert encoded.call.json == {
        "model": "tgi",
        "messages": [{"role": "user", "content": "Say hi."}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "half a character" in encoded.receipt.notes[0]


@pytest.mark.parametrize(
    ("field", "value", "sent", "outcome"),
    [
        ("temperature", 0, {"temperature": 0}, "sent"),
        ("top_p", 1.0, {}, "translated"),
        ("top_p", 0.5, {"top_p": 0.5}, "sent"),
        ("presence_penalty", 0.0, {}, "translated"),
        ("presence_penalty", 0.5, {}, "omitted"),
        ("repetition_penalty", 1.25, {"presence_penalty": -0.75}, "translated"),
        ("top_k", 5, {}, "omitted"),
        ("n", 1, {}, "translated"),
        ("seed", 2**64 - 1, {"seed": 2**64 - 1}, "sent"),
        ("max_tokens", 1024, {"max_tokens": 1024}, "sent"),
        ("max_tokens", 1300, {"max_tokens": 1300}, "emulated"),
        ("stop", ("a", "", "b"), {"stop": ["a", "b"]}, "emulated"),
        ("stop", ("a", "b", "c", "d", "e"), {"stop": ["a", "b", "c", "d"]}, "emulated"),
        ("stop", ("",), {}, "emulated"),
        ("top_logprobs", 3, {"logprobs": True, "top_logprobs": 3}, "translated"),
    ],
)
def test_chat_parameters(field: str, value: Any, sent: dict[str, Any], outcome: str) -> None:
    """Each trap of the chat route."""
    encoded = engine().encode(chat(sampling=Sampling(**{field: value})))
    extra = {
        key: inner
        for key, inner in encoded.call.json.items()
        if key not in ("model", "messages", "stream", "stream_options")
    }
    assert extra == sent
    assert encoded.receipt.outcome(f"sampling.{field}") == outcome


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=-1),
        Sampling(top_p=0),
        Sampling(top_p=1.5),
        Sampling(seed=-1),
        Sampling(max_tokens=0),
        Sampling(frequency_penalty=3),
        Sampling(top_logprobs=6),
    ],
)
def test_out_of_range_costs_no_request(sampling: Sampling) -> None:
    """What the server answers with 422 is refused here."""
    with pytest.raises(BadRequest):
        body(chat(sampling=sampling))


@pytest.mark.parametrize(
    "more",
    [
        {"sampling": Sampling(n=2)},
        {"sampling": Sampling(logit_bias={1: 2.0})},
        {"template_options": {"x": 1}},
        {"reasoning": False},
        {"constraint": Constraint(kind="json")},
        {"constraint": Constraint(kind="grammar", value="root ::= x")},
        {"constraint": Constraint(kind="json_schema", value={"type": "array"})},
        {"constraint": Constraint(kind="regex", value="a"), "tools": (WEATHER,)},
        {"context_window": 4096},
        {"lora": ((0, 1.0),)},
    ],
)
def test_refused_before_anything_is_sent(more: dict[str, Any]) -> None:
    """Unsupported, with a rule."""
    with pytest.raises(Unsupported) as caught:
        body(chat(**more))
    assert caught.value.rule.startswith("tgi.")


def test_stop_text_is_cut_and_found_inside_tokens() -> None:
    """The server leaves it in, and misses one that lies inside a token."""
    stopped = load("tgi", "t_v1_stop_stream")
    asked = tuple(stopped.request["stop"])
    raw = decode(decoder(stopped), [stopped.body]).text
    assert asked == ("e", "a", "l")
    assert raw.startswith("plo")
    assert raw.endswith("level")
    encoded = engine().encode(chat(sampling=Sampling(stop=asked)), stream=True)
    cut = decode(encoded.decoder(), [stopped.body])
    assert cut.text == "p"
    assert cut.end is not None
    assert cut.end.finish_reason == "stop"


def test_more_than_a_slice_is_counted_and_cut() -> None:
    """Empty pieces are tokens, too."""
    encoded = engine().encode(chat(sampling=Sampling(max_tokens=1025)))
    piece = b'data: {"id":"","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n'
    stream = b"".join(piece % (b"x" if i % 2 else b"") for i in range(2048))
    decoded = decode(encoded.decoder(), [stream[:40_000], stream[40_000:]])
    assert decoded.end is not None
    assert decoded.end.finish_reason == "length"
    assert decoded.text == "x" * 512
    native = engine().encode(text(sampling=Sampling(max_tokens=1025)))
    token = {"id": 1, "text": "", "logprob": 0, "special": False}
    event = json.dumps({"token": token, "generated_text": None, "details": None})
    decoded = decode(native.decoder(), [f"data: {event}\n\n".encode() * 1100])
    assert decoded.end is not None
    assert decoded.end.finish_reason == "length"


def test_a_grammar_is_kept_within_one_slice() -> None:
    """After 1024 tokens it would begin anew: a cap if a limit is set, an error if it happened."""
    schema = Constraint(kind="json_schema", value={"type": "object", "properties": {}})
    request = chat(constraint=schema, sampling=Sampling(max_tokens=3000))
    encoded = engine().encode(request)
    assert encoded.call.json["max_tokens"] == 1024
    assert encoded.receipt.outcome("sampling.max_tokens") == "translated"
    unset = engine().encode(chat(constraint=schema))
    assert "max_tokens" not in unset.call.json
    done = (
        b'data: {"id":"","choices":[{"index":0,"delta":{"content":"{}{}"},"finish_reason":"stop"}]}'
        b'\n\ndata: {"id":"","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1030}}'
        b"\n\ndata: [DONE]\n\n"
    )
    assert isinstance(decode(unset.decoder(), [done]).failure, BadOutput)


def test_thinking_is_split() -> None:
    """Inline tags, as the scripted backend wrote them."""
    stream = next(
        r
        for r in recordings.scene("tgi", "scene_s_think")
        if r.streamed and r.path == "/v1/chat/completions"
    )
    decoded = decode(engine().encode(chat(), stream=True).decoder(), [stream.body])
    assert decoded.reasoning
    assert "<think>" not in decoded.text


# ------------------------------------------------------------------------------------ tools


def test_tools_are_asked_for_without_streaming_and_the_receipt_says_so() -> None:
    """Streamed calls come broken."""
    encoded = engine().encode(
        chat(tools=(WEATHER,), tool_choice=ToolChoice(mode="required")), stream=True
    )
    assert encoded.call.json["stream"] is False
    assert "stream_options" not in encoded.call.json
    assert encoded.call.framing == "json"
    assert any("without streaming" in note for note in encoded.receipt.notes)
    called = load("tgi", "t_v1_pick_required")
    end = decode(encoded.decoder(), [called.body]).end
    assert end is not None
    assert end.finish_reason == "tool_calls"
    assert end.tool_calls[0].id.startswith("call_")


def test_no_call_where_one_was_required() -> None:
    """`{}` is the server's 422; a text is ours."""
    encoded = engine().encode(chat(tools=(WEATHER,), tool_choice=ToolChoice(mode="required")))
    prose = decode(encoded.decoder(), [load("tgi", "t_v1_pick_auto").body])
    assert isinstance(prose.failure, BadOutput)
    empty = load("tgi", "t_v1_pick_optional")
    assert b"{}" in empty.body
    assert isinstance(engine().failure(empty.status, {}, empty.body), BadOutput)


def test_a_text_answer_to_tools_says_what_is_not_known() -> None:
    """The finish reason is that of the pass that decided against a call."""
    encoded = engine().encode(chat(tools=(WEATHER,)))
    end = decode(encoded.decoder(), [load("tgi", "t_v1_pick_auto").body]).end
    assert end is not None
    assert DECIDED in end.repairs
    nothing = {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}], "id": ""}
    failure = decode(encoded.decoder(), [json.dumps(nothing).encode()]).failure
    assert isinstance(failure, BadOutput)


def test_choices_of_tools() -> None:
    """All four; none hides the tools, as the server's template does."""
    named = ToolChoice(mode="named", name="get_weather")
    assert body(chat(tools=(WEATHER,), tool_choice=named))["tool_choice"] == {
        "type": "function",
        "function": {"name": "get_weather"},
    }
    hidden = engine().encode(
        chat(
            tools=(WEATHER,),
            tool_choice=ToolChoice(mode="none"),
            constraint=Constraint(kind="choice", value=("a.", "b")),
        )
    )
    assert "tools" not in hidden.call.json
    assert hidden.call.json["response_format"] == {"type": "regex", "value": r"(a\.|b)"}
    assert "tools" not in body(chat())


def test_schemas_of_tools_are_what_the_compiler_takes() -> None:
    """Definitions inlined, lists of types split, a slash in a name refused."""
    tool = Tool(
        name="move",
        parameters={
            "type": "object",
            "properties": {"to": {"$ref": "#/$defs/P"}, "by": {"type": ["integer", "null"]}},
            "$defs": {"P": {"type": "object", "properties": {"x": {"type": "number"}}}},
        },
    )
    made = body(chat(tools=(tool,)))["tools"][0]["function"]["parameters"]
    assert made["properties"]["to"] == {"type": "object", "properties": {"x": {"type": "number"}}}
    assert made["properties"]["by"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert "$defs" not in made
    with pytest.raises(BadRequest, match="slash"):
        body(chat(tools=(replace(tool, name="a/b"),)))
    loop = {"$ref": "#/$defs/T", "$defs": {"T": {"properties": {"t": {"$ref": "#/$defs/T"}}}}}
    with pytest.raises(Unsupported, match="inlined"):
        body(chat(tools=(replace(tool, parameters=loop),)))
    with pytest.raises(NotInlinable):
        inlined({"$ref": "#/$defs/absent"})
    assert single_types({"type": ["string", "null"], "title": "T"})["title"] == "T"
    assert alternation(("a|b", "c")) == r"(a\|b|c)"


def test_history_of_calls() -> None:
    """Arguments as objects, no content beside them: any content string would drop the calls."""
    call = ToolCall(id="1", name="get_weather", arguments='{"city": "Rome"}')
    wire = body(
        chat(
            USER,
            Message(role="assistant", content="Let me see.", tool_calls=(call,)),
            Message(role="tool", content="21", tool_call_id="1", tool_name="get_weather"),
        )
    )["messages"]
    assert [message["role"] for message in wire] == ["user", "assistant", "assistant", "tool"]
    assert "content" not in wire[2]
    assert wire[2]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}
    assert "tool_calls" not in wire[1]


def test_images_only_where_the_model_is_known_to_see() -> None:
    """A text model reads base64 as its prompt, under 200."""
    see = Message(role="user", content=(TextPart(text="see"), ImagePart(data=b"x")))
    with pytest.raises(Unsupported) as caught:
        body(chat(see))
    assert caught.value.feature == "images"
    part = engine(images=True).encode(chat(see)).call.json["messages"][0]["content"][1]
    assert part["image_url"]["url"].startswith("data:image/png;base64,")
    info = {"model_id": "m", "model_pipeline_tag": "image-text-to-text"}
    assert engine(facts_of(info)).encode(chat(see))


# ------------------------------------------------------------------------------------ completions


def test_the_plainest_completion() -> None:
    """The native route, with details for the finish reason; no model field."""
    encoded = engine().encode(text())
    assert encoded.call.path == "/generate_stream"
    assert encoded.call.json["inputs"] == "San"
    assert encoded.call.json["parameters"] == {"details": True}
    assert "model" not in encoded.call.json
    decoded = decode(encoded.decoder(), [load("tgi", "t_generate_stream_details").body])
    assert decoded.text == "48avurl�ber 96 when"
    assert decoded.end is not None
    assert decoded.end.usage is not None
    assert not any(chunk.logprobs for chunk in decoded.chunks)


@pytest.mark.parametrize(
    ("sampling", "parameters"),
    [
        (Sampling(temperature=0, top_p=0.5, top_k=3, typical_p=0.2), {}),
        (Sampling(temperature=0.5), {"temperature": 0.5}),
        (Sampling(top_k=0, top_p=1.0, typical_p=1.0), {}),
        (Sampling(top_k=3, typical_p=0.2), {"top_k": 3, "typical_p": 0.2}),
        (Sampling(repetition_penalty=1.5), {"repetition_penalty": 1.5}),
        (Sampling(max_tokens=9, stop=("x",)), {"max_new_tokens": 9, "stop": ["x"]}),
        (Sampling(top_logprobs=2), {"top_n_tokens": 2}),
        (Sampling(n=2), {"best_of": 2, "do_sample": True}),
    ],
)
def test_native_parameters(sampling: Sampling, parameters: dict[str, Any]) -> None:
    """What the chat route lacks is here; what would be refused or misread is left out."""
    assert body(text(sampling=sampling))["parameters"] == {"details": True, **parameters}


def test_native_grammar_adapter_and_options() -> None:
    """`grammar`, `adapter_id`, and what we have no name for."""
    request = text(
        constraint=Constraint(kind="regex", value="[a-z]+"),
        lora="law",
        engine_options={"parameters": {"truncate": 100}},
    )
    parameters = body(request)["parameters"]
    assert parameters["grammar"] == {"type": "regex", "value": "[a-z]+"}
    assert (parameters["adapter_id"], parameters["truncate"]) == ("law", 100)
    assert body(chat(lora="law"))["model"] == "law"
    with pytest.raises(Unsupported, match="fill-in-the-middle"):
        body(text(suffix="x"))
    with pytest.raises(BadRequest):
        body(text(prompt=""))


def test_best_of_gives_the_other_sequences() -> None:
    """Not streamed, and each is a choice."""
    encoded = engine().encode(text(sampling=Sampling(n=2)), stream=True)
    assert encoded.call.path == "/generate"
    decoded = decode(encoded.decoder(), [load("tgi", "t_best_of_details").body])
    assert decoded.text == "�langchainmbed68 lines 4096orch"
    assert [chunk.text for chunk in decoded.chunks if chunk.index] == [" autoXT –guorts dratgi"]
    with pytest.raises(BadRequest, match="seed"):
        body(text(sampling=Sampling(n=2, seed=1)))
    with pytest.raises(BadRequest, match="sampling"):
        body(text(sampling=Sampling(n=2, temperature=0)))


def test_native_logprobs_only_when_asked() -> None:
    """They always come; ties give more alternatives than asked for."""
    encoded = engine().encode(text(sampling=Sampling(logprobs=True, top_logprobs=2)))
    decoded = decode(encoded.decoder(), [load("tgi", "t_top_n_stream").body])
    first = next(chunk.logprobs for chunk in decoded.chunks if chunk.logprobs)[0]
    assert first.id == 911
    assert len(first.top) >= 2


def test_echo_is_ours() -> None:
    """The prompt is known."""
    encoded = engine().encode(text(prompt="San", echo=True))
    decoded = decode(encoded.decoder(), [load("tgi", "t_generate_stream_details").body])
    assert decoded.text.startswith("San48")


# ------------------------------------------------------------------------------------ probing


def test_probe() -> None:
    """Version, window and limits of `/info`; the retirement is said."""
    assert FACTS.version == "3.3.6-dev0"
    assert FACTS.context_window == 2048
    assert FACTS.extra["max_input_tokens"] == 512
    assert FACTS.model("tgi") is FACTS.models[0]
    assert FACTS.verified
    assert "maintenance mode since December 2025" in FACTS.notes[0]
    for successor in ("vLLM", "SGLang", "llama.cpp", "MLX"):
        assert successor in FACTS.notes[0]


@pytest.mark.parametrize(
    ("version", "verified"),
    [("3.3.7", True), ("3.4.0", False), ("2.4.1", False), (None, True), ("odd", True)],
)
def test_judge_version(version: str | None, verified: bool) -> None:
    """TGI 2 and what is newer were not seen."""
    told, notes = judge_version(version)
    assert told is verified
    assert bool(notes) is not verified


def test_ready() -> None:
    """Refused and 503 are "not yet", 200 is ready; a wrong key is an error."""
    assert play(engine().ready("m"), {"GET /health": load("tgi", "t_health")}) is True
    assert play(engine().ready("m"), {"GET /health": answer({"error": "unhealthy"}, 503)}) is False
    operation = engine().ready("m")
    next(operation)
    with pytest.raises(StopIteration) as stop:
        operation.throw(Unreachable("refused"))
    assert stop.value.value is False
    with pytest.raises(Unauthorized):
        play(engine().ready("m"), {"GET /health": answer(None, 401)})


def test_recognise() -> None:
    """By the fields of `/info`."""
    yes = {"GET /info": load("tgi", "t_info")}
    assert play(TGI.recognise(TARGET), yes) is True
    for other in (answer({}), answer({"detail": "Not Found"}, 404), answer(["x"])):
        assert play(TGI.recognise(TARGET), {"GET /info": other}) is False
    page = replace(answer(None), body=b"<html>")
    assert play(TGI.recognise(TARGET), {"GET /info": page}) is False


def test_routes() -> None:
    """Token ids, the count of a chat, the metrics in one shape."""
    tokens = play(engine().tokenize("a"), {"POST /tokenize": load("tgi", "t_tokenize_add_special")})
    assert tokens == (71,)
    count = play(
        engine().count_tokens(chat()), {"POST /chat_tokenize": load("tgi", "t_chat_tokenize")}
    )
    assert count == 19
    busy = play(engine().load_state(), {"GET /metrics": load("tgi", "t_metrics_after")})
    assert busy.running is not None
    assert busy.waiting is not None
    assert busy.generated_tokens_total
    fresh = play(engine().load_state(), {"GET /metrics": replace(answer(None), body=b"")})
    assert (fresh.running, fresh.waiting) == (None, None)
    with pytest.raises(Unsupported):
        play(engine().embed(EmbedRequest(model="m", texts=("a",))), {})
    with pytest.raises(Unsupported):
        play(engine().detokenize([1]), {})
