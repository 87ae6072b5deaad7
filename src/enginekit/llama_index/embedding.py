"""`EngineKitEmbedding`: vectors for LlamaIndex from any engine that has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from pydantic import ConfigDict, Field, model_validator

from enginekit.kit.client import Client
from enginekit.kit.instance import State, embedding_client
from enginekit.kit.keywords import seconds, settle
from enginekit.llama_index._settings import Connection
from enginekit.types import UNSET, Embeddings, EmbedRequest

UNKNOWN = "unknown"
"""LlamaIndex's name for an embedding model that was not named."""


class EngineKitEmbedding(Connection, BaseEmbedding):
    """Embed texts on any engine, a batch per request; vectors come back in their order.

    The model is `model=` (or `model_name=`), else `ENGINEKIT_EMBED_MODEL`, else `ENGINEKIT_MODEL`. A
    text that is too long for it raises ContextOverflow unless `truncate=True`: a vector of half a
    document is not the document's vector.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    dimensions: int | None = Field(
        default=None, description="Cut the vectors to this length, where the model supports it."
    )
    truncate: bool = Field(default=False, description="Let the engine cut a text that is too long.")
    query_prefix: str = Field(
        default="", description="Put before a query ('search_query: '), as the model's card asks."
    )
    text_prefix: str = Field(default="", description="Put before each text ('search_document: ').")
    keep_alive: float | str | None = Field(
        default=None, description="How long the model stays loaded afterwards: seconds or '5m'."
    )

    @model_validator(mode="before")
    @classmethod
    def _take_model_name(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        name = values.pop("model_name", None)
        if name not in (None, UNKNOWN):
            settle(values, "model", name, "model_name")
        return values

    @model_validator(mode="after")
    def _show_model_name(self) -> Self:
        self.__dict__["model_name"] = self.model or UNKNOWN
        return self

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex serializes it under."""
        return "EngineKitEmbedding"

    def to_payload(self) -> dict[str, Any]:
        """What events may know of this model, never a key."""
        client = self._state.client
        return {
            "class_name": "EngineKitEmbedding",
            "model_name": self.model or (client.model if client is not None else "") or UNKNOWN,
            "embed_batch_size": self.embed_batch_size,
        }

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._embed([self.query_prefix + query])[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await self._aembed([self.query_prefix + query]))[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._embed([self.text_prefix + text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aembed([self.text_prefix + text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._embed([self.text_prefix + text for text in texts])

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await self._aembed([self.text_prefix + text for text in texts])

    def _make_client(self, settings: Mapping[str, Any]) -> Client:
        return embedding_client(settings, f"{type(self).__name__}(...)")

    def _embed(self, texts: Sequence[str]) -> list[Embedding]:
        state, client = self._ready()
        return self._vectors(client.embed(self._request(state, texts)))

    async def _aembed(self, texts: Sequence[str]) -> list[Embedding]:
        state, client = self._ready()
        return self._vectors(await client.aembed(self._request(state, texts)))

    def _vectors(self, found: Embeddings) -> list[Embedding]:
        self._warn_omitted(found.receipt)
        return [list(vector) for vector in found.vectors]

    def _request(self, state: State, texts: Sequence[str]) -> EmbedRequest:
        return EmbedRequest(
            model="",
            texts=tuple(texts),
            engine_options=self.engine_options,
            lossy=state.lossy,
            defaults=state.defaults,
            dimensions=UNSET if self.dimensions is None else self.dimensions,
            truncate=self.truncate,
            keep_alive=UNSET if self.keep_alive is None else seconds(self.keep_alive),
        )
