"""LangChain's integration suite for chat models, with every flag that the server honestly has."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

from enginekit.langchain import EngineKitChat
from tests.standard.conftest import Served
from tests.standard.media import download

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(300)]


class Standard(ChatModelIntegrationTests):
    """What all the suites below share; the server is found when the tests start."""

    served: Served

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _connected(cls, suite: Served) -> None:
        cls.served = suite

    @pytest.fixture(autouse=True)
    def _no_downloads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Upstream's media tests fetch their files; these come from here instead."""
        monkeypatch.setattr(httpx, "get", download)
        monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "enginekit")

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return EngineKitChat

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return dict(self.served.settings)

    @property
    def supports_json_mode(self) -> bool:
        return self.served.has("json")

    @property
    def supports_image_inputs(self) -> bool:
        return self.served.has("images")

    @property
    def supports_image_urls(self) -> bool:
        return self.served.has("image_urls")

    @property
    def supports_image_tool_message(self) -> bool:
        return self.served.has("images")

    @property
    def supports_audio_inputs(self) -> bool:
        return self.served.has("audio")

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return self.served.other


class TestStandardChat(Standard):
    """Structured output by constrained decoding, the default."""


class TestStandardChatByTools(Standard):
    """The same suite with structured output by forced tool calls."""

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "function_calling"}
