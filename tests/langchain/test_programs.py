"""What LangChain's users expect to just work, on a real llama.cpp with weights whose answers we know.

Agents, their middleware and strategies, caches, callbacks, swapping by configuration. `langchain`
itself is needed for agents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    SummarizationMiddleware,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.globals import set_llm_cache
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from pydantic import BaseModel

from enginekit.errors import Unsupported
from enginekit.langchain import EngineKitChat
from tests.contract.conftest import Place, place
from tests.support.scripted import GREETING
from tests.support.server import refused_url

__all__ = ["place"]

pytestmark = pytest.mark.embedded


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str


@pytest.fixture
def settings(place: Place) -> dict[str, Any]:
    given = {name: value for name, value in place.settings.items() if value is not None}
    return {**given, "temperature": 0, "max_tokens": 200, "max_retries": 0}


@pytest.fixture
def model(settings: dict[str, Any]) -> EngineKitChat:
    return EngineKitChat(**settings)


def asked(text: str) -> Any:
    return {"messages": [("user", text)]}


# ---------------------------------------------------------------------------------- agents


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_an_agent_calls_two_tools_and_answers(settings: dict[str, Any], version: str) -> None:
    agent = create_agent(EngineKitChat(**settings, output_version=version), [get_weather, add])
    messages = agent.invoke(asked("CALLS"))["messages"]
    assert [m.content for m in messages if isinstance(m, ToolMessage)] == ["sunny in Oslo", "5"]
    assert messages[-1].text == GREETING


def test_an_agent_streams_messages(model: EngineKitChat) -> None:
    agent = create_agent(model, [get_weather])
    pieces = [chunk for chunk, _ in agent.stream(asked("CALL"), stream_mode="messages")]
    called = [p for p in pieces if getattr(p, "tool_call_chunks", None)]
    assert called[0].tool_call_chunks[0]["name"] == "get_weather"
    after = pieces[[isinstance(p, ToolMessage) for p in pieces].index(True) + 1 :]
    assert "".join(p.text for p in after) == GREETING
    assert len(after) > 3


async def test_an_agents_events_come_in_order(model: EngineKitChat) -> None:
    agent = create_agent(model, [get_weather])
    events = [event["event"] async for event in agent.astream_events(asked("CALL"), version="v2")]
    wanted = ["on_chat_model_start", "on_chat_model_end", "on_tool_start", "on_tool_end"]
    assert [e for e in events if e in wanted] == [*wanted, *wanted[:2]]


def test_a_tool_that_fails_is_told_to_the_model(model: EngineKitChat) -> None:
    @tool
    def get_weather(city: str) -> str:
        """The weather in a city."""
        raise ValueError("no such city")

    get_weather.handle_tool_error = True
    call = model.bind_tools([get_weather]).invoke("CALL").tool_calls[0]
    failed = ToolMessage("no such city", tool_call_id=call["id"], status="error")
    history = [HumanMessage("CALL"), AIMessage("", tool_calls=[call]), failed]
    assert model.bind_tools([get_weather]).invoke(history).text == GREETING


@pytest.mark.parametrize("strategy", [Joke, ToolStrategy(Joke)], ids=["class", "tool"])
def test_an_agent_with_tools_answers_in_an_object(model: EngineKitChat, strategy: Any) -> None:
    """A bare class follows the profile: the agent forces a tool, which every engine can have."""
    agent = create_agent(model, [get_weather], response_format=strategy)
    found = agent.invoke(asked("tell me a joke"))["structured_response"]
    assert found == Joke(setup="What do cats read?", punchline="The mewspaper.")


@pytest.mark.parametrize("strict", [None, True])
def test_constrained_decoding_serves_an_agent_without_tools(
    model: EngineKitChat, strict: bool | None
) -> None:
    agent = create_agent(model, [], response_format=ProviderStrategy(Joke, strict=strict))
    found = agent.invoke(asked("tell me a joke"))["structured_response"]
    assert found.punchline == "To watch the mouse."


def test_tools_and_a_schema_in_one_request_are_refused_with_the_way_out(
    model: EngineKitChat,
) -> None:
    agent = create_agent(model, [get_weather], response_format=ProviderStrategy(Joke))
    with pytest.raises(Unsupported, match="in one request") as caught:
        agent.invoke(asked("tell me a joke"))
    assert "ToolStrategy" in str(caught.value.hint)
    hints = [note for note in caught.value.__notes__ if note.startswith("hint: ")]
    assert hints == [f"hint: {caught.value.hint}"]


def test_summaries_start_at_a_fraction_of_the_servers_own_window(model: EngineKitChat) -> None:
    """Without a window in the profile the middleware refuses to work at all."""
    model.connect()
    middleware = SummarizationMiddleware(
        model, trigger=("fraction", 0.01), keep=("messages", 1), summary_prompt="Sum up: {messages}"
    )
    agent = create_agent(model, [get_weather], middleware=[middleware])
    history = [("user", "word " * 200), ("ai", "so"), ("user", "Hello")]
    messages = agent.invoke({"messages": history})["messages"]
    assert len(messages) == 3
    assert GREETING in messages[0].text  # the summary
    assert messages[1].text == "Hello"


def test_middleware_acts_on_the_errors_it_knows(
    model: EngineKitChat, settings: dict[str, Any]
) -> None:
    dead = EngineKitChat(**{**settings, "base_url": refused_url()})
    agent = create_agent(dead, [get_weather], middleware=[ModelFallbackMiddleware(model)])
    assert agent.invoke(asked("CALL"))["messages"][-1].text == GREETING
    retrying = ModelRetryMiddleware(max_retries=1, initial_delay=0.0, on_failure="error")
    agent = create_agent(dead, [get_weather], middleware=[retrying])
    with pytest.raises(ConnectionError):
        agent.invoke(asked("CALL"))


# ---------------------------------------------------------------------------------- caches and callbacks


@pytest.fixture
def cache() -> Iterator[InMemoryCache]:
    made = InMemoryCache()
    set_llm_cache(made)
    yield made
    set_llm_cache(None)


async def test_a_cached_reply_is_the_same_reply(
    cache: InMemoryCache, model: EngineKitChat, settings: dict[str, Any]
) -> None:
    first = model.invoke("MUSE")
    again = EngineKitChat(**settings)  # equal settings, another instance
    for reply in (model.invoke("MUSE"), again.invoke("MUSE"), await model.ainvoke("MUSE")):
        assert reply.id == first.id
        assert reply.content_blocks == first.content_blocks
        assert reply.response_metadata == first.response_metadata
    assert model.invoke("MUSE", max_tokens=3).id != first.id
    assert EngineKitChat(**{**settings, "seed": 3}).invoke("MUSE").id != first.id
    bound = model.bind_tools([get_weather])
    assert bound.invoke("CALL").tool_calls == bound.invoke("CALL").tool_calls
    assert len(cache._cache) == 4


def test_usage_is_counted_over_calls_and_streams(model: EngineKitChat) -> None:
    with get_usage_metadata_callback() as counted:
        one = model.invoke("Hello")
        list(model.stream("Hello"))
    (total,) = counted.usage_metadata.values()
    assert one.usage_metadata is not None
    assert total["output_tokens"] == 2 * one.usage_metadata["output_tokens"] > 0


# ---------------------------------------------------------------------------------- composing


def test_a_chain_in_every_way_of_calling(model: EngineKitChat) -> None:
    chain = ChatPromptTemplate.from_template("Say {what}.") | model | StrOutputParser()
    assert chain.invoke({"what": "hello"}) == GREETING
    assert "".join(chain.stream({"what": "hello"})) == GREETING
    assert asyncio.run(chain.ainvoke({"what": "hello"})) == GREETING
    assert chain.batch([{"what": "a"}] * 3, config={"max_concurrency": 2}) == [GREETING] * 3


def test_a_batch_keeps_its_failures_in_their_places(model: EngineKitChat) -> None:
    video = [HumanMessage([{"type": "video", "url": "http://127.0.0.1/v"}])]
    mixed: list[Any] = ["Hello", video, "Hello"]
    found = model.batch(mixed, config={"max_concurrency": 2}, return_exceptions=True)
    assert [isinstance(one, AIMessage) for one in found] == [True, False, True]
    assert isinstance(found[1], Unsupported)
    later = asyncio.run(model.abatch(mixed, return_exceptions=True))
    assert isinstance(later[1], Unsupported)
    with pytest.raises(Unsupported):
        model.batch(mixed)


def test_engines_swap_by_configuration(model: EngineKitChat, settings: dict[str, Any]) -> None:
    fields = model.configurable_fields(
        max_tokens=ConfigurableField(id="limit"), base_url=ConfigurableField(id="where")
    )
    short = fields.with_config(configurable={"limit": 1}).invoke("Hello")
    assert short.response_metadata["finish_reason"] == "length"
    with pytest.raises(ConnectionError):
        fields.with_config(configurable={"where": refused_url()}).invoke("Hello")
    dead = EngineKitChat(**{**settings, "base_url": refused_url()})
    either: Any = dead.configurable_alternatives(
        ConfigurableField(id="engine"), default_key="dead", alive=model
    )
    bound = either.with_config(configurable={"engine": "alive"}).bind_tools([get_weather])
    assert bound.invoke("CALL").tool_calls[0]["args"] == {"city": "Rome"}


def test_retry_and_fallback_wrappers(model: EngineKitChat, settings: dict[str, Any]) -> None:
    dead = EngineKitChat(**{**settings, "base_url": refused_url()})
    assert model.with_retry(stop_after_attempt=2).invoke("Hello").text == GREETING
    rescued: Any = dead.with_fallbacks([model])
    assert rescued.invoke("Hello").text == GREETING
    assert "".join(chunk.text for chunk in rescued.stream("Hello")) == GREETING
    forced = rescued.bind_tools([get_weather], tool_choice="any")
    assert forced.invoke("CALL").tool_calls[0]["name"] == "get_weather"
    assert rescued.with_structured_output(Joke).invoke("tell me a joke").setup


def test_streaming_can_be_switched_off(settings: dict[str, Any]) -> None:
    def pieces(model: Any) -> int:
        return sum(1 for _ in model.stream("Hello"))

    assert pieces(EngineKitChat(**settings)) > 3
    assert pieces(EngineKitChat(**settings, disable_streaming=True)) == 1
    with_tools = EngineKitChat(**settings, disable_streaming="tool_calling")
    assert pieces(with_tools) > 3
    assert pieces(with_tools.bind_tools([add])) == 1


def test_a_rate_limiter_is_asked_once_for_each_call(settings: dict[str, Any]) -> None:
    class Counting(InMemoryRateLimiter):
        asked = 0

        def acquire(self, *, blocking: bool = True) -> bool:
            type(self).asked += 1
            return True

    limited = EngineKitChat(**settings, rate_limiter=Counting())
    limited.invoke("Hello")
    list(limited.stream("Hello"))
    assert Counting.asked == 2


def test_messages_are_trimmed_by_the_engines_own_count(model: EngineKitChat) -> None:
    history = [
        SystemMessage("Be kind."), HumanMessage("word " * 100), AIMessage("so"), HumanMessage("Hi"),
    ]  # fmt: skip
    # LangChain counts the system message apart, and so the template's own tokens twice.
    room = sum(model.get_num_tokens_from_messages([m]) for m in (history[0], history[-1]))
    kept = trim_messages(history, max_tokens=room, token_counter=model, include_system=True)
    assert [m.text for m in kept] == ["Be kind.", "Hi"]
    assert model.get_num_tokens_from_messages(kept) <= room


def test_every_tool_choice_on_a_real_server(model: EngineKitChat) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("any", "required", True, "get_weather", named):
        bound = model.bind_tools([get_weather], tool_choice=choice)  # type: ignore[arg-type]
        streamed = None
        for chunk in bound.stream("CALL"):
            streamed = chunk if streamed is None else streamed + chunk
        assert streamed is not None
        for message in (bound.invoke("CALL"), streamed):
            assert [c["args"] for c in message.tool_calls] == [{"city": "Rome"}]
            assert message.response_metadata["receipt"]["emulated"]["tool_choice"]
    for choice in (None, "auto"):
        assert model.bind_tools([get_weather], tool_choice=choice).invoke("CALL").tool_calls
    for choice in ("none", False):
        assert not model.bind_tools([get_weather], tool_choice=choice).invoke("CALL").tool_calls  # type: ignore[arg-type]
