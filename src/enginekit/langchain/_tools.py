"""Tools, tool choices and response formats of LangChain to ours. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.utils.function_calling import convert_to_openai_tool

from enginekit.errors import ConfigError, describe_choices
from enginekit.types import Constraint, Tool, ToolChoice

_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


def openai_tool(tool: Any, strict: bool | None = None) -> dict[str, Any]:
    """Any kind of tool LangChain knows (tool, function, class, schema) in OpenAI's spelling."""
    if isinstance(tool, dict) and tool.get("type") == "function" and "function" in tool:
        return (
            tool if strict is None else {**tool, "function": {**tool["function"], "strict": strict}}
        )
    return convert_to_openai_tool(tool, strict=strict)


def to_tools(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Our tools."""
    out = []
    for tool in tools:
        function = openai_tool(tool).get("function")
        if function is None:
            raise ConfigError(
                f"a tool of type {tool.get('type')!r} runs on a provider's own servers; "
                "self-hosted engines take functions only"
            )
        out.append(
            Tool(
                name=function["name"],
                description=function.get("description") or "",
                parameters=function.get("parameters") or _NO_PARAMETERS,
                strict=function.get("strict"),
            )
        )
    return tuple(out)


def to_tool_choice(choice: Any, names: Sequence[str]) -> ToolChoice | None:
    """Our tool choice for any of LangChain's spellings; None when the model decides by default.

    `"any"`, `"required"` and True force some call; a name or OpenAI's mapping that one. Raises
    ConfigError for a tool that is not among `names`.
    """
    if choice is None:
        return None
    if choice is True or choice in ("any", "required"):
        return ToolChoice(mode="required")
    if choice is False or choice == "none":
        return ToolChoice(mode="none")
    if choice == "auto":
        return ToolChoice(mode="auto")
    name = choice
    if isinstance(choice, Mapping):
        if choice.get("type") in ("auto", "any", "none") and "name" not in choice:
            return to_tool_choice(choice["type"], names)
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    if not isinstance(name, str):
        raise ConfigError(
            f"tool_choice {choice!r} is not one of 'auto', 'any', 'none', a tool's name or "
            "{'type': 'function', 'function': {'name': …}}"
        )
    if name not in names:
        near = describe_choices(tuple(names), name, 1)
        raise ConfigError(
            f"tool_choice names {name!r}, which is not among the tools"
            + (f"; did you mean {near[0]!r}?" if near else f" ({', '.join(names) or 'none given'})")
        )
    return ToolChoice(mode="named", name=name)


def openai_tool_choice(choice: ToolChoice | None) -> str | dict[str, Any] | None:
    """The choice in the one spelling that we bind, so that traces and caches agree."""
    if choice is None:
        return None
    if choice.mode == "named":
        return {"type": "function", "function": {"name": choice.name}}
    return choice.mode


def to_constraint(response_format: Any) -> Constraint | None:
    """What the text must match, from a `response_format`.

    Types: `text`, `json_object`, `json_schema` as OpenAI has them, and `regex`, `choice`,
    `grammar`, each with its value under the same key. A class or a bare JSON schema counts as
    `json_schema`. Raises ConfigError for anything else.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        return _schema_constraint(schema_of(response_format))
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = response_format.get("schema")
        return Constraint(kind="json") if schema is None else _schema_constraint(schema)
    if kind == "json_schema":
        inner = response_format.get("json_schema", response_format)
        schema = inner.get("schema")
        if not isinstance(schema, Mapping):
            raise ConfigError("response_format of type json_schema has no schema")
        return Constraint(
            kind="json_schema",
            value=schema,
            name=str(inner.get("name") or schema_name(schema)),
            strict=inner.get("strict"),
        )
    if kind in ("regex", "grammar") and isinstance(response_format.get(kind), str):
        return Constraint(kind=kind, value=response_format[kind])
    if kind == "choice" and response_format.get("choice"):
        return Constraint(kind="choice", value=tuple(map(str, response_format["choice"])))
    if kind in ("object", "array") or "properties" in response_format or "$ref" in response_format:
        return _schema_constraint(response_format)
    raise ConfigError(
        f"response_format {response_format!r} is not understood; use one of type text, "
        "json_object, json_schema, regex, choice, grammar"
    )


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


def schema_name(schema: Mapping[str, Any]) -> str:
    """A name for a schema that wire formats accept."""
    title = str(schema.get("title") or "answer")
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in title)[:64]


def _schema_constraint(schema: Mapping[str, Any]) -> Constraint:
    return Constraint(kind="json_schema", value=schema, name=schema_name(schema))
