"""The contract, on a server that answers now: every engine passes the same tests.

With scripted weights the expectations are exact and the same on every engine; with other weights
they are about form. A feature that the running server says it lacks must refuse.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from enginekit.errors import (
    BadOutput,
    ContextOverflow,
    EngineKitError,
    EngineTimeout,
    ModelNotFound,
    Unreachable,
    Unsupported,
)
from enginekit.types import (
    Constraint,
    EmbedRequest,
    Message,
    RerankRequest,
    Tool,
    ToolCall,
    ToolChoice,
)
from tests.contract.conftest import chat
from tests.support.generation import Meter, stopped, wasted
from tests.support.scripted import GREETING, THOUGHT, WORDS
from tests.support.server import refused_url

WEATHER = Tool(
    name="get_weather",
    description="Look up the weather in a city",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
ADD = Tool(
    name="add",
    description="Add two numbers",
    parameters={
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@contextmanager
def if_lacking(client, feature: str) -> Iterator[None]:
    """A feature that this server lacks must refuse; then the test is over."""
    client.connect()
    lacking = client.engine.of(client.model).capability(feature).support == "none"
    if not lacking:
        yield
        return
    with pytest.raises(Unsupported):
        yield
    pytest.skip(f"the server lacks {feature}, and it is refused")


# ---------------------------------------------------------------------------------- text


def test_a_whole_reply_has_text_a_reason_and_counts(client, ask):
    reply = ask(client, chat("Hi."))
    assert reply.text.strip()
    assert reply.finish_reason in ("stop", "length")
    assert reply.usage.prompt_tokens > 0
    assert reply.usage.completion_tokens > 0
    assert reply.receipt.engine == client.engine.name


def test_the_greeting_is_exact(client, ask, scripted):
    reply = ask(client, chat("Hi."))
    assert reply.text.strip() == GREETING
    assert reply.finish_reason == "stop"


def test_a_stream_adds_up_to_the_whole_reply(client, ask, listen):
    chunks = listen(client, chat("Hi."))
    assert "".join(chunk.text for chunk in chunks) == ask(client, chat("Hi.")).text
    assert [bool(chunk.end) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].end.usage.completion_tokens > 0


def test_a_character_split_over_two_tokens_comes_whole(client, listen, scripted):
    chunks = listen(client, chat("Hi."))
    assert any("é" in chunk.text for chunk in chunks)
    assert not any("\ufffd" in chunk.text for chunk in chunks)


def test_the_token_limit_is_said(client, ask):
    reply = ask(client, chat("LONG story, please: count up.", max_tokens=5))
    assert reply.finish_reason == "length"
    assert reply.usage.completion_tokens == 5


def test_a_long_reply_is_word_for_word(client, ask, scripted):
    reply = ask(client, chat("LONG", max_tokens=16))
    assert reply.text.strip() == (WORDS + WORDS).strip()


def test_stop_text_ends_the_reply_and_is_not_in_it(client, ask, scripted):
    reply = ask(client, chat("LONG", sampling={"stop": (" four",)}))
    assert reply.text.strip() == "one two three"
    assert reply.finish_reason == "stop"


def test_a_system_message_and_history_are_taken(client, ask):
    before = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="Hi."),
        Message(role="assistant", content="Hello."),
    )
    assert ask(client, chat("And again.", before=before)).text


def test_logprobs_come_one_per_token(client, ask):
    with if_lacking(client, "logprobs"):
        reply = ask(client, chat("Hi.", sampling={"logprobs": True, "top_logprobs": 2}))
    assert reply.logprobs
    assert all(entry.logprob <= 0.0 for entry in reply.logprobs)
    assert all(len(entry.top) >= 2 for entry in reply.logprobs)


def test_thinking_is_apart_from_the_answer(client, ask, scripted):
    client.connect()
    reply = ask(client, chat("MUSE"))
    assert THOUGHT in reply.reasoning + reply.text
    if client.engine.of(client.model).capability("reasoning").support == "native":
        assert THOUGHT in reply.reasoning
        assert reply.text.strip() == GREETING


# ---------------------------------------------------------------------------------- tools


def tools_usable(client) -> None:
    client.connect()
    fact = client.engine.of(client.model).capability("tools")
    if fact.support == "none":
        with pytest.raises(Unsupported):
            client.chat(chat("CALL", tools=(WEATHER,)))
        pytest.skip(f"no tools on this server, and they are refused: {fact.note}")


def test_a_tool_call_is_exact(client, ask, scripted):
    tools_usable(client)
    reply = ask(client, chat("CALL", tools=(WEATHER, ADD)))
    (call,) = reply.tool_calls
    assert (call.name, call.parsed(), call.problem) == ("get_weather", {"city": "Rome"}, None)
    assert call.id
    assert reply.finish_reason == "tool_calls"


def test_two_calls_keep_their_order_and_ids(client, ask, scripted):
    """Where a server makes one call at a time, the first."""
    tools_usable(client)
    reply = ask(client, chat("CALLS", max_tokens=200, tools=(WEATHER, ADD)))
    wanted = [("get_weather", {"city": "Oslo"}), ("add", {"a": 2, "b": 3})]
    if client.engine.of(client.model).capability("parallel_tool_calls").support == "none":
        wanted = wanted[:1]
    assert [(call.name, call.parsed()) for call in reply.tool_calls] == wanted
    assert len({call.id for call in reply.tool_calls}) == len(wanted)


def test_streamed_calls_are_the_whole_calls(client, listen, scripted):
    tools_usable(client)
    chunks = listen(client, chat("CALLS", max_tokens=200, tools=(WEATHER, ADD)))
    pieces: dict[int, list] = {}
    for chunk in chunks:
        for delta in chunk.tool_calls:
            pieces.setdefault(delta.index, []).append(delta)
    built = [
        (deltas[0].id, deltas[0].name, json.loads("".join(d.arguments for d in deltas)))
        for deltas in pieces.values()
    ]
    assert all(d.id is None and d.name is None for ds in pieces.values() for d in ds[1:])
    end = chunks[-1].end
    assert built == [(call.id, call.name, call.parsed()) for call in end.tool_calls]


def test_a_call_cut_by_the_limit_is_never_a_good_call(client, ask, scripted):
    tools_usable(client)
    try:
        reply = ask(client, chat("CALL", max_tokens=4, tools=(WEATHER,)))
    except (BadOutput, EngineKitError) as error:
        assert not isinstance(error, Unsupported)  # noqa: PT017
        return
    assert all(call.problem for call in reply.tool_calls)


def test_none_forbids_a_call(client, ask, scripted):
    tools_usable(client)
    reply = ask(client, chat("CALL", tools=(WEATHER,), tool_choice=ToolChoice(mode="none")))
    assert reply.tool_calls == ()


@pytest.mark.parametrize(
    "choice", [ToolChoice(mode="required"), ToolChoice(mode="named", name="get_weather")]
)
def test_a_forced_call_is_a_call_or_an_error_never_prose(client, ask, choice):
    """On any weights: the answer is a call of a given tool with arguments of its schema."""
    tools_usable(client)
    try:
        reply = ask(client, chat("Hello!", max_tokens=120, tools=(WEATHER,), tool_choice=choice))
    except BadOutput:
        return
    assert [call.name for call in reply.tool_calls][:1] == ["get_weather"]
    call = reply.tool_calls[0]
    if reply.finish_reason == "length":
        assert call.problem
    else:
        assert set(call.parsed()) == {"city"}


def test_a_tools_answer_goes_back(client, ask, place):
    """Other weights than the scripted ones may well call again."""
    tools_usable(client)
    before = (
        Message(role="user", content="CALL"),
        Message(
            role="assistant",
            tool_calls=(
                ToolCall(id="call_000000001", name="get_weather", arguments='{"city": "Rome"}'),
            ),
        ),
        Message(
            role="tool",
            content="18 degrees",
            tool_call_id="call_000000001",
            tool_name="get_weather",
        ),
    )
    with if_lacking(client, "tools"):
        reply = ask(client, chat("Thanks.", before=before, tools=(WEATHER,)))
    assert reply.text or (reply.tool_calls and not place.scripted)


# ---------------------------------------------------------------------------------- constraints


def test_a_schema_is_obeyed(client, ask):
    """`length` may cut it; what is whole must match."""
    with if_lacking(client, "json_schema"):
        reply = ask(
            client,
            chat(
                "PERSON",
                max_tokens=150,
                constraint=Constraint(kind="json_schema", value=PERSON, name="person"),
            ),
        )
    if reply.finish_reason == "stop":
        value = json.loads(reply.text)
        assert set(value) == {"name", "age"}
        assert isinstance(value["age"], int)


@pytest.mark.parametrize(
    ("kind", "value", "allowed"),
    [("choice", ("red", "blue"), {"red", "blue"}), ("regex", "(yes|no)", {"yes", "no"})],
)
def test_choices_and_patterns_are_obeyed(client, ask, kind, value, allowed):
    """Or the server did not constrain, which is an error with a hint that helps."""
    constraint = Constraint(kind=kind, value=value)
    with if_lacking(client, kind):
        try:
            reply = ask(client, chat("Hi.", constraint=constraint))
        except BadOutput as error:
            assert "reasoning=False" in (error.hint or "")  # noqa: PT017
            reply = ask(client, chat("Hi.", constraint=constraint, reasoning=False))
    assert reply.text in allowed


# ---------------------------------------------------------------------------------- limits


def test_what_does_not_fit_says_so_with_both_numbers(client, ask):
    client.connect()
    window = client.facts.context_window
    if window is None or window > 40_000:
        pytest.skip(f"the window is {window}: too large to overflow in a test")
    with pytest.raises(ContextOverflow) as caught:
        ask(client, chat("word " * (window + 100)))
    assert caught.value.limit is not None
    assert caught.value.limit <= window
    assert caught.value.requested is None or caught.value.requested > caught.value.limit


def test_a_wrong_model_name_brings_near_ones(place, ask):
    client = place.client()
    cards = client.models()
    wrong = place.client(model=f"{cards[0].id}x")
    try:
        reply = ask(wrong, chat("Hi."))
    except ModelNotFound as error:
        assert cards[0].id in error.near  # noqa: PT017
    else:
        assert reply.receipt.outcome("model") == "translated", "a wrong name passed unseen"


def test_a_dead_address_is_unreachable_with_a_start_command(place, ask):
    wrong = place.client(base_url=refused_url(), max_retries=0, model="m")
    with pytest.raises(Unreachable):
        ask(wrong, chat("Hi."))


def test_a_timeout_before_the_first_token_is_typed(place, ask):
    """A budget no engine can meet; the message names the phase."""
    wrong = place.client(timeout={"first_token": 1e-6, "whole_reply": 1e-6}, max_retries=0)
    with pytest.raises(EngineTimeout) as caught:
        ask(wrong, chat("LONG", max_tokens=200))
    assert caught.value.phase in ("first token", "whole reply")


# ---------------------------------------------------------------------------------- life


@pytest.fixture
def long_request(client):
    """A reply that takes the server seconds, as long as its window allows."""
    client.connect()
    return chat("LONG", max_tokens=min((client.facts.context_window or 2048) - 548, 6000))


@pytest.fixture
def metered(client):
    if not Meter(client).shown:
        pytest.skip("the server does not show what it generated")


def test_closing_a_stream_early_stops_the_generation(client, scripted, long_request, metered):
    def leave(delay: float) -> None:
        stream = client.stream(long_request)
        for _ in range(3):
            next(stream)
        stream.close()

    rounds = wasted(client, leave)
    assert stopped(rounds, long_request.sampling.max_tokens), rounds


def test_cancelling_a_task_stops_the_generation(client, scripted, long_request, metered):
    async def cancelled() -> None:
        begun = asyncio.Event()

        async def listen() -> None:
            async for _ in await client.astream(long_request):
                begun.set()

        task = asyncio.create_task(listen())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    rounds = wasted(client, lambda delay: asyncio.run(cancelled()))
    assert stopped(rounds, long_request.sampling.max_tokens), rounds


def test_many_at_once(client, scripted):
    async def together() -> list[str]:
        replies = await asyncio.gather(*(client.achat(chat("Hi.")) for _ in range(16)))
        return [reply.text.strip() for reply in replies]

    assert asyncio.run(together()) == [GREETING] * 16


def test_one_client_lives_through_several_loops(client):
    texts = [asyncio.run(client.achat(chat("Hi."))).text for _ in range(3)]
    assert len(set(texts)) == 1


# ---------------------------------------------------------------------------------- side routes


def test_counting_tokens_agrees_with_the_reply(client):
    request = chat("Hi.")
    with if_lacking(client, "count_tokens"):
        counted = client.count_tokens(request)
    assert counted == client.chat(request).usage.prompt_tokens


def test_tokens_go_there_and_back(client):
    with if_lacking(client, "tokenize"):
        tokens = client.tokenize("Hello there")
    assert tokens
    with if_lacking(client, "detokenize"):
        assert client.detokenize(tokens).strip() == "Hello there"


def test_the_server_is_what_the_facts_say(client):
    facts = client.connect()
    assert facts.models
    if client.engine.of(client.model).capability("version").support == "native":
        assert facts.version
    if facts.context_window is not None:
        assert facts.context_source


def test_the_list_of_models_has_the_one_in_use(client):
    names = {name for card in client.models() for name in (card.id, *card.aliases)}
    assert client.connect()
    assert client.model in names or f"{client.model}:latest" in names


@pytest.mark.parametrize("name", ["embed", "rerank"])
def test_a_server_that_generates_is_not_sent_texts_to_pool(client, scripted, name):
    """Found out once, by the server's own answer; of a server with several models, for this one."""
    request: EmbedRequest | RerankRequest
    if name == "embed":
        feature, request = "embeddings", EmbedRequest(model="", texts=("a",))
    else:
        feature, request = "rerank", RerankRequest(model="", query="a", documents=("b", "c"))
    client.connect()
    known = client.engine.profile.capability(feature)
    with pytest.raises(Unsupported):
        getattr(client, name)(request)
    found = client.facts.told(feature, client.model) or known
    if known.support == "server":
        assert (found.support, found.evidence) in (("none", "probed"), ("none", "observed"))
    with pytest.raises(Unsupported) as caught:
        getattr(client, name)(request)
    assert caught.value.status is None, "the server was asked a second time"
