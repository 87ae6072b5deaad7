"""`EngineKitEmbeddings`: vectors for LangChain from any engine that has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from langchain_core.embeddings import Embeddings
from pydantic import ConfigDict, Field

from enginekit.errors import EngineKitError
from enginekit.kit.client import Client
from enginekit.kit.instance import State, embedding_client
from enginekit.kit.keywords import seconds
from enginekit.langchain._keywords import from_environment, kept
from enginekit.langchain._settings import Connection, reraise
from enginekit.types import UNSET, EmbedRequest


class EngineKitEmbeddings(Connection, Embeddings):
    """Embed texts on any engine; texts go out as texts, and vectors come back in their order.

    A text that is too long for the model raises ContextOverflow unless `truncate=True`: a vector of
    half a document is not the document's vector.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: Annotated[str | None, kept] = Field(default_factory=from_environment("embed_model"))
    """The embedding model; `ENGINEKIT_EMBED_MODEL`. `ENGINEKIT_MODEL`, the model to chat with, is
    used only when no other is named."""
    dimensions: int | None = None
    """Cut the vectors to this length, where the model supports it."""
    chunk_size: int = Field(default=512, gt=0)
    """Texts per request."""
    truncate: bool = False
    """Let the engine cut a text that is too long."""
    query_prefix: str = ""
    """Put before a query (`"search_query: "`), as the model's card asks."""
    document_prefix: str = ""
    """Put before each document (`"search_document: "`)."""
    keep_alive: float | str | None = None
    """How long the model stays loaded afterwards: seconds or `"5m"`."""

    _resets: ClassVar[frozenset[str]] = frozenset({"dimensions", "truncate", "keep_alive"})

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of documents, in their order."""
        return self._embed([self.document_prefix + text for text in texts])

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self._embed([self.query_prefix + text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`, without blocking the event loop."""
        return await self._aembed([self.document_prefix + text for text in texts])

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`, without blocking the event loop."""
        return (await self._aembed([self.query_prefix + text]))[0]

    def _make_client(self, settings: Mapping[str, Any]) -> Client:
        return embedding_client(settings, f"{type(self).__name__}(...)")

    def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] = []
        try:
            state, client = self._ready()
            for request in self._requests(state, texts):
                found = client.embed(request)
                self._warn_omitted(found.receipt)
                vectors.extend(map(list, found.vectors))
        except EngineKitError as error:
            reraise(error)
        return vectors

    async def _aembed(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] = []
        try:
            state, client = self._ready()
            for request in self._requests(state, texts):
                found = await client.aembed(request)
                self._warn_omitted(found.receipt)
                vectors.extend(map(list, found.vectors))
        except EngineKitError as error:
            reraise(error)
        return vectors

    def _requests(self, state: State, texts: Sequence[str]) -> list[EmbedRequest]:
        shared: dict[str, Any] = {
            "model": "",
            "engine_options": self.engine_options,
            "lossy": state.lossy,
            "defaults": state.defaults,
            "dimensions": UNSET if self.dimensions is None else self.dimensions,
            "truncate": self.truncate,
            "keep_alive": UNSET if self.keep_alive is None else seconds(self.keep_alive),
        }
        return [
            EmbedRequest(texts=tuple(texts[start : start + self.chunk_size]), **shared)
            for start in range(0, len(texts), self.chunk_size)
        ]
