"""Where a setting's value came from, and what keywords of other libraries mean here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import SecretStr, ValidatorFunctionWrapHandler, WrapValidator

from enginekit import config

FOREIGN: Mapping[str, str] = {
    "num_ctx": "context_window",
    "num_predict": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "repetition_window",
    "stop_sequences": "stop",
    "openai_api_base": "base_url",
    "openai_api_key": "api_key",
    "inference_server_url": "base_url",
    "endpoint_url": "base_url",
    "request_timeout": "timeout",
    "extra_body": "engine_options",
    "model_kwargs": "engine_options",
    "options": "engine_options",
    "model_id": "model",
    "repo_id": "model",
    "model_path": "model",
    "n_ctx": "context",
    "reasoning_effort": "reasoning",
    "think": "reasoning",
    "chat_template_kwargs": "template_options",
    "format": "response_format",
    "guided_json": "response_format",
    "top_n_sigma": "engine_options",
}
"""Names that other libraries give to our settings."""


NEEDLESS: Mapping[str, str] = {
    "stream_usage": "token counts are always asked for; leave it out",
    "stream_options": "token counts are always asked for; leave it out",
    "validate_model_on_init": "nothing is asked at construction; call connect() to check",
    "output_format": "use with_structured_output(), or response_format= for one call",
    "check_embedding_ctx_length": "texts go out as texts; leave it out",
}
"""Names of other libraries that need no setting here, and why."""


class EnvText(str):
    """A setting read from the environment."""

    __slots__ = ()


class EnvSecret(SecretStr):
    """A key read from the environment."""


def _kept(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    # Frameworks rebuild a model from its attributes; what came from the environment must stay so.
    return value if isinstance(value, (EnvText, EnvSecret)) else handler(value)


kept = WrapValidator(_kept)


def from_environment(name: str) -> Callable[[], Any]:
    """A default factory that reads `ENGINEKIT_NAME`."""
    variable = config.PREFIX + name.upper()

    def read() -> EnvText | None:
        value = os.environ.get(variable)
        return EnvText(value) if value else None

    return read


def key_from_environment() -> EnvSecret | None:
    """A default factory that reads `ENGINEKIT_API_KEY`."""
    value = os.environ.get(config.PREFIX + "API_KEY")
    return EnvSecret(value) if value else None
