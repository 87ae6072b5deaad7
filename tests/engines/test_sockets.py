"""Ray Serve, TGI and MLC over real sockets, on both drivers: starts, deaths, silence, queues."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from enginekit.engine import Budgets, Engine, Target
from enginekit.engines.mlc import MLC
from enginekit.engines.rayserve import RayServe
from enginekit.engines.tgi import TGI
from enginekit.errors import (
    BadRequest,
    EngineDied,
    EngineKitError,
    EngineTimeout,
    Overloaded,
    StreamTruncated,
)
from enginekit.operations import Folder, open_reply, wait_ready
from enginekit.types import (
    ChatRequest,
    CompletionRequest,
    Message,
    Reply,
    Sampling,
    Tool,
    ToolChoice,
)
from tests.drivers.toy import Driver, drivers
from tests.engines.recordings import ROOT
from tests.support.server import Reply as Scripted
from tests.support.server import Server, replay, text_reply

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
FLIP = Tool(name="flip", parameters={"type": "object", "properties": {"on": {"type": "boolean"}}})


@pytest.fixture(params=["sync", "async"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    yield from drivers(request.param)


def recorded(engine: str, name: str, **more: Any) -> Scripted:
    return replay(ROOT / engine / f"{name}.json", **more)


def from_scene(engine: str, name: str, place: int, **more: Any) -> Scripted:
    """The answer to the request at this place among those of a scene that were answered."""
    events = json.loads((ROOT / engine / f"{name}.json").read_text("utf-8"))["events"]
    return replay([event for event in events if event.get("response")][place], **more)


def chat(**more: Any) -> ChatRequest:
    return ChatRequest(model="tiny", messages=(Message(role="user", content="Say hi."),), **more)


def ask(
    driver: Driver,
    engine: Engine,
    request: ChatRequest | CompletionRequest,
    *,
    stream: bool = True,
    retries: int = 0,
    **budgets: float,
) -> Reply:
    budget = Budgets(**({"first_token": 10.0, "between_tokens": 10.0} | budgets))
    opened = driver.run(
        open_reply(engine, request, stream=stream, budgets=budget, max_retries=retries)
    )
    folder = Folder()
    for chunk in driver.read(opened):
        folder.add(chunk)
    return folder.reply(opened.receipt)


def failing(driver: Driver, engine: Engine, **more: Any) -> EngineKitError:
    """The error that a streamed chat ends in."""
    try:
        ask(driver, engine, chat(), **more)
    except EngineKitError as error:
        return error
    raise AssertionError("it did not fail")


# ------------------------------------------------------------------------------------ Ray Serve


def test_ray_start_up_is_waited_for(driver: Driver, server: Server) -> None:
    """No routes, no path, a listing while the engine is dead: then a token, and it is ready."""
    server.on(
        "/v1/models",
        text_reply("Route table is not populated yet.", 503),
        text_reply("Path '/v1/models' not found. Ping http://.../-/routes for routes.", 404),
        recorded("rayserve", "models"),
    )
    server.on(
        TEXT,
        from_scene("rayserve", "scene_engine_core_killed", 0),
        recorded("rayserve", "completion"),
    )
    engine = RayServe(Target(base_url=server.url))
    driver.run(wait_ready(engine, "tiny", budgets=Budgets(load=30)))
    assert server.paths().count(f"POST {TEXT}") == 2


def test_ray_requests_during_the_start_are_waited_for_too(driver: Driver, server: Server) -> None:
    """A chat that comes too early costs no retry."""
    server.on(
        CHAT,
        text_reply(f"Path '{CHAT}' not found. Ping http://.../-/routes for routes.", 404),
        recorded("rayserve", "chat_stream_usage"),
    )
    reply = ask(driver, RayServe(Target(base_url=server.url)), chat())
    assert reply.text
    assert reply.usage is not None


def test_ray_backpressure_is_retried_within_the_count(driver: Driver, server: Server) -> None:
    """Bare text, no Content-Type; one retry is one request more."""
    busy = from_scene("rayserve", "scene_queue_full", 0)
    assert busy.status == 503
    server.on(CHAT, busy, recorded("rayserve", "chat_stream"))
    engine = RayServe(Target(base_url=server.url))
    assert ask(driver, engine, chat(), retries=1).text
    server.on(CHAT, busy)
    assert isinstance(failing(driver, engine), Overloaded)


def test_ray_deaths(driver: Driver, server: Server) -> None:
    """A killed replica ends its stream in good order; a killed engine says so; a plain 500."""
    engine = RayServe(Target(base_url=server.url))
    server.on(CHAT, from_scene("rayserve", "scene_replica_killed", 1))
    cut = failing(driver, engine)
    assert isinstance(cut, StreamTruncated)
    assert cut.partial.startswith(" plromrom")
    server.on(CHAT, from_scene("rayserve", "scene_engine_core_killed", 1))
    died = failing(driver, engine)
    assert isinstance(died, EngineDied)
    assert died.partial
    server.on(CHAT, from_scene("rayserve", "scene_replica_killed", 0))
    assert isinstance(failing(driver, engine), EngineDied)


# ------------------------------------------------------------------------------------ TGI


def test_tgi_overload_inside_a_200_is_retried(driver: Driver, server: Server) -> None:
    """The stream begins with the event "Model is overloaded": before the first token, so again."""
    busy = from_scene("tgi", "scene_overload", 5)
    assert busy.status == 200
    server.on(CHAT, busy, recorded("tgi", "chat_stream_usage"))
    reply = ask(driver, TGI(Target(base_url=server.url)), chat(), stream=False, retries=1)
    assert reply.text.startswith("plo")
    assert reply.usage is not None
    assert any("half a character" in note for note in reply.receipt.notes)


def test_tgi_shard_dies_mid_stream(driver: Driver, server: Server) -> None:
    """424 outside of a stream, an event inside, with the text before it."""
    server.on("/generate_stream", from_scene("tgi", "scene_kill_shard", 1))
    engine = TGI(Target(base_url=server.url))
    with pytest.raises(EngineDied) as caught:
        ask(driver, engine, CompletionRequest(model="tiny", prompt="San"))
    assert caught.value.partial.startswith(" letest")


def test_tgi_calls_come_whole(driver: Driver, server: Server) -> None:
    """Asked for as a stream, sent without, told in the receipt."""
    server.on(CHAT, recorded("tgi", "t_v1_pick_required"))
    request = chat(tools=(FLIP,), tool_choice=ToolChoice(mode="required"))
    reply = ask(driver, TGI(Target(base_url=server.url)), request)
    assert [(call.name, call.parsed()) for call in reply.tool_calls] == [("flip", {"on": True})]
    assert server.requests[0].json["stream"] is False
    assert any("without streaming" in note for note in reply.receipt.notes)


def test_tgi_a_stop_string_ends_the_servers_work(driver: Driver, server: Server) -> None:
    """The server would go on: the response is closed as soon as the text is settled."""
    piece = {"id": "", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "ab. "}}]}
    body = [f"data: {json.dumps(piece)}\n\n"] * 3
    headers = {"content-type": "text/event-stream"}
    server.on(CHAT, Scripted(headers=headers, body=body, fault="silence"))
    reply = ask(driver, TGI(Target(base_url=server.url)), chat(sampling=Sampling(stop=("b. a",))))
    assert (reply.text, reply.finish_reason) == ("a", "stop")
    assert server.wait_hung_up()


# ------------------------------------------------------------------------------------ MLC


def test_mlc_silence_is_a_timeout_with_the_text(driver: Driver, server: Server) -> None:
    """Its engine died: no error, no EOF, ever."""
    stream = recorded("mlc", "x_stream_running", fault="silence")
    server.on(CHAT, stream)
    error = failing(driver, MLC(Target(base_url=server.url)), between_tokens=0.3)
    assert isinstance(error, EngineTimeout)
    assert error.phase == "between tokens"
    assert error.partial.startswith("} * you")


def test_mlc_closes_after_a_500_unannounced(driver: Driver, server: Server) -> None:
    """The next request on the pooled connection is sent again, once, and nobody notices."""
    refused = recorded("mlc", "m_n0")
    assert refused.status == 500
    unannounced = refused.but(fault="clean_eof")
    server.on(CHAT, unannounced, recorded("mlc", "chat_stream_usage"))
    engine = MLC(Target(base_url=server.url))
    assert isinstance(failing(driver, engine), BadRequest)
    assert ask(driver, engine, chat()).text


def test_mlc_is_ready_when_its_engine_answers(driver: Driver, server: Server) -> None:
    """`/metrics` goes through the engine."""
    server.on("/metrics", text_reply("loading", 503), recorded("mlc", "m_metrics"))
    server.on("/v1/models", recorded("mlc", "models"))
    engine = MLC(Target(base_url=server.url))
    with pytest.raises(Overloaded):
        driver.run(engine.ready("tiny"))
    assert driver.run(engine.ready("tiny")) is True
    assert driver.run(MLC.recognise(engine.target)) is True
    assert driver.run(RayServe.recognise(engine.target)) is False
