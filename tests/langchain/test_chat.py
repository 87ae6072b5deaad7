"""`EngineKitChat` over real sockets, on three wires."""

from __future__ import annotations

import functools
import operator
import warnings
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelConnectionError,
    ModelTimeoutError,
)
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool

from enginekit.errors import ContextOverflow, EngineTimeout, StreamTruncated, UnknownSetting
from enginekit.langchain import EngineKitChat, OmittedSetting
from tests.langchain.wires import HELLO, VLLM, Answer, LlamaCpp, Ollama, Wire, model_of, torn
from tests.support.server import Server, json_reply, refused_url, sse


def added(chunks: list[Any]) -> AIMessageChunk:
    total = functools.reduce(operator.add, chunks)
    assert isinstance(total, AIMessageChunk)
    return total


@tool
def get_weather(city: str) -> str:
    """Weather of a city."""
    return city


def check_hello(message: Any, wire: Wire) -> None:
    assert message.content == "Hello there"
    assert message.usage_metadata["input_tokens"] == 7
    assert message.usage_metadata["output_tokens"] == 5
    metadata = message.response_metadata
    assert metadata["model_name"] == wire.model
    assert metadata["finish_reason"] == "stop"
    assert metadata["engine"] == wire.engine
    assert metadata["model_provider"] == "enginekit"
    assert "messages" in metadata["receipt"]["sent"] + list(
        metadata["receipt"].get("translated", {})
    )


# ---------------------------------------------------------------------------------- answering


def test_invoke(wire: Wire) -> None:
    wire.says(HELLO)
    check_hello(model_of(wire).invoke("hi"), wire)


async def test_ainvoke(wire: Wire) -> None:
    wire.says(HELLO)
    check_hello(await model_of(wire).ainvoke("hi"), wire)


def test_stream(wire: Wire) -> None:
    wire.says(HELLO)
    chunks = list(model_of(wire).stream("hi"))
    assert [c.content for c in chunks if c.content] == ["Hel", "lo", " there"]
    assert [c.chunk_position for c in chunks] == [None, None, None, "last"]
    assert sum(c.usage_metadata is not None for c in chunks) == 1
    check_hello(added(chunks), wire)


async def test_astream(wire: Wire) -> None:
    wire.says(HELLO)
    chunks = [chunk async for chunk in model_of(wire).astream("hi")]
    assert len(chunks) == 4
    check_hello(added(chunks), wire)


def test_batch_keeps_the_order(wire: Wire) -> None:
    wire.server.on(
        wire.path,
        lambda seen: wire.render(Answer(text=[seen.json["messages"][-1]["content"]]), seen.json),
    )
    inputs = [f"number {i}" for i in range(12)]
    replies = model_of(wire).batch(inputs, config={"max_concurrency": 4})
    assert [reply.text for reply in replies] == inputs


def test_reasoning_in_every_spelling(wire: Wire) -> None:
    answer = Answer(text=["4"], reasoning=["2", "+2"])
    wire.says(answer)
    model = model_of(wire)
    for message in (model.invoke("?"), added(list(model.stream("?")))):
        assert message.additional_kwargs["reasoning_content"] == "2+2"
        assert message.content == "4"
        assert [b["type"] for b in message.content_blocks] == ["reasoning", "text"]


# ---------------------------------------------------------------------------------- what is sent


def test_settings_reach_the_wire(wire: Wire) -> None:
    wire.says(HELLO)
    model = model_of(wire, temperature=0, max_tokens=9, seed=3, stop=["END"], top_p=0.5)
    model.invoke("hi")
    sent = wire.requests[-1]
    options = sent.get("options", sent)
    limit = options.get("num_predict", options.get("max_tokens", options.get("n_predict")))
    assert limit == 9
    assert (options["temperature"], options["seed"], options["top_p"]) == (0, 3, 0.5)
    assert options["stop"] == ["END"]


def test_a_call_overrides_the_instance_and_leaves_it_alone(vllm: VLLM) -> None:
    vllm.says(HELLO)
    model = model_of(vllm, stop=["A"], temperature=0.5, engine_options={"x": 1, "y": 1})
    model.invoke("hi", stop=["B"], temperature=0, model="other", engine_options={"y": 2})
    model.invoke("hi")
    first, second = vllm.requests
    assert (first["stop"], first["temperature"], first["model"]) == (["B"], 0, "other")
    assert (first["x"], first["y"]) == (1, 2)
    assert (second["stop"], second["temperature"], second["model"]) == (["A"], 0.5, "tiny")
    assert (second["x"], second["y"]) == (1, 1)


def test_a_model_override_shows_in_the_metadata(wire: Wire) -> None:
    wire.says(HELLO)
    model = model_of(wire)
    seen = {model.invoke("hi", model="other").response_metadata["model_name"]}
    seen.add(added(list(model.stream("hi", model="other"))).response_metadata["model_name"])
    # llama.cpp has one model, whatever it is asked for, and the receipt says so.
    assert seen == ({"tiny"} if isinstance(wire, LlamaCpp) else {"other"})


def test_an_unknown_keyword_of_a_call_never_reaches_the_engine(vllm: VLLM) -> None:
    vllm.says(HELLO)
    with pytest.raises(UnknownSetting, match="did you mean 'max_tokens'"):
        model_of(vllm).invoke("hi", max_token=3)
    with pytest.raises(UnknownSetting, match="did you mean 'max_tokens'"):
        list(model_of(vllm).stream("hi", num_predict=3))
    assert vllm.requests == []


def test_what_an_engine_lacks_is_warned_of_once_and_in_every_receipt(wire: Wire) -> None:
    wire.says(HELLO)
    model = model_of(wire, mirostat=2, ignore_eos=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        replies = [model.invoke("hi"), model.invoke("hi"), added(list(model.stream("hi")))]
    omitted = [reply.response_metadata["receipt"].get("omitted", {}) for reply in replies]
    assert omitted[0] == omitted[1] == omitted[2]
    warned = [w for w in caught if w.category is OmittedSetting]
    assert len(warned) == len(omitted[0])
    # llama.cpp has all of them; the others have not, and say which.
    assert (
        set(omitted[0])
        == {
            VLLM: {"sampling.mirostat"},
            Ollama: {"sampling.mirostat", "sampling.ignore_eos"},
            LlamaCpp: set(),
        }[type(wire)]
    )


def test_the_context_window_goes_to_an_engine_that_can_change_it(server: Server) -> None:
    wire = Ollama(server).says(HELLO)
    model_of(wire, context_window=512, keep_alive="5m").invoke("hi")
    sent = wire.requests[-1]
    assert sent["options"]["num_ctx"] == 512
    assert sent["keep_alive"] in (300, "300s", "5m")


# ---------------------------------------------------------------------------------- tools

TWICE = Answer(
    calls=[
        ("call_1", "get_weather", ['{"city": ', '"Rome"}']),
        ("call_2", "get_weather", ['{"city": "Oslo"}']),
    ],
    finish="tool_calls",
)


def check_twice(message: Any) -> None:
    assert [(c["name"], c["args"]) for c in message.tool_calls] == [
        ("get_weather", {"city": "Rome"}),
        ("get_weather", {"city": "Oslo"}),
    ]
    ids = [c["id"] for c in message.tool_calls]
    assert all(ids)
    assert len(set(ids)) == 2
    assert message.invalid_tool_calls == []
    assert message.response_metadata["finish_reason"] == "tool_calls"


def test_parallel_calls_of_one_tool(wire: Wire) -> None:
    wire.says(TWICE)
    bound = model_of(wire).bind_tools([get_weather])
    check_twice(bound.invoke("?"))
    check_twice(added(list(bound.stream("?"))))
    assert wire.requests[0]["tools"][0]["function"]["name"] == "get_weather"


def test_two_pieces_of_a_call_in_one_event_are_one_call(vllm: VLLM) -> None:
    """A busy vLLM sends them so: seen by the standard suite on a machine with nothing to spare."""

    def event(*pieces: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        delta = {"tool_calls": list(pieces)} if pieces else {}
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    def named(index: int, name: str) -> dict[str, Any]:
        return {"index": index, "id": f"c{index}", "type": "function", "function": {"name": name}}

    def more(index: int, arguments: str) -> dict[str, Any]:
        return {"index": index, "function": {"arguments": arguments}}

    vllm.says(
        sse(
            event(named(0, "get_weather"), more(0, '{"city": ')),
            event(more(0, '"Oslo"}'), named(1, "add"), more(1, '{"a": 2,'), more(1, ' "b": 3}')),
            event(finish="tool_calls"),
            {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}},
            "data: [DONE]\n\n",
        )
    )
    total = added(list(model_of(vllm).bind_tools([get_weather]).stream("CALLS")))
    assert [(call["name"], call["args"], call["id"]) for call in total.tool_calls] == [
        ("get_weather", {"city": "Oslo"}, "c0"),
        ("add", {"a": 2, "b": 3}, "c1"),
    ]
    assert total.invalid_tool_calls == []


def test_parallel_calls_in_v1_content_blocks(wire: Wire) -> None:
    """LangChain merges blocks that share an index: tool pieces must not meet the text's."""
    wire.says(Answer(text=["so", ": "], calls=TWICE.calls, finish="tool_calls"))
    model = model_of(wire, output_version="v1").bind_tools([get_weather])
    for message in (model.invoke("?"), added(list(model.stream("?")))):
        kinds = [block["type"] for block in message.content_blocks]
        assert kinds == ["text", "tool_call", "tool_call"], message.content_blocks
        assert message.content_blocks[0]["text"] == "so: "
        assert [b["args"] for b in message.content_blocks[1:]] == [
            {"city": "Rome"},
            {"city": "Oslo"},
        ]


def test_reasoning_text_and_tools_in_v1_content_blocks(wire: Wire) -> None:
    wire.says(
        Answer(reasoning=["h", "m"], text=["so: "], calls=TWICE.calls[:1], finish="tool_calls")
    )
    model = model_of(wire, output_version="v1").bind_tools([get_weather])
    total = added(list(model.stream("?")))
    assert [b["type"] for b in total.content_blocks] == ["reasoning", "text", "tool_call"]
    assert total.content_blocks[0]["reasoning"] == "hm"


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("kind", [VLLM, LlamaCpp])
def test_a_call_cut_by_the_token_limit_is_invalid_everywhere(
    server: Server, kind: type[Wire], version: str
) -> None:
    wire = kind(server)
    cut = Answer(calls=[("call_1", "get_weather", ['{"city": ', '"Ro'])], finish="length")
    wire.says(cut)
    model = model_of(wire, output_version=version).bind_tools([get_weather])
    stream = model.stream_events("?", version="v3")
    for message in (model.invoke("?"), added(list(model.stream("?"))), stream.output):  # type: ignore[union-attr]
        assert message.tool_calls == []
        assert [c["name"] for c in message.invalid_tool_calls] == ["get_weather"]


@pytest.mark.parametrize("arguments", ['{"a": NaN}', "[1]", '{"a": 1}}', "Rome"])
@pytest.mark.parametrize("kind", [VLLM, LlamaCpp])
def test_arguments_that_are_no_json_object_are_an_invalid_call(
    server: Server, kind: type[Wire], arguments: str
) -> None:
    wire = kind(server)
    wire.says(Answer(calls=[("call_1", "get_weather", [arguments])], finish="tool_calls"))
    model = model_of(wire).bind_tools([get_weather])
    for message in (model.invoke("?"), added(list(model.stream("?")))):
        assert message.tool_calls == []
        (broken,) = message.invalid_tool_calls
        assert (broken["name"], broken["id"]) == ("get_weather", "call_1")
        assert broken["args"].startswith(arguments)


def test_tool_results_go_back_with_their_ids(wire: Wire) -> None:
    wire.says(HELLO)
    model_of(wire).bind_tools([get_weather]).invoke(
        [
            HumanMessage("?"),
            AIMessage(
                "",
                tool_calls=[
                    {"name": "get_weather", "args": {"city": "Rome"}, "id": "call_1"},
                    {"name": "get_weather", "args": {"city": "Oslo"}, "id": "call_2"},
                ],
            ),
            ToolMessage("cold", tool_call_id="call_2"),
            ToolMessage("warm", tool_call_id="call_1"),
        ]
    )
    results = [m for m in wire.requests[-1]["messages"] if m["role"] == "tool"]
    assert [m.get("tool_call_id") for m in results] == ["call_2", "call_1"]
    assert [m["content"] for m in results] == ["cold", "warm"]


def test_an_empty_list_of_tools_is_not_sent(wire: Wire) -> None:
    wire.says(HELLO)
    model_of(wire).bind_tools([]).invoke("hi")
    assert "tools" not in wire.requests[-1]
    assert "tool_choice" not in wire.requests[-1]


def test_tool_choice_none_sends_no_tool_that_could_be_called(wire: Wire) -> None:
    wire.says(HELLO)
    message = model_of(wire).bind_tools([get_weather], tool_choice="none").invoke("hi")
    sent = wire.requests[-1]
    assert not sent.get("tools") or sent["tool_choice"] == "none"
    assert message.tool_calls == []


def test_a_bound_fallback_stays(vllm: VLLM) -> None:
    """LangChain forwards `bind_tools` to fallbacks only if its return type can be resolved."""
    vllm.says(TWICE)
    dead = model_of(vllm, base_url=refused_url())
    check_twice(dead.with_fallbacks([model_of(vllm)]).bind_tools([get_weather]).invoke("?"))


# ---------------------------------------------------------------------------------- callbacks


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.chunks: list[Any] = []
        self.errors: list[Any] = []

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kwargs: Any) -> None:
        self.tokens.append(token)
        self.chunks.append(chunk)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append((error, kwargs.get("response")))


def test_each_token_reaches_callbacks_once_with_its_chunk(wire: Wire) -> None:
    wire.says(HELLO)
    handler = Tokens()
    list(model_of(wire).stream("hi", config={"callbacks": [handler]}))
    assert handler.tokens == ["Hel", "lo", " there", ""]
    assert all(chunk is not None for chunk in handler.chunks)


def test_streaming_true_makes_invoke_stream(vllm: VLLM) -> None:
    vllm.says(HELLO)
    handler = Tokens()
    message = model_of(vllm, streaming=True).invoke("hi", config={"callbacks": [handler]})
    assert message.content == "Hello there"
    assert "".join(handler.tokens) == "Hello there"
    assert vllm.requests[-1]["stream"] is True


class AsyncTokens(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []

    async def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.tokens.append(token)


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
async def test_events_of_both_versions(vllm: VLLM) -> None:
    vllm.says(Answer(text=["Hel", "lo"], reasoning=["hm"]))
    model = model_of(vllm)
    old = [event async for event in model.astream_events("hi", version="v2")]
    assert [e["event"] for e in old if e["event"] != "on_chat_model_stream"] == [
        "on_chat_model_start",
        "on_chat_model_end",
    ]
    new = await model.astream_events("hi", version="v3")  # type: ignore[misc]
    output = await new.output
    assert [b["type"] for b in output.content_blocks] == ["reasoning", "text"]
    assert output.response_metadata["output_version"] == "v1"


def test_the_http_answer_of_an_error_reaches_the_trace(wire: Wire) -> None:
    wire.server.on(wire.path, wire.overflows())
    handler = Tokens()
    with pytest.raises(ContextOverflow):
        model_of(wire).invoke("hi", config={"callbacks": [handler]})
    ((error, response),) = handler.errors
    assert isinstance(error, ContextOverflow)
    assert response.generations[0][0].message.response_metadata["status_code"] == error.status


def test_what_had_come_of_a_stream_reaches_the_trace_with_its_error(wire: Wire) -> None:
    wire.says(torn(HELLO))
    handler = Tokens()
    with pytest.raises(StreamTruncated):
        list(model_of(wire).stream("hi", config={"callbacks": [handler]}))
    ((error, response),) = handler.errors
    assert isinstance(error, StreamTruncated)
    assert error.partial == "Hello there"
    assert response.generations[0][0].text == "Hello there"
    assert handler.tokens == ["Hel", "lo", " there"]


# ---------------------------------------------------------------------------------- failures


def test_overflow_is_langchains_overflow_too(wire: Wire) -> None:
    wire.server.on(wire.path, wire.overflows())
    with pytest.raises(ContextOverflowError) as caught:
        model_of(wire).invoke("hi")
    assert isinstance(caught.value, ContextOverflow)
    with pytest.raises(ContextOverflowError):
        list(model_of(wire).stream("hi"))


async def test_connection_refused(wire: Wire) -> None:
    model = model_of(wire, base_url=refused_url())
    with pytest.raises(ModelConnectionError):
        model.invoke("hi")
    with pytest.raises(ModelConnectionError):
        await model.ainvoke("hi")
    with pytest.raises(ModelConnectionError):
        list(model.stream("hi"))


async def test_a_stream_without_its_end_is_no_answer(wire: Wire) -> None:
    wire.says(torn(HELLO))
    model = model_of(wire)
    with pytest.raises(ModelConnectionError) as caught:
        list(model.stream("hi"))
    assert isinstance(caught.value, StreamTruncated)
    assert caught.value.partial == "Hello there"
    with pytest.raises(StreamTruncated):
        [chunk async for chunk in model.astream("hi")]


def test_retries_happen_before_the_first_token_only(vllm: VLLM) -> None:
    vllm.says(json_reply({"error": {"message": "busy", "code": 503}}, 503), HELLO)
    assert model_of(vllm, max_retries=1).invoke("hi").content == "Hello there"
    assert len(vllm.requests) == 2
    vllm.says(torn(HELLO))
    with pytest.raises(StreamTruncated):
        list(model_of(vllm, max_retries=3).stream("hi"))
    assert len(vllm.requests) == 3


def test_a_timeout_costs_exactly_the_configured_number_of_requests(vllm: VLLM) -> None:
    vllm.says(Answer(text=["never"], extra={"fault": "slow_first_byte", "delay": 5}))
    with pytest.raises(ModelTimeoutError) as caught:
        list(model_of(vllm, timeout={"first_token": 0.1}, max_retries=1).stream("hi"))
    assert isinstance(caught.value, EngineTimeout)
    assert len(vllm.requests) == 2


# ---------------------------------------------------------------------------------- knowing the server


def test_connecting_fills_the_profile_from_the_server(wire: Wire) -> None:
    model = model_of(wire)
    assert model.profile is not None
    assert wire.server.requests == []
    model.connect()
    assert wire.requests == []
    assert model.profile["max_input_tokens"] == wire.window
    assert "smallest" not in model.profile_origins["max_input_tokens"]
    again = model_of(wire)
    assert again.profile is not None
    assert again.profile["max_input_tokens"] == wire.window


async def test_the_first_call_fills_the_profile(wire: Wire) -> None:
    wire.says(HELLO)
    model = model_of(wire)
    await model.ainvoke("hi")
    assert model.profile is not None
    assert model.profile["max_input_tokens"] == wire.window
    own = model_of(wire, profile={"max_input_tokens": 3})
    await own.aconnect()
    assert own.profile == {"max_input_tokens": 3}


def test_tokens_are_counted_by_the_engine_or_said_to_be_estimated(wire: Wire) -> None:
    model = model_of(wire)
    count: Any = model.get_num_tokens("hello world")
    assert count > 0
    chat: Any = model.get_num_tokens_from_messages([HumanMessage("hello")], tools=[get_weather])
    assert chat > 0
    if isinstance(wire, Ollama):
        assert (count.source, chat.source) == (
            "approximate (4 characters a token)",
            "approximate (4 characters a token)",
        )
    else:
        assert count.source == chat.source == f"{wire.engine}'s own tokenizer"
    mine: Any = model_of(wire, custom_get_token_ids=lambda text: [1, 2]).get_num_tokens("x")
    assert (mine, mine.source) == (2, "custom_get_token_ids")


def test_tokens_are_estimated_when_nobody_is_there() -> None:
    model = EngineKitChat(engine="vllm", base_url=refused_url(), model="m", max_retries=0)
    count: Any = model.get_num_tokens("x" * 40)
    assert (count, count.source) == (10, "approximate (4 characters a token)")
