"""Embeddings and reranking on real llama.cpp servers that were started for them, here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from enginekit.errors import ContextOverflow, Unsupported
from enginekit.kit.client import Client
from enginekit.types import EmbedRequest, RerankRequest
from tests.support.models import scripted_gguf

WINDOW = 1024


def serving(folder: Any, *flags: str) -> Iterator[Client]:
    from enginekit.launch.embedded import EmbeddedSpec, acquire

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINEKIT_RUNTIME_DIR", str(folder))
        spec = EmbeddedSpec(
            model_path=scripted_gguf(), context=WINDOW, slots=1, embeddings=True, extra_args=flags
        )
        with acquire(spec, budget=90) as lease:
            yield Client(
                {
                    "engine": "llamacpp",
                    "base_url": lease.base_url,
                    "api_key": lease.api_key,
                    "model": "scripted",
                }
            )


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    yield from serving(tmp_path_factory.mktemp("run"), "--pooling", "mean")


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    yield from serving(tmp_path_factory.mktemp("run"), "--pooling", "rank")


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A method of the client, on either driver."""
    if request.param == "sync":
        return lambda client, name, wanted: getattr(client, name)(wanted)
    return lambda client, name, wanted: asyncio.run(getattr(client, f"a{name}")(wanted))


def embed(*texts: str) -> EmbedRequest:
    return EmbedRequest(model="", texts=texts)


def test_vectors_come_in_the_order_of_the_texts(embedder, run):
    """Equal texts have equal vectors, others have others, and each has length one."""
    made = run(embedder, "embed", embed("a cat", "two dogs", "a cat"))
    first, second, third = made.vectors
    assert all(abs(a - b) < 1e-4 for a, b in zip(first, third, strict=True))
    assert any(abs(a - b) > 1e-2 for a, b in zip(first, second, strict=True))
    assert all(abs(sum(x * x for x in vector) - 1) < 1e-3 for vector in made.vectors)
    assert made.usage.prompt_tokens > 0


def test_a_text_that_is_too_long_says_so_with_both_numbers(embedder, run):
    with pytest.raises(ContextOverflow) as caught:
        run(embedder, "embed", embed("word " * 2 * WINDOW))
    assert caught.value.limit == WINDOW
    assert caught.value.requested > 2 * WINDOW


def test_a_server_that_embeds_does_not_rerank(embedder, run):
    with pytest.raises(Unsupported, match="reranking"):
        run(embedder, "rerank", RerankRequest(model="", query="a", documents=("b",)))


def test_documents_come_best_first(ranker, run):
    documents = ("one", "two three", "four five six")
    ranking = run(ranker, "rerank", RerankRequest(model="", query="one", documents=documents))
    scores = [score.score for score in ranking.scores]
    assert sorted(score.index for score in ranking.scores) == [0, 1, 2]
    assert scores == sorted(scores, reverse=True)
    top = run(ranker, "rerank", RerankRequest(model="", query="one", documents=documents, top_n=1))
    assert [score.index for score in top.scores] == [ranking.scores[0].index]


def test_a_server_that_reranks_is_not_asked_for_vectors(ranker, run):
    """It would answer with zeros."""
    with pytest.raises(Unsupported, match="--reranking"):
        run(ranker, "embed", embed("a"))
