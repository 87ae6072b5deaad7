"""A LangChain chain: prompt, model, parser; as a whole, as a stream, and several at once.

    pip install 'enginekit[langchain,embedded]'
    python examples/chain.py
    ENGINEKIT_ENGINE=vllm ENGINEKIT_BASE_URL=http://gpu:8000 python examples/chain.py "sea otters"

The argument is the subject. Nothing in here names an engine or a model.
"""

from __future__ import annotations

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from enginekit.langchain import EngineKitChat


def main(subject: str = "lighthouses") -> None:
    """Run one chain in the three ways a chain can be run."""
    model = EngineKitChat(temperature=0, max_tokens=60)
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Answer in one short sentence."), ("human", "Tell me about {subject}.")]
    )
    chain = prompt | model | StrOutputParser()

    print("whole:   ", chain.invoke({"subject": subject}))

    print("streamed: ", end="", flush=True)
    for piece in chain.stream({"subject": subject}):
        print(piece, end="", flush=True)
    print()

    both = chain.batch([{"subject": "whales"}, {"subject": "tides"}])
    print("batch:   ", " / ".join(both))

    reply = model.invoke("Hi.")
    print("engine:  ", reply.response_metadata["engine"], reply.usage_metadata)


if __name__ == "__main__":
    main(*sys.argv[1:2])
