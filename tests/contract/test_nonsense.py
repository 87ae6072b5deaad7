"""Whatever a server says, nothing but our own errors comes out, of any engine and any operation."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginekit import registry
from enginekit.engine import Answer, Call, Engine, Gather, Operation, Sleep
from enginekit.errors import EngineError, EngineKitError, Unreachable
from enginekit.types import ChatRequest, Message, Tool
from tests.contract.replayed import ALL, SERVER, engine_at
from tests.contract.test_flags import OPERATIONS

KEYS = [
    "data",
    "id",
    "models",
    "version",
    "choices",
    "delta",
    "message",
    "content",
    "usage",
    "error",
    "detail",
    "object",
    "tokens",
    "count",
    "index",
    "score",
    "results",
    "embedding",
    "name",
    "model",
    "role",
    "status",
    "finish_reason",
    "done",
    "tool_calls",
    "function",
    "arguments",
    "prompt_tokens",
    "total_tokens",
    "logprobs",
    "text",
    "max_model_len",
    "meta",
    "metadata",
    "capabilities",
    "loaded_instances",
    "config",
    "applications",
    "deployments",
    "replicas",
    "details",
    "model_info",
    "key",
    "type",
]
"""Names that a decoder looks for, so that wrong values land where they hurt."""

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**6),
    st.floats(allow_nan=False),
    st.text(max_size=5),
)
nonsense = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    ),
    max_leaves=12,
)
TOOLS: dict[str, Any] = {"tools": (Tool(name="f"),)}


def play(operation: Operation[Any], value: Any, status: int) -> Any:
    """Answer every call with the same nonsense; a wait is over at once. Bounded."""
    answer = Answer(status=status, headers={}, body=json.dumps(value).encode())
    outcome: Any = None
    for _ in range(200):
        effect = operation.send(outcome)
        if isinstance(effect, Gather):
            outcome = [Unreachable("nobody") for _ in effect.operations]
        else:
            assert isinstance(effect, Call | Sleep), effect
            outcome = answer if isinstance(effect, Call) else None
    raise AssertionError("the operation asks for ever")


def attempt(operation: Operation[Any], value: Any, status: int) -> None:
    try:
        play(operation, value, status)
    except (StopIteration, EngineKitError):
        pass


CALLS: dict[str, Callable[[Engine], Operation[Any]]] = {
    **OPERATIONS,
    "probe": lambda e: e.probe(),
    "ready": lambda e: e.ready("tiny"),
    "models": lambda e: e.models(),
    "settle": lambda e: e.settle("embeddings"),
    "recognise": lambda e: type(e).recognise(SERVER),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25, deadline=None)
@given(value=nonsense, status=st.sampled_from([200, 200, 400, 404, 500]))
def test_an_operation(name: str, call: str, value: Any, status: int):
    attempt(CALLS[call](engine_at(name)), value, status)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=150, deadline=None)
@given(value=nonsense, status=st.sampled_from([200, 301, 400, 401, 404, 422, 429, 500, 503]))
def test_a_refusal(name: str, value: Any, status: int):
    error = engine_at(name).failure(status, {}, json.dumps(value).encode(), path="/v1/x")
    assert isinstance(error, EngineError)
    assert error.engine == name


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ALL)
@settings(max_examples=60, deadline=None)
@given(values=st.lists(nonsense, max_size=4))
def test_a_reply(name: str, stream: bool, tools: bool, values: list[Any]):
    """Events that are JSON and nothing else: whole, or one of our errors in `failure`."""
    request = ChatRequest(
        model="tiny",
        messages=(Message(role="user", content="hi"),),
        **(TOOLS if tools else {}),
    )
    encoded = registry.engine_class(name)(SERVER).encode(request, stream=stream)
    decoder = encoded.decoder()
    for value in values:
        text = json.dumps(value).encode()
        decoder.feed(b"data: " + text + b"\n\n" if encoded.call.framing == "sse" else text + b"\n")
        if decoder.done or decoder.failure is not None:
            break
    else:
        decoder.eof()
    assert decoder.done or isinstance(decoder.failure, EngineKitError)
