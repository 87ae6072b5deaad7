"""A list whose first engine has not loaded its model: the next answers while it is loaded.

Ollama says what is loaded (`/api/ps`) and loads for an empty request; it drops a load whose request
hangs up, so the request has to stay open in the background.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from enginekit.engines.ollama.engine import _ready
from enginekit.kit import loading
from enginekit.kit.server_facts import forget_facts
from enginekit.langchain import EngineKitChat
from tests.engines.ollama.test_loopback import recorded
from tests.langchain.wires import RECORDINGS, VLLM, Answer, Ollama
from tests.support.server import Reply, Seen, Server, json_reply, refused_url, replay

COLD = json_reply({"models": []})
LOADED = replay(RECORDINGS / "ollama" / "n_ps.json")
CHAT, LOAD = "POST /api/chat", "POST /api/generate"


class Pair:
    """An Ollama whose load takes until `loaded` is set, and a vLLM that is ready."""

    def __init__(self, first: Server, second: Server) -> None:
        self.ollama, self.vllm = first, second
        self.loaded = threading.Event()
        Ollama(first).says(Answer(text=("from ollama",)))
        VLLM(second).says(Answer(text=("from vllm",)))
        first.on("/api/ps", lambda _: LOADED if self.loaded.is_set() else COLD)
        first.on("/api/generate", self._load)

    def _load(self, _: Seen) -> Reply:
        answer = recorded("n_load_generate")
        return answer.but(body=[self.loaded, *answer.body])

    def asked(self, what: str) -> int:
        return self.ollama.paths().count(what)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    forget_facts()
    for known in (loading._under_way, loading._failed, loading._loaded, _ready):
        known.clear()
    with Server() as first, Server() as second:
        monkeypatch.setenv("ENGINEKIT_OLLAMA_URL", first.url)
        monkeypatch.setenv("ENGINEKIT_VLLM_URL", second.url)
        pair = Pair(first, second)
        yield pair
        pair.loaded.set()


def model(**more: Any) -> EngineKitChat:
    return EngineKitChat(engine="ollama,vllm", model="llama3.1", **more)


def ended(pair: Pair) -> None:
    """The thread has heard that the model is loaded."""
    for thread in threading.enumerate():
        if thread.name == "enginekit-load":
            thread.join(10)
    assert not loading._under_way


@pytest.mark.parametrize("timeout", [None, 5, {"first_token": 5}])
async def test_the_next_answers_while_the_first_loads(pair: Pair, timeout: Any) -> None:
    chat = model(timeout=timeout)
    for reply in (chat.invoke("hi"), await chat.ainvoke("hi")):
        assert reply.content == "from vllm"
        (why,) = reply.response_metadata["passed_over"]
        assert why.startswith("ollama: ")
        assert "has not loaded the model yet" in why
    assert pair.ollama.wait(lambda _: pair.asked(LOAD) == 1)
    assert pair.asked(CHAT) == 0
    assert pair.asked("GET /api/version") == 1, "what is known of it stays known"
    pair.loaded.set()
    ended(pair)
    assert pair.ollama.hung_up == [], "a load whose request hangs up is dropped"
    reply = chat.invoke("hi")
    assert (reply.content, reply.response_metadata.get("passed_over", [])) == ("from ollama", [])
    assert pair.asked(LOAD) == 1, "one load, however many calls wanted it"


def test_with_nobody_else_the_load_is_waited_for(pair: Pair) -> None:
    def soon(seen: Seen) -> Reply:
        pair.loaded.set()
        return json_reply({"error": {"message": "busy"}}, 503)

    pair.vllm.on("/v1/chat/completions", soon)
    assert model(timeout={"first_token": 5}).invoke("hi").content == "from ollama"


def test_why_a_load_failed_is_said_by_the_next_call(pair: Pair) -> None:
    pair.ollama.on("/api/generate", recorded("broken/n_generate"))
    chat = model()
    assert "has not loaded" in chat.invoke("hi").response_metadata["passed_over"][0]
    ended(pair)
    assert "output_norm.weight" in chat.invoke("hi").response_metadata["passed_over"][0]
    ended(pair)


def test_a_model_that_is_listed_while_it_loads_is_passed_over(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real server lists a model from the moment that it begins to load it."""
    monkeypatch.setattr("enginekit.engines.ollama.engine.LISTED", 0.2)
    pair.ollama.on("/api/ps", LOADED)
    chat = model()
    for _ in range(2):
        assert chat.invoke("hi").content == "from vllm"
    assert pair.asked(CHAT) == 0
    pair.loaded.set()
    ended(pair)
    assert chat.invoke("hi").content == "from ollama"


def test_a_server_that_keeps_nothing_is_asked_after_a_load_that_ended_well(pair: Pair) -> None:
    """`OLLAMA_KEEP_ALIVE=0`: the list is empty for ever."""
    pair.ollama.on("/api/ps", COLD)
    pair.loaded.set()
    chat = model()
    assert chat.invoke("hi").content == "from vllm"
    ended(pair)
    assert chat.invoke("hi").content == "from ollama"


def test_without_a_thread_the_next_answers_all_the_same(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(loading, "threading", SimpleNamespace(Thread=Refused))
    reply = model().invoke("hi")
    assert reply.content == "from vllm"
    assert "can't start new thread" in reply.response_metadata["passed_over"][0]
    assert not loading._under_way


def test_an_old_failure_is_no_reason_not_to_wait_when_nobody_else_can(pair: Pair) -> None:
    broken = recorded("broken/n_generate")
    pair.ollama.on("/api/generate", broken)
    chat = model()
    chat.invoke("hi")
    ended(pair)
    pair.ollama.on("/api/generate", pair._load)
    pair.loaded.set()
    pair.vllm.on("/v1/chat/completions", json_reply({"error": {"message": "busy"}}, 503))
    assert chat.invoke("hi").content == "from ollama"


def test_an_ollama_that_is_alone_or_last_loads_as_before(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEKIT_TGI_URL", refused_url())
    for engines in ("ollama", "tgi,ollama"):
        chat = EngineKitChat(engine=engines, model="llama3.1")
        assert chat.invoke("hi").content == "from ollama"
    assert pair.asked(LOAD) == 0
