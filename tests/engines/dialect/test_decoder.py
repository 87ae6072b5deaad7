"""The reply decoders of the OpenAI dialect on recordings of real servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enginekit.engine import Engine, Target
from enginekit.engines._openai_decode import OpenAIDecoder, OpenAIWholeDecoder
from enginekit.engines.llamacpp import LlamaCpp
from enginekit.engines.llamacpp.infill import InfillDecoder
from enginekit.engines.vllm import VLLM
from enginekit.errors import EngineFault, MalformedReply, Overloaded, StreamTruncated, Unreachable
from tests.engines import recordings
from tests.engines.recordings import Recording, decode

ENGINES: dict[str, Engine] = {
    "llamacpp": LlamaCpp(Target(base_url="http://server")),
    "vllm": VLLM(Target(base_url="http://server")),
}
NATIVE = ("/completion", "/completions", "/infill")
GOLDEN = Path(__file__).parents[1]


def choices_of(recording: Recording) -> int:
    prompt = recording.request.get("prompt")
    if isinstance(prompt, list) and not all(isinstance(item, int) for item in prompt):
        return len(prompt)
    return recording.request.get("n") or recording.request.get("n_cmpl") or 1


def decoder_for(engine: str, recording: Recording) -> Any:
    if recording.path in NATIVE:
        return InfillDecoder(ENGINES[engine], path=recording.path)
    kind = OpenAIDecoder if recording.streamed else OpenAIWholeDecoder
    asked = (recording.request.get("stream_options") or {}).get("include_usage", False)
    return kind(
        ENGINES[engine],
        choices=choices_of(recording),
        path=recording.path,
        wants_usage=asked or not recording.streamed,
    )


def replies(engine: str) -> list[str]:
    """Names of the recordings that hold a whole reply of a generation."""
    found = []
    for name in recordings.names(engine, "chat", "completion", "s_", "l_", "v_"):
        try:
            recording = recordings.load(engine, name)
        except TypeError:  # the server died: no response
            continue
        generates = recording.path.endswith(("/completions", "/completion", "/infill"))
        native_whole = recording.path in NATIVE and not recording.streamed
        if recording.status == 200 and generates and recording.body and not native_whole:
            found.append(name)
    return found


def golden(engine: str) -> dict[str, str]:
    lines = (GOLDEN / engine / "replies.txt").read_text("utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines if line)


ALL = [(engine, name) for engine in ENGINES for name in replies(engine)]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_reply_has_a_golden_line(engine: str) -> None:
    """A recording that is added without its line, or a line without its recording, is noticed."""
    assert sorted(golden(engine)) == sorted(replies(engine))
    assert len(replies(engine)) > 120


@pytest.mark.parametrize(("engine", "name"), ALL)
def test_reply(engine: str, name: str) -> None:
    """The decoded reply is what `replies.txt` says, a table that a person can check."""
    recording = recordings.load(engine, name)
    assert decode(decoder_for(engine, recording), [recording.body]).line() == golden(engine)[name]


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        pair
        for pair in ALL
        if (found := recordings.load(*pair)).streamed and found.path not in NATIVE
    ],
)
def test_stream_agrees_with_a_plain_reading(engine: str, name: str) -> None:
    """A dozen naive lines that know nothing of our decoder come to the same text and calls."""
    recording = recordings.load(engine, name)
    text, calls = "", ""
    for line in recording.body.decode().split("\n"):
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            if choice["index"] == 0:
                delta = choice.get("delta") or {"content": choice.get("text")}
                text += delta.get("content") or ""
                for call in delta.get("tool_calls") or ():
                    calls += call["function"].get("name") or ""
                    calls += call["function"].get("arguments") or ""
    decoded = decode(decoder_for(engine, recording), [recording.body])
    assert decoded.text == text
    assert "".join(name + arguments for name, arguments in decoded.calls) == calls


# ------------------------------------------------------------------------------------ cuts

STREAMS = [
    ("llamacpp", "chat_stream"),
    ("llamacpp", "chat_stream_usage"),
    ("llamacpp", "s_call_stream"),
    ("llamacpp", "s_calls_stream"),
    ("llamacpp", "s_muse_stream"),
    ("llamacpp", "s_greet_stream"),
    ("llamacpp", "s_greet_cut_in_char_stream"),
    ("llamacpp", "completion_stream"),
    ("llamacpp", "l_n_probs_stream"),
    ("vllm", "chat_stream"),
    ("vllm", "chat_stream_usage"),
    ("vllm", "s_call_stream"),
    ("vllm", "s_calls_stream"),
    ("vllm", "s_muse_stream"),
    ("vllm", "s_greet_stop_stream"),
    ("vllm", "completion_stream"),
    ("vllm", "v_completion_logprobs_stream"),
]
BODIES = [
    ("llamacpp", "chat"),
    ("llamacpp", "chat_n2"),
    ("llamacpp", "s_calls"),
    ("llamacpp", "s_muse"),
    ("llamacpp", "completion"),
    ("vllm", "chat"),
    ("vllm", "chat_n2"),
    ("vllm", "s_calls"),
    ("vllm", "s_muse"),
    ("vllm", "completion"),
]


def terminal_offset(recording: Recording) -> int:
    """Where the last finish reason is whole: found by a plain reading of the events."""
    at, found = 0, -1
    for block in recording.body.split(b"\n\n"):
        if block.startswith(b"data: {"):
            event = json.loads(block[6:])
            reasons = [choice.get("finish_reason") for choice in event.get("choices", ())]
            if any(reasons) or event.get("stop"):
                found = at + len(block)
        at += len(block) + 2
    return found


@pytest.mark.parametrize(("engine", "name"), STREAMS)
def test_stream_cut_at_every_byte(engine: str, name: str) -> None:
    """Cut before the terminal fact: a typed error that holds a prefix. After it: the full text."""
    recording = recordings.load(engine, name)
    body, terminal = recording.body, terminal_offset(recording)
    whole = decode(decoder_for(engine, recording), [body])
    assert whole.end is not None
    for offset in range(len(body)):
        cut = decode(decoder_for(engine, recording), [body[:offset]])
        if offset < terminal:
            assert isinstance(cut.failure, StreamTruncated), offset
            assert cut.end is None
            assert whole.text.startswith(cut.failure.partial)
            assert cut.failure.partial == cut.text
            assert whole.reasoning.startswith(cut.failure.partial_reasoning)
        else:
            assert cut.failure is None, offset
            assert cut.end is not None
            assert (cut.text, cut.reasoning) == (whole.text, whole.reasoning)
            assert [call.arguments for call in cut.end.tool_calls] == [
                call.arguments for call in whole.end.tool_calls
            ]
            lost = cut.end.usage is None and whole.end.usage is not None
            assert any("usage lost" in repair for repair in cut.end.repairs) == lost


@pytest.mark.parametrize(("engine", "name"), STREAMS)
def test_stream_split_at_every_byte(engine: str, name: str) -> None:
    """Where the network cuts the bytes makes no difference to what is decoded."""
    recording = recordings.load(engine, name)
    body = recording.body
    whole = decode(decoder_for(engine, recording), [body])
    for offset in range(1, len(body), 3):
        parts = decode(decoder_for(engine, recording), [body[:offset], body[offset:]])
        assert parts == whole
    single = decode(decoder_for(engine, recording), (body[i : i + 1] for i in range(len(body))))
    assert single == whole


@pytest.mark.parametrize(("engine", "name"), BODIES)
def test_body_cut_at_every_byte(engine: str, name: str) -> None:
    """A plain reply is whole or an error: never a short answer."""
    recording = recordings.load(engine, name)
    for offset in range(len(recording.body)):
        cut = decode(decoder_for(engine, recording), [recording.body[:offset]])
        assert isinstance(cut.failure, StreamTruncated | MalformedReply), offset
        assert cut.chunks == []


@pytest.mark.parametrize(("engine", "name"), STREAMS[:3])
@pytest.mark.parametrize("ends", [b"\r\n", b"\r"])
def test_other_line_ends_comments_and_bom(engine: str, name: str, ends: bytes) -> None:
    """CRLF, CR, a byte order mark and keep-alive comments change nothing."""
    recording = recordings.load(engine, name)
    plain = decode(decoder_for(engine, recording), [recording.body])
    dressed = b"\xef\xbb\xbf:\n\n" + recording.body.replace(b"\n\n", b"\n\n: ping\n\n")
    dressed = dressed.replace(b"\n", ends)
    half = len(dressed) // 2
    assert decode(decoder_for(engine, recording), [dressed[:half], dressed[half:]]) == plain


def test_connection_broken_after_the_terminal_fact_completes() -> None:
    """A reset after the finish reason loses the usage only, and says so."""
    recording = recordings.load("llamacpp", "chat_stream_usage")
    decoder = decoder_for("llamacpp", recording)
    chunks = decoder.feed(recording.body[: terminal_offset(recording) + 2])
    chunks += decoder.abort(Unreachable("reset"))
    assert decoder.failure is None
    assert chunks[-1].end.usage is None
    assert "usage lost" in chunks[-1].end.repairs[0]


def test_done_without_a_finish_reason_is_truncated() -> None:
    """`[DONE]` proves nothing."""
    decoder = OpenAIDecoder(ENGINES["vllm"])
    body = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\ndata: [DONE]\n\n'
    decoded = decode(decoder, [body])
    assert isinstance(decoded.failure, StreamTruncated)
    assert decoded.failure.partial == "Hi"


def test_error_event_then_done_is_the_error() -> None:
    """vLLM's dying engine: an error event and `[DONE]` all the same."""
    error = b'data: {"error": {"message": "EngineCore encountered an issue.", "code": 500}}\n\n'
    body = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n' + error
    decoded = decode(OpenAIDecoder(ENGINES["vllm"]), [body + b"data: [DONE]\n\n"])
    assert isinstance(decoded.failure, EngineFault)
    assert decoded.failure.partial == "Hi"


def test_kv_pool_exhausted_mid_stream_is_overload() -> None:
    """llama.cpp fails every stream whose shared KV cache is full: recorded on three at once."""
    failures = [
        decode(OpenAIDecoder(ENGINES["llamacpp"]), [recording.body]).failure
        for recording in recordings.scene("llamacpp", "scene_kv_pool_exhausted")
        if recording.streamed
    ]
    assert [type(failure) for failure in failures if failure] == [Overloaded] * 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"id":"x","object":"chat.completion","choices":[]}',
        b'{"choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":null}]}',
        b'{"choices":[{"index":0,"message":{"content":""},"finish_reason":""}]}',
    ],
)
def test_200_is_not_success(body: bytes) -> None:
    """An empty body, no choice, no finish reason: each is an error."""
    assert isinstance(decode(OpenAIWholeDecoder(ENGINES["vllm"]), [body]).failure, StreamTruncated)


@pytest.mark.parametrize(
    "event",
    [
        b"{",
        b"[]",
        b"3",
        b'{"object":"chat.completion.chunk"}',
        b'{"choices":{"0":1}}',
        b'{"choices":[{"index":0,"delta":{"content":5}}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":[3]}}]}',
        b'{"choices":[]} {"choices":[]}',
        b"\xff\xfe",
    ],
)
def test_nonsense_is_a_malformed_reply_that_shows_it(event: bytes) -> None:
    """Whatever a server sends, nothing but one of our errors comes out."""
    decoder = OpenAIDecoder(ENGINES["vllm"])
    decoder.feed(b"data: " + event + b"\n\n")
    assert isinstance(decoder.failure, MalformedReply)


def test_at_most_one_chunk_an_event() -> None:
    """Finish-only and usage-only events fold into the last chunk, which comes with `[DONE]`."""
    for engine, name in STREAMS:
        recording = recordings.load(engine, name)
        events = [b for b in recording.body.split(b"\n\n") if b.startswith(b"data: ")]
        chunks = decode(decoder_for(engine, recording), [recording.body]).chunks
        assert len(chunks) <= len(events), name
        assert sum(chunk.end is not None for chunk in chunks) == 1
        assert chunks[-1].end is not None


@pytest.mark.parametrize(
    ("raw", "meant"),
    [
        ("stop", "stop"),
        ("STOP", "stop"),
        ("end_turn", "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("content_filter", "content_filter"),
        ({"type": "length", "length": 8}, "length"),
        ("brand_new", "stop"),
    ],
)
def test_finish_reasons_in_other_words(raw: Any, meant: str) -> None:
    """What is known is read as what it means; a word that nobody knows is named in the receipt."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": raw}
    body = json.dumps({"id": "c", "choices": [choice]}).encode()
    end = decode(OpenAIWholeDecoder(ENGINES["vllm"]), [body]).end
    assert end is not None
    assert end.finish_reason == meant
    assert any("not known" in repair for repair in end.repairs) == (raw == "brand_new")


def test_calls_without_places_do_not_run_into_each_other() -> None:
    """Two whole calls in two events, neither with an index: two calls, in their order."""
    decoder = OpenAIDecoder(ENGINES["vllm"])
    for name, city in (("a", "Rome"), ("b", "Oslo")):
        function = {"name": "f", "arguments": json.dumps({"city": city})}
        delta = {"tool_calls": [{"id": name, "type": "function", "function": function}]}
        event = {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        decoder.feed(b"data: %s\n\n" % json.dumps(event).encode())
    end = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    chunks = decoder.feed(b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(end).encode())
    (last,) = [chunk.end for chunk in chunks if chunk.end is not None]
    assert [(call.id, json.loads(call.arguments)["city"]) for call in last.tool_calls] == [
        ("a", "Rome"),
        ("b", "Oslo"),
    ]


def test_pieces_without_places_go_on_with_the_last_call() -> None:
    """Only the first piece names the call; none has an index."""
    decoder = OpenAIDecoder(ENGINES["vllm"])
    pieces = [{"name": "f", "arguments": ""}, {"arguments": '{"a":'}, {"arguments": " 1}"}]
    for number, function in enumerate(pieces):
        piece = {"function": function, **({"id": "a"} if number == 0 else {})}
        choice = {"index": 0, "delta": {"tool_calls": [piece]}, "finish_reason": None}
        decoder.feed(b"data: %s\n\n" % json.dumps({"id": "c", "choices": [choice]}).encode())
    end = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    chunks = decoder.feed(b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(end).encode())
    (last,) = [chunk.end for chunk in chunks if chunk.end is not None]
    assert [(call.name, call.arguments) for call in last.tool_calls] == [("f", '{"a": 1}')]


def test_a_stream_that_repeats_its_message_at_the_end_says_it_once() -> None:
    """The last event has an empty delta and the whole message beside it."""
    decoder = OpenAIDecoder(ENGINES["vllm"])
    first = {"id": "c", "choices": [{"index": 0, "delta": {"content": "Hi"}}]}
    message = {"role": "assistant", "content": "Hi"}
    last = {"index": 0, "delta": {}, "message": message, "finish_reason": "stop"}
    chunks = decoder.feed(b"data: %s\n\n" % json.dumps(first).encode())
    event = json.dumps({"id": "c", "choices": [last]}).encode()
    chunks += decoder.feed(b"data: %s\n\ndata: [DONE]\n\n" % event)
    assert "".join(chunk.text for chunk in chunks) == "Hi"
