"""JSON schemas in the shape that TGI's grammar compiler takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class NotInlinable(ValueError):
    """A definition refers to itself, or to something that is not there."""


def inlined(schema: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The schema with `$ref`s replaced by what they point at, and whether anything changed.

    The compiler resolves none inside tool parameters (the definitions are no longer at the root of
    what it sees). Raises NotInlinable for a definition that contains itself.
    """
    definitions = {
        f"#/{keyword}/{name}": inner
        for keyword in ("$defs", "definitions")
        for name, inner in (schema.get(keyword) or {}).items()
    }
    bare = {key: value for key, value in schema.items() if key not in ("$defs", "definitions")}
    made = _inline(bare, definitions, ())
    return made, made != dict(schema)


def _inline(value: Any, definitions: Mapping[str, Any], inside: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        reference = value.get("$ref")
        if isinstance(reference, str):
            if reference in inside:
                raise NotInlinable(f"{reference} refers to itself")
            if reference not in definitions:
                raise NotInlinable(f"{reference} points at nothing")
            target = _inline(definitions[reference], definitions, (*inside, reference))
            others = {key: inner for key, inner in value.items() if key != "$ref"}
            return {**target, **_inline(others, definitions, inside)}
        return {key: _inline(inner, definitions, inside) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_inline(item, definitions, inside) for item in value]
    return value


def single_types(value: Any) -> Any:
    """The schema with `"type": [a, b]`, which the compiler refuses, as `anyOf` of single types."""
    if isinstance(value, Mapping):
        made = {key: single_types(inner) for key, inner in value.items()}
        kinds = made.get("type")
        if isinstance(kinds, list) and "anyOf" not in made:
            shared = {key: made.pop(key) for key in ("title", "description") if key in made}
            rest = {key: inner for key, inner in made.items() if key != "type"}
            return {**shared, "anyOf": [{"type": kind, **rest} for kind in kinds]}
        return made
    if isinstance(value, list | tuple):
        return [single_types(item) for item in value]
    return value


def alternation(choices: tuple[str, ...]) -> str:
    """A regular expression that matches exactly one of the texts."""
    special = set("\\^$.|?*+()[]{}")
    escaped = ("".join(f"\\{c}" if c in special else c for c in choice) for choice in choices)
    return f"({'|'.join(escaped)})"
