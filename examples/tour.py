"""The main job in one program: a chain, a tool call, an extraction, a query engine, a stream.

Nothing in here names an engine. Run it as it is and it uses whatever is configured or running, or
else starts an embedded llama.cpp by itself. Run it again with ENGINEKIT_ENGINE set and it runs
elsewhere:

    python examples/tour.py
    ENGINEKIT_ENGINE=ollama python examples/tour.py
"""

from __future__ import annotations

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from llama_index.core import Document, SimpleKeywordTableIndex
from pydantic import BaseModel, Field

from enginekit.langchain import EngineKitChat
from enginekit.llama_index import EngineKitLLM

DOCUMENTS = {
    "harbour": "The harbour opens at six in the morning. Boats must sign in at the blue office.",
    "library": "The library lends books for three weeks. Late books cost ten cents a day.",
    "garden": "The garden has two hundred roses. It is open from April to October.",
}


@tool
def get_weather(city: str) -> str:
    """Look up the weather in a city."""
    return f"It is 18 degrees and dry in {city}."


class Person(BaseModel):
    """A person who is mentioned in a text."""

    name: str = Field(description="the person's first name")
    age: int = Field(description="the person's age in years")


def call_a_tool(model: EngineKitChat) -> None:
    """A chain that must call a tool: the choice is forced, the arguments follow the schema."""
    prompt = ChatPromptTemplate.from_messages([("human", "What is the weather in {city}?")])
    chain = prompt | model.bind_tools([get_weather], tool_choice="get_weather")
    (call,) = chain.invoke({"city": "Rome"}).tool_calls
    print(f"tool call        {call['name']}({call['args']}) -> {get_weather.invoke(call['args'])}")


def extract(model: EngineKitChat) -> None:
    """Structured extraction: a pydantic class in, an instance of it out."""
    person = model.with_structured_output(Person).invoke("John is 31 years old. Who is it?")
    print(f"extraction       {person!r}")


def query_documents(llm: EngineKitLLM) -> None:
    """A LlamaIndex query engine over three documents, found by keyword, no embeddings."""
    index = SimpleKeywordTableIndex.from_documents(
        [Document(text=text, doc_id=name) for name, text in DOCUMENTS.items()], llm=llm
    )
    engine = index.as_query_engine(llm=llm, retriever_mode="simple")
    answer = engine.query("How long does the library lend books?")
    sources = ", ".join(str(node.node.ref_doc_id) for node in answer.source_nodes)
    print(f"query engine     {str(answer).strip()!r} (from: {sources})")


def stream(model: EngineKitChat) -> None:
    """A chain whose answer is printed as it comes."""
    prompt = ChatPromptTemplate.from_messages([("human", "Name three colours of {thing}.")])
    chain = prompt | model | StrOutputParser()
    print("stream           ", end="", flush=True)
    for piece in chain.stream({"thing": "roses"}):
        print(piece.replace("\n", " "), end="", flush=True)
    print()


def main() -> None:
    """Run all four, on whatever engine the settings say."""
    model = EngineKitChat(temperature=0, seed=7, max_tokens=120)
    print(f"engine           {model.client.describe()}")
    call_a_tool(model)
    extract(model)
    query_documents(EngineKitLLM(temperature=0, seed=7, max_tokens=60))
    stream(model)


if __name__ == "__main__":
    main()
