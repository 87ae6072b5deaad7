"""Keep the order of an object's properties in `format`.

Ollama sorts the keys of a schema on the way to its grammar, and the grammar fixes the order in which
a model writes them (seen on a server built from source in November 2026). Sorted, `arguments` come
before the `name` of the function they are for, and an `answer` before its `reasoning`. A list is not
sorted: an object whose properties are out of alphabetical order is sent as `allOf` of single ones,
which means the same and which llama.cpp's grammar takes in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_MAPS: Final = ("properties", "$defs", "definitions")
_SCHEMAS: Final = ("items", "additionalProperties", "anyOf", "oneOf", "allOf", "prefixItems")


def in_order(schema: Any) -> Any:
    """The schema, at every depth, in a form whose order survives sorting. Equal in what it allows,
    but for `additionalProperties`, which the grammar rules out either way."""
    if isinstance(schema, list | tuple):
        return [in_order(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    for key in _MAPS:
        if isinstance(made.get(key), Mapping):
            made[key] = {name: in_order(inner) for name, inner in made[key].items()}
    for key in _SCHEMAS:
        if key in made:
            made[key] = in_order(made[key])
    properties = made.get("properties")
    if not isinstance(properties, Mapping) or list(properties) == sorted(properties):
        return made
    if "allOf" in made or isinstance(made.get("additionalProperties"), Mapping):
        return made
    required = made.pop("required", ())
    del made["properties"]
    made.pop("additionalProperties", None)
    made["allOf"] = [
        _single(name, inner, required=name in required) for name, inner in properties.items()
    ]
    return made


def _single(name: str, schema: Any, *, required: bool) -> dict[str, Any]:
    # The grammar requires what stands in allOf itself and leaves open what stands in an anyOf there.
    one: dict[str, Any] = {"properties": {name: schema}}
    return {**one, "required": [name]} if required else {"anyOf": [one]}
