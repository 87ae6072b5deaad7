"""Loading has a budget of its own: an empty request goes first where the first token has less."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from enginekit.engine import Budgets, Target
from enginekit.engines.ollama import Ollama
from enginekit.engines.ollama.engine import _ready
from enginekit.errors import BadRequest, EngineFault, EngineTimeout, ModelNotFound, Unreachable
from enginekit.operations import Folder, open_reply
from enginekit.types import UNSET, ChatRequest, CompletionRequest, Message, Reply, Sampling
from tests.drivers.toy import Driver, drivers
from tests.engines.ollama.test_loopback import recorded
from tests.support import server as wire
from tests.support.server import Server, json_reply

LISTED, LOAD, CHAT = "GET /api/ps", "POST /api/generate", "POST /api/chat"
HURRIED = Budgets(load=20.0, first_token=10.0)


@pytest.fixture(params=["sync", "async"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    yield from drivers(request.param)


@pytest.fixture
def server(server: Server) -> Server:
    _ready.clear()
    server.on("/api/generate", recorded("n_load_generate"))
    server.on("/api/chat", recorded("n_chat_stream"))
    server.on("/api/tags", recorded("n_tags"))
    server.on("/api/ps", json_reply({"models": []}))
    return server


def chat(model: str = "llama3.1", **more: Any) -> ChatRequest:
    return ChatRequest(model=model, messages=(Message(role="user", content="Say hi."),), **more)


def ask(
    driver: Driver,
    server: Server,
    request: ChatRequest | CompletionRequest,
    budgets: Budgets,
    **more: Any,
) -> Reply:
    engine = Ollama(Target(base_url=server.url))
    opened = driver.run(open_reply(engine, request, stream=True, budgets=budgets, **more))
    folder = Folder()
    for chunk in driver.read(opened):
        folder.add(chunk)
    return folder.reply(opened.receipt)


def test_a_hurried_request_has_its_model_loaded_first(driver, server):
    """By the options of the request itself: another window would load the model again."""
    request = chat(context_window=2048, keep_alive=60, sampling=Sampling(temperature=0.0))
    assert ask(driver, server, request, HURRIED).text
    assert server.paths() == [LISTED, LOAD, CHAT]
    load, real = (seen.json for seen in server.requests[1:])
    assert load == {
        "model": "llama3.1",
        "shift": False,
        "stream": False,
        "options": real["options"],
        "keep_alive": 60,
    }
    assert load["options"]["num_ctx"] == 2048
    assert real["messages"], "the prompt goes with the request only"


def test_a_completion_is_no_different(driver, server):
    server.on("/api/generate", recorded("n_load_generate"), recorded("n_generate_stream"))
    reply = ask(driver, server, CompletionRequest(model="llama3.1", prompt="Once"), HURRIED)
    assert reply.text
    load, real = (seen.json for seen in server.requests[1:])
    assert "prompt" not in load
    assert real["prompt"] == "Once"


@pytest.mark.parametrize("first", [20.0, 600.0])
def test_nothing_more_is_asked_when_the_first_token_may_take_as_long(driver, server, first):
    ask(driver, server, chat(), Budgets(load=20.0, first_token=first))
    assert server.paths() == [CHAT]


def test_a_load_that_takes_too_long_is_said_to_be_one(driver, server):
    """And is not asked for again: the whole budget is gone."""
    server.on("/api/generate", recorded("n_load_generate", cut=0, fault="silence"))
    with pytest.raises(EngineTimeout, match=r"not loaded 'llama3\.1' after 0\.2 s") as caught:
        ask(driver, server, chat(), Budgets(load=0.2, first_token=0.1), max_retries=2)
    assert (caught.value.phase, caught.value.budget) == ("load", 0.2)
    assert "'load'" in (caught.value.hint or "")
    assert server.paths() == [LISTED, LOAD], "no prompt was sent"


def test_a_model_that_is_not_there_gets_no_prompt(driver, server):
    server.on("/api/generate", recorded("n_unload_missing"))
    with pytest.raises(ModelNotFound) as caught:
        ask(driver, server, chat("nope"), HURRIED)
    assert caught.value.near
    assert CHAT not in server.paths()


def test_why_loading_failed_is_said_at_once(driver, server):
    server.on("/api/generate", recorded("broken/n_generate"))
    with pytest.raises(EngineFault, match=r"output_norm\.weight"):
        ask(driver, server, chat("broken"), HURRIED, max_retries=2)
    assert server.paths() == [LISTED, LOAD]


@pytest.mark.parametrize("keep", [0, UNSET])
def test_what_is_loaded_for_one_request_is_not_unloaded_before_it(driver, server, keep):
    """`keep_alive: 0` on an empty request means to unload."""
    ask(driver, server, chat(keep_alive=keep), HURRIED)
    assert server.paths() == [LISTED, LOAD, CHAT]
    assert "keep_alive" not in server.requests[1].json


def test_a_cloud_model_is_loaded_elsewhere(driver, server):
    ask(driver, server, chat("gpt-oss:20b-cloud"), HURRIED)
    assert server.paths() == [CHAT]


def test_what_the_request_itself_will_be_told_is_left_to_it(driver, server):
    refusal = json_reply({"error": 'option "num_ctx" must be of type integer'}, 400)
    server.on("/api/generate", refusal)
    server.on("/api/chat", refusal)
    with pytest.raises(BadRequest, match="num_ctx"):
        ask(driver, server, chat(), HURRIED)
    assert server.paths() == [LISTED, LOAD, CHAT]


def loaded(window: int) -> wire.Reply:
    item = {"name": "llama3.1:latest", "model": "llama3.1:latest", "context_length": window}
    return json_reply({"models": [item]})


def test_a_model_that_is_loaded_is_not_loaded_first(driver, server):
    server.on("/api/ps", loaded(4096))
    ask(driver, server, chat(), HURRIED)
    ask(driver, server, chat(context_window=4096), HURRIED)
    # What is listed may still be loading: an empty request tells, the first time.
    assert server.paths() == [LISTED, LOAD, CHAT, LISTED, CHAT]


def test_a_model_that_is_listed_while_it_loads_is_sent_no_prompt(driver, server, monkeypatch):
    """A real server lists a model from the moment that it begins to load it."""
    monkeypatch.setattr("enginekit.engines.ollama.engine.LISTED", 0.2)
    server.on("/api/ps", loaded(4096))
    server.on("/api/generate", recorded("n_load_generate", cut=0, fault="silence"))
    budgets = Budgets(load=0.5, first_token=0.4)
    with pytest.raises(EngineTimeout) as caught:
        ask(driver, server, chat(), budgets, max_retries=2)
    assert caught.value.phase == "load"
    assert CHAT not in server.paths()
    server.on("/api/generate", recorded("n_load_generate"))
    assert ask(driver, server, chat(), HURRIED).text


def test_another_window_is_another_load(driver, server):
    server.on("/api/ps", loaded(4096))
    ask(driver, server, chat(context_window=2048), HURRIED)
    assert server.paths() == [LISTED, LOAD, CHAT]


def test_a_server_that_lists_nothing_gets_the_prompt_as_often_as_was_allowed(driver, server):
    """No load is waited for that nobody knows of: a short timeout stays short."""
    server.on("/api/ps", wire.Reply(status=404))
    server.on("/api/chat", recorded("n_chat_stream", cut=0, fault="silence"))
    with pytest.raises(EngineTimeout) as caught:
        ask(driver, server, chat(), Budgets(load=20.0, first_token=0.1), max_retries=2)
    assert caught.value.phase == "first token"
    assert server.paths() == [LISTED, CHAT, CHAT, CHAT]


def test_a_load_that_runs_out_of_its_budget_sent_no_prompt(driver, server):
    """A load is over after its own budget, and is not repeated."""
    server.on("/api/generate", recorded("n_load_generate", cut=0, fault="silence"))
    with pytest.raises(EngineTimeout) as caught:
        ask(driver, server, chat(), Budgets.of({"first_token": 0.2, "load": 0.3}), max_retries=2)
    assert (caught.value.phase, caught.value.budget) == ("load", 0.3)
    assert "timeout={'load': 1800}" in (caught.value.hint or "")
    assert server.paths() == [LISTED, LOAD]


def test_a_list_that_does_not_come_takes_no_longer_than_the_first_token_may(driver, server):
    server.on("/api/ps", wire.Reply(fault="slow_first_byte", delay=60))
    server.on("/api/chat", recorded("n_chat_stream", cut=0, fault="silence"))
    with pytest.raises(EngineTimeout) as caught:
        ask(driver, server, chat(), Budgets.of(0.2), max_retries=0)
    assert (caught.value.phase, caught.value.budget) == ("first token", 0.2)
    assert server.paths() == [LISTED, CHAT]


def test_a_server_that_is_gone_is_not_dialled_twice_for_one_try(driver):
    url = wire.refused_url()
    log: list[Any] = []

    def counted(operation: Any) -> Any:
        step, sent = operation.send, None
        while True:
            try:
                effect = step(sent)
            except StopIteration as done:
                return done.value
            log.append(effect)
            try:
                step, sent = operation.send, (yield effect)
            except Exception as error:
                step, sent = operation.throw, error

    with pytest.raises(Unreachable):
        driver.run(
            counted(
                open_reply(
                    Ollama(Target(base_url=url)),
                    chat(),
                    stream=True,
                    budgets=HURRIED,
                    max_retries=0,
                )
            )
        )
    assert len(log) == 1
