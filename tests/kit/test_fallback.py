"""Several engines as one model, through both frameworks: everything a model can survives the list.

vLLM's and Ollama's servers are loopback ones that answer in the recorded shapes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError, ModelConnectionError
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from enginekit import langchain
from enginekit.errors import ConfigError, ContextOverflow, EngineFault, NoEngine, StreamTruncated
from enginekit.kit.server_facts import forget_facts
from enginekit.langchain import EngineKitChat
from enginekit.llama_index import EngineKitLLM
from tests.langchain.wires import VLLM, Answer, Ollama, torn
from tests.support.server import Reply, Server, json_reply, refused_url


@pytest.fixture(autouse=True)
def fresh() -> None:
    forget_facts()


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[VLLM, Ollama]]:
    with Server() as first, Server() as second:
        monkeypatch.setenv("ENGINEKIT_VLLM_URL", first.url)
        monkeypatch.setenv("ENGINEKIT_OLLAMA_URL", second.url)
        yield VLLM(first), Ollama(second)


@pytest.fixture
def backup(both: tuple[VLLM, Ollama], monkeypatch: pytest.MonkeyPatch) -> Ollama:
    """The second of the list; nobody listens where the first should be."""
    monkeypatch.setenv("ENGINEKIT_VLLM_URL", refused_url())
    return both[1]


def chat(**more: Any) -> EngineKitChat:
    return EngineKitChat(**{"engines": ["vllm", "ollama"], "model": "llama3.1", **more})


def llm(**more: Any) -> EngineKitLLM:
    return EngineKitLLM(**{"engine": "vllm,ollama", "model": "llama3.1", **more})


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


class Person(BaseModel):
    """A person."""

    name: str
    age: int


HELLO = Answer(text=("Hel", "lo"))
ROME = Answer(calls=[("c1", "get_weather", ['{"city": "Rome"}'])], finish="tool_calls")
ANN = Answer(text=('{"name": "Ann", ', '"age": 31}'))
BUSY = json_reply({"error": {"message": "busy", "code": 503}}, 503)


# ---------------------------------------------------------------------------------- LangChain


def test_a_list_is_a_chat_model_and_says_who_answered_and_why(backup: Ollama) -> None:
    backup.says(HELLO)
    model = chat()
    assert isinstance(model, BaseChatModel)
    total = None
    for chunk in model.stream("hi"):
        total = chunk if total is None else total + chunk
    assert total is not None
    for message in (model.invoke("hi"), total, chat(include_receipt=False).invoke("hi")):
        assert message.content == "Hello"
        assert message.response_metadata["engine"] == "ollama"
        assert model._get_ls_params()["engine"] == "vllm,ollama"  # type: ignore[typeddict-item]
        (why,) = message.response_metadata["passed_over"]
        assert why.startswith("vllm: ")
        assert "connection refused" in why


async def test_tools_and_structure_survive(backup: Ollama) -> None:
    backup.says(ROME)
    bound = chat().bind_tools([get_weather])
    for message in (bound.invoke("?"), await bound.ainvoke("?")):
        assert message.tool_calls[0]["args"] == {"city": "Rome"}
    backup.says(ANN)
    structured = chat().with_structured_output(Person)
    assert structured.invoke("?") == Person(name="Ann", age=31)
    assert await structured.ainvoke("?") == Person(name="Ann", age=31)
    assert list(structured.stream("?"))[-1] == Person(name="Ann", age=31)


async def test_callbacks_see_one_model_and_only_the_answer(backup: Ollama) -> None:
    class Seen(BaseCallbackHandler):
        def __init__(self) -> None:
            self.events: list[str] = []

        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            self.events.append("start")

        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            self.events.append(str(token))

        def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
            self.events.append("end")

        def on_llm_error(self, *args: Any, **kwargs: Any) -> None:
            self.events.append("error")

    backup.says(HELLO)
    seen = Seen()
    assert [c async for c in chat().astream("hi", config={"callbacks": [seen]})]
    assert seen.events == ["start", "Hel", "lo", "", "end"]


async def test_a_crowd_fails_over_together(backup: Ollama) -> None:
    backup.says(HELLO)
    model = chat()
    replies = await asyncio.gather(*(model.ainvoke("hi") for _ in range(200)))
    assert {reply.content for reply in replies} == {"Hello"}
    assert len(backup.requests) == 200
    # One of the crowd asked what the server is, and the others waited for that.
    assert backup.server.paths().count("GET /api/version") == 1
    chats = [n for n, path in enumerate(backup.server.paths()) if path == "POST /api/chat"]
    assert backup.server.paths().index("GET /api/version") < chats[0]


def test_the_next_is_asked_at_once_and_only_the_last_is_asked_again(
    both: tuple[VLLM, Ollama],
) -> None:
    vllm, ollama = both
    vllm.says(BUSY)
    ollama.says(json_reply({"error": "busy"}, 503), HELLO)
    assert chat(max_retries=2).invoke("hi").content == "Hello"
    assert (len(vllm.requests), len(ollama.requests)) == (1, 2)


@pytest.mark.parametrize("fault", ["close_without_response", "reset_without_response"])
def test_one_that_hangs_up_without_an_answer_is_passed_over_and_asked_once(
    both: tuple[VLLM, Ollama], fault: str
) -> None:
    """It may have died of the prompt: another engine gets it, the same one no more. Once more only
    because the connection had been used by the probe, and may have been closed meanwhile."""
    vllm, ollama = both
    vllm.says(Reply(fault=fault))
    ollama.says(HELLO)
    assert chat(max_retries=5).invoke("hi").content == "Hello"
    asked = [seen for seen in vllm.server.requests if seen.method == "POST"]
    assert len({seen.connection for seen in asked}) == len(asked) == 2
    assert len(ollama.requests) == 1
    alone = EngineKitChat(engine="vllm", model="llama3.1", max_retries=5)
    with pytest.raises(EngineFault, match="not sent again"):
        alone.invoke("hi")
    assert len(vllm.requests) <= 4  # of twelve that its retries would have allowed


def test_after_the_first_token_nobody_takes_over(both: tuple[VLLM, Ollama]) -> None:
    vllm, ollama = both
    vllm.says(torn(HELLO))
    ollama.says(HELLO)
    with pytest.raises(StreamTruncated) as caught:
        list(chat().stream("hi"))
    assert caught.value.partial == "Hello"
    assert ollama.requests == []


def test_a_call_goes_to_an_engine_that_can_do_it(both: tuple[VLLM, Ollama]) -> None:
    """The recorded Ollama has a model without eyes, and no grammars; nothing of such a call leaves."""
    vllm, ollama = both
    vllm.says(HELLO)
    ollama.says(HELLO)
    model = chat(engines=["ollama", "vllm"])
    image = {"type": "image", "base64": "iVBORw0KGgo=", "mime_type": "image/png"}
    with_image = [HumanMessage([{"type": "text", "text": "What is it?"}, image])]
    grammar = {"type": "grammar", "grammar": 'root ::= "a"'}
    for message in (model.invoke(with_image), model.invoke("hi", response_format=grammar)):
        assert message.response_metadata["engine"] == "vllm"
        assert message.response_metadata["passed_over"][0].startswith("ollama: ")
    assert ollama.requests == []
    assert model.invoke("hi").response_metadata["engine"] == "ollama"


def test_a_prompt_too_long_for_the_first_may_fit_the_second(both: tuple[VLLM, Ollama]) -> None:
    vllm, ollama = both
    vllm.server.on(vllm.path, vllm.overflows())
    ollama.says(HELLO)
    assert chat().invoke("hi").response_metadata["engine"] == "ollama"
    ollama.server.on(ollama.path, ollama.overflows())
    with pytest.raises(ContextOverflowError) as caught:
        chat().invoke("hi")
    assert isinstance(caught.value, ContextOverflow)
    assert all(name in str(caught.value) for name in ("1. vllm", "2. ollama"))


def test_when_all_fail_one_error_names_each(
    backup: Ollama, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup.says(json_reply({"error": "model 'x' not found"}, 404))
    with pytest.raises(NoEngine) as caught:
        chat().invoke("hi")
    assert [line.partition(":")[0] for line in caught.value.tried] == ["vllm", "ollama"]
    assert isinstance(caught.value, ModelConnectionError)
    assert caught.value.is_retryable  # vLLM may be there the next time
    monkeypatch.setenv("ENGINEKIT_VLLM_URL", backup.server.url)
    with pytest.raises(NoEngine) as caught:
        EngineKitChat(engine="ollama,ollama", model="x").invoke("hi")
    assert not langchain._errors.dual(caught.value).is_retryable  # type: ignore[attr-defined]


@pytest.mark.parametrize("setting", ["base_url", "api_key"])
def test_an_address_or_key_that_could_be_anybodys_is_refused(
    both: tuple[VLLM, Ollama], setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ENGINEKIT_VLLM_URL")
    with pytest.raises(ConfigError, match=setting) as caught:
        chat(**{setting: "http://127.0.0.1:1"}).invoke("hi")
    assert "ENGINEKIT_VLLM_" in str(caught.value.hint)
    assert both[1].server.requests == []


def test_connecting_learns_of_every_engine(both: tuple[VLLM, Ollama]) -> None:
    model = chat()
    before = model.profile
    assert before is not None
    assert before["max_input_tokens"] == 2048
    model.connect()
    assert model.profile is not None
    assert model.profile["max_input_tokens"] == min(VLLM.window, Ollama.window)
    assert "smallest" not in model.profile_origins["max_input_tokens"]
    assert model.profile["image_url_inputs"] is False


async def test_one_of_them_is_enough_to_connect(
    backup: Ollama, monkeypatch: pytest.MonkeyPatch
) -> None:
    await chat().aconnect()
    llm().connect()
    monkeypatch.setenv("ENGINEKIT_OLLAMA_URL", refused_url())
    with pytest.raises(NoEngine, match=r"1\. vllm.*\n.*2\. ollama"):
        chat().connect()


def test_tokens_are_counted_by_the_first_that_can(both: tuple[VLLM, Ollama]) -> None:
    count: Any = chat(engines=["ollama", "vllm"]).get_num_tokens("hello")
    assert count.source == "vllm's own tokenizer"
    prompt: Any = chat(engines=["ollama", "vllm"]).get_num_tokens_from_messages(
        [HumanMessage("hi")]
    )
    assert prompt.source == "vllm's own tokenizer"


# ---------------------------------------------------------------------------------- LlamaIndex


def test_a_list_is_a_function_calling_llm(backup: Ollama) -> None:
    backup.says(HELLO)
    model = llm()
    assert isinstance(model, FunctionCallingLLM)
    assert model.metadata.is_function_calling_model
    last = list(model.stream_chat([ChatMessage(content="hi")]))[-1]
    for response in (model.chat([ChatMessage(content="hi")]), last):
        assert response.message.content == "Hello"
        assert isinstance(response.raw, dict)
        assert response.raw["engine"] == "ollama"
        assert response.raw["passed_over"][0].startswith("vllm: ")


async def test_llama_index_tools_and_structure_survive(backup: Ollama) -> None:
    backup.says(ROME)
    weather = FunctionTool.from_defaults(get_weather.func, name="get_weather")
    answer = llm().chat_with_tools([weather], "?")
    assert llm().get_tool_calls_from_response(answer)[0].tool_kwargs == {"city": "Rome"}
    assert str(await llm().apredict_and_call([weather], "?")) == "sunny in Rome"
    backup.says(ANN)
    prompt = PromptTemplate("{x}")
    assert llm().structured_predict(Person, prompt, x="?") == Person(name="Ann", age=31)
    partial = list(llm().stream_structured_predict(Person, prompt, x="?"))
    assert partial[-1] == Person(name="Ann", age=31)
