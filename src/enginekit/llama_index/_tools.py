"""Tools, tool choices and response formats of LlamaIndex to ours. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from enginekit.errors import ConfigError
from enginekit.kit import formats
from enginekit.kit.formats import schema_name, tools_of
from enginekit.types import Constraint, Tool


def openai_tool(tool: Any) -> dict[str, Any]:
    """A LlamaIndex tool, its metadata or a dict in OpenAI's spelling, which events can hold.

    Raises ConfigError for anything else.
    """
    if isinstance(tool, Mapping):
        return dict(tool)
    metadata = getattr(tool, "metadata", tool)
    if not hasattr(metadata, "get_parameters_dict"):
        raise ConfigError(
            f"a {type(tool).__name__} is not a tool; wrap a function by FunctionTool.from_defaults"
        )
    return {
        "type": "function",
        "function": {
            "name": metadata.get_name(),
            "description": metadata.description,
            "parameters": metadata.get_parameters_dict(),
        },
    }


def to_tools(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Our tools."""
    return tools_of(openai_tool(tool) for tool in tools)


def schema_format(output_cls: type[Any]) -> dict[str, Any]:
    """The `response_format` that constrains an answer to a pydantic class."""
    schema = output_cls.model_json_schema()
    return {
        "type": "json_schema",
        "json_schema": {"name": schema_name(schema), "schema": schema},
    }


def to_constraint(response_format: Any) -> Constraint | None:
    """What the text must match: a `response_format` of any type, a pydantic class or a JSON schema."""
    if response_format is None:
        return None
    if isinstance(response_format, type) and hasattr(response_format, "model_json_schema"):
        return formats.schema_constraint(response_format.model_json_schema())
    if not isinstance(response_format, Mapping):
        raise ConfigError(
            f"response_format {response_format!r} is not understood; use a pydantic class, a JSON "
            f"schema or a mapping of type {formats.KINDS}"
        )
    return formats.to_constraint(response_format)
