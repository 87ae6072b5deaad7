"""LlamaIndex classes over every engine: LLM, embedding model, reranker.

Needs `pip install enginekit[llama-index]`. Names are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enginekit._lazy import resolved

if TYPE_CHECKING:
    from enginekit.kit.instance import OmittedSetting as OmittedSetting
    from enginekit.llama_index._errors import BadReply as BadReply
    from enginekit.llama_index._tokenizer import EngineTokenizer as EngineTokenizer
    from enginekit.llama_index.embedding import EngineKitEmbedding as EngineKitEmbedding
    from enginekit.llama_index.llm import EngineKitLLM as EngineKitLLM
    from enginekit.llama_index.rerank import EngineKitRerank as EngineKitRerank

_PUBLIC = {
    "BadReply": "enginekit.llama_index._errors",
    "EngineKitEmbedding": "enginekit.llama_index.embedding",
    "EngineKitLLM": "enginekit.llama_index.llm",
    "EngineKitRerank": "enginekit.llama_index.rerank",
    "EngineTokenizer": "enginekit.llama_index._tokenizer",
    "OmittedSetting": "enginekit.kit.instance",
}

__all__ = [
    "BadReply",
    "EngineKitEmbedding",
    "EngineKitLLM",
    "EngineKitRerank",
    "EngineTokenizer",
    "OmittedSetting",
]


def __getattr__(name: str) -> Any:
    value = resolved(
        __name__,
        _PUBLIC,
        name,
        needs="llama-index-core",
        foreign=("llama_index", "llama_index_instrumentation", "pydantic"),
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
