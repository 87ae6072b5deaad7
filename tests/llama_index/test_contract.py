"""What every engine must do through LlamaIndex: 8 methods × text, thinking, tools, structure, usage.

The same tests run on three wires on loopback and, marked `embedded`, on a real llama.cpp with
scripted weights and on the cassettes of real servers that ran these. With ENGINEKIT_LIVE_URL and its
kin (see `tests/contract/conftest.py`) they run on that server alone, which must have the scripted
weights too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ThinkingBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel

from enginekit.errors import Unsupported
from enginekit.llama_index import EngineKitLLM
from tests.contract.conftest import LIVE
from tests.langchain.wires import VLLM, WIRES
from tests.llama_index.subjects import GREETING, THOUGHT, Subject, on_wire, tools
from tests.standard.places import Where, places, replayed
from tests.support.server import Server


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@pytest.fixture(scope="session")
def scripted_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights whose answers we decide."""
    from tests.support.scripted import write_gguf

    return write_gguf(tmp_path_factory.mktemp("weights") / "scripted.gguf")


ON_LOOPBACK = [] if LIVE["url"] else WIRES
REAL = [pytest.param(where, marks=pytest.mark.embedded) for where in places("chat")]


@pytest.fixture(
    params=[*ON_LOOPBACK, *REAL],
    ids=lambda p: str(p) if isinstance(p, Where) else p.engine,
)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Each engine in turn."""
    where = request.param
    if not isinstance(where, Where):
        with Server() as server:
            yield on_wire(where(server))
    elif where.kind != "live":
        with replayed(where, "chat") as (settings, _, player):
            yield Subject({**settings, "temperature": 0})
            assert player.missed == [], "nothing recorded answers this: record it anew"
    elif LIVE["url"]:
        if LIVE["scripted"] != "1":
            pytest.skip("exact expectations need the scripted weights on the server")
        named = {"engine": "engine", "base_url": "url", "model": "model", "api_key": "key"}
        settings = {setting: LIVE[name] for setting, name in named.items() if LIVE[name]}
        yield Subject({**settings, "temperature": 0})
    else:
        pytest.importorskip("xllamacpp")
        path = request.getfixturevalue("scripted_gguf")
        yield Subject({"engine": "embedded", "model": str(path), "temperature": 0})


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


async def every_chat(llm: EngineKitLLM, messages: list[ChatMessage], **kwargs: Any) -> Any:
    """The last response of each of the four chat methods, and the streams' responses."""
    streamed = list(llm.stream_chat(messages, **kwargs))
    astreamed = [r async for r in await llm.astream_chat(messages, **kwargs)]
    wholes = [llm.chat(messages, **kwargs), await llm.achat(messages, **kwargs)]
    return [*wholes, streamed[-1], astreamed[-1]], [streamed, astreamed]


async def test_chat_methods_give_the_same_text(subject: Subject) -> None:
    wholes, streams = await every_chat(subject.llm(), user("Hello"))
    for response in wholes:
        assert isinstance(response, ChatResponse)
        assert response.message.role == "assistant"
        assert response.message.content == GREETING
        assert response.raw["finish_reason"] == "stop"
    for stream in streams:
        assert "".join(r.delta for r in stream) == GREETING
        text = ""
        for response in stream:
            text += response.delta
            assert response.message.content == text, "the message is the text so far"
        assert len(stream) > 2, "more than one piece came"
        assert all(r.raw is None for r in stream[:-1])


@pytest.mark.parametrize("bare", [False, True], ids=["chat", "bare text"])
async def test_completion_methods_give_the_same_text(subject: Subject, bare: bool) -> None:
    llm = subject.llm(use_completion_endpoint=bare, max_tokens=64)
    streamed = list(llm.stream_complete("Hello\n"))
    astreamed = [r async for r in await llm.astream_complete("Hello\n")]
    wholes = [llm.complete("Hello\n"), await llm.acomplete("Hello\n"), streamed[-1], astreamed[-1]]
    for response in wholes:
        assert isinstance(response, CompletionResponse)
        assert response.text == GREETING
        assert response.raw["usage"]["completion_tokens"] > 0
    for stream in (streamed, astreamed):
        assert "".join(r.delta for r in stream) == GREETING
        text = ""
        for response in stream:
            text += response.delta
            assert response.text == text


async def test_usage_is_in_raw_of_the_last_response(subject: Subject) -> None:
    wholes, _ = await every_chat(subject.llm(), user("Hello"))
    for response in wholes:
        usage = response.raw["usage"]
        assert usage["prompt_tokens"] > 0
        assert usage["completion_tokens"] > 0
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert isinstance(response.raw, dict)


async def test_token_counting_handler_gets_the_servers_counts(subject: Subject) -> None:
    """With an estimate it would call the tokenizer; that one must never be asked."""

    def never(text: str) -> list[int]:
        raise AssertionError("tokens were estimated")

    counter = TokenCountingHandler(tokenizer=never)
    llm = subject.llm(callback_manager=CallbackManager([counter]))
    llm.chat(user("Hello"))
    list(llm.stream_chat(user("Hello")))
    await llm.achat(user("Hello"))
    [_ async for _ in await llm.astream_chat(user("Hello"))]
    llm.complete("Hello")
    [_ async for _ in await llm.astream_complete("Hello")]
    counts = counter.llm_token_counts
    assert len(counts) == 6
    assert len({(c.prompt_token_count, c.completion_token_count) for c in counts}) == 1
    assert counts[0].prompt_token_count > 0


async def test_thinking_is_a_block_and_streams_as_thinking_delta(subject: Subject) -> None:
    wholes, streams = await every_chat(subject.llm(), user("MUSE"))
    for response in wholes:
        first, *rest = response.message.blocks
        assert isinstance(first, ThinkingBlock)
        assert (first.content or "").strip() == THOUGHT
        assert not any(isinstance(block, ThinkingBlock) for block in rest)
        assert response.message.content == GREETING
    for stream in streams:
        thought = "".join(r.additional_kwargs.get("thinking_delta") or "" for r in stream)
        assert thought.strip() == THOUGHT
        so_far = ""
        for response in stream[:-1]:
            so_far += response.additional_kwargs.get("thinking_delta") or ""
            block = response.message.blocks[0]
            assert isinstance(block, ThinkingBlock)
            assert block.content == so_far


async def test_one_tool_call(subject: Subject) -> None:
    llm = subject.llm()
    messages = user("CALL")
    streamed = list(llm.stream_chat_with_tools(tools(), chat_history=messages))
    astream = await llm.astream_chat_with_tools(tools(), chat_history=messages)
    astreamed = [r async for r in astream]
    wholes = [
        llm.chat_with_tools(tools(), chat_history=messages),
        await llm.achat_with_tools(tools(), chat_history=messages),
        streamed[-1],
        astreamed[-1],
    ]
    for response in wholes:
        (call,) = llm.get_tool_calls_from_response(response)
        assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Rome"})
        assert call.tool_id
        (block,) = [b for b in response.message.blocks if isinstance(b, ToolCallBlock)]
        assert block.tool_kwargs == {"city": "Rome"}
        assert response.raw["finish_reason"] == "tool_calls"
    for stream in (streamed, astreamed):
        for response in stream:
            for call in llm.get_tool_calls_from_response(response, error_on_no_tool_call=False):
                assert call.tool_name == "get_weather"
                assert "Rome".startswith(call.tool_kwargs.get("city") or "")
    assert messages == user("CALL"), "the caller's history is as it was"


async def test_parallel_calls_and_only_one_of_them(subject: Subject) -> None:
    llm = subject.llm()
    both = llm.chat_with_tools(tools(), "CALLS", allow_parallel_tool_calls=True)
    calls = llm.get_tool_calls_from_response(both)
    wanted = [("get_weather", {"city": "Oslo"}), ("add", {"a": 2, "b": 3})]
    engine = llm.client.engine
    assert engine is not None
    if engine.of(llm.client.model).capability("parallel_tool_calls").support == "none":
        wanted = wanted[:1]
    assert [(c.tool_name, c.tool_kwargs) for c in calls] == wanted
    assert len({c.tool_id for c in calls}) == len(wanted)
    one = await llm.achat_with_tools(tools(), "CALLS", allow_parallel_tool_calls=False)
    (call,) = llm.get_tool_calls_from_response(one)
    assert call.tool_kwargs == {"city": "Oslo"}


async def test_a_forced_call_is_made_and_run(subject: Subject) -> None:
    llm = subject.llm()
    answer = llm.predict_and_call(tools()[:1], "CALL", tool_required=True)
    assert answer.response == "sunny in Rome"
    named = await llm.achat_with_tools(tools()[:1], "CALL", tool_choice="get_weather")
    (call,) = llm.get_tool_calls_from_response(named)
    assert call.tool_kwargs == {"city": "Rome"}


def test_a_tool_result_goes_back_with_its_id(subject: Subject) -> None:
    llm = subject.llm()
    history = user("CALL")
    asked = llm.chat_with_tools(tools(), chat_history=history)
    (call,) = llm.get_tool_calls_from_response(asked)
    result = ChatMessage(
        role="tool", content="sunny", additional_kwargs={"tool_call_id": call.tool_id}
    )
    answer = llm.chat_with_tools(tools(), chat_history=[*history, asked.message, result])
    assert answer.message.content == GREETING
    if subject.wire is not None:
        sent = subject.wire.requests[-1]["messages"]
        assert sent[1]["tool_calls"][0]["function"]["name"] == "get_weather"
        if "tool_call_id" in sent[2]:
            assert sent[2]["tool_call_id"] == sent[1]["tool_calls"][0]["id"]
        else:
            assert sent[2]["tool_name"] == "get_weather"


async def test_structured_prediction_in_four_ways(subject: Subject) -> None:
    llm = subject.llm(system_prompt="You extract facts.")
    prompt = PromptTemplate("PERSON {who}")
    wanted = Person(name="Ann", age=31)
    assert llm.structured_predict(Person, prompt, who="Ann") == wanted
    assert await llm.astructured_predict(Person, prompt, who="Ann") == wanted
    streamed = list(llm.stream_structured_predict(Person, prompt, who="Ann"))
    astream = await llm.astream_structured_predict(Person, prompt, who="Ann")
    astreamed = [p async for p in astream]
    assert streamed[-1] == wanted
    assert astreamed[-1] == wanted
    assert len(streamed) > 1
    assert llm.as_structured_llm(Person).chat(user("PERSON")).raw == wanted
    if subject.wire is not None:
        for body in subject.wire.requests[:4]:
            assert body["messages"][0] == {"role": "system", "content": "You extract facts."}
            assert "Person" in str(body.get("response_format") or body.get("format")) or (
                "age" in str(body.get("response_format") or body.get("format"))
            )
            assert "tools" not in body


async def test_metadata_is_the_servers_after_the_first_call(subject: Subject) -> None:
    llm = subject.llm()
    before = llm.metadata
    assert before.context_window <= 4096
    await llm.aconnect()
    facts = llm.client.facts
    assert facts is not None
    if facts.context_window:
        assert llm.metadata.context_window == facts.context_window
        assert "smallest" not in llm.metadata_source["context_window"]
    assert llm.metadata.is_chat_model
    assert llm.metadata.is_function_calling_model


def test_predict_and_stream_of_a_prompt(subject: Subject) -> None:
    llm = subject.llm()
    prompt = PromptTemplate("Hello {who}")
    assert llm.predict(prompt, who="you") == GREETING
    assert "".join(llm.stream(prompt, who="you")) == GREETING


def test_two_event_loops_one_after_the_other(subject: Subject) -> None:
    """A notebook, or a second `asyncio.run`: one instance, no warning, no unclosed session."""
    llm = subject.llm()

    async def once() -> str:
        response = await llm.achat(user("Hello"))
        texts = [r.delta async for r in await llm.astream_chat(user("Hello"))]
        assert "".join(texts) == GREETING
        return response.message.content or ""

    assert asyncio.run(once()) == GREETING
    assert asyncio.run(once()) == GREETING


async def test_blocking_calls_inside_a_running_loop(subject: Subject) -> None:
    llm = subject.llm()
    assert llm.chat(user("Hello")).message.content == GREETING
    assert "".join(r.delta for r in llm.stream_chat(user("Hello"))) == GREETING
    assert (await llm.achat(user("Hello"))).message.content == GREETING


def test_the_limit_of_tokens_ends_a_reply_and_says_so(subject: Subject) -> None:
    response = subject.llm(max_tokens=4).chat(user("LONG"))
    assert response.raw["finish_reason"] == "length"
    assert response.raw["usage"]["completion_tokens"] >= 4


def test_the_tokenizer_is_the_engines_own_or_refuses(subject: Subject) -> None:
    llm = subject.llm()
    tokenizer = llm.tokenizer
    if subject.wire is not None:
        assert "EngineTokenizer" in repr(tokenizer)
        if subject.wire.engine == "ollama":
            with pytest.raises(Unsupported, match="tokenizer"):
                tokenizer("Hello")
        return
    engine = llm.connect().client.engine
    assert engine is not None
    if engine.capability("tokenize").support == "none":
        with pytest.raises(Unsupported, match="tokenizer"):
            tokenizer("Hello")
        return
    ids = tokenizer("Hello there!")
    assert ids
    assert all(type(token) is int for token in ids)
    assert len(tokenizer("Hello there! Hello there!")) > len(ids)


def test_the_contract_is_told_apart_by_engines() -> None:
    """The suite runs on engines of two wire formats at least, or it proves little."""
    assert len({wire.path for wire in WIRES}) >= 2
    assert VLLM in WIRES
