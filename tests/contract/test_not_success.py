"""HTTP 200 is not success: what real servers sent under it, and what must come of it.

Through both drivers over sockets. A reply is given out only when its protocol said that it is
whole; everything else is a typed error, or a call that says what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from enginekit.engine import Budgets
from enginekit.errors import (
    BadOutput,
    ContextOverflow,
    EngineDied,
    EngineFault,
    MalformedReply,
    StreamTruncated,
)
from enginekit.operations import Folder, open_reply
from enginekit.types import Reply, ToolChoice
from tests.contract.replayed import (
    ENGINES,
    decoded,
    engine_at,
    events,
    exchanges,
    is_terminal,
    request_of,
    request_of_nothing,
    streamed,
)
from tests.drivers.toy import Driver, drivers
from tests.engines import goldens
from tests.engines.recordings import Recording, load
from tests.support.server import Reply as Scripted
from tests.support.server import Server


@pytest.fixture(params=["sync", "async"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    yield from drivers(request.param)


def find(engine: str, name: str) -> Recording:
    """A recording by its name; `scene#2` is the third exchange of a scene."""
    return dict(goldens.exchanges(engine))[name] if "#" in name else load(engine, name)


def scripted(recording: Recording, **more: Any) -> Scripted:
    kind = recording.headers.get("content-type", "application/json")
    body = more.pop("body", recording.body)
    return Scripted(status=200, headers={"content-type": kind}, body=[body], **more)


def ask(
    driver: Driver,
    name: str,
    url: str,
    recording: Recording,
    *,
    forced: bool = False,
    max_retries: int = 0,
) -> Reply:
    request = request_of(recording)
    if forced:
        request = replace(request, tool_choice=ToolChoice(mode="required"))
    opening = open_reply(
        engine_at(name, url),
        request,
        stream=streamed(recording),
        budgets=Budgets(load=30, first_token=30, between_tokens=30, whole_reply=30),
        max_retries=max_retries,
    )
    stream = driver.run(opening)
    folder = Folder()
    for chunk in driver.read(stream):
        folder.add(chunk)
    return folder.reply(stream.receipt)


RECORDED = [
    ("ollama", "n_same_token", StreamTruncated),  # done: false, ended for repeating itself
    ("ollama", "n_same_token_stream", StreamTruncated),
    ("rayserve", "scene_engine_core_killed#1", EngineDied),
    ("rayserve", "scene_replica_killed#1", StreamTruncated),
    ("tgi", "err_overflow_stream", ContextOverflow),
    ("tgi", "scene_kill_router#0", StreamTruncated),
    ("mlc", "m_cut_stream", StreamTruncated),
    ("mlc", "x_stream_running", StreamTruncated),
]


@pytest.mark.parametrize(("name", "case", "expected"), RECORDED)
def test_what_was_recorded_under_200_and_is_no_answer(driver, server, name, case, expected):
    recording = find(name, case)
    assert recording.status == 200
    server.always(scripted(recording))
    with pytest.raises(expected) as caught:
        ask(driver, name, server.url, recording)
    assert caught.value.engine == name
    assert len(server.requests) == 1


FORCED = [
    ("vllm", "chat_tools_required"),
    ("rayserve", "chat_tools_required"),
]


@pytest.mark.parametrize(("name", "case"), FORCED)
def test_a_required_call_that_came_as_text_is_bad_output(driver, server, name, case):
    """The token limit cut the call, and the server hands its mark out as text, under 200."""
    recording = find(name, case)
    server.always(scripted(recording))
    with pytest.raises(BadOutput) as caught:
        ask(driver, name, server.url, recording, forced=True)
    assert caught.value.partial


CUT_CALLS = [
    ("llamacpp", "s_call_cut_stream"),
    ("vllm", "s_call_cut_stream"),
    ("rayserve", "s_call_cut_stream"),
]


@pytest.mark.parametrize(("name", "case"), CUT_CALLS)
def test_a_call_cut_by_the_limit_says_so(driver, server, name, case):
    recording = find(name, case)
    server.always(scripted(recording))
    reply = ask(driver, name, server.url, recording)
    assert reply.finish_reason == "length"
    assert [bool(call.problem) for call in reply.tool_calls] == [True]


# ------------------------------------------------------------------------------ faults by name


def plain(name: str) -> Recording:
    """A recorded chat reply as this engine asks for a whole one: as a stream on llama.cpp."""
    call = engine_at(name).encode(request_of_nothing()).call
    for recording in exchanges(name):
        if recording.path != call.path or recording.status != 200:
            continue
        if streamed(recording) != bool(call.json.get("stream")) or recording.request.get("tools"):
            continue
        if recording.request.get("n", 1) != 1 or recording.request.get("logprobs"):
            continue
        whole = decoded(name, recording)
        if whole.failure is None and whole.text and whole.end.usage is not None:
            return recording
    raise AssertionError(f"no plain chat reply of {name} is recorded")


def without_finish(body: bytes) -> bytes:
    """The document, or each event of a stream, without its terminal fact."""
    if body.startswith(b"data:"):
        lasts = [(start, end) for start, end, event in events(body) if is_terminal(event)]
        for start, end in reversed(lasts):
            body = body[:start] + body[end:]
        return body
    value = json.loads(body)
    if "done" in value:
        value["done"] = False
        value.pop("done_reason", None)
    for choice in value.get("choices", ()):
        choice["finish_reason"] = None
    return json.dumps(value).encode()


DAMAGE = {
    "no finish": without_finish,
    "an empty object": lambda body: b"{}",
    "no choices": lambda body: b'{"choices": [], "usage": {"prompt_tokens": 0}}',
    "an empty body": lambda body: b"",
    "half the document": lambda body: body[: len(body) // 2],
    "a web page": lambda body: b"<html><body>Welcome</body></html>",
    "null": lambda body: b"null",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ENGINES)
def test_a_damaged_reply_is_an_error(driver, server, name, damage):
    """Whole to HTTP, 200, and yet no answer: whichever engine."""
    recording = plain(name)
    body = DAMAGE[damage](recording.body)
    server.always(scripted(recording, body=body, framing="length"))
    with pytest.raises((StreamTruncated, MalformedReply, BadOutput)):
        ask(driver, name, server.url, recording)


@pytest.mark.parametrize("name", ENGINES)
def test_the_undamaged_reply_is_an_answer(driver, server, name):
    recording = plain(name)
    server.always(scripted(recording, framing="length"))
    assert ask(driver, name, server.url, recording).text == decoded(name, recording).text


@pytest.mark.parametrize("name", ENGINES)
def test_a_connection_that_was_closed_meanwhile_is_reopened_once(driver, name):
    """The server closes after every answer, unannounced; each call still costs one request."""
    recording = plain(name)
    with Server(keep_alive_requests=1) as server:
        server.always(scripted(recording, framing="length"))
        texts = [ask(driver, name, server.url, recording).text for _ in range(3)]
        assert len(set(texts)) == 1
        assert len(server.requests) == 3
        assert server.connections == 3


@pytest.mark.parametrize("fault", ["close_without_response", "reset_without_response"])
@pytest.mark.parametrize("name", ENGINES)
def test_a_server_that_hangs_up_without_an_answer_gets_the_prompt_once(driver, name, fault):
    """It may have died of the request (llama-server does): retries that are allowed are not used."""
    recording = plain(name)
    with Server() as server:
        server.always(scripted(recording, fault=fault))
        with pytest.raises(EngineFault, match="not sent again") as caught:
            ask(driver, name, server.url, recording, max_retries=5)
        assert caught.value.engine == name
        assert len(server.requests) == 1
