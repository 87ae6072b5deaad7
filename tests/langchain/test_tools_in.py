"""Tools, choices and response formats in every spelling LangChain's callers use."""

from __future__ import annotations

from typing import Any, TypedDict

import pydantic
import pydantic.v1
import pytest
from langchain_core.tools import tool

from enginekit.errors import ConfigError
from enginekit.kit.formats import schema_name, to_tool_choice
from enginekit.langchain._tools import (
    openai_tool,
    openai_tool_choice,
    schema_of,
    to_constraint,
    to_tools,
)
from enginekit.types import Constraint, ToolChoice


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def plain_add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Person(pydantic.BaseModel):
    """Somebody."""

    name: str


class OldPerson(pydantic.v1.BaseModel):
    """Somebody."""

    name: str


class DictPerson(TypedDict):
    """Somebody."""

    name: str


ANTHROPIC = {
    "name": "add",
    "description": "Add two numbers.",
    "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}},
}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (add, "add"),
        (plain_add, "plain_add"),
        (Person, "Person"),
        (OldPerson, "OldPerson"),
        (DictPerson, "DictPerson"),
        (Person.model_json_schema(), "Person"),
        (openai_tool(add), "add"),
        (ANTHROPIC, "add"),
    ],
)
def test_every_kind_of_tool(given: Any, name: str) -> None:
    (made,) = to_tools([given])
    assert made.name == name
    assert made.description in ("Add two numbers.", "Somebody.")
    assert made.parameters["type"] == "object"
    assert made.parameters["properties"]


def test_strict_reaches_a_tool_that_is_an_openai_mapping_already() -> None:
    (made,) = to_tools([openai_tool(openai_tool(add), True)])
    assert made.strict is True


def test_a_tool_without_arguments_has_an_empty_object() -> None:
    (made,) = to_tools([{"type": "function", "function": {"name": "now"}}])
    assert made.parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, None),
        ("auto", ToolChoice(mode="auto")),
        ("none", ToolChoice(mode="none")),
        ("any", ToolChoice(mode="required")),
        ("required", ToolChoice(mode="required")),
        (True, ToolChoice(mode="required")),
        ("add", ToolChoice(mode="named", name="add")),
        (
            {"type": "function", "function": {"name": "add"}},
            ToolChoice(mode="named", name="add"),
        ),
        ({"type": "tool", "name": "add"}, ToolChoice(mode="named", name="add")),
        ({"type": "any"}, ToolChoice(mode="required")),
    ],
)
def test_every_tool_choice(given: Any, meant: ToolChoice | None) -> None:
    choice = to_tool_choice(given, ["add", "subtract"])
    assert choice == meant
    assert to_tool_choice(openai_tool_choice(choice), ["add"]) == meant


def test_a_choice_that_is_no_tool_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'subtract'"):
        to_tool_choice("substract", ["add", "subtract"])
    with pytest.raises(ConfigError, match="is not one of"):
        to_tool_choice(3, ["add"])


SCHEMA = {"title": "Person", "type": "object", "properties": {"name": {"type": "string"}}}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, Constraint(kind="json")),
        (
            {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA, "strict": True}},
            Constraint(kind="json_schema", value=SCHEMA, name="p", strict=True),
        ),
        (
            {"type": "json_object", "schema": SCHEMA},
            Constraint(kind="json_schema", value=SCHEMA, name="Person"),
        ),
        (SCHEMA, Constraint(kind="json_schema", value=SCHEMA, name="Person")),
        ({"type": "regex", "regex": "a+"}, Constraint(kind="regex", value="a+")),
        ({"type": "choice", "choice": ["a", "b"]}, Constraint(kind="choice", value=("a", "b"))),
        (
            {"type": "grammar", "grammar": "root ::= x"},
            Constraint(kind="grammar", value="root ::= x"),
        ),
    ],
)
def test_every_response_format(given: Any, meant: Constraint | None) -> None:
    assert to_constraint(given) == meant


def test_a_class_is_a_response_format() -> None:
    made = to_constraint(Person)
    assert made is not None
    assert (made.kind, made.name) == ("json_schema", "Person")
    assert made.value == Person.model_json_schema()


@pytest.mark.parametrize("given", [{"type": "xml"}, {"type": "json_schema"}, {"type": "regex"}])
def test_a_response_format_that_makes_no_sense_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError):
        to_constraint(given)


@pytest.mark.parametrize("given", [Person, OldPerson, DictPerson, SCHEMA, openai_tool(Person)])
def test_schemas_of_every_kind_describe_the_same_object(given: Any) -> None:
    made = schema_of(given)
    assert made["type"] == "object"
    assert made["properties"]["name"]["type"] == "string"
    assert schema_name(made).endswith("Person")


def test_schema_names_fit_the_wire() -> None:
    assert schema_name({"title": "An Answer (v2)"}) == "An_Answer__v2_"
    assert schema_name({}) == "answer"
