"""Tool choices, tools and response formats in OpenAI's spelling to ours. Pure, of no framework."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from enginekit.errors import ConfigError, describe_choices
from enginekit.types import Constraint, Tool, ToolChoice

_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
KINDS = "text, json_object, json_schema, regex, choice, grammar"
"""The types of a response format."""


def tools_of(made: Iterable[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Our tools for functions in OpenAI's spelling.

    Raises ConfigError for a tool that is no function: those run on a provider's own servers.
    """
    out = []
    for tool in made:
        function = tool.get("function", tool)
        if tool.get("type", "function") != "function" or "name" not in function:
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
    """Our tool choice for any of the frameworks' spellings; None when the model decides by default.

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
            f"tool_choice {choice!r} is not one of 'auto', 'any', 'required', 'none', a tool's "
            "name or {'type': 'function', 'function': {'name': …}}"
        )
    if name not in names:
        near = describe_choices(tuple(names), name, 1)
        raise ConfigError(
            f"tool_choice names {name!r}, which is not among the tools"
            + (f"; did you mean {near[0]!r}?" if near else f" ({', '.join(names) or 'none given'})")
        )
    return ToolChoice(mode="named", name=name)


def to_constraint(response_format: Mapping[str, Any]) -> Constraint | None:
    """What the text must match, from a `response_format`; None for text of any kind.

    Types: `text`, `json_object`, `json_schema` as OpenAI has them, and `regex`, `choice`,
    `grammar`, each with its value under the same key. A bare JSON schema counts as `json_schema`.
    Raises ConfigError for anything else.
    """
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = response_format.get("schema")
        return Constraint(kind="json") if schema is None else schema_constraint(schema)
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
        return schema_constraint(response_format)
    raise ConfigError(
        f"response_format {response_format!r} is not understood; use one of type {KINDS}"
    )


def schema_constraint(schema: Mapping[str, Any]) -> Constraint:
    """The constraint to a JSON schema."""
    return Constraint(kind="json_schema", value=schema, name=schema_name(schema))


def schema_name(schema: Mapping[str, Any]) -> str:
    """A name for a schema that wire formats accept."""
    title = str(schema.get("title") or "answer")
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in title)[:64]
