"""What LlamaIndex's users expect to just work, on two real llama.cpp servers: one chats, one embeds.

The weights are scripted, so the answers are known; the vectors are real ones of those weights.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel

from enginekit.errors import ContextOverflow
from enginekit.llama_index import EngineKitEmbedding, EngineKitLLM
from tests.contract.conftest import Place, place
from tests.llama_index.subjects import GREETING, tools
from tests.standard.conftest import embedding_place

__all__ = ["embedding_place", "place"]

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.usefixtures("swept"),
    pytest.mark.filterwarnings("ignore:<aiosqlite:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
]


class Person(BaseModel):
    """A person that a text speaks of."""

    name: str
    age: int


class Line(BaseModel):
    """A line of an invoice."""

    quantity: int
    item: str
    amount: float


class Invoice(BaseModel):
    """An invoice."""

    number: str
    lines: list[Line]
    total: float
    note: str | None = None


def given(place: Place) -> dict[str, Any]:
    return {name: value for name, value in place.settings.items() if value is not None}


@pytest.fixture
def llm(place: Place) -> EngineKitLLM:
    return EngineKitLLM(**given(place), temperature=0, max_tokens=200, max_retries=0)


@pytest.fixture
def embedding(embedding_place: Place) -> EngineKitEmbedding:
    return EngineKitEmbedding(**given(embedding_place), embed_batch_size=4, max_retries=0)


@pytest.fixture
def settings(llm: EngineKitLLM, embedding: EngineKitEmbedding) -> Iterator[None]:
    before = Settings._llm, Settings._embed_model, Settings._tokenizer
    Settings.llm, Settings.embed_model, Settings.tokenizer = llm, embedding, llm.tokenizer
    yield
    Settings._llm, Settings._embed_model, Settings._tokenizer = before


TEXTS = [f"The Danube flows through town {number}." for number in range(6)]


@pytest.fixture
def index(settings: None) -> VectorStoreIndex:
    return VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS])


# ---------------------------------------------------------------------------------- retrieval


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
def test_a_query_engine_in_every_mode(index: VectorStoreIndex, mode: Any) -> None:
    found = index.as_query_engine(response_mode=mode).query("Where does it flow?")
    assert str(found) == GREETING
    assert len(found.source_nodes) == 2


async def test_a_query_engine_streams_and_waits(index: VectorStoreIndex) -> None:
    streaming: Any = index.as_query_engine(streaming=True)
    assert "".join(streaming.query("Where?").response_gen) == GREETING
    answer = await streaming.aquery("Where?")
    assert "".join([piece async for piece in answer.async_response_gen()]) == GREETING
    assert str(await index.as_query_engine(use_async=True).aquery("Where?")) == GREETING


def test_a_query_engine_answers_in_an_object(index: VectorStoreIndex, llm: EngineKitLLM) -> None:
    for engine in (
        index.as_query_engine(output_cls=Person),
        index.as_query_engine(llm=llm.as_structured_llm(Person)),
    ):
        found: Any = engine.query("PERSON")
        assert found.response == Person(name="Ann", age=31)


@pytest.mark.parametrize(
    "mode", ["context", "condense_question", "condense_plus_context", "simple"]
)
async def test_a_chat_engine_in_every_mode(index: VectorStoreIndex, mode: Any) -> None:
    engine = index.as_chat_engine(chat_mode=mode)
    assert str(await engine.achat("Hello")) == GREETING
    streamed = await engine.astream_chat("Hello again")
    assert "".join([piece async for piece in streamed.async_response_gen()]) == GREETING
    assert len(engine.chat_history) == 4


# ---------------------------------------------------------------------------------- embedding


async def test_vectors_are_the_same_on_every_path(embedding: EngineKitEmbedding) -> None:
    single = [embedding.get_text_embedding(text) for text in TEXTS]
    parallel = embedding.model_copy(update={"num_workers": 3})
    for many in (
        embedding.get_text_embedding_batch(TEXTS),
        await embedding.aget_text_embedding_batch(TEXTS),
        await parallel.aget_text_embedding_batch(TEXTS),
        pickle.loads(pickle.dumps(embedding)).get_text_embedding_batch(TEXTS),
    ):
        assert len(many) == len(TEXTS)
        for one, other in zip(single, many, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    assert await embedding.aget_query_embedding(TEXTS[0]) == pytest.approx(single[0], abs=1e-4)


def test_a_text_longer_than_the_model_reads_is_an_error(embedding: EngineKitEmbedding) -> None:
    with pytest.raises(ContextOverflow):
        embedding.get_text_embedding("word " * 20_000)


def test_an_ingestion_pipeline_takes_it_as_a_step(settings: None, llm: EngineKitLLM) -> None:
    steps = [SentenceSplitter(chunk_size=64, chunk_overlap=5), Settings.embed_model]
    nodes = IngestionPipeline(transformations=steps).run(documents=[Document(text=" ".join(TEXTS))])
    assert len(nodes) > 1
    assert all(node.embedding for node in nodes)
    assert all(len(llm.tokenizer(node.get_content())) <= 64 for node in nodes)


# ---------------------------------------------------------------------------------- agents and objects


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_agent_calls_two_tools_and_answers(llm: EngineKitLLM, streaming: bool) -> None:
    agent = FunctionAgent(llm=llm, tools=tools(), streaming=streaming)
    answer = await agent.run("CALLS")
    assert [call.tool_output.content for call in answer.tool_calls] == ["sunny in Oslo", "5"]
    assert str(answer) == GREETING


async def test_an_agent_hands_back_an_object(llm: EngineKitLLM) -> None:
    answer = await FunctionAgent(llm=llm, tools=tools(), output_cls=Person).run("PERSON")
    assert answer.structured_response == {"name": "Ann", "age": 31}


async def test_nested_objects_in_every_way_of_asking(llm: EngineKitLLM) -> None:
    prompt = PromptTemplate("{what}")
    whole = llm.structured_predict(Invoice, prompt, what="INVOICE")
    assert [line.amount for line in whole.lines] == [91.0, 119.0]
    assert whole.note is None
    assert await llm.astructured_predict(Invoice, prompt, what="INVOICE") == whole
    streamed = list(llm.stream_structured_predict(Invoice, prompt, what="INVOICE"))
    assert streamed[-1] == whole
    later = await llm.astream_structured_predict(Invoice, prompt, what="INVOICE")
    assert [item async for item in later][-1] == whole
    structured = llm.as_structured_llm(Invoice)
    assert structured.complete("INVOICE").raw == whole
    assert (await structured.acomplete("INVOICE")).raw == whole


def test_events_come_in_pairs(llm: EngineKitLLM) -> None:
    class Seen(BaseEventHandler):
        names: list[str] = []

        @classmethod
        def class_name(cls) -> str:
            return "Seen"

        def handle(self, event: Any, **kwargs: Any) -> None:
            self.names.append(type(event).__name__)

    seen = Seen()
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(seen)
    try:
        llm.complete("Hello")
        list(llm.stream_complete("Hello"))
        llm.structured_predict(Person, PromptTemplate("PERSON"))
    finally:
        dispatcher.event_handlers.remove(seen)
    rest = [name for name in seen.names if "InProgress" not in name]
    assert rest == [
        "LLMCompletionStartEvent", "LLMCompletionEndEvent",
        "LLMCompletionStartEvent", "LLMCompletionEndEvent",
        "LLMStructuredPredictStartEvent", "LLMChatStartEvent",
        "LLMChatEndEvent", "LLMStructuredPredictEndEvent",
    ]  # fmt: skip
