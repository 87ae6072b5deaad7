"""Embeddings and reranking through LlamaIndex, and the package itself."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.schema import NodeWithScore, TextNode

from enginekit.errors import ConfigError, UnknownSetting
from enginekit.llama_index import EngineKitEmbedding, EngineKitRerank
from tests.langchain.wires import VLLM, Ollama
from tests.support.server import Reply, Seen, Server, json_reply


def vectors(seen: Seen) -> Reply:
    """A vector that tells the text it was made of: its length and its first letter."""
    data = [
        {"object": "embedding", "index": i, "embedding": [float(len(t)), float(ord(t[0]))]}
        for i, t in enumerate(seen.json["input"])
    ]
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    return json_reply({"object": "list", "model": "tiny", "data": data, "usage": usage})


@pytest.fixture
def embedding(vllm: VLLM) -> EngineKitEmbedding:
    vllm.server.on("/v1/embeddings", vectors)
    return EngineKitEmbedding(**vllm.settings, query_prefix="q: ", text_prefix="d: ")


def inputs(server: Server) -> list[list[str]]:
    return [s.json["input"] for s in server.requests if s.path == "/v1/embeddings"]


async def test_prefixes_and_order(embedding: EngineKitEmbedding, vllm: VLLM) -> None:
    assert embedding.get_query_embedding("abc") == [6.0, float(ord("q"))]
    assert await embedding.aget_query_embedding("abc") == [6.0, float(ord("q"))]
    assert embedding.get_text_embedding("ab") == [5.0, float(ord("d"))]
    assert await embedding.aget_text_embedding("ab") == [5.0, float(ord("d"))]
    texts = ["x" * n for n in range(1, 6)]
    expected = [[float(n + 3), float(ord("d"))] for n in range(1, 6)]
    assert embedding.get_text_embedding_batch(texts) == expected
    assert await embedding.aget_text_embedding_batch(texts) == expected
    assert inputs(vllm.server)[0] == ["q: abc"]


async def test_batches_are_single_requests(embedding: EngineKitEmbedding, vllm: VLLM) -> None:
    embedding.embed_batch_size = 4
    texts = [f"t{n}" for n in range(10)]
    embedding.get_text_embedding_batch(texts)
    assert [len(one) for one in inputs(vllm.server)] == [4, 4, 2]
    await embedding.aget_text_embedding_batch(texts)
    assert sorted(len(one) for one in inputs(vllm.server)[3:]) == [2, 4, 4]
    assert embedding.get_text_embedding_batch([]) == []


def test_names_of_the_embedding_model(vllm: VLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm.server.on("/v1/embeddings", vectors)
    by_name = EngineKitEmbedding(engine="vllm", base_url=vllm.server.url, model_name="e5")
    assert (by_name.model, by_name.model_name) == ("e5", "e5")
    monkeypatch.setenv("ENGINEKIT_MODEL", "chatty")
    monkeypatch.setenv("ENGINEKIT_EMBED_MODEL", "from-env")
    other = EngineKitEmbedding(engine="vllm", base_url=vllm.server.url)
    for one, name in ((by_name, "e5"), (other, "from-env")):
        one.get_text_embedding("x")
        assert vllm.server.requests[-1].json["model"] == name
        assert one.to_payload()["model_name"] == name
    with pytest.raises(ConfigError, match="disagree"):
        EngineKitEmbedding(model="a", model_name="b")
    with pytest.raises(UnknownSetting, match="did you mean 'query_prefix'"):
        EngineKitEmbedding(query_instruction="x")


def test_embedding_model_copies_and_stores(embedding: EngineKitEmbedding) -> None:
    """IngestionPipeline sends it to other processes."""
    again = pickle.loads(pickle.dumps(embedding))
    assert again.get_text_embedding("ab") == embedding.get_text_embedding("ab")
    restored = EngineKitEmbedding.from_dict(embedding.to_dict())
    assert (restored.model, restored.text_prefix) == (embedding.model, "d: ")
    before = Settings._embed_model
    try:
        Settings.embed_model = embedding
        assert Settings.embed_model is embedding
    finally:
        Settings._embed_model = before


def test_embeddings_in_two_event_loops(embedding: EngineKitEmbedding) -> None:
    assert asyncio.run(embedding.aget_text_embedding("a")) == asyncio.run(
        embedding.aget_text_embedding("a")
    )


def test_embeddings_of_ollama(server: Server) -> None:
    wire = Ollama(server)

    def embed(seen: Seen) -> Reply:
        rows = [[float(len(text))] for text in seen.json["input"]]
        return json_reply({"model": "llama3.1", "embeddings": rows, "prompt_eval_count": 2})

    server.on("/api/show", json_reply({"capabilities": ["embedding"], "model_info": {}}))
    server.on("/api/embed", embed)
    model = EngineKitEmbedding(**wire.settings)
    assert model.get_text_embedding_batch(["a", "bcd"]) == [[1.0], [3.0]]


# ---------------------------------------------------------------------------------- reranking


class Heard(BaseEventHandler):
    events: list[Any] = []

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.events.append(event)


def ranking(seen: Seen) -> Reply:
    """Longer documents are more relevant."""
    order = sorted(enumerate(seen.json["documents"]), key=lambda pair: -len(pair[1]))
    results = [
        {"index": i, "relevance_score": float(len(text)), "document": {"text": text}}
        for i, text in order
    ][: seen.json.get("top_n") or None]
    return json_reply(
        {"id": "r", "model": "tiny", "results": results, "usage": {"total_tokens": 1}}
    )


async def test_rerank_and_its_events(vllm: VLLM) -> None:
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        vllm.server.on(path, ranking)
    debug = LlamaDebugHandler(print_trace_on_end=False)
    rerank = EngineKitRerank(**vllm.settings, top_n=2, callback_manager=CallbackManager([debug]))
    nodes = [NodeWithScore(node=TextNode(text=t), score=0.5) for t in ("a", "ccc", "bb")]
    heard = Heard()
    get_dispatcher().add_event_handler(heard)
    try:
        best = rerank.postprocess_nodes(nodes, query_str="which?")
        abest = await rerank.apostprocess_nodes(nodes, query_str="which?")
    finally:
        get_dispatcher().event_handlers.remove(heard)
    assert [(n.text, n.score) for n in best] == [("ccc", 3.0), ("bb", 2.0)]
    assert abest == best
    assert [n.score for n in nodes] == [0.5, 0.5, 0.5], "the given nodes keep their scores"
    kinds = [type(e) for e in heard.events if isinstance(e, ReRankStartEvent | ReRankEndEvent)]
    assert kinds == [ReRankStartEvent, ReRankEndEvent] * 2
    assert heard.events[0].top_n == 2
    assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 2
    assert rerank.postprocess_nodes([], query_str="which?") == []
    with pytest.raises(ConfigError, match="query"):
        rerank.postprocess_nodes(nodes)


# ---------------------------------------------------------------------------------- package


def test_importing_the_package_loads_nothing_and_names_are_lazy() -> None:
    code = (
        "import sys, enginekit.llama_index as m; "
        "assert not [n for n in sys.modules if n.startswith(('llama_index', 'pydantic'))]; "
        "assert sorted(m.__all__) == dir(m); "
        "assert m.EngineKitLLM.__module__ == 'enginekit.llama_index.llm'; "
        "import llama_index.core; "
        "assert not hasattr(m, 'core')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_llama_index_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['llama_index.core'] = None\n"
        "import enginekit.llama_index as m\n"
        "from enginekit.errors import MissingExtra\n"
        "try: m.EngineKitLLM\n"
        "except MissingExtra as error: assert 'enginekit[llama-index]' in error.hint\n"
        "else: raise SystemExit('no error')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
