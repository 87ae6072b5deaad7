"""Retrieval by meaning with LlamaIndex: a handbook is cut up, embedded, searched and asked.

    pip install 'enginekit[llama-index,embedded]'
    python examples/rag.py "When does the harbour open?"
    ENGINEKIT_ENGINE=ollama ENGINEKIT_MODEL=llama3.1 ENGINEKIT_EMBED_MODEL=nomic-embed-text \
        python examples/rag.py "May I take a map home?"

With nothing set, a small chat model embeds as well: enough to see it work. For answers worth having
name an embedding model, as in the second command. A vLLM or llama.cpp server either chats or embeds;
give the one that embeds by ENGINEKIT_EMBED_URL.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.node_parser import MarkdownNodeParser

from enginekit.llama_index import EngineKitEmbedding, EngineKitLLM

HANDBOOK = Path(__file__).parent / "data" / "handbook.md"


def main(question: str = "What does a late library book cost?") -> None:
    """Index the handbook and answer one question from it."""
    llm = EngineKitLLM(temperature=0, max_tokens=80)
    embed_model = EngineKitEmbedding(base_url=os.environ.get("ENGINEKIT_EMBED_URL"))

    documents = SimpleDirectoryReader(input_files=[HANDBOOK]).load_data()
    nodes = MarkdownNodeParser().get_nodes_from_documents(documents)
    index = VectorStoreIndex(nodes, embed_model=embed_model)
    print(f"{len(nodes)} sections, {len(embed_model.get_text_embedding('x'))} numbers each")

    engine = index.as_query_engine(llm=llm, similarity_top_k=2, streaming=True)
    answer = engine.query(question)
    print("answer: ", end="", flush=True)
    for piece in answer.response_gen:
        print(piece, end="", flush=True)
    print()
    for node in answer.source_nodes:
        title = node.get_content().splitlines()[0].lstrip("# ")
        print(f"source:  {title} (similarity {node.score:.2f})")


if __name__ == "__main__":
    main(*sys.argv[1:2])
