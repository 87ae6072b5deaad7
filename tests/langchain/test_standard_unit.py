"""LangChain's own unit suites, with every flag that holds."""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests

from enginekit.langchain import EngineKitChat, EngineKitEmbeddings


class TestStandardChat(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return EngineKitChat

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "llama3.1", "engine": "vllm", "base_url": "http://127.0.0.1:9"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return (
            {
                "ENGINEKIT_MODEL": "llama3.1",
                "ENGINEKIT_ENGINE": "vllm",
                "ENGINEKIT_BASE_URL": "http://127.0.0.1:9",
                "ENGINEKIT_API_KEY": "secret",
            },
            {},
            {
                "model": "llama3.1",
                "engine": "vllm",
                "base_url": "http://127.0.0.1:9",
                "api_key": "secret",
            },
        )

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return True

    @property
    def supports_audio_inputs(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "another-model"


class TestStandardEmbeddings(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return EngineKitEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "minilm", "engine": "llamacpp", "base_url": "http://127.0.0.1:9"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return (
            {"ENGINEKIT_EMBED_MODEL": "minilm", "ENGINEKIT_API_KEY": "secret"},
            {},
            {"model": "minilm", "api_key": "secret"},
        )
