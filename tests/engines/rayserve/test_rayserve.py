"""The Ray Serve engine on recordings of the real one: bodies, readiness, probing, deaths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginekit.engine import Call, Decoder, Target
from enginekit.engines._openai_decode import OpenAIDecoder, OpenAIWholeDecoder
from enginekit.engines.rayserve import RayServe
from enginekit.engines.rayserve.facts import facts_of, judge_version, tool_capabilities
from enginekit.errors import (
    EngineDied,
    EngineFault,
    EngineLoading,
    EngineTimeout,
    ModelNotFound,
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
    EmbedRequest,
    Message,
    RerankRequest,
    Sampling,
    Tool,
    ToolChoice,
)
from tests.engines import goldens, recordings
from tests.engines.dialect.test_receipts import BARE, chats, check, completions, encode
from tests.engines.recordings import Recording, answer, decode, load, play

HERE = Path(__file__).parent
TARGET = Target(base_url="http://server")
USER = Message(role="user", content="Say hi.")
WEATHER = Tool(name="get_weather", parameters={"type": "object"})
LISTED = load("rayserve", "models")
TOKEN = load("rayserve", "completion")
FACTS: ServerFacts = play(
    RayServe(TARGET).probe(), {"GET /v1/models": LISTED, "POST /v1/completions": TOKEN}
)
NOT_YET = b"Path '/v1/models' not found. Ping http://.../-/routes for available routes."


def engine(facts: ServerFacts | None = FACTS, **options: Any) -> RayServe:
    return RayServe(TARGET, facts=facts, options=options)


def chat(*messages: Message, **more: Any) -> ChatRequest:
    return ChatRequest(model="tiny", messages=messages or (USER,), **more)


def decoder(recording: Recording) -> Decoder:
    kind = OpenAIDecoder if recording.streamed else OpenAIWholeDecoder
    prompt = recording.request.get("prompt")
    lists = isinstance(prompt, list) and not all(isinstance(item, int) for item in prompt)
    asked = (recording.request.get("stream_options") or {}).get("include_usage", False)
    return kind(
        engine(),
        choices=len(prompt) if lists else recording.request.get("n") or 1,
        path=recording.path,
        wants_usage=asked or not recording.streamed,
    )


# ------------------------------------------------------------------------------------ recordings


def test_every_recorded_reply() -> None:
    """`replies.txt` says what each of them is, the cut ones of the deaths among them."""
    told = goldens.reply_table(
        "rayserve", decoder, lambda recording: recording.path.endswith("/completions")
    )
    goldens.check_table(HERE / "replies.txt", told)
    assert len(told) > 150


def test_every_recorded_refusal() -> None:
    """`refusals.txt` says what each of them means."""
    goldens.check_refusals(engine(), "rayserve", HERE / "refusals.txt")


@pytest.mark.parametrize(
    "name", ["chat_stream_usage", "s_call_stream", "s_muse_stream", "completion_stream"]
)
def test_stream_cut_and_split_at_every_byte(name: str) -> None:
    """Before the finish reason a typed error, after it the whole text; batched writes or not."""
    recording = load("rayserve", name)
    terminal = goldens.last_finish(recording, goldens.finish_reason)
    goldens.cut_everywhere(recording, decoder, terminal)
    goldens.split_everywhere(recording, decoder)


@pytest.mark.parametrize("name", ["chat", "s_calls", "completion"])
def test_body_cut_at_every_byte(name: str) -> None:
    """A plain reply is whole or an error."""
    goldens.body_cut_everywhere(load("rayserve", name), decoder)


def test_several_events_come_in_one_write() -> None:
    """The proxy batches tokens: pieces of the real stream hold several events each."""
    stream = load("rayserve", "chat_stream")
    events = stream.body.count(b"data: ")
    assert events > 3
    assert decode(decoder(stream), [stream.body]).text == "".join(
        chunk.text for chunk in decode(decoder(stream), [stream.body]).chunks
    )


def test_a_killed_replica_ends_its_stream_cleanly_and_that_is_no_answer() -> None:
    """No error, no `[DONE]`, a clean EOF: StreamTruncated with the text that came."""
    stream = next(r for r in recordings.scene("rayserve", "scene_replica_killed") if r.streamed)
    assert b"[DONE]" not in stream.body
    failure = decode(decoder(stream), [stream.body]).failure
    assert isinstance(failure, StreamTruncated)
    assert failure.partial


def test_a_killed_engine_core_says_so_and_done_follows() -> None:
    """An error event, then `[DONE]`: the engine died, with the text before it."""
    stream = next(r for r in recordings.scene("rayserve", "scene_engine_core_killed") if r.streamed)
    assert stream.body.endswith(b"data: [DONE]\n\n")
    failure = decode(decoder(stream), [stream.body]).failure
    assert isinstance(failure, EngineDied)
    assert failure.partial


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("status", "body", "kind", "facts"),
    [
        (503, b"Route table is not populated yet.", EngineLoading, {}),
        (404, NOT_YET, EngineLoading, {}),
        (503, b"<html>Service Unavailable</html>", Overloaded, {"retry_after": None}),
        (
            408,
            b"Request x timed out after 6.0s.",
            EngineTimeout,
            {"budget": 6.0, "phase": "whole reply"},
        ),
        (404, b'{"detail":"Not Found"}', Unsupported, {"feature": "/path"}),
        (401, b"Unauthorized: Missing authentication token", Unauthorized, {}),
        (403, b"Forbidden: Invalid authentication token", Unauthorized, {}),
        (500, b"Internal Server Error", EngineFault, {}),
    ],
)
def test_row(status: int, body: bytes, kind: type[Exception], facts: dict[str, Any]) -> None:
    """Conditions of the fact sheet that no recorded exchange holds."""
    error = engine().failure(status, {}, body, path="/path")
    assert isinstance(error, kind)
    for name, value in facts.items():
        assert getattr(error, name) == value


def test_messages_are_undressed() -> None:
    """No request ids, no traceback, no colours, no addresses: the sentence that matters."""
    dead = next(
        r for r in recordings.scene("rayserve", "scene_engine_core_killed") if r.status == 500
    )
    message = str(engine().failure(dead.status, dead.headers, dead.body))
    assert "EngineDeadError: EngineCore encountered an issue" in message
    for noise in ("Request ID", "File", "0x7f", "\x1b", "Traceback", "replica.py"):
        assert noise not in message


def test_tools_without_a_parser_name_the_arguments() -> None:
    """The same refusal as vLLM's, with Ray's way to mend it."""
    refused = recordings.scene("vllm", "scene_tools_without_flags")[0]
    error = engine().failure(refused.status, refused.headers, refused.body)
    assert isinstance(error, Unsupported)
    assert error.hint is not None
    assert "LLMConfig" in error.hint


# ------------------------------------------------------------------------------------ requests


def test_bodies_are_vllms() -> None:
    """Chat, tools, constraints: what vLLM takes, under this engine's own rule ids."""
    encoded = engine().encode(
        chat(tools=(WEATHER,), tool_choice=ToolChoice(mode="required")), stream=True
    )
    body = encoded.call.json
    assert body["tool_choice"] == "required"
    assert body["stream_options"] == {"include_usage": True}
    assert all(entry.rule.startswith("rayserve.") for entry in encoded.receipt.entries)
    assert encoded.receipt.engine == "rayserve"
    assert encoded.receipt.engine_version == "vllm 0.32.0"


@pytest.mark.parametrize("facts", [FACTS, BARE], ids=["tool parser", "none"])
@settings(max_examples=60, deadline=None)
@given(request=st.one_of(chats, completions), stream=st.booleans())
def test_every_field_is_accounted_for(facts: ServerFacts, request: Any, stream: bool) -> None:
    """Random requests: refused with a rule, or every field in one entry and the body as it says."""
    encoded = encode(engine(facts), request, stream)
    if encoded is not None:
        check(request, encoded.receipt, encoded.call.json)


def test_unset_completion_length_is_the_window_or_refused() -> None:
    """vLLM would stop after 16 tokens; without max_model_len nobody knows what to ask for."""
    request = CompletionRequest(model="tiny", prompt="a")
    assert engine().encode(request).call.json["max_tokens"] == 2048
    with pytest.raises(Unsupported) as caught:
        engine(replace(FACTS, models=(), context_window=None)).encode(request)
    assert caught.value.hint is not None
    assert "max_model_len in engine_kwargs" in caught.value.hint


def test_an_adapter_is_a_model_of_the_base() -> None:
    """`base:adapter`, whether the base is named or not."""
    for lora in ("law", "tiny:law"):
        encoded = engine().encode(chat(lora=lora))
        assert encoded.call.json["model"] == "tiny:law"
        assert encoded.receipt.outcome("lora") == "translated"
    with pytest.raises(Unsupported, match="chosen by its name"):
        engine().encode(chat(lora=((0, 1.0),)))


def test_the_window_is_set_at_deployment() -> None:
    """What fits is noted, what does not is refused with the setting."""
    assert engine().encode(chat(context_window=2048)).receipt.outcome("context_window")
    with pytest.raises(Unsupported, match="set at deployment and is 2048") as caught:
        engine().encode(chat(context_window=4096))
    assert "max_model_len: 4096" in str(caught.value.hint)


def test_more_than_four_stop_strings_are_kept_on_our_side() -> None:
    """As on vLLM."""
    stops = ("a", "b", "c", "d", "e")
    encoded = engine().encode(chat(sampling=Sampling(stop=stops)))
    assert encoded.call.json["stop"] == list(stops[:4])
    assert encoded.receipt.outcome("sampling.stop") == "emulated"


# ------------------------------------------------------------------------------------ probing


def test_probe() -> None:
    """Version by the fingerprint, window by the metadata, and what autoscaling defaults do."""
    assert FACTS.version == "vllm 0.32.0"
    assert FACTS.context_window == 2048
    assert FACTS.modalities == ("text",)
    assert FACTS.verified
    assert any("1e9" in note for note in FACTS.notes)


def test_a_null_window_is_unknown() -> None:
    """`max_request_context_length` is null unless max_model_len was set."""
    facts = facts_of({"data": [{"id": "m", "metadata": {"max_request_context_length": None}}]})
    assert facts.context_window is None
    assert any("context window is unknown" in note for note in facts.notes)


def test_a_probe_of_a_loading_server_does_not_hang() -> None:
    """The models are listed, the token does not come: facts without a version, and a note."""
    operation = RayServe(TARGET).probe()
    assert next(operation).path == "/v1/models"
    call = operation.send(LISTED.answer)
    assert isinstance(call, Call)
    assert call.timeout <= 2
    with pytest.raises(StopIteration) as stop:
        operation.throw(EngineTimeout("slow"))
    facts = stop.value.value
    assert facts.version is None
    assert any("may be loading" in note for note in facts.notes)


def test_probe_may_try_a_tool() -> None:
    """With the option, for the model in use, by a request that generates nothing."""
    refused = recordings.scene("vllm", "scene_tools_without_flags")[0]
    for reply, support in ((refused, "emulated"), (load("rayserve", "chat_tools_auto"), "native")):
        answers = {
            "GET /v1/models": LISTED,
            "POST /v1/completions": TOKEN,
            "POST /v1/chat/completions": reply,
        }
        facts = play(RayServe(TARGET, options={"probe_tools": True}).probe(), answers)
        (model,) = (card.id for card in facts.models)
        told = facts.told("tools", model)
        assert told is not None
        assert told.support == support
        assert facts.told("tools", "another") is None


def test_emulated_tools_once_the_probe_knows() -> None:
    """Without a parser a call is made by a schema."""
    server = engine(replace(FACTS, capabilities=tool_capabilities(False)))
    encoded = server.encode(chat(tools=(WEATHER,), tool_choice=ToolChoice(mode="required")))
    assert "tools" not in encoded.call.json
    assert encoded.receipt.outcome("tools") == "emulated"


@pytest.mark.parametrize(
    ("fingerprint", "version", "verified"),
    [
        ("vllm-0.32.0-939cbc8b", "vllm 0.32.0", True),
        ("vllm-0.33.1-x", "vllm 0.33.1", False),
        ("vllm-0.29.0+cpu-x", "vllm 0.29.0+cpu", True),
        ("fp_123", None, True),
        (None, None, True),
    ],
)
def test_judge_version(fingerprint: str | None, version: str | None, verified: bool) -> None:
    """Newer than tested: said once, and used all the same."""
    told, ok, notes = judge_version(fingerprint)
    assert (told, ok) == (version, verified)
    assert bool(notes) is not verified


@pytest.mark.parametrize(
    ("status", "body", "yes"),
    [
        (200, b'{"/":"llm"}', True),
        (200, b"{}", True),
        (503, b"Route table is not populated yet.", True),
        (503, b"busy", False),
        (404, b'{"detail":"Not Found"}', False),
        (200, b"<html>", False),
        (200, b'{"object":"list"}', False),
    ],
)
def test_recognise(status: int, body: bytes, yes: bool) -> None:
    """Ray's proxy has `/-/routes`, also before any application is up; vLLM and MLC have not."""
    reply = replace(answer(None, status), body=body)
    assert play(RayServe.recognise(TARGET), {"GET /-/routes": reply}) is yes


# ------------------------------------------------------------------------------------ readiness


def ready(*outcomes: Any, model: str = "tiny") -> bool:
    """What `ready()` says when the calls come out so, one after the other."""
    operation = RayServe(TARGET).ready(model)
    try:
        next(operation)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                operation.throw(outcome)
            else:
                operation.send(outcome.answer if isinstance(outcome, Recording) else outcome)
    except StopIteration as stop:
        return bool(stop.value)
    raise AssertionError("it asked for more")


def text(status: int, body: bytes) -> Any:
    return replace(answer(None, status), body=body)


def test_startup_in_the_order_that_was_recorded() -> None:
    """Refused, unpopulated, no path, silence, listed but silent: all "not yet"; then a token."""
    busy = next(r for r in recordings.scene("rayserve", "scene_queue_full") if r.status == 503)
    dead = next(
        r for r in recordings.scene("rayserve", "scene_engine_core_killed") if r.status == 500
    )
    assert not ready(Unreachable("refused"))
    assert not ready(text(503, b"Route table is not populated yet."))
    assert not ready(text(404, NOT_YET))
    assert not ready(EngineTimeout("silent"))
    assert not ready(LISTED, EngineTimeout("the engine loads"))
    assert not ready(LISTED, dead)
    assert not ready(LISTED, busy)
    assert not ready(answer({"object": "list", "data": []}))
    assert ready(LISTED, TOKEN)


def test_a_pooling_model_is_ready_when_it_refuses_to_complete() -> None:
    """The refusal is the engine's own, so it is up."""
    assert ready(LISTED, text(400, b'{"error":{"message":"does not support it","code":400}}'))


def test_what_waiting_cannot_mend_is_raised() -> None:
    """A name that is not deployed, a key that is wrong."""
    with pytest.raises(ModelNotFound) as caught:
        ready(LISTED, model="tinny")
    assert caught.value.near == ("tiny",)
    with pytest.raises(Unauthorized):
        ready(text(401, b""))
    assert ready(LISTED, TOKEN, model="tiny:adapter")


# ------------------------------------------------------------------------------------ routes


def test_embed() -> None:
    """`/v1/embeddings`; a chat model says that it does not support the task."""
    request = EmbedRequest(model="tiny", texts=("a",), truncate=True)
    reply = {"data": [{"index": 0, "embedding": [0.5, 1.0]}], "model": "tiny"}
    made = play(engine().embed(request), {"POST /v1/embeddings": answer(reply)})
    assert made.vectors == [[0.5, 1.0]]
    assert made.receipt.outcome("truncate") == "translated"
    with pytest.raises(Unsupported, match="embed") as caught:
        play(engine().embed(request), {"POST /v1/embeddings": load("rayserve", "embeddings")})
    assert caught.value.feature == "embeddings"


@pytest.mark.parametrize("name", ["metrics", "tokenize", "detokenize", "count_tokens", "rerank"])
def test_what_the_ingress_lacks_is_refused_without_a_request(name: str) -> None:
    """No call leaves."""
    operations = {
        "metrics": lambda: engine().load_state(),
        "tokenize": lambda: engine().tokenize("a"),
        "detokenize": lambda: engine().detokenize([1]),
        "count_tokens": lambda: engine().count_tokens(chat()),
        "rerank": lambda: engine().rerank(RerankRequest(model="m", query="q", documents=("d",))),
    }
    with pytest.raises(Unsupported) as caught:
        play(operations[name](), {})
    assert caught.value.feature == name
    assert not engine().profile.capability(name).usable  # type: ignore[arg-type]


def test_models() -> None:
    """The configured models, with their windows."""
    cards = play(engine().models(), {"GET /v1/models": LISTED})
    assert [(card.id, card.context_window) for card in cards] == [("tiny", 2048)]
