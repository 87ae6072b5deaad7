"""`EngineKitRerank`: order LangChain documents by relevance with an engine's reranking model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict

from enginekit.errors import EngineKitError
from enginekit.kit.instance import State
from enginekit.langchain._settings import Connection, reraise
from enginekit.types import UNSET, Ranking, RerankRequest


class EngineKitRerank(Connection, BaseDocumentCompressor):
    """Rerank documents; use it in a `ContextualCompressionRetriever` or by itself.

    Returned documents are copies, best first, with `metadata["relevance_score"]`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    top_n: int | None = 3
    """How many documents to return; None returns all."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks = None
    ) -> Sequence[Document]:
        """The most relevant documents, best first."""
        try:
            state, client = self._ready()
            ranking = client.rerank(self._request(state, documents, query))
        except EngineKitError as error:
            reraise(error)
        return self._ranked(ranking, documents)

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks = None
    ) -> Sequence[Document]:
        """As `compress_documents`, without blocking the event loop."""
        try:
            state, client = self._ready()
            ranking = await client.arerank(self._request(state, documents, query))
        except EngineKitError as error:
            reraise(error)
        return self._ranked(ranking, documents)

    def _request(self, state: State, documents: Sequence[Document], query: str) -> RerankRequest:
        fields: dict[str, Any] = {
            "model": "",
            "engine_options": self.engine_options,
            "lossy": state.lossy,
            "defaults": state.defaults,
        }
        return RerankRequest(
            query=query,
            documents=tuple(document.page_content for document in documents),
            top_n=UNSET if self.top_n is None else min(self.top_n, len(documents)),
            **fields,
        )

    def _ranked(self, ranking: Ranking, documents: Sequence[Document]) -> list[Document]:
        self._warn_omitted(ranking.receipt)
        best = ranking.scores if self.top_n is None else ranking.scores[: self.top_n]
        return [
            documents[score.index].model_copy(
                update={
                    "metadata": {
                        **documents[score.index].metadata,
                        "relevance_score": score.score,
                    }
                }
            )
            for score in best
        ]
