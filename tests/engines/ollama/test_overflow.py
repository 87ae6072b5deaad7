"""A text to embed that is too long: which limit it met, and how long it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginekit.engine import Answer, Call
from enginekit.engines.ollama import Ollama
from enginekit.engines.ollama.overflow import MOST_PIECES, counted, pieces
from enginekit.engines.ollama.probe import full_name
from enginekit.errors import ContextOverflow, EngineDied, MalformedReply
from enginekit.facts.engine import ServerFacts
from enginekit.types import EmbedRequest
from tests.engines.ollama.test_probe import NOTHING, TARGET, play, rec, server
from tests.engines.recordings import answer, load

TEXT = "word " * 500
"""2,500 tokens of the recorded model, which is loaded with a window of 4,096."""
RECORDED = ("n_embed_batch", "n_embed_batch_pieces", "n_embed_batch_halves", "n_embed_batch_wide")


def recorded(call: Call) -> Answer:
    """What the server answered to these very texts; any other request is an assertion error."""
    for name in RECORDED:
        one = load("ollama", f"embed/{name}")
        if one.request == call.json:
            return one.answer
    raise AssertionError(f"nothing recorded answers {str(call.json)[:200]}")


def facts(pooling: int | None = 1, **model: Any) -> ServerFacts:
    tags = answer({"models": [{"name": "embed:latest"}]})
    found = play(
        Ollama(TARGET).probe(),
        server(NOTHING, **{"GET /api/tags": tags, "POST /api/show": rec("embed/n_show")}),
    )
    (card,) = found.models
    known = replace(card.extra["model"], pooling=pooling, **model)
    return replace(found, models=(replace(card, extra={**card.extra, "model": known}),))


def refused(request: EmbedRequest, known: ServerFacts | None, **answers: Any) -> ContextOverflow:
    given = {"POST /api/embed": recorded, "GET /api/ps": rec("embed/n_ps_batch"), **answers}
    with pytest.raises(ContextOverflow) as caught:
        play(Ollama(TARGET, facts=known).embed(request), given)
    return caught.value


def test_a_text_longer_than_the_batch_is_told_so_with_both_numbers():
    """The server says the same words as for a text that is longer than the window."""
    error = refused(EmbedRequest(model="embed", texts=(TEXT,)), facts())
    assert error.limit == 2048
    assert error.requested is not None
    assert abs(error.requested - 2500) <= 5
    assert "window of 4096" in str(error)
    assert '"num_batch": 4096' in (error.hint or "")


def test_who_wants_the_model_gone_does_not_have_it_loaded_again_to_count():
    log: list[Any] = []

    def only_refuses(call: Call) -> Answer:
        log.append(call.json)
        return recorded(
            replace(call, json={k: v for k, v in call.json.items() if k != "keep_alive"})
        )

    request = EmbedRequest(model="embed", texts=(TEXT,), keep_alive=0)
    error = refused(request, facts(), **{"POST /api/embed": only_refuses})
    assert [body.get("keep_alive") for body in log] == [0]
    assert (error.limit, error.requested) == (2048, None)
    assert "2500 characters" in str(error)
    log.clear()
    counted_by = refused(
        replace(request, keep_alive=60), facts(), **{"POST /api/embed": only_refuses}
    )
    assert [body.get("keep_alive") for body in log] == [60, 60, 60]
    assert counted_by.requested


def test_a_vector_of_zeros_is_no_embedding():
    """As a llama-server of a model that ranks answers (b10488); Ollama's runner is one."""
    zeros = answer({"model": "embed", "embeddings": [[0.1, 0.2], [0.0, 0.0]]})
    request = EmbedRequest(model="embed", texts=("a", "b"))
    with pytest.raises(MalformedReply, match="no direction"):
        play(Ollama(TARGET).embed(request), {"POST /api/embed": zeros})


@pytest.mark.parametrize("known", [None, "unpooled"])
def test_what_the_model_is_need_not_be_known(known):
    """A text shorter than the window that is refused can only have met the batch."""
    error = refused(
        EmbedRequest(model="embed", texts=(TEXT,)), None if known is None else facts(None)
    )
    assert error.limit == 2048


def test_the_batch_of_a_request_is_obeyed_by_the_server():
    request = EmbedRequest(
        model="embed", texts=(TEXT,), engine_options={"options": {"num_batch": 4096}}
    )
    made = play(Ollama(TARGET).embed(request), {"POST /api/embed": recorded})
    assert made.usage.prompt_tokens == 2500


def test_the_batch_of_the_modelfile_counts():
    error = refused(
        EmbedRequest(model="embed", texts=("a" * 600,)),
        facts(num_batch=512),
        **{"POST /api/embed": rec("embed/n_embed_batch")},
    )
    assert (error.limit, error.requested) == (512, None)
    assert "the text has 600 characters" in str(error)


def test_a_model_that_takes_the_last_token_takes_a_text_in_several_batches():
    error = refused(
        EmbedRequest(model="embed", texts=("a", "b" * 600)),
        facts(pooling=3),
        **{"POST /api/embed": rec("embed/n_embed_batch")},
    )
    assert error.limit == 4096
    assert "the longest of 2 texts" in str(error)
    assert "truncate=True" in (error.hint or "")


def test_of_an_old_server_no_batch_is_known():
    old = replace(facts(), version="0.12.11")
    error = refused(
        EmbedRequest(model="embed", texts=("b" * 600,)),
        old,
        **{"POST /api/embed": rec("embed/n_embed_batch")},
    )
    assert error.limit == 4096


def test_counting_is_given_up_where_it_costs_too_much():
    calls: list[Any] = []

    def ask(texts):
        calls.append(texts)
        return {}
        yield

    assert play(counted("x" * (MOST_PIECES * 10 + 1), 10, ask), {}) is None
    assert play(counted("  ", 10, ask), {}) is None
    assert calls == []


def test_counting_is_given_up_where_the_server_does_not_play_along():
    def dies(texts):
        raise EngineDied("gone")
        yield

    def says_nothing(texts):
        return {}
        yield

    assert play(counted("x" * 30, 10, dies), {}) is None
    assert play(counted("x" * 30, 10, says_nothing), {}) is None


@given(words=st.integers(10, 60), special=st.integers(0, 3))
def test_what_the_pieces_add_is_taken_off(words, special):
    """A tokenizer of one token per word that puts special tokens around each text."""

    def ask(texts):
        return {"prompt_eval_count": sum(len(text.split()) + special for text in texts)}
        yield

    assert play(counted("word " * words, 25, ask), {}) == words + special


@given(st.text("ab \n", max_size=200), st.integers(1, 30))
def test_no_letter_is_lost_and_no_piece_is_too_long(text, size):
    found = pieces(text, size)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(0 < len(piece) <= size for piece in found)


@pytest.mark.parametrize(
    "name", ["x", "X:latest", "library/x", "registry.ollama.ai/library/x", " x "]
)
def test_one_model_has_many_names(name):
    """All of these answered with the model `x` on a real server."""
    assert full_name(name) == "x:latest"
    assert full_name("me/x") == "me/x:latest"
