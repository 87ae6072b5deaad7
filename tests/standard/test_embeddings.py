"""LangChain's integration suite for embeddings."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests

from enginekit.langchain import EngineKitEmbeddings
from tests.standard.conftest import Served

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(300)]


class TestStandardEmbeddings(EmbeddingsIntegrationTests):
    """Upstream's four tests."""

    served: Served

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _connected(cls, embedding_suite: Served) -> None:
        cls.served = embedding_suite

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return EngineKitEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return dict(self.served.settings)


def test_each_text_has_its_own_vector_in_its_own_place(embedding_suite: Served) -> None:
    """Order is kept, a query's vector is the document's, and different texts differ."""
    model = EngineKitEmbeddings(**embedding_suite.settings)
    texts = ["the first text", "another one", "a third, which is longer than the others"]
    vectors = model.embed_documents(texts)
    assert len({tuple(vector) for vector in vectors}) == 3
    for text, vector in zip(texts, vectors, strict=True):
        assert model.embed_query(text) == pytest.approx(vector, abs=1e-3)
    assert model.embed_documents([]) == []
