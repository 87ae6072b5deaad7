"""Telling the model the schema that its answer is held to."""

from __future__ import annotations

import json
from dataclasses import replace

from enginekit.engines._messages import add_instruction
from enginekit.types import ChatRequest, CompletionRequest, Constraint

NOTE = "the schema is shown to the model at the end of the system message"


def with_schema_shown(
    request: ChatRequest | CompletionRequest,
) -> tuple[ChatRequest | CompletionRequest, tuple[str, ...]]:
    """The request with its schema in the system message, if that is wanted, and a receipt's note."""
    constraint = request.constraint
    if (
        not isinstance(request, ChatRequest)
        or not isinstance(constraint, Constraint)
        or not (constraint.shown and constraint.kind == "json_schema")
    ):
        return request, ()
    schema = json.dumps(constraint.value, ensure_ascii=False)
    text = f"Answer with one JSON value that matches this JSON schema:\n{schema}"
    return replace(request, messages=add_instruction(request.messages, text)), (NOTE,)
