"""Traps of the six servers that no other test is about; `docs/engines/traps.md` lists all of them.

What a server does is recorded, or said by its documentation; here is what enginekit makes of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from enginekit.engine import Budgets
from enginekit.engines._openai_decode import OpenAIDecoder, OpenAIWholeDecoder
from enginekit.errors import BadRequest, EngineFault, StreamTruncated, Unsupported
from enginekit.facts.engine import ServerFacts
from enginekit.operations import open_reply
from enginekit.types import (
    ChatRequest,
    ImagePart,
    Message,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from tests.contract.replayed import ENGINES, decoded, engine_at
from tests.drivers.toy import Driver, drivers
from tests.engines.recordings import decode, load
from tests.support.server import Server, json_reply

USER = Message(role="user", content="Say hi.")
LOOKUP = Tool(name="f", parameters={"type": "object", "properties": {"x": {"type": "integer"}}})


@pytest.fixture(params=["sync", "async"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    yield from drivers(request.param)


def body(name: str, **more: Any) -> dict[str, Any]:
    messages = more.pop("messages", (USER,))
    request = ChatRequest(model="m", messages=messages, **more)
    value: dict[str, Any] = engine_at(name).encode(request).call.json
    return value


# ------------------------------------------------------------------------------------ every engine


@pytest.mark.parametrize("name", ENGINES)
def test_a_limit_of_no_tokens_is_refused(name):
    """Endless on Ollama, one token on llama.cpp and MLC, a refusal on the others."""
    with pytest.raises(BadRequest, match="max_tokens must be at least 1"):
        body(name, sampling=Sampling(max_tokens=0))


@pytest.mark.parametrize("name", ENGINES)
def test_a_conversation_of_nothing_is_refused(name):
    """Ollama loads the model and says done, TGI and MLC answer as if there were something."""
    with pytest.raises(BadRequest, match="messages is empty"):
        body(name, messages=())


@pytest.mark.parametrize("name", ENGINES)
def test_broken_arguments_in_the_history_are_sent_as_valid_ones(name):
    """500 on llama.cpp, 400 on vLLM and Ollama; a call cut by the limit puts them there."""
    call = ToolCall(id="c1", name="f", arguments='{"x": ')
    said = Message(role="assistant", content="", tool_calls=(call,))
    result = Message(role="tool", content="no", tool_call_id="c1", name="f")
    if name == "mlc":
        with pytest.raises(Unsupported, match="cannot be continued"):
            body(name, messages=(USER, said, result))
        return
    sent = body(name, messages=(USER, said, result))["messages"][1]["tool_calls"][0]["function"]
    arguments = sent["arguments"]
    value = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert value == {"invalid_arguments": '{"x": '}


@pytest.mark.parametrize("name", ENGINES)
def test_nobody_sends_what_a_server_would_take_in_silence(name):
    """The plainest request has no field beside the model, the messages and how it is streamed."""
    how = {"model", "messages", "stream", "stream_options", "truncate", "shift"}
    assert set(body(name)) <= how


# ------------------------------------------------------------------------------------ Ollama

HIDDEN = [
    ("same_token", True),
    ("same_token_stream", False),
    ("kill_stream", False),
]


@pytest.mark.parametrize(("case", "whole"), HIDDEN)
def test_an_error_that_ollamas_imitation_hides_is_no_answer(case, whole):
    """`/v1` ends in good order, under 200, with neither an error nor a finish reason: after thirty
    identical tokens, and when its runner died. Read by an engine that is `like` another."""
    recording = load("ollama", f"v1/{case}")
    assert recording.status == 200
    kind = OpenAIWholeDecoder if whole else OpenAIDecoder
    got = decode(kind(engine_at("vllm")), [recording.body])
    assert type(got.failure) is StreamTruncated
    assert got.failure.partial


def test_ollamas_replies_have_no_id_that_could_be_mistaken_for_a_key():
    """`/v1` counts them from 0 to 998 and begins again; the native wire has none, and none is made."""
    for name in ("n_chat", "n_chat_stream"):
        end = decoded("ollama", load("ollama", name)).end
        assert end is not None
        assert end.id is None


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, None),
        ({"eval_count": 2}, (0, 2)),
        ({"prompt_eval_count": 9}, (9, 0)),
        ({"prompt_eval_count": 9, "eval_count": 2, "total_duration": 5}, (9, 2)),
    ],
)
def test_counts_that_ollama_leaves_out_are_zero_and_all_of_them_unknown(counts, expected):
    """Each key is omitted when it is zero."""
    line = {"model": "m", "message": {"role": "assistant", "content": "Hi"}, "done": True}
    engine = engine_at("ollama")
    encoded = engine.encode(ChatRequest(model="m", messages=(USER,)), stream=True)
    got = decode(
        encoded.decoder(), [json.dumps({**line, "done_reason": "stop", **counts}).encode()]
    )
    assert got.end is not None
    usage = got.end.usage
    told = None if usage is None else (usage.prompt_tokens, usage.completion_tokens)
    assert told == expected


# ------------------------------------------------------------------------------------ llama.cpp


def test_a_500_that_nobody_knows_is_not_sent_again(driver):
    """llama-server reports mistakes of a request as its own: another would meet the same."""
    with Server() as server:
        fault = {"error": {"code": 500, "message": "something new", "type": "server_error"}}
        server.always(json_reply(fault, 500))
        request = ChatRequest(model="m", messages=(USER,))
        engine = engine_at("llamacpp", server.url)
        opening = open_reply(engine, request, stream=True, budgets=Budgets(), max_retries=5)
        with pytest.raises(EngineFault, match="something new") as caught:
            driver.run(opening)
        assert not caught.value.retryable
        assert len(server.requests) == 1


def test_the_token_that_was_taken_may_lack_among_the_likeliest():
    """llama-server lists them before it samples: what was taken has its own number all the same."""
    got = decoded("llamacpp", load("llamacpp", "s_greet_logprobs"))
    entries = [entry for chunk in got.chunks for entry in chunk.logprobs or ()]
    lacking = [one for one in entries if one.token not in [other.token for other in one.top]]
    assert lacking
    assert all(one.logprob <= 0 for one in lacking)


def test_no_media_marker_is_ever_written():
    """It is random for each process of llama-server: images go as parts, and the server places it."""
    facts = ServerFacts(extra={"media_marker": "<__media_7f3a__>"})
    engine = engine_at("llamacpp")
    engine.facts = facts
    parts = (TextPart(text="What is this?"), ImagePart(data=b"\x89PNG"))
    message = Message(role="user", content=parts)
    sent = json.dumps(engine.encode(ChatRequest(model="m", messages=(message,))).call.json)
    assert "__media" not in sent
    assert "image_url" in sent


def test_every_start_command_of_a_server_with_a_port_names_it():
    """llama-server's own default moves from 8080 to 9931."""
    profiles = {name: engine_at(name).profile for name in ENGINES}
    assert "--port 8080" in profiles["llamacpp"].start_command
    for name in ("llamacpp", "vllm", "tgi", "mlc"):
        port = profiles[name].default_url.rpartition(":")[2]
        assert f"--port {port}" in profiles[name].start_command


# ------------------------------------------------------------------------------------ vLLM, Ray


@pytest.mark.parametrize("name", ["vllm", "rayserve"])
def test_the_name_that_answered_is_the_servers(name):
    """vLLM echoes the first name it serves, whichever was asked for."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Hi"},
        "finish_reason": "stop",
    }
    reply = json.dumps({"id": "c", "model": "first", "choices": [choice]}).encode()
    encoded = engine_at(name).encode(ChatRequest(model="second", messages=(USER,)))
    assert encoded.call.json["model"] == "second"
    end = decode(encoded.decoder(), [reply]).end
    assert end is not None
    assert end.model == "first"


@pytest.mark.parametrize("name", ["vllm", "rayserve"])
def test_defaults_that_come_from_the_model_are_told_so(name):
    """generation_config.json changes temperature, top_p, top_k and the penalty without notice."""
    encoded = engine_at(name).encode(ChatRequest(model="m", messages=(USER,)))
    for field in ("temperature", "top_p", "top_k", "repetition_penalty"):
        assert "generation_config.json" in str(encoded.receipt.defaults[field])
    pinned = engine_at(name).encode(ChatRequest(model="m", messages=(USER,), defaults="pinned"))
    assert "temperature" in pinned.call.json


def test_what_vllm_takes_from_trusted_callers_only_is_never_sent():
    """Neither a chat template nor arguments of its processors, whatever the request holds."""
    parts = (TextPart(text="What is this?"), ImagePart(data=b"\x89PNG"))
    sent = body("vllm", messages=(Message(role="user", content=parts),), tools=(LOOKUP,))
    assert not {"chat_template", "mm_processor_kwargs", "media_io_kwargs"} & set(sent)


@pytest.mark.parametrize("name", ["vllm", "rayserve"])
def test_no_tools_with_a_choice_of_none_is_always_safe(name):
    """It works without a tool parser, too: the only choice that does."""
    sent = body(name, tools=(LOOKUP,), tool_choice=ToolChoice(mode="none"))
    assert sent["tool_choice"] == "none"
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["f"]


# ------------------------------------------------------------------------------------ TGI, MLC


def test_tgis_chats_say_at_what_temperature_they_sample():
    """1.0 where nothing is said, and greedy text completions: the receipt tells."""
    encoded = engine_at("tgi").encode(ChatRequest(model="m", messages=(USER,)))
    assert "samples at 1.0" in str(encoded.receipt.defaults["temperature"])
    assert body("tgi", sampling=Sampling(temperature=0.0))["temperature"] == 0


def test_a_last_assistant_turn_is_continued_by_tgi_and_the_receipt_says_so():
    """Its end mark and the generation prompt are left out by the server."""
    messages = (USER, Message(role="assistant", content="Hello"))
    encoded = engine_at("tgi").encode(ChatRequest(model="m", messages=messages))
    (entry,) = [entry for entry in encoded.receipt.entries if entry.field == "messages"]
    assert "continued" in entry.note


def test_the_user_field_never_reaches_mlc():
    """It becomes the request's id, and two at once under one end a stream in silence."""
    assert "user" not in body("mlc", request_id="r1")
    with pytest.raises(Unsupported, match="request id"):
        body("mlc", engine_options={"user": "someone"})


def test_no_message_of_mlc_has_null_content():
    """500 from a system message without content; an assistant's would leave its turn open."""
    messages = (
        Message(role="system", content=""),
        USER,
        Message(role="assistant", content=""),
        replace(USER, content="And you?"),
    )
    sent = body("mlc", messages=messages)["messages"]
    assert all(isinstance(message["content"], str) for message in sent)
