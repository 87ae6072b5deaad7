"""What a server said of itself is forgotten when an error may come of its being another one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from enginekit.errors import BadRequest, ContextOverflow, EngineKitError
from enginekit.facts.engine import Capability
from enginekit.kit import server_facts
from enginekit.kit.client import Client
from enginekit.types import ChatRequest, Message
from tests.langchain.wires import Answer, Ollama
from tests.support.server import Reply, Server, json_reply

CHAT = ChatRequest(model="", messages=(Message(role="user", content="hi"),))
WRONG = json_reply({"error": 'option "top_k" must be of type integer'}, 400)
LEARNT = {"logprobs": Capability(support="none", evidence="probed", note="by a trial")}


class Asked:
    """A client of an Ollama, the probes it cost, and a clock moved by hand."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(server_facts, "_clock", lambda: self.now)
        self.server = server
        self.wire = Ollama(server)
        self.client = Client({"engine": "ollama", "base_url": server.url, "model": "llama3.1"})
        self.call(Answer(text=("Hello",)))
        assert self.client.engine is not None
        self.client.engine.remember(LEARNT)  # type: ignore[arg-type]
        server_facts.keep_facts(self.client.route)  # type: ignore[arg-type]

    def call(self, answer: Answer | Reply) -> None:
        self.wire.says(answer)
        self.client.chat(CHAT)

    def refused(self, answer: Reply, kind: type[EngineKitError]) -> None:
        with pytest.raises(kind):
            self.call(answer)

    @property
    def probes(self) -> int:
        return self.server.paths().count("GET /api/version")

    @property
    def learnt(self) -> Any:
        assert self.client.facts is not None
        return self.client.facts.told("logprobs")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    server_facts.forget_facts()
    with Server() as server:
        yield Asked(server, monkeypatch)
    server_facts.forget_facts()


def test_a_wrong_request_costs_no_probe(asked: Asked) -> None:
    for _ in range(3):
        asked.refused(WRONG, BadRequest)
    asked.call(Answer(text=("Hello",)))
    assert asked.probes == 1
    assert asked.learnt == LEARNT["logprobs"]


def test_a_server_that_was_replaced_is_found_out_in_a_minute(asked: Asked) -> None:
    asked.now += server_facts.DOUBT
    asked.refused(WRONG, BadRequest)
    asked.server.on("/api/version", json_reply({"version": "0.40.0"}))
    with pytest.warns(UserWarning, match="newer"):
        asked.call(Answer(text=("Hello",)))
    assert asked.probes == 2
    assert asked.client.facts is not None
    assert asked.client.facts.version == "0.40.0"
    assert asked.learnt is None


def test_a_server_that_is_what_it_was_keeps_what_was_learnt(asked: Asked) -> None:
    asked.now += server_facts.DOUBT
    asked.refused(WRONG, BadRequest)
    asked.call(Answer(text=("Hello",)))
    assert asked.probes == 2
    assert asked.learnt == LEARNT["logprobs"]
    asked.refused(WRONG, BadRequest)
    asked.call(Answer(text=("Hello",)))
    assert asked.probes == 2, "once in a while"


@pytest.mark.parametrize(("limit", "probes"), [(4096, 1), (2048, 2)])
def test_a_refusal_that_names_another_window_contradicts(
    asked: Asked, limit: int, probes: int
) -> None:
    assert asked.client.facts is not None
    assert asked.client.facts.context_window == 4096
    route = asked.client.route
    assert route is not None
    server_facts.forget_route(route, ContextOverflow("too long", limit=limit))
    asked.call(Answer(text=("Hello",)))
    assert asked.probes == probes


def test_a_server_that_breaks_may_come_back_as_another(asked: Asked) -> None:
    asked.refused(
        json_reply({"error": "model runner has unexpectedly stopped"}, 500), EngineKitError
    )
    asked.call(Answer(text=("Hello",)))
    assert asked.probes == 2
