"""Programs that LlamaIndex users write: query engine, chat engine, agents, structured LLM."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core import Document, SimpleKeywordTableIndex, VectorStoreIndex
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ReActAgent, ToolCall
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage

from enginekit.llama_index import BadReply, EngineKitEmbedding, EngineKitLLM
from tests.langchain.wires import VLLM, Answer
from tests.llama_index.subjects import GREETING, ROME, SUM, on_wire, tools
from tests.support.server import Reply, Seen, json_reply

pytestmark = [
    # LlamaIndex's workflows look at every attribute of an agent, pydantic's deprecated ones too.
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:<aiosqlite:ResourceWarning"),
    pytest.mark.usefixtures("swept"),
]

DOCUMENTS = [
    Document(text="The Danube flows through Vienna and Budapest."),
    Document(text="Olive oil comes from the Mediterranean."),
    Document(text="Glaciers are rivers of ice."),
]


def llm_of(wire: VLLM, **more: Any) -> EngineKitLLM:
    return EngineKitLLM(**{**wire.settings, "max_retries": 0, "timeout": 20, **more})


@pytest.mark.parametrize("streaming", [False, True])
def test_query_engine_with_keyword_retrieval(vllm: VLLM, streaming: bool) -> None:
    """No embedding model, no download: keywords by rules, the answer by the engine."""
    on_wire(vllm)
    llm = llm_of(vllm)
    index = SimpleKeywordTableIndex.from_documents(DOCUMENTS, llm=llm)
    engine = index.as_query_engine(llm=llm, retriever_mode="simple", streaming=streaming)
    answer = engine.query("Where does the Danube flow?")
    assert str(answer) == GREETING
    assert [node.text for node in answer.source_nodes] == [DOCUMENTS[0].text]
    (sent,) = vllm.requests
    assert "Danube flows through Vienna" in str(sent["messages"])
    assert "Olive" not in str(sent["messages"])


async def test_query_engine_async(vllm: VLLM) -> None:
    on_wire(vllm)
    llm = llm_of(vllm)
    index = SimpleKeywordTableIndex.from_documents(DOCUMENTS, llm=llm)
    engine = index.as_query_engine(llm=llm, retriever_mode="simple")
    assert str(await engine.aquery("What are glaciers?")) == GREETING


def test_query_engine_with_embeddings(vllm: VLLM) -> None:
    """Vectors decide which document is found; the toy vectors count three words."""

    def vectors(seen: Seen) -> Reply:
        texts = seen.json["input"]
        rows = [[t.count(w) + 0.01 for w in ("Danube", "Olive", "ice")] for t in texts]
        data = [{"object": "embedding", "index": i, "embedding": r} for i, r in enumerate(rows)]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return json_reply({"object": "list", "model": "tiny", "data": data, "usage": usage})

    on_wire(vllm).wire.server.on("/v1/embeddings", vectors)  # type: ignore[union-attr]
    embedding = EngineKitEmbedding(**vllm.settings)
    index = VectorStoreIndex.from_documents(DOCUMENTS, embed_model=embedding)
    engine = index.as_query_engine(llm=llm_of(vllm), similarity_top_k=1)
    answer = engine.query("Olive oil?")
    assert [node.text for node in answer.source_nodes] == [DOCUMENTS[1].text]


async def test_chat_engine_remembers(vllm: VLLM) -> None:
    on_wire(vllm)
    engine = SimpleChatEngine.from_defaults(llm=llm_of(vllm), system_prompt="Be brief.")
    assert str(engine.chat("Hello")) == GREETING
    stream = await engine.astream_chat("Again")
    assert "".join([token async for token in stream.async_response_gen()]) == GREETING
    sent = vllm.requests[-1]["messages"]
    assert [m["role"] for m in sent] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize("streaming", [True, False])
async def test_function_agent_calls_two_tools_and_answers(vllm: VLLM, streaming: bool) -> None:
    vllm.says(
        Answer(reasoning=("hm",), calls=(ROME, SUM), finish="tool_calls"),
        Answer(text=("It is sunny ", "and 5.")),
    )
    agent = FunctionAgent(llm=llm_of(vllm), tools=tools(), streaming=streaming)
    handler = agent.run("Weather in Rome, and 2 + 3?")
    called: list[tuple[str, dict[str, Any]]] = []
    thoughts: list[str] = []
    partial = 0
    async for event in handler.stream_events():
        if isinstance(event, ToolCall) and type(event) is ToolCall:
            called.append((event.tool_name, event.tool_kwargs))
        if isinstance(event, AgentStream):
            thoughts.append(event.thinking_delta or "")
            partial += bool(event.tool_calls)
    result = await handler
    assert str(result) == "It is sunny and 5."
    assert sorted(called) == [("add", {"a": 2, "b": 3}), ("get_weather", {"city": "Rome"})]
    if streaming:
        assert "".join(thoughts) == "hm"
        assert partial > 2, "the calls were seen while they were written"
    second = vllm.requests[1]["messages"]
    results = {m["tool_call_id"]: m["content"] for m in second if m["role"] == "tool"}
    assert results == {"call_rome": "sunny in Rome", "call_sum": "5"}
    (asked,) = [m for m in second if m["role"] == "assistant"]
    assert [c["id"] for c in asked["tool_calls"]] == ["call_rome", "call_sum"]


async def test_an_agent_stops_at_broken_arguments(vllm: VLLM) -> None:
    """A call with half its arguments must not run with none."""
    ran: list[str] = []

    def wipe(path: str = "/") -> str:
        """Delete a folder."""
        ran.append(path)
        return "gone"

    from llama_index.core.tools import FunctionTool

    broken = ("c", "wipe", ('{"path": "/tmp/x',))
    vllm.says(Answer(calls=(broken,), finish="length"))
    agent = FunctionAgent(llm=llm_of(vllm), tools=[FunctionTool.from_defaults(wipe)])
    with pytest.raises(BadReply, match="wipe"):
        await agent.run("clean up")
    assert ran == []


async def test_initial_tool_choice(vllm: VLLM) -> None:
    vllm.says(Answer(calls=(ROME,), finish="tool_calls"), Answer(text=("done",)))
    agent = FunctionAgent(llm=llm_of(vllm), tools=tools(), initial_tool_choice="get_weather")
    assert str(await agent.run("go")) == "done"
    first, second = vllm.requests
    assert first["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}
    assert "tool_choice" not in second


@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")
async def test_react_agent(vllm: VLLM) -> None:
    vllm.says(
        Answer(text=("Thought: look.\nAction: get_weather\n", 'Action Input: {"city": "Rome"}')),
        Answer(text=("Thought: I can answer.\n", "Answer: sunny")),
    )
    agent = ReActAgent(llm=llm_of(vllm), tools=tools())
    assert str(await agent.run("Weather in Rome?")) == "sunny"
    assert "sunny in Rome" in str(vllm.requests[1]["messages"])


def test_messages_of_an_agent_can_be_stored_and_sent_again(vllm: VLLM) -> None:
    vllm.says(Answer(reasoning=("r",), text=("t",), calls=(ROME,), finish="tool_calls"))
    llm = llm_of(vllm)
    message = llm.chat_with_tools(tools(), "CALL").message
    stored = ChatMessage.model_validate_json(message.model_dump_json())
    assert stored == message
    assert any(isinstance(block, ToolCallBlock) for block in stored.blocks)
    llm.chat([ChatMessage(content="x"), stored])
    sent = vllm.requests[-1]["messages"][1]
    assert len(sent["tool_calls"]) == 1
    assert sent["content"] == "t"
