"""LangChain classes over every engine: chat model, embeddings, text completion, reranker.

Needs `pip install enginekit[langchain]`. Names are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enginekit._lazy import resolved

if TYPE_CHECKING:
    from enginekit.kit.instance import OmittedSetting as OmittedSetting
    from enginekit.langchain._register import register as register
    from enginekit.langchain._tokens import TokenCount as TokenCount
    from enginekit.langchain.chat import ChatEngineKit as ChatEngineKit
    from enginekit.langchain.chat import EngineKitChat as EngineKitChat
    from enginekit.langchain.completion import EngineKitLLM as EngineKitLLM
    from enginekit.langchain.embeddings import EngineKitEmbeddings as EngineKitEmbeddings
    from enginekit.langchain.rerank import EngineKitRerank as EngineKitRerank

_PUBLIC = {
    "ChatEngineKit": "enginekit.langchain.chat",
    "EngineKitChat": "enginekit.langchain.chat",
    "EngineKitEmbeddings": "enginekit.langchain.embeddings",
    "EngineKitLLM": "enginekit.langchain.completion",
    "EngineKitRerank": "enginekit.langchain.rerank",
    "OmittedSetting": "enginekit.kit.instance",
    "TokenCount": "enginekit.langchain._tokens",
    "register": "enginekit.langchain._register",
}

__all__ = [
    "ChatEngineKit",
    "EngineKitChat",
    "EngineKitEmbeddings",
    "EngineKitLLM",
    "EngineKitRerank",
    "OmittedSetting",
    "TokenCount",
    "register",
]


def __getattr__(name: str) -> Any:
    value = resolved(
        __name__,
        _PUBLIC,
        name,
        needs="langchain-core",
        foreign=("langchain_core", "pydantic"),
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
