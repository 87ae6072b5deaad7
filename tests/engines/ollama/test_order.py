"""Ollama sorts a schema's keys; what we send must come out in the author's order all the same."""

from __future__ import annotations

import json
from typing import Any

from enginekit.engines.ollama.order import in_order

TEXT = {"type": "string"}


def keys_in_grammar_order(schema: dict[str, Any]) -> list[str]:
    """The properties as the server sees them: every mapping sorted, every list as it is."""
    seen = json.loads(json.dumps(schema, sort_keys=True))
    found: list[str] = list(seen.get("properties", {}))
    for part in seen.get("allOf", ()):
        for one in part.get("anyOf", (part,)):
            found += one["properties"]
    return found


def test_properties_out_of_alphabetical_order_keep_theirs() -> None:
    schema = {
        "type": "object",
        "properties": {"reasoning": TEXT, "answer": TEXT},
        "required": ["reasoning"],
        "additionalProperties": False,
    }
    before = json.dumps(schema)
    made = in_order(schema)
    assert keys_in_grammar_order(made) == ["reasoning", "answer"]
    assert made["allOf"][0]["required"] == ["reasoning"]
    assert "required" not in json.dumps(made["allOf"][1]), "an optional property stays optional"
    assert json.dumps(schema) == before, "the caller's schema is as it was"


def test_what_is_sorted_already_is_sent_as_it_is() -> None:
    schema = {"type": "object", "properties": {"a": TEXT, "b": TEXT}, "required": ["a"]}
    assert in_order(schema) == schema


def test_every_depth_is_kept() -> None:
    inner = {"type": "object", "properties": {"z": TEXT, "a": TEXT}}
    schema = {
        "$defs": {"Inner": inner},
        "type": "object",
        "properties": {"list": {"type": "array", "items": inner}},
    }
    made = in_order(schema)
    assert keys_in_grammar_order(made["$defs"]["Inner"]) == ["z", "a"]
    assert keys_in_grammar_order(made["properties"]["list"]["items"]) == ["z", "a"]


def test_a_property_named_like_a_keyword_is_a_property() -> None:
    schema = {"type": "object", "properties": {"properties": TEXT, "items": TEXT}}
    assert keys_in_grammar_order(in_order(schema)) == ["properties", "items"]


def test_additional_properties_with_a_schema_are_left_alone() -> None:
    """The grammar has no such thing next to allOf."""
    schema = {
        "type": "object",
        "properties": {"z": TEXT, "a": TEXT},
        "additionalProperties": TEXT,
    }
    assert in_order(schema) == schema
