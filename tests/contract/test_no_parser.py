"""Tools on a vLLM that runs now and was started without a tool parser: emulated, said, nothing lost.

`nox -s live_vllm` starts such a server for these tests; elsewhere they skip. How many requests the
server got, and what came of them, is read from its own metrics.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from enginekit.errors import BadOutput, BadRequest, Unsupported
from enginekit.kit.client import Client
from enginekit.langchain import EngineKitChat
from enginekit.types import Constraint, EmbedRequest, RerankRequest, ToolChoice
from tests.contract.conftest import LIVE, Place, chat
from tests.contract.test_live import ADD, PERSON, WEATHER

pytestmark = pytest.mark.skipif(
    LIVE["parser"] != "none", reason="needs a server without a tool parser: nox -s live_vllm"
)

AUTO = ToolChoice(mode="auto")
REQUIRED = ToolChoice(mode="required")
NAMED = ToolChoice(mode="named", name="get_weather")
PLEASURE = "My pleasure → come again."
FLAGS = "--enable-auto-tool-choice --tool-call-parser"
CHATS = "/v1/chat/completions"


class Counter:
    """Requests the server answered, by route and first digit of the status: its own count."""

    def __init__(self, client: Client) -> None:
        self._target = client.engine.target  # type: ignore[union-attr]
        self._before = self._now()

    def _now(self) -> dict[tuple[str, str], float]:
        import urllib.request

        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self._target.base_url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found: dict[tuple[str, str], float] = {}
        for line in lines:
            if line.startswith("http_requests_total{"):
                labels = dict(pair.split("=", 1) for pair in line[20 : line.index("}")].split(","))
                key = labels["handler"].strip('"'), labels["status"].strip('"')
                found[key] = found.get(key, 0.0) + float(line.rpartition(" ")[2])
        return found

    def since(self, handler: str) -> dict[str, int]:
        """What came of requests to one route since the counter was made."""
        now = self._now()
        gone = {key[1]: now[key] - self._before.get(key, 0.0) for key in now if key[0] == handler}
        return {status: int(count) for status, count in gone.items() if count}


@contextmanager
def asking(client: Client, handler: str, **expected: int) -> Iterator[None]:
    """Exactly these requests reach a route inside: `ok` were answered, `refused` were not."""
    client.connect()
    counter = Counter(client)
    yield
    wanted = {"2xx": expected.get("ok", 0), "4xx": expected.get("refused", 0)}
    assert counter.since(handler) == {status: count for status, count in wanted.items() if count}


def test_connecting_finds_out_and_generates_nothing(client: Client) -> None:
    before = client.load_state()
    counter = Counter(client)
    facts = client.connect()
    assert facts is not None
    for feature in ("tools", "tool_choice_required", "tool_choice_named"):
        fact = facts.capabilities[feature]
        assert (fact.support, fact.evidence) == ("emulated", "probed")
        assert FLAGS in fact.note
    assert counter.since(CHATS) == {"4xx": 1}
    after = client.load_state()
    assert after.prompt_tokens_total == before.prompt_tokens_total
    assert after.generated_tokens_total == before.generated_tokens_total


@pytest.mark.parametrize("choice", [AUTO, REQUIRED, NAMED], ids=lambda choice: choice.mode)
def test_a_call_by_any_choice_is_exact_and_costs_one_request(client, ask, choice):
    request = chat("CALL", tools=(WEATHER, ADD), tool_choice=choice, parallel_tool_calls=True)
    with asking(client, CHATS, ok=1):
        reply = ask(client, request)
    (call,) = reply.tool_calls
    assert (call.name, call.parsed(), call.problem) == ("get_weather", {"city": "Rome"}, None)
    assert (reply.text, reply.finish_reason) == ("", "tool_calls")
    for field in ("tools", "tool_choice", "parallel_tool_calls"):
        assert reply.receipt.outcome(field) == "emulated"
    assert reply.receipt.outcome("messages") == "translated"
    assert any(FLAGS in note for note in reply.receipt.notes)
    assert any("lifted" in repair for repair in reply.receipt.repairs)


@pytest.mark.parametrize("choice", [AUTO, REQUIRED, NAMED], ids=lambda choice: choice.mode)
def test_a_streamed_call_is_the_whole_call(client, listen, choice):
    with asking(client, CHATS, ok=1):
        chunks = listen(client, chat("CALL", tools=(WEATHER, ADD), tool_choice=choice))
    deltas = [delta for chunk in chunks for delta in chunk.tool_calls]
    assert [delta.name for delta in deltas if delta.name] == ["get_weather"]
    assert json.loads("".join(delta.arguments for delta in deltas)) == {"city": "Rome"}
    assert len(deltas) > 1, "the arguments came in one piece"
    assert "".join(chunk.text for chunk in chunks) == ""
    assert chunks[-1].end.finish_reason == "tool_calls"
    assert chunks[-1].end.usage.completion_tokens > 0


def test_an_answer_without_a_call_is_text(client, ask, listen):
    request = chat("Thanks!", tools=(WEATHER,))
    reply = ask(client, request)
    assert (reply.text, reply.tool_calls, reply.finish_reason) == (PLEASURE, (), "stop")
    chunks = listen(client, request)
    assert "".join(chunk.text for chunk in chunks) == PLEASURE
    assert len([chunk for chunk in chunks if chunk.text]) > 1, "the answer came in one piece"


def test_none_offers_no_tool(client, ask):
    reply = ask(client, chat("CALL", tools=(WEATHER,), tool_choice=ToolChoice(mode="none")))
    assert reply.tool_calls == ()
    assert reply.text


def test_a_required_call_that_is_cut_is_an_error(client, ask):
    with pytest.raises(BadOutput):
        ask(client, chat("CALL", max_tokens=2, tools=(WEATHER,), tool_choice=REQUIRED))


def test_a_tool_and_a_schema_at_once_are_refused_before_anything_is_sent(client, ask):
    schema = Constraint(kind="json_schema", value=PERSON, name="person")
    with asking(client, CHATS), pytest.raises((Unsupported, BadRequest)) as caught:
        ask(client, chat("CALL", tools=(WEATHER,), constraint=schema))
    assert caught.value.status is None


def test_the_next_client_knows(client: Client, place: Place, ask: Any) -> None:
    """Once per process and address: nobody asks again, and no prompt is sent twice."""
    ask(client, chat("CALL", tools=(WEATHER,)))
    counter = Counter(client)
    for _ in range(2):
        assert ask(place.client(), chat("CALL", tools=(WEATHER,))).tool_calls
    assert counter.since(CHATS) == {"2xx": 2}


@pytest.mark.parametrize("name", ["embed", "rerank"])
@pytest.mark.parametrize("driver", ["sync", "async"])
def test_no_text_is_sent_to_be_pooled_and_it_is_asked_once(client, name, driver):
    """Two requests without any text find out that there is no such route; the next call sends none."""
    request: EmbedRequest | RerankRequest
    if name == "embed":
        request = EmbedRequest(model="", texts=("a",))
    else:
        request = RerankRequest(model="", query="a", documents=("b",))

    def pool() -> None:
        with pytest.raises(Unsupported, match="pooling") as caught:
            if driver == "sync":
                getattr(client, name)(request)
            else:
                asyncio.run(getattr(client, f"a{name}")(request))
        assert caught.value.status is None

    with asking(client, "/v1/embeddings"), asking(client, "/v1/rerank"):
        first = Counter(client)
        pool()
        assert sum(first.since("none").values()) == 2
        second = Counter(client)
        pool()
        assert second.since("none") == {}


# ---------------------------------------------------------------------------------- LangChain


@tool
def get_weather(city: str) -> str:
    """Look up the weather in a city."""
    return f"18 degrees in {city}"


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


@pytest.fixture
def model(place: Place) -> EngineKitChat:
    return EngineKitChat(**place.settings, temperature=0, max_tokens=120)


def called(message: Any) -> list[tuple[str, Any]]:
    assert isinstance(message, AIMessage)
    assert message.invalid_tool_calls == []
    return [(call["name"], call["args"]) for call in message.tool_calls]


@pytest.mark.parametrize("choice", [None, "auto", "any", "get_weather"])
def test_bind_tools(model: EngineKitChat, choice: str | None) -> None:
    bound = model.bind_tools([get_weather], tool_choice=choice)
    wanted = [("get_weather", {"city": "Rome"})]
    assert called(bound.invoke("CALL")) == wanted
    assert called(asyncio.run(bound.ainvoke("CALL"))) == wanted
    first, *rest = list(bound.stream("CALL"))
    whole = first
    for chunk in rest:
        whole = whole + chunk
    assert called(whole) == wanted
    told = str(whole.response_metadata)
    assert "emulated" in told
    assert FLAGS in told


def test_an_agents_turns(model: EngineKitChat) -> None:
    """The call, its result and the answer: a history with tool calls is taken without a parser."""
    bound = model.bind_tools([get_weather])
    asked = bound.invoke("CALL")
    result = get_weather.invoke(asked.tool_calls[0])
    answer = bound.invoke([("human", "CALL"), asked, result, ("human", "Thanks!")])
    assert answer.content == PLEASURE
    assert called(answer) == []


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_with_structured_output(model: EngineKitChat, method: Any) -> None:
    schema, text = (Joke, "joke") if method == "function_calling" else (Person, "PERSON")
    structured = model.with_structured_output(schema, method=method)
    values = [structured.invoke(text), asyncio.run(structured.ainvoke(text))]
    values.append(list(structured.stream(text))[-1])
    if method == "function_calling":
        joke = Joke(setup="What do cats read?", punchline="The mewspaper.")
        assert values == [joke] * 3
    else:
        assert values == [Person(name="Ann", age=31)] * 3
