"""Every recorded chat and generate request, decoded: goldens, cuts at every byte, details."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from enginekit.engines.ollama.decode import (
    KeepsForm,
    OllamaDecoder,
    OllamaWholeDecoder,
    fits,
    repeats,
)
from enginekit.errors import (
    BadOutput,
    EngineDied,
    EngineTimeout,
    MalformedReply,
    StreamTruncated,
    Unreachable,
)
from enginekit.types import Timings
from tests.engines.ollama.replays import (
    ENGINE,
    decoded,
    decoder_for,
    exchanges,
    goldens,
    streamed,
)
from tests.engines.recordings import Recording, decode, load

GOLDENS = Path(__file__).with_name("goldens.txt")


def test_every_recorded_reply_is_read_as_the_goldens_say():
    """`goldens.txt` is for people: one line a recording, what enginekit makes of it."""
    assert list(goldens()) == GOLDENS.read_text("utf-8").splitlines()


# ------------------------------------------------------------------------------------ streams

STREAMS = (
    "n_chat_stream",
    "n_chat_default_stream",
    "n_generate_stream",
    "n_tools_stream",
    "n_logprobs_stream",
    "n_tools_logprobs_stream",
    "native/n_tools_stream",
    "native/n_tools_one_stream",
    "thinker/n_chat_stream",
    "thinker/n_generate_stream",
    "thinker/n_think_stream",
    "thinker/n_tools_one_stream",
    "random/n_tools_forced_stream",
)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_cut_at_any_byte_is_whole_only_after_its_last_line(name):
    """A clean end at each offset: all of the text, or StreamTruncated with what had come."""
    recording = load("ollama", name)
    whole = decoded(recording)
    assert whole.failure is None
    for size in range(len(recording.body)):
        got = decode(decoder_for(recording), [recording.body[:size]])
        if size >= len(recording.body) - 1:
            assert got.failure is None
            assert (got.text, got.end) == (whole.text, whole.end)
            continue
        assert isinstance(got.failure, StreamTruncated), size
        assert got.end is None
        assert whole.text.startswith(got.failure.partial)
        assert whole.reasoning.startswith(got.failure.partial_reasoning)
        assert got.failure.partial == got.text


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_in_two_pieces_reads_like_one_wherever_it_is_split(name):
    """UTF-8, escapes and tool JSON may be split anywhere."""
    recording = load("ollama", name)
    whole = decoded(recording)
    step = max(1, len(recording.body) // 400)
    for size in range(0, len(recording.body), step):
        pieces = [recording.body[:size], recording.body[size:]]
        assert decode(decoder_for(recording), pieces).chunks == whole.chunks


@pytest.mark.parametrize("name", STREAMS[:4])
def test_a_stream_byte_by_byte_reads_like_one_piece(name):
    recording = load("ollama", name)
    pieces = [bytes([byte]) for byte in recording.body]
    assert decode(decoder_for(recording), pieces).chunks == decoded(recording).chunks


@pytest.mark.parametrize("name", STREAMS)
def test_a_broken_connection_is_an_error_unless_the_reply_was_whole(name):
    recording = load("ollama", name)
    decoder = decoder_for(recording)
    decoder.feed(recording.body[: len(recording.body) // 2])
    assert decoder.abort(Unreachable("reset")) == []
    assert isinstance(decoder.failure, StreamTruncated)
    assert isinstance(decoder.failure.__cause__, Unreachable)
    assert "hides" not in decoder.failure.message, "that is what a clean end means"
    late = decoder_for(recording)
    late.feed(recording.body)
    assert late.done
    assert late.abort(Unreachable("reset")) == []
    assert late.failure is None


def test_silence_is_a_timeout_that_holds_the_text():
    recording = load("ollama", "n_chat_stream")
    decoder = decoder_for(recording)
    decoder.feed(recording.body[:400])
    error = EngineTimeout("silent", phase="between tokens", budget=1.0)
    decoder.abort(error)
    assert decoder.failure is error
    assert error.partial == "Hello there!"


def test_a_whole_reply_cut_at_any_byte_is_never_a_short_success():
    recording = load("ollama", "n_tools")
    for size in range(len(recording.body)):
        got = decode(decoder_for(recording), [recording.body[:size]])
        assert got.end is None
        assert isinstance(got.failure, StreamTruncated | MalformedReply), size


# ------------------------------------------------------------------------------------ details


def test_the_two_template_paths_give_the_same_chunks_for_tool_calls():
    """Rendered: a line each. Jinja: all on the line that says done. Both become whole deltas."""
    rendered = decoded(load("ollama", "n_tools_stream"))
    native = decoded(load("ollama", "native/n_tools_stream"))
    calls = [("get_weather", '{"city": "Oslo"}'), ("add", '{"a": 2, "b": 3}')]
    assert rendered.calls == native.calls == calls
    for got in (rendered, native):
        assert got.end is not None
        assert got.end.finish_reason == "tool_calls"
        assert got.end.raw_finish_reason == "stop"
        assert len({call.id for call in got.end.tool_calls}) == 2
        assert all(call.problem is None for call in got.end.tool_calls)


def line(**fields: object) -> bytes:
    return json.dumps({"model": "m", "created_at": "2026-11-23T03:53:42Z", **fields}).encode() + (
        b"\n"
    )


def test_calls_without_id_and_index_get_ids_of_their_place():
    """Older servers give neither; the same conversation gets the same ids again."""
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    body = line(message={"role": "assistant", "content": "", "tool_calls": [call]}, done=False)
    body += line(message={"role": "assistant", "content": "", "tool_calls": [call]}, done=True)

    def ids(turn: int) -> list[str]:
        got = decode(OllamaDecoder(ENGINE, turn=turn), [body])
        assert got.end is not None
        assert [c.arguments for c in got.end.tool_calls] == ['{"a": 1}'] * 2
        return [c.id for c in got.end.tool_calls]

    assert len(set(ids(1))) == 2
    assert ids(1) == ids(1) != ids(2)


def test_a_call_that_came_whole_stays_good_when_the_limit_cut_the_reply():
    """Ollama never sends half a call, so `length` does not spoil one."""
    call = {"id": "call_1", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}}
    body = line(message={"role": "assistant", "content": "", "tool_calls": [call]}, done=False)
    body += line(
        message={"role": "assistant", "content": ""}, done=True, done_reason="length", eval_count=4
    )
    end = decode(OllamaDecoder(ENGINE, limit=4), [body]).end
    assert end is not None
    assert end.finish_reason == "length"
    assert end.tool_calls[0].problem is None


def test_durations_are_seconds_and_counts_are_usage():
    end = decoded(load("ollama", "n_chat")).end
    assert end is not None
    assert end.usage is not None
    assert end.usage == (54, 11, 65, None, None)
    assert end.timings == Timings(
        load=pytest.approx(0.001628342),
        prompt=pytest.approx(0.132476),
        generation=pytest.approx(0.237819),
        total=pytest.approx(0.374556392),
    )
    assert end.extra["total_duration"] == 374556392


def test_a_reply_cut_by_the_window_says_so():
    """`done_reason` is `length` for both; with fewer tokens than asked for it was the window."""
    for name in ("n_ctx_full_no_shift", "native/n_ctx_full_no_shift"):
        window = decoded(load("ollama", name)).end
        assert window is not None
        assert window.extra["cut_by"] == "context window"
        assert window.usage is not None
        assert window.usage.total_tokens == 512
    limit = decoded(load("ollama", "n_long")).end
    assert limit is not None
    assert "cut_by" not in limit.extra


def test_escaped_angle_brackets_are_decoded():
    """Go writes `<` as `\\u003c`: the raw bytes must not be searched."""
    recording = load("ollama", "n_num_ctx_tiny")
    assert b"\\u003cthink\\u003e" in recording.body
    assert decoded(recording).text.startswith("<think>")


def test_logprobs_have_bytes_and_alternatives():
    chunks = decoded(load("ollama", "n_logprobs_stream")).chunks
    first = chunks[0].logprobs
    assert first is not None
    assert (first[0].token, first[0].bytes, first[0].logprob) == ("Hello", b"Hello", 0.0)
    assert [other.token for other in first[0].top] == ["Hello", " one"]


def test_empty_lines_and_carriage_returns_between_objects_are_fine():
    recording = load("ollama", "n_chat_stream")
    loose = recording.body.replace(b"\n", b"\r\n\r\n")
    assert decode(decoder_for(recording), [loose]).chunks == decoded(recording).chunks


# ------------------------------------------------------------------------------------ failures


def test_thirty_identical_tokens_are_told_from_a_swallowed_error():
    for name in ("n_same_token", "n_same_token_stream"):
        failure = decoded(load("ollama", name)).failure
        assert isinstance(failure, StreamTruncated)
        assert "30 identical tokens" in failure.message
        assert failure.hint is not None
        assert "repetition_penalty" in failure.hint
        assert failure.partial.count("again") >= 30
    swallowed = decoded(load("ollama", "random/n_chat")).failure
    assert isinstance(swallowed, StreamTruncated)
    assert "runner" in swallowed.message
    assert swallowed.partial == "plo"
    assert "log" in (swallowed.hint or "")


def test_a_word_repeated_less_often_is_no_repetition():
    assert repeats([" again"] * 30)
    assert repeats([" ", "\n"] * 15)  # the server compares without the space around
    assert repeats(["one" + " \n" * 15])
    assert not repeats([" again"] * 29)
    assert not repeats(["a", "b"] * 30)
    assert repeats(["one " + "ab" * 30])
    assert not repeats([])


def test_an_empty_body_is_no_answer():
    """`tools` on a garbage model: 200 and nothing at all."""
    recording = load("ollama", "random/n_tools_stream")
    assert recording.body == b""
    assert isinstance(decoded(recording).failure, StreamTruncated)
    whole = decode(OllamaWholeDecoder(ENGINE), [b" \n"])
    assert isinstance(whole.failure, StreamTruncated)


def test_a_load_is_not_an_answer():
    """An empty request loads the model and says done: that must never pass for a reply."""
    for name in ("n_load", "n_load_generate", "n_unload"):
        failure = decoded(load("ollama", name)).failure
        assert isinstance(failure, MalformedReply)
        assert "answered nothing" in failure.message


@pytest.mark.parametrize(
    "name",
    ["kill_native_stream", "kill_generate_stream", "segv_native_stream"],
)
def test_a_runner_that_dies_mid_stream_is_engine_died_with_the_partial_text(name):
    recording = next(
        one for one in exchanges(name) if streamed(one) and b'"error"' in one.body[-200:]
    )
    got = decoded(recording)
    assert isinstance(got.failure, EngineDied)
    assert got.failure.partial == got.text
    assert got.text
    assert got.failure.retryable


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("term_native_stream", EngineTimeout("silent", phase="between tokens", budget=90.0)),
        ("server_stop", Unreachable("incomplete chunked read")),
    ],
)
def test_silence_and_a_dying_server_are_errors_with_the_partial_text(name, error):
    """A runner ended by SIGTERM goes silent for ever; the server itself breaks the framing."""
    recording = exchanges(name)[0]
    decoder = decoder_for(recording)
    text = "".join(chunk.text for chunk in decoder.feed(recording.body))
    assert not decoder.done
    decoder.abort(error)
    expected = EngineTimeout if isinstance(error, EngineTimeout) else StreamTruncated
    assert isinstance(decoder.failure, expected)
    assert decoder.failure.partial == text != ""


@pytest.mark.parametrize("name", ["kill_native", "kill_prefill"])
def test_a_runner_that_dies_before_the_first_byte_is_a_500(name):
    recording = next(one for one in exchanges(name) if one.status == 500)
    error = ENGINE.failure(recording.status, recording.headers, recording.body)
    assert isinstance(error, EngineDied)


def test_garbage_is_malformed_with_the_text_so_far():
    good = line(message={"role": "assistant", "content": "Hi"}, done=False)
    for garbage in (b"<html>\n", b"[1]\n", b"7\n", b'{"done":"yes"}\n', b'{"x":1}\n', b"{}{}\n"):
        got = decode(OllamaDecoder(ENGINE), [good + garbage])
        assert isinstance(got.failure, MalformedReply), garbage
        assert got.failure.partial == got.text == "Hi"


def test_an_answer_that_broke_its_form_is_bad_output():
    """Thinking models are not constrained when they answer at once: enginekit checks."""

    def answer(text: str, reason: str) -> bytes:
        message = {"role": "assistant", "content": text}
        return line(message=message, done=True, done_reason=reason, eval_count=3)

    prose = decode(KeepsForm(OllamaDecoder(ENGINE), ENGINE), [answer("Sure!", "stop")])
    assert isinstance(prose.failure, BadOutput)
    assert prose.failure.partial == "Sure!"
    kept = decode(KeepsForm(OllamaDecoder(ENGINE), ENGINE), [answer('{"a": 1}', "stop")])
    assert kept.failure is None
    cut = decode(KeepsForm(OllamaDecoder(ENGINE, limit=3), ENGINE), [answer('{"a', "length")])
    assert cut.end is not None
    assert cut.end.finish_reason == "length"


@pytest.mark.parametrize(
    ("text", "schema", "fit"),
    [
        ('{"a": 1}', {"type": "object"}, True),
        ("[1]", {"type": "object"}, False),
        ('{"a": 1}', {"type": "object", "required": ["a"]}, True),
        ('{"b": 1}', {"type": "object", "required": ["a"]}, False),
        ("[]", {"type": "array"}, True),
        ('"x"', {"type": ["string", "null"]}, True),
        ("3", {"enum": [3]}, True),
        ("Sure!", {}, False),
    ],
)
def test_the_outer_form_tells_a_constrained_answer(text, schema, fit):
    assert fits(text, schema) is fit


def test_a_recording_is_a_real_recording():
    """The fixtures hold what was recorded, with the request's long texts shortened."""
    recording = load("ollama", "n_chat_stream")
    assert isinstance(recording, Recording)
    assert recording.request["model"] == "llama3.1"
