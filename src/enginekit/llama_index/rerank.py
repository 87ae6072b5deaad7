"""`EngineKitRerank`: order LlamaIndex nodes by relevance with an engine's reranking model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher
from pydantic import ConfigDict, Field

from enginekit.errors import ConfigError
from enginekit.kit.instance import State
from enginekit.llama_index._settings import Connection
from enginekit.types import Ranking, RerankRequest

_dispatcher = get_dispatcher(__name__)


class EngineKitRerank(Connection, BaseNodePostprocessor):
    """Rerank retrieved nodes: `index.as_query_engine(node_postprocessors=[EngineKitRerank(…)])`.

    Returned are new `NodeWithScore`, best first, with the engine's score; the given ones keep theirs.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    top_n: int = Field(default=3, gt=0, description="How many nodes to return.")

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex serializes it under."""
        return "EngineKitRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query(query_bundle)
        self._announce(nodes, query)
        with self.callback_manager.event(
            CBEventType.RERANKING, payload=self._payload(nodes, query)
        ) as event:
            state, client = self._ready()
            best = self._ranked(client.rerank(self._request(state, nodes, query)), nodes)
            event.on_end(payload={EventPayload.NODES: best})
        _dispatcher.event(ReRankEndEvent(nodes=best))
        return best

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query(query_bundle)
        self._announce(nodes, query)
        with self.callback_manager.event(
            CBEventType.RERANKING, payload=self._payload(nodes, query)
        ) as event:
            state, client = self._ready()
            best = self._ranked(await client.arerank(self._request(state, nodes, query)), nodes)
            event.on_end(payload={EventPayload.NODES: best})
        _dispatcher.event(ReRankEndEvent(nodes=best))
        return best

    def _model_name(self) -> str:
        client = self._state.client
        return self.model or (client.model if client is not None else "") or "unknown"

    def _announce(self, nodes: list[NodeWithScore], query: str) -> None:
        _dispatcher.event(
            ReRankStartEvent(
                query=query, nodes=nodes, top_n=self.top_n, model_name=self._model_name()
            )
        )

    def _payload(self, nodes: list[NodeWithScore], query: str) -> dict[str, Any]:
        return {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self._model_name(),
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: self.top_n,
        }

    def _request(self, state: State, nodes: Sequence[NodeWithScore], query: str) -> RerankRequest:
        return RerankRequest(
            model="",
            query=query,
            documents=tuple(n.node.get_content(metadata_mode=MetadataMode.EMBED) for n in nodes),
            top_n=min(self.top_n, len(nodes)),
            engine_options=self.engine_options,
            lossy=state.lossy,
            defaults=state.defaults,
        )

    def _ranked(self, ranking: Ranking, nodes: Sequence[NodeWithScore]) -> list[NodeWithScore]:
        self._warn_omitted(ranking.receipt)
        return [
            NodeWithScore(node=nodes[found.index].node, score=found.score)
            for found in ranking.scores[: self.top_n]
        ]


def _query(query_bundle: QueryBundle | None) -> str:
    if query_bundle is None:
        raise ConfigError("reranking needs a query: pass query_bundle= or query_str=")
    return query_bundle.query_str
