"""What a server said of itself is forgotten when an error may come of its being another one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineFault,
    EngineKitError,
    EngineLoading,
    EngineTimeout,
    Unreachable,
)
from enginekit.facts.engine import Capability
from enginekit.kit import server_facts
from enginekit.kit.client import Client
from enginekit.types import ChatRequest, Message
from tests.engines.recordings import load
from tests.langchain.wires import Answer, LlamaCpp, Ollama
from tests.support.server import Reply, Server, json_reply

CHAT = ChatRequest(model="", messages=(Message(role="user", content="hi"),))
WRONG = json_reply({"error": 'option "top_k" must be of type integer'}, 400)
LEARNT = {"logprobs": Capability(support="none", evidence="observed", note="by a refusal")}


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


def test_what_a_fresh_probe_says_wins_over_what_was_seen_before(asked: Asked) -> None:
    """Version, window and models are the same, and yet it may have been started with other flags."""
    server_facts.forget_facts()
    wire = LlamaCpp(asked.server)
    wire.says(Answer(text=("Hello",)))
    client = Client({"engine": "llamacpp", "base_url": asked.server.url, "model": "tiny"})
    client.chat(CHAT)
    assert client.engine is not None
    assert client.route is not None
    blind = Capability(support="none", evidence="observed", note="by a refusal")
    client.engine.remember({**LEARNT, "images": blind})  # type: ignore[dict-item]
    server_facts.keep_facts(client.route)
    asked.now += server_facts.DOUBT
    wire.says(json_reply({"error": {"code": 400, "message": "no"}}, 400))
    with pytest.raises(BadRequest):
        client.chat(CHAT)
    props = json.loads(load("llamacpp", "l_props").body)
    props |= {"modalities": {"vision": True, "audio": False}, "total_slots": 7}
    asked.server.on("/props", json_reply(props))
    wire.says(Answer(text=("Hello",)))
    client.chat(CHAT)
    facts = client.facts
    assert facts is not None
    assert facts.modalities == ("vision",)
    assert facts.slots == 7
    seen = facts.told("images")
    assert seen is not None
    assert seen.support == "native"
    assert facts.told("logprobs") == LEARNT["logprobs"], "which the probe leaves open"


def test_what_was_settled_by_a_probe_is_asked_again(asked: Asked) -> None:
    engine = asked.client.engine
    assert engine is not None
    assert engine.facts is not None
    assert asked.client.route is not None
    probed = Capability(support="none", evidence="probed", note="by its flags")
    engine.facts = engine.facts.with_told({"rerank": probed, "logprobs": probed}, "other")
    engine.facts = engine.facts.with_told(LEARNT, "third")  # type: ignore[arg-type]
    server_facts.keep_facts(asked.client.route)
    asked.now += server_facts.DOUBT
    asked.refused(WRONG, BadRequest)
    asked.call(Answer(text=("Hello",)))
    assert asked.client.facts is not None
    assert asked.client.facts.by_model == {"third": LEARNT}


def test_a_server_that_was_gone_in_between_is_another(asked: Asked) -> None:
    asked.now += server_facts.DOUBT
    asked.refused(WRONG, BadRequest)
    assert asked.client.route is not None
    server_facts.forget_route(asked.client.route, Unreachable("gone"))
    asked.call(Answer(text=("Hello",)))
    assert asked.learnt is None


@pytest.mark.parametrize("gone", [Unreachable("gone"), EngineTimeout("late", phase="connect")])
def test_nobody_there_to_be_probed(
    asked: Asked, gone: EngineKitError, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.now += server_facts.DOUBT
    asked.refused(WRONG, BadRequest)
    route = asked.client.route
    assert route is not None

    def probe(self: object) -> Any:
        raise gone
        yield

    with monkeypatch.context() as patch:
        patch.setattr(type(route.engine), "probe", probe)
        assert list(server_facts.probe_once(route, budget=1)) == []
    asked.call(Answer(text=("Hello",)))
    assert asked.learnt is None


@pytest.mark.parametrize(
    ("error", "probes"),
    [
        (EngineLoading("not yet"), 1),
        (EngineTimeout("late", phase="load"), 1),
        (EngineTimeout("late", phase="connect"), 2),
        (EngineFault("broke"), 2),
    ],
)
@pytest.mark.parametrize("silent", [True, False])
def test_a_load_says_nothing_of_the_server(
    asked: Asked,
    error: EngineKitError,
    probes: int,
    silent: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one that loads when it is asked to; of any other, that it was started anew."""
    route = asked.client.route
    assert route is not None
    monkeypatch.setattr(type(route.engine), "loads_silently", lambda _: silent)
    server_facts.forget_route(route, error)
    asked.call(Answer(text=("Hello",)))
    assert asked.probes == (probes if silent else 2)
    assert (asked.learnt is None) is (asked.probes == 2)
