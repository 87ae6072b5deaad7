"""An instance: its settings, what it says of itself, copies, and what goes over the wire."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import socket
import warnings
import weakref
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel

from enginekit.errors import (
    ConfigError,
    ContextOverflow,
    EngineKitError,
    EngineTimeout,
    StreamTruncated,
    UnknownSetting,
    Unreachable,
)
from enginekit.llama_index import (
    BadReply,
    EngineKitEmbedding,
    EngineKitLLM,
    EngineKitRerank,
    OmittedSetting,
)
from tests.langchain.wires import VLLM, Answer, LlamaCpp, Ollama, torn
from tests.llama_index.subjects import GREETING, PERSON, on_wire, tools
from tests.support.server import Server, json_reply, refused_url

HI = [ChatMessage(role="user", content="Hello")]


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def llm_of(wire: Any, **more: Any) -> EngineKitLLM:
    return EngineKitLLM(**{**wire.settings, "max_retries": 0, "timeout": 20, **more})


# ---------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("cls", "base"),
    [
        (EngineKitLLM, "BaseLLM"),
        (EngineKitLLM, "FunctionCallingLLM"),
        (EngineKitEmbedding, "BaseEmbedding"),
        (EngineKitRerank, "BaseNodePostprocessor"),
    ],
)
def test_mro(cls: type, base: str) -> None:
    """The check that LlamaIndex's own integrations begin with."""
    assert base in [b.__name__ for b in cls.__mro__]
    assert cls.class_name() == cls.__name__  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [
        ("modle", "model"),
        ("temprature", "temperature"),
        ("request_timeout", "timeout"),
        ("num_ctx", "context_window"),
        ("api_base", "base_url"),
        ("max_new_tokens", "max_tokens"),
        ("thinking", "reasoning"),
    ],
)
def test_unknown_keyword_names_the_nearest(keyword: str, meant: str) -> None:
    with pytest.raises(UnknownSetting, match=f"did you mean '{meant}'"):
        EngineKitLLM(**{keyword: 1})


def test_unknown_keyword_of_a_call(vllm: VLLM) -> None:
    with pytest.raises(UnknownSetting, match="did you mean 'temperature'"):
        llm_of(vllm).chat(HI, temprature=1)
    assert vllm.requests == []


def test_aliases_and_their_contradictions() -> None:
    llm = EngineKitLLM(model_name="m", engines=["vllm", "ollama"], additional_kwargs={"best_of": 2})
    assert (llm.model, llm.engine, llm.engine_options) == ("m", "vllm,ollama", {"best_of": 2})
    assert EngineKitLLM(engine=["vllm", "ollama"]).engine == "vllm,ollama"
    with pytest.raises(ConfigError, match="disagree"):
        EngineKitLLM(model="a", model_name="b")


def test_constructing_and_metadata_touch_neither_network_nor_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    EngineKitLLM(model="llama3.1", engine="vllm").metadata  # noqa: B018  (imports and catalog)

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("I/O")

    monkeypatch.setattr(socket, "socket", never)
    monkeypatch.setattr("builtins.open", never)
    monkeypatch.setattr("pathlib.Path.open", never)
    llm = EngineKitLLM(model="llama3.1", engine="vllm", api_key="k")
    assert llm.metadata.context_window == 2048
    assert llm.to_payload()["model_name"] == "llama3.1"


def test_settings_come_from_the_environment(vllm: VLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    on_wire(vllm)
    monkeypatch.setenv("ENGINEKIT_ENGINE", "vllm")
    monkeypatch.setenv("ENGINEKIT_MODEL", "tiny")
    monkeypatch.setenv("ENGINEKIT_BASE_URL", vllm.server.url)
    monkeypatch.setenv("ENGINEKIT_API_KEY", "from-env")
    llm = EngineKitLLM()
    assert llm.metadata.model_name == "tiny"
    assert llm.chat(HI).message.content == GREETING
    setting = llm.client.config.find("model")
    assert setting is not None
    assert (setting.layer, setting.where) == ("environment", "ENGINEKIT_MODEL")
    assert vllm.server.requests[-1].headers["authorization"] == "Bearer from-env"


def test_every_setting_reaches_the_wire(vllm: VLLM) -> None:
    on_wire(vllm)
    llm = llm_of(
        vllm,
        temperature=0,
        max_tokens=9,
        seed=3,
        stop=["END"],
        top_p=0.5,
        engine_options={"best_of": 1},
    )
    llm.chat(HI)
    llm.chat(HI, stop="you", temperature=1.5, model="other")
    first, second = vllm.requests
    wanted = {"temperature": 0, "seed": 3, "stop": ["END"], "top_p": 0.5, "best_of": 1}
    assert {k: first[k] for k in wanted} == wanted
    assert 9 in (first.get("max_tokens"), first.get("max_completion_tokens"))
    assert (second["stop"], second["temperature"], second["model"]) == (["you"], 1.5, "other")
    assert second["seed"] == 3
    assert "tools" not in first
    assert "parallel_tool_calls" not in first


def test_a_changed_setting_counts_from_the_next_call(vllm: VLLM) -> None:
    on_wire(vllm)
    llm = llm_of(vllm)
    llm.chat(HI)
    client = llm.client
    llm.temperature = 0.25
    llm.chat(HI)
    assert vllm.requests[-1]["temperature"] == 0.25
    assert llm.client is client, "sampling does not need a new client"
    llm.model = "other"
    llm.chat(HI)
    assert vllm.requests[-1]["model"] == "other"


def test_omitted_tuning_warns_once_and_is_in_the_receipt(server: Server) -> None:
    wire = Ollama(server)
    on_wire(wire)
    llm = llm_of(wire, presence_penalty=0.1, logit_bias=None, ignore_eos=True)
    with pytest.warns(OmittedSetting, match="ignore_eos"):
        response = llm.chat(HI)
    outcomes = {e["field"]: e["outcome"] for e in response.raw["receipt"]["entries"]}
    assert outcomes["sampling.ignore_eos"] == "omitted"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.chat(HI)
    with pytest.raises(EngineKitError, match="ignore_eos"):
        llm.chat(HI, lossy="error")


def test_receipt_can_be_left_out(vllm: VLLM) -> None:
    on_wire(vllm)
    assert "receipt" not in llm_of(vllm, include_receipt=False).chat(HI).raw


# ---------------------------------------------------------------------------------- metadata


def test_metadata_before_and_after_connecting(server: Server) -> None:
    wire = LlamaCpp(server)
    llm = llm_of(wire)
    assert llm.metadata.context_window == 4096
    assert "smallest" in llm.metadata_source["context_window"]
    llm.connect()
    assert llm.metadata.context_window == wire.window
    assert "/props" in llm.metadata_source["context_window"]
    # Another instance of the same server knows it without asking.
    asked = len(server.requests)
    assert llm_of(wire).metadata.context_window == wire.window
    assert len(server.requests) == asked


def test_metadata_never_promises_more_than_the_model_was_trained_for() -> None:
    small = EngineKitLLM(engine="llamacpp", model="smollm2:135m").metadata
    assert small.context_window <= 8192
    assert EngineKitLLM(model="llama3.1").metadata.context_window == 1024
    assert EngineKitLLM(engine="embedded", context=4000).metadata.context_window == 4000
    assert EngineKitLLM(engine="embedded", context=99999).metadata.context_window == 8192
    wide = EngineKitLLM(engine="ollama", model="llama3.1", context_window=32768)
    assert wide.metadata.context_window == 32768


def test_num_output_leaves_room() -> None:
    assert EngineKitLLM(max_tokens=77).metadata.num_output == 77
    unset = EngineKitLLM().metadata
    assert 0 < unset.num_output <= unset.context_window // 4


def test_function_calling_can_be_overruled() -> None:
    assert EngineKitLLM(engine="vllm").metadata.is_function_calling_model
    no = EngineKitLLM(engine="vllm", is_function_calling_model=False)
    assert not no.metadata.is_function_calling_model
    assert not EngineKitLLM(use_completion_endpoint=True).metadata.is_chat_model


# ---------------------------------------------------------------------------------- copies


def test_copies_and_pickles_of_a_used_instance(vllm: VLLM) -> None:
    on_wire(vllm)
    llm = llm_of(vllm, api_key="sesame", temperature=0.5)
    llm.chat(HI)
    llm.tokenizer  # noqa: B018
    for made in (
        copy.copy(llm),
        copy.deepcopy(llm),
        pickle.loads(pickle.dumps(llm)),
        llm.model_copy(update={"max_tokens": 3}),
    ):
        assert made.client is not llm.client
        assert made.chat(HI).message.content == GREETING
        assert vllm.server.requests[-1].headers["authorization"] == "Bearer sesame"
        assert vllm.requests[-1]["temperature"] == 0.5


def test_no_key_in_anything_that_is_shown_or_stored() -> None:
    llm = EngineKitLLM(model="m", engine="vllm", api_key="sesame", base_url="http://127.0.0.1:1")
    shown = [repr(llm), str(llm), json.dumps(llm.to_dict()), llm.to_json(), str(llm.to_payload())]
    shown.append(json.dumps(llm.model_dump()))
    shown.append(str(llm.metadata))
    assert not any("sesame" in text for text in shown)
    again = EngineKitLLM.from_json(llm.to_json())
    assert (again.model, again.engine, again.api_key) == ("m", "vllm", None)
    assert llm.to_dict()["class_name"] == "EngineKitLLM"


def test_settings_take_it(vllm: VLLM) -> None:
    on_wire(vllm)
    llm = llm_of(vllm)
    before = Settings._llm
    try:
        Settings.llm = llm
        assert Settings.llm is llm
        assert isinstance(llm, FunctionCallingLLM)
        assert isinstance(llm, BaseLLM)
        assert Settings.llm.complete("Hello").text == GREETING
    finally:
        Settings._llm = before


def test_the_engines_own_tokenizer(server: Server) -> None:
    wire = LlamaCpp(server)
    server.on("/tokenize", json_reply({"tokens": [15339, 1917]}))
    tokenizer = llm_of(wire).tokenizer
    ids = tokenizer("hello world")
    assert ids == [15339, 1917]
    asked = sum(path == "POST /tokenize" for path in server.paths())
    assert tokenizer("hello world") == ids
    assert sum(path == "POST /tokenize" for path in server.paths()) == asked, "remembered"
    assert tokenizer("") == []
    assert pickle.loads(pickle.dumps(tokenizer))("hello world") == ids


def test_a_dropped_instance_goes_at_once(vllm: VLLM) -> None:
    """Without waiting for the collector: a lease on an embedded server must end with its owner."""
    on_wire(vllm)
    llm = llm_of(vllm)
    llm.chat(HI)
    list(llm.stream_chat(HI))
    llm.tokenizer  # noqa: B018
    client = weakref.ref(llm.client)
    gc.disable()
    try:
        del llm
        assert client() is None
    finally:
        gc.enable()


# ---------------------------------------------------------------------------------- requests


def test_images_go_out(vllm: VLLM) -> None:
    on_wire(vllm)
    url = "https://example.com/cat.png"
    message = ChatMessage(blocks=[TextBlock(text="Hello"), ImageBlock(url=url)])
    llm_of(vllm).chat([message])
    parts = vllm.requests[-1]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url"]
    assert parts[1]["image_url"]["url"] == url


def test_tool_keywords_on_the_wire(vllm: VLLM) -> None:
    on_wire(vllm)
    llm = llm_of(vllm)
    llm.chat_with_tools(tools(), "CALL", tool_required=True)
    llm.chat_with_tools(tools(), "Hello", tool_choice="none")
    llm.chat_with_tools([], "Hello", tool_required=False)
    forced, never, without = vllm.requests
    assert forced["tool_choice"] == "required"
    assert [t["function"]["name"] for t in forced["tools"]] == ["get_weather", "add"]
    assert "tools" not in never or never["tool_choice"] == "none"
    assert "tools" not in without
    assert "tool_choice" not in without
    assert "parallel_tool_calls" not in without


def test_a_forced_call_without_tools_is_refused(vllm: VLLM) -> None:
    with pytest.raises(ConfigError, match="no tools"):
        llm_of(vllm).chat(HI, tool_choice="required")


def test_history_is_the_callers(vllm: VLLM) -> None:
    on_wire(vllm)
    llm = llm_of(vllm)
    history = [ChatMessage(role="system", content="s")]
    llm.chat_with_tools(tools(), "Hello", chat_history=history)
    list(llm.stream_chat_with_tools(tools(), "Hello", chat_history=history))
    assert history == [ChatMessage(role="system", content="s")]


def test_several_replies_need_a_whole_answer(vllm: VLLM) -> None:
    with pytest.raises(ConfigError, match="n=2"):
        llm_of(vllm, n=2).stream_chat(HI)


# ---------------------------------------------------------------------------------- structure


def test_program_modes_are_respected(vllm: VLLM) -> None:
    """Only the default is ours; another mode takes LlamaIndex's own program."""
    on_wire(vllm)
    prompt = PromptTemplate("PERSON {x}")
    text = llm_of(vllm, pydantic_program_mode=PydanticProgramMode.LLM)
    assert text.structured_predict(Person, prompt, x="a") == Person(name="Ann", age=31)
    assert "response_format" not in vllm.requests[-1]
    call = ("c", "Person", (PERSON,))
    vllm.says(Answer(calls=(call,), finish="tool_calls"))
    function = llm_of(vllm, pydantic_program_mode=PydanticProgramMode.FUNCTION)
    assert function.structured_predict(Person, prompt, x="a") == Person(name="Ann", age=31)
    assert vllm.requests[-1]["tools"][0]["function"]["name"] == "Person"
    assert vllm.requests[-1]["tool_choice"] == "required"
    streamed = list(function.stream_structured_predict(Person, prompt, x="a"))
    assert streamed[-1] == Person(name="Ann", age=31)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(text=('{"name": "Ann", "age": 3',), finish="length"), "cut by the token limit"),
        (Answer(text=(PERSON,), finish="length"), "cut by the token limit"),
        (Answer(text=('{"name": "Ann"}',)), "not a Person"),
        (Answer(text=("I cannot",)), "not a Person"),
        (Answer(text=()), "not a Person"),
    ],
    ids=["cut", "cut after the last brace", "field missing", "prose", "nothing"],
)
async def test_an_answer_that_is_no_such_object_raises(
    vllm: VLLM, answer: Answer, said: str
) -> None:
    vllm.says(answer)
    llm = llm_of(vllm)
    prompt = PromptTemplate("x")
    with pytest.raises(BadReply, match=said) as caught:
        llm.structured_predict(Person, prompt)
    assert caught.value.partial == "".join(answer.text)
    with pytest.raises(BadReply, match=said):
        await llm.astructured_predict(Person, prompt)
    with pytest.raises(BadReply, match=said):
        list(llm.stream_structured_predict(Person, prompt))
    with pytest.raises(BadReply, match=said):
        [p async for p in await llm.astream_structured_predict(Person, prompt)]


def test_the_model_is_shown_its_schema_on_request(vllm: VLLM) -> None:
    on_wire(vllm)
    prompt = PromptTemplate("PERSON")
    for llm, keywords in (
        (llm_of(vllm, show_schema=True), None),
        (llm_of(vllm), {"show_schema": True}),
    ):
        assert llm.structured_predict(Person, prompt, llm_kwargs=keywords).name == "Ann"
        first = vllm.requests[-1]["messages"][0]
        assert first["role"] == "system"
        assert "matches this JSON schema" in first["content"]
    llm_of(vllm).structured_predict(Person, prompt)
    assert len(vllm.requests[-1]["messages"]) == 1


def test_keywords_of_a_structured_call_reach_the_engine(vllm: VLLM) -> None:
    on_wire(vllm)
    llm_kwargs = {"temperature": 0.125, "tool_choice": "auto", "tool_required": True}
    llm_of(vllm).structured_predict(Person, PromptTemplate("PERSON"), llm_kwargs=llm_kwargs)
    assert vllm.requests[-1]["temperature"] == 0.125
    assert llm_kwargs == {"temperature": 0.125, "tool_choice": "auto", "tool_required": True}


# ---------------------------------------------------------------------------------- errors


async def test_a_torn_stream_is_an_error_with_its_text(vllm: VLLM) -> None:
    vllm.says(torn(Answer(text=("Hel", "lo"))))
    llm = llm_of(vllm)
    got: list[str] = []
    with pytest.raises(StreamTruncated) as caught:
        got.extend(response.delta or "" for response in llm.stream_chat(HI))
    assert ("".join(got), caught.value.partial) == ("Hello", "Hello")
    with pytest.raises(StreamTruncated):
        [r async for r in await llm.astream_complete("Hello")]


async def test_nobody_there() -> None:
    llm = EngineKitLLM(engine="vllm", base_url=refused_url(), model="m", max_retries=0)
    with pytest.raises(Unreachable):
        llm.chat(HI)
    with pytest.raises(Unreachable):
        await llm.astream_chat(HI)


def test_too_long_a_prompt(server: Server) -> None:
    wire = LlamaCpp(server)
    server.on(wire.path, wire.overflows())
    with pytest.raises(ContextOverflow):
        llm_of(wire).chat(HI)


@pytest.mark.parametrize("retries", [0, 2])
def test_a_timeout_makes_exactly_the_configured_number_of_requests(
    vllm: VLLM, retries: int
) -> None:
    vllm.says(json_reply({}, fault="slow_first_byte", delay=5))
    llm = llm_of(vllm, timeout=0.1, max_retries=retries)
    with pytest.raises(EngineTimeout):
        llm.chat(HI)
    assert len(vllm.requests) == 1 + retries


def test_errors_reach_the_callbacks(vllm: VLLM) -> None:
    from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler

    vllm.says(torn(Answer(text=("Hel",))))
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm = llm_of(vllm, callback_manager=CallbackManager([debug]))
    with pytest.raises(StreamTruncated):
        list(llm.stream_chat(HI))
    (pair,) = debug.get_event_pairs(CBEventType.LLM)
    assert isinstance(pair[1].payload["exception"], StreamTruncated)  # type: ignore[index]


def test_fallback_is_an_llm(vllm: VLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines, the first not there: tools, streams and structure still work."""
    on_wire(vllm)
    monkeypatch.setenv("ENGINEKIT_VLLM_URL", vllm.server.url)
    monkeypatch.setenv("ENGINEKIT_LLAMACPP_URL", refused_url())
    llm = EngineKitLLM(engines=["llamacpp", "vllm"], model="tiny", max_retries=0, timeout=20)
    response = llm.chat(HI)
    assert response.raw["engine"] == "vllm"
    assert any("llamacpp" in note for note in response.raw["receipt"]["notes"])
    assert "".join(r.delta or "" for r in llm.stream_chat(HI)) == GREETING
    assert llm.predict_and_call(tools(), "CALL").response == "sunny in Rome"
    assert llm.structured_predict(Person, PromptTemplate("PERSON")) == Person(name="Ann", age=31)
