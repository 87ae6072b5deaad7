"""From ChatOllama, and from ChatOpenAI with a base_url, in two lines each.

    pip install 'enginekit[langchain]'
    python examples/migrate.py ollama llama3.1 http://127.0.0.1:11434
    python examples/migrate.py vllm Qwen/Qwen3-8B http://127.0.0.1:8000/v1

The arguments are the engine that runs there, the model, and the address your program uses today.
The chains around the model stay as they are.
"""

from __future__ import annotations

import sys

from langchain_core.output_parsers import StrOutputParser

from enginekit.errors import UnknownSetting


def from_chat_ollama(model_name: str, address: str) -> str:
    """`num_predict` becomes `max_tokens`; everything that both have keeps its name."""
    # from langchain_ollama import ChatOllama
    # model = ChatOllama(model=model_name, base_url=address, temperature=0, num_predict=60)
    from enginekit.langchain import EngineKitChat

    model = EngineKitChat(model=model_name, base_url=address, temperature=0, max_tokens=60)
    return (model | StrOutputParser()).invoke("Hi.")


def from_chat_openai(model_name: str, address: str) -> str:
    """The same words; the engine behind the address is recognised by itself."""
    # from langchain_openai import ChatOpenAI
    # model = ChatOpenAI(model=model_name, base_url=address, temperature=0, max_tokens=60)
    from enginekit.langchain import EngineKitChat

    model = EngineKitChat(model=model_name, base_url=address, temperature=0, max_tokens=60)
    return (model | StrOutputParser()).invoke("Hi.")


def a_forgotten_keyword() -> str:
    """An old name is an error that says the new one; it is never dropped."""
    from enginekit.langchain import EngineKitChat

    try:
        EngineKitChat(model="llama3.1", num_predict=60)  # type: ignore[call-arg]
    except UnknownSetting as error:
        return str(error)
    raise AssertionError("num_predict was taken")


def main(engine: str = "ollama", model: str = "llama3.1", address: str = "") -> None:
    """Run the migrated program for the engine that is there."""
    if engine == "ollama":
        print("was ChatOllama:", from_chat_ollama(model, address or "http://127.0.0.1:11434"))
    else:
        print("was ChatOpenAI:", from_chat_openai(model, address or "http://127.0.0.1:8000/v1"))
    print("left over:     ", a_forgotten_keyword())


if __name__ == "__main__":
    main(*sys.argv[1:4])
