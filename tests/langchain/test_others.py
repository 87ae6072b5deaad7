"""Text completion, embeddings, reranking and registration."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest
from langchain_core.documents import Document

from enginekit.errors import ConfigError, MissingExtra, UnknownSetting, Unsupported
from enginekit.langchain import (
    EngineKitChat,
    EngineKitEmbeddings,
    EngineKitLLM,
    EngineKitRerank,
    register,
)
from tests.langchain.wires import VLLM, LlamaCpp
from tests.support.server import Reply, Seen, Server, json_reply, sse


def completions(seen: Seen) -> Reply:
    body = seen.json
    head = {"id": "cmpl-1", "object": "text_completion", "model": body["model"]}
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    text = f"{body['prompt']} and so on"
    if not body.get("stream"):
        choice = {"index": 0, "text": text, "finish_reason": "stop"}
        return json_reply({**head, "choices": [choice], "usage": usage})
    pieces = [
        {**head, "choices": [{"index": 0, "text": piece, "finish_reason": None}]}
        for piece in (text[:4], text[4:])
    ]
    end = {**head, "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}
    return sse(*pieces, end, {**head, "choices": [], "usage": usage}, "data: [DONE]\n\n")


@pytest.fixture
def llm(vllm: VLLM) -> EngineKitLLM:
    vllm.server.on("/v1/completions", completions)
    return EngineKitLLM(**vllm.settings, max_tokens=8, max_retries=0)


async def test_text_completion(llm: EngineKitLLM) -> None:
    assert llm.invoke("once") == "once and so on"
    assert await llm.ainvoke("once") == "once and so on"
    assert list(llm.stream("once")) == ["once", " and so on", ""]
    assert [piece async for piece in llm.astream("once")] == ["once", " and so on", ""]


def test_text_completion_of_several_prompts_reports_everything(llm: EngineKitLLM) -> None:
    result = llm.generate(["a", "b"])
    assert [texts[0].text for texts in result.generations] == ["a and so on", "b and so on"]
    assert result.llm_output is not None
    assert result.llm_output["token_usage"]["total_tokens"] == 10
    info: Any = result.generations[0][0].generation_info
    assert (info["finish_reason"], info["engine"], info["model_name"]) == ("stop", "vllm", "tiny")
    assert "sampling.max_tokens" in info["receipt"]["sent"] or info["receipt"]


def test_text_completion_refuses_what_only_chats_have(llm: EngineKitLLM) -> None:
    with pytest.raises(UnknownSetting, match="tools"):
        llm.invoke("a", tools=[])


def vectors(seen: Seen) -> Reply:
    texts = seen.json["input"]
    data = [
        {"object": "embedding", "index": number, "embedding": [float(len(text)), float(number)]}
        for number, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return json_reply(
        {"object": "list", "model": seen.json["model"], "data": data[::-1], "usage": usage}
    )


async def test_embeddings_keep_their_order_and_prefixes(server: Server) -> None:
    wire = LlamaCpp(server)
    server.on("/v1/embeddings", vectors)
    embeddings = EngineKitEmbeddings(
        **wire.settings, chunk_size=2, query_prefix="query: ", max_retries=0
    )
    texts = ["a", "bb", "ccc"]
    assert [v[0] for v in embeddings.embed_documents(texts)] == [1.0, 2.0, 3.0]
    assert [v[0] for v in await embeddings.aembed_documents(texts)] == [1.0, 2.0, 3.0]
    assert embeddings.embed_query("a")[0] == len("query: a")
    assert (await embeddings.aembed_query("a"))[0] == len("query: a")
    bodies = [seen.json["input"] for seen in server.requests if seen.path == "/v1/embeddings"]
    assert bodies[0] == ["a", "bb"]
    assert bodies[1] == ["ccc"]
    before = len(server.requests)
    assert embeddings.embed_documents([]) == []
    assert len(server.requests) == before


def test_the_embedding_model_is_not_the_chat_model(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = LlamaCpp(server)
    monkeypatch.setenv("ENGINEKIT_MODEL", "to-chat-with")
    monkeypatch.setenv("ENGINEKIT_EMBED_MODEL", "to-embed-with")
    embeddings = EngineKitEmbeddings(engine="llamacpp", base_url=wire.server.url)
    assert embeddings.model == "to-embed-with"
    assert embeddings.client.model == "to-embed-with"
    assert EngineKitEmbeddings(model="mine").client.model == "mine"


def rankings(seen: Seen) -> Reply:
    scores: Mapping[str, float] = {"cats": 0.9, "dogs": 0.4, "cars": 0.1}
    results = [
        {"index": number, "relevance_score": scores[text]}
        for number, text in enumerate(seen.json["documents"])
    ]
    return json_reply({"model": "tiny", "object": "list", "results": results})


async def test_reranking_copies_sorts_and_scores(server: Server) -> None:
    wire = LlamaCpp(server)
    server.on("/v1/rerank", rankings)
    server.on("/rerank", rankings)
    documents = [
        Document(text, metadata={"n": n}) for n, text in enumerate(["cars", "cats", "dogs"])
    ]
    reranker = EngineKitRerank(**wire.settings, top_n=2, max_retries=0)
    for found in (
        reranker.compress_documents(documents, "pets"),
        await reranker.acompress_documents(documents, "pets"),
    ):
        assert [d.page_content for d in found] == ["cats", "dogs"]
        assert [d.metadata for d in found] == [
            {"n": 1, "relevance_score": 0.9},
            {"n": 2, "relevance_score": 0.4},
        ]
    assert documents[0].metadata == {"n": 0}
    assert list(reranker.compress_documents([], "pets")) == []


def test_a_server_without_reranking_says_so(server: Server) -> None:
    from tests.langchain.wires import RECORDINGS
    from tests.support.server import replay

    wire = LlamaCpp(server)
    refusal = replay(RECORDINGS / "llamacpp" / "l_rerank_v1.json")
    server.on("/v1/rerank", refusal)
    server.on("/rerank", refusal)
    with pytest.raises(Unsupported, match="rerank"):
        EngineKitRerank(**wire.settings).compress_documents([Document("a")], "b")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """LangChain's tables of providers, as they were before and will be again."""
    bases = [
        pytest.importorskip(name)
        for name in ("langchain.chat_models.base", "langchain.embeddings.base")
    ]
    for base in bases:
        monkeypatch.setattr(base, "_BUILTIN_PROVIDERS", dict(base._BUILTIN_PROVIDERS))
    return bases


@pytest.mark.usefixtures("tables")
def test_registering_a_provider() -> None:
    from langchain.chat_models import init_chat_model
    from langchain.embeddings import init_embeddings

    with pytest.raises(ValueError, match="enginekit"):
        init_chat_model("enginekit:m")
    register()
    register()
    model: Any = init_chat_model("enginekit:llama3.1", engine="vllm", temperature=0)
    assert isinstance(model, EngineKitChat)
    assert (model.model, model.engine, model.temperature) == ("llama3.1", "vllm", 0)
    assert isinstance(init_chat_model("m", model_provider="enginekit"), EngineKitChat)
    embeddings = init_embeddings("enginekit:nomic-embed-text", engine="ollama")
    assert isinstance(embeddings, EngineKitEmbeddings)
    assert embeddings.model == "nomic-embed-text"


def test_a_langchain_without_its_table_is_left_alone(
    tables: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, embeddings = tables
    monkeypatch.delattr(embeddings, "_BUILTIN_PROVIDERS")
    with pytest.raises(ConfigError, match="no table of providers for init_embeddings"):
        register()
    assert "enginekit" not in chat._BUILTIN_PROVIDERS


def test_registering_without_langchain_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain", None)
    monkeypatch.setitem(sys.modules, "langchain.chat_models.base", None)
    with pytest.raises(MissingExtra, match="langchain"):
        register()
