"""The openai client on our fakes of the engines that speak its dialect."""

from __future__ import annotations

import json

import pytest

from tests.support.server import Server
from tests.witness.support import calls, ours, serve

openai = pytest.importorskip("openai", reason="nox -s witness installs it")

# vLLM and Ray Serve with a reasoning parser hand out a plain greeting as reasoning while they
# stream; enginekit repairs that, the client does not: their plain streams are compared.
STREAMS = [
    ("llamacpp", "s_greet_stream"),
    ("llamacpp", "chat_stream_usage"),
    ("vllm", "chat_stream_usage"),
    ("rayserve", "chat_stream_usage"),
    ("tgi", "chat_stream_usage"),
    ("mlc", "chat_stream_usage"),
]
CALLS = [(name, "s_calls_stream") for name in ("llamacpp", "vllm", "rayserve")]
REFUSALS = [
    ("vllm", "err_model", openai.NotFoundError),
    ("vllm", "err_overflow", openai.BadRequestError),
    ("rayserve", "err_model", openai.NotFoundError),
    ("mlc", "err_overflow", openai.BadRequestError),
]


def client(server: Server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def streamed(server: Server, request: dict):
    with client(server) as connected:
        yield from connected.chat.completions.create(**request)


@pytest.mark.parametrize(("engine", "case"), STREAMS)
def test_it_reads_the_text_and_usage_that_we_read(server, engine, case):
    request = serve(server, engine, case)
    text, usage, reasons = "", None, []
    for chunk in streamed(server, request):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    told = ours(engine, case)
    assert text == told.text
    assert reasons[-1] == told.end.raw_finish_reason
    assert usage.completion_tokens == told.end.usage.completion_tokens
    assert usage.prompt_tokens == told.end.usage.prompt_tokens


@pytest.mark.parametrize(("engine", "case"), CALLS)
def test_it_reads_the_calls_that_we_read(server, engine, case):
    request = serve(server, engine, case)
    built: dict[int, list[str]] = {}
    for chunk in streamed(server, request):
        for choice in chunk.choices:
            for delta in choice.delta.tool_calls or ():
                call = built.setdefault(delta.index, ["", ""])
                call[0] += delta.function.name or ""
                call[1] += delta.function.arguments or ""
    assert [(name, json.loads(text)) for name, text in built.values()] == calls(ours(engine, case))


@pytest.mark.parametrize(("engine", "case", "expected"), REFUSALS)
def test_it_sees_a_refusal_where_we_do(server, engine, case, expected):
    request = serve(server, engine, case)
    request.pop("stream", None)
    with client(server) as connected, pytest.raises(expected):
        connected.chat.completions.create(**request)


def test_it_takes_a_cut_stream_for_a_whole_one(server):
    """Why enginekit decodes streams itself: this client ends without a word."""
    request = serve(server, "vllm", "chat_stream_usage")
    whole = server.default
    server.always(whole.but(cut=len(whole.payload) // 2, framing="close", fault="clean_eof"))
    reasons = [c.finish_reason for chunk in streamed(server, request) for c in chunk.choices]
    assert reasons
    assert not any(reasons)
