"""Tools, tool choices and response formats of LangChain to ours. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.utils.function_calling import convert_to_openai_tool

from enginekit.kit import formats
from enginekit.kit.formats import tools_of
from enginekit.types import Constraint, Tool, ToolChoice


def openai_tool(tool: Any, strict: bool | None = None) -> dict[str, Any]:
    """Any kind of tool LangChain knows (tool, function, class, schema) in OpenAI's spelling."""
    if isinstance(tool, dict) and tool.get("type") == "function" and "function" in tool:
        return (
            tool if strict is None else {**tool, "function": {**tool["function"], "strict": strict}}
        )
    return convert_to_openai_tool(tool, strict=strict)


def to_tools(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Our tools."""
    return tools_of(openai_tool(tool) for tool in tools)


def openai_tool_choice(choice: ToolChoice | None) -> str | dict[str, Any] | None:
    """The choice in the one spelling that we bind, so that traces and caches agree."""
    if choice is None:
        return None
    if choice.mode == "named":
        return {"type": "function", "function": {"name": choice.name}}
    return choice.mode


def to_constraint(response_format: Any) -> Constraint | None:
    """What the text must match: a `response_format` of any type, a class or a bare JSON schema."""
    if response_format is None:
        return None
    if isinstance(response_format, Mapping):
        return formats.to_constraint(response_format)
    return formats.schema_constraint(schema_of(response_format))


def is_schema(value: Any) -> bool:
    """Whether this describes an object with named fields; `int`, `list[X]` and `X | Y` do not."""
    if isinstance(value, Mapping):
        return True
    if not isinstance(value, type):
        return callable(value) and not hasattr(value, "__origin__")
    fields = ("model_json_schema", "__fields__", "__required_keys__", "__dataclass_fields__")
    return any(hasattr(value, name) for name in fields)


def schema_of(schema: Any) -> dict[str, Any]:
    """The JSON schema of a pydantic class (v1 or v2), a TypedDict, an OpenAI function or a schema."""
    if isinstance(schema, type) and hasattr(schema, "model_json_schema"):
        made: dict[str, Any] = schema.model_json_schema()
        return made
    if isinstance(schema, Mapping):
        function = schema.get("function", schema)
        if "parameters" in function and "name" in function:
            return {
                "title": function["name"],
                **({"description": d} if (d := function.get("description")) else {}),
                **function["parameters"],
            }
        if isinstance(schema.get("json_schema"), Mapping):
            return dict(schema["json_schema"]["schema"])
        return dict(schema)
    function = convert_to_openai_tool(schema)["function"]
    return {
        "title": function["name"],
        **({"description": d} if (d := function.get("description")) else {}),
        **function["parameters"],
    }
