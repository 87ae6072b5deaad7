"""Random requests: every field is accounted for, and the body is what the receipt says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enginekit.engine import Encoded, Target
from enginekit.engines.ollama import Ollama
from enginekit.errors import BadRequest, Unsupported
from enginekit.types import (
    UNSET,
    ChatRequest,
    CompletionRequest,
    Constraint,
    ImagePart,
    Message,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from tests.engines.ollama.test_requests import facts

ENGINES = (
    Ollama(Target(base_url="http://127.0.0.1:11434")),
    *(
        Ollama(Target(base_url="http://127.0.0.1:11434"), facts=facts(**known))
        for known in (
            {},
            {"show": "native/n_show"},
            {"show": "thinker/n_show", "capabilities": ("completion", "tools", "thinking")},
            {"capabilities": ("completion", "vision")},
            {"version": "0.11.0"},
        )
    ),
)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.just(UNSET) | values


def rarely(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([UNSET] * 5 + list(values))


numbers = st.floats(0, 1, allow_nan=False)
samplings = st.builds(
    Sampling,
    temperature=maybe(st.floats(-0.2, 2.5)),
    top_p=maybe(numbers),
    top_k=maybe(st.integers(0, 50)),
    min_p=maybe(numbers),
    typical_p=maybe(numbers),
    seed=maybe(st.integers(-1, 2**31)),
    max_tokens=rarely(0, 1, 16, 100),
    min_tokens=maybe(st.integers(0, 5)),
    stop=maybe(st.lists(st.sampled_from(["", "a", "###"]), max_size=3).map(tuple)),
    repetition_penalty=maybe(numbers),
    repetition_window=maybe(st.integers(-1, 64)),
    frequency_penalty=maybe(numbers),
    presence_penalty=maybe(numbers),
    logit_bias=rarely({1: 1.0}),
    ignore_eos=maybe(st.booleans()),
    mirostat=maybe(st.integers(0, 2)),
    logprobs=rarely(True, True, False),
    top_logprobs=rarely(0, 5, 20, 21),
    n=rarely(1, 1, 2),
)
tools = st.lists(
    st.sampled_from(
        [
            Tool(name="add", parameters={"type": "object", "properties": {"a": {"minimum": 1}}}),
            Tool(name="get_weather", description="Weather", strict=True),
        ]
    ),
    max_size=2,
    unique_by=lambda tool: tool.name,
).map(tuple)
choices = st.sampled_from(
    [
        ToolChoice(mode="auto"),
        ToolChoice(mode="none"),
        ToolChoice(mode="required"),
        ToolChoice(mode="named", name="add"),
    ]
)
constraints = st.sampled_from(
    [
        Constraint(kind="json"),
        Constraint(kind="json_schema", value={"type": "object"}),
        Constraint(kind="choice", value=("a", "b")),
        Constraint(kind="regex", value="a+"),
    ]
)
turns = st.sampled_from(
    [
        Message(role="user", content="Say hi."),
        Message(role="user", content=(TextPart(text="Look"), ImagePart(data=b"x"))),
        Message(role="assistant", content="Hi", reasoning="because"),
        Message(role="assistant", tool_calls=(ToolCall(id="c", name="add", arguments='{"a": 1}'),)),
        Message(role="tool", tool_call_id="c", content="2"),
        Message(role="developer", content="Be brief."),
    ]
)
common: dict[str, Any] = {
    "model": st.sampled_from(["m", "M:latest", "unknown"]),
    "sampling": samplings,
    "lossy": st.sampled_from(["warn"] * 7 + ["error"]),
    "defaults": st.sampled_from(["server", "pinned"]),
    "request_id": st.none() | st.just("r-1"),
    "engine_options": st.sampled_from(
        [{}, {}, {"options": {"num_gpu": 0}}, {"shift": True}, {"truncate": False}]
    ),
    "constraint": st.one_of(st.just(UNSET), st.just(UNSET), constraints),
    "context_window": rarely(2, 4, 512, 4096, 9000),
    "keep_alive": maybe(st.sampled_from([-1.0, 0.0, 1.5, 60.0])),
}
chats = st.builds(
    ChatRequest,
    **common,
    messages=st.lists(turns, min_size=1, max_size=4).map(tuple),
    tools=tools,
    tool_choice=maybe(choices),
    parallel_tool_calls=maybe(st.booleans()),
    reasoning=maybe(st.sampled_from([True, False, "low", "none"])),
)
completions = st.builds(
    CompletionRequest,
    **common,
    prompt=st.just("abc"),
    suffix=st.none() | st.just("xyz"),
    echo=maybe(st.booleans()),
)

ACCOUNTED_BY_THEMSELVES = {"lossy", "defaults"}


def set_by_caller(request: Any) -> set[str]:
    """Names, as the receipt has them, of everything the caller set."""
    names: set[str] = set()
    for field in fields(request):
        value = getattr(request, field.name)
        if field.name in ACCOUNTED_BY_THEMSELVES or value is UNSET or value is None:
            continue
        if field.name == "sampling":
            names |= {
                f"sampling.{one.name}"
                for one in fields(value)
                if getattr(value, one.name) is not UNSET
            }
        elif isinstance(value, Mapping):
            names |= {f"{field.name}.{key}" for key in value}
        elif value != ():
            names.add(field.name)
    return names


def leaves(value: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Paths of the body, one level into `options`."""
    found: set[str] = set()
    for key, inner in value.items():
        if key == "options" and not prefix:
            found |= leaves(inner, "options.")
        else:
            found.add(prefix + key)
    return found


def check(encoded: Encoded, request: Any, stream: bool) -> None:
    entries = encoded.receipt.entries
    named = [entry.field for entry in entries if entry.field != "-"]
    pinned = {entry.field for entry in entries if entry.rule.endswith(".pinned")}
    assert len(named) == len(set(named)), "a field has two entries"
    assert set(named) - pinned == set_by_caller(request)
    wires = {path for entry in entries for path in entry.wire.split()}
    raw = {f"options.{key}" for key in request.engine_options.get("options", {})}
    assert leaves(encoded.call.json) == (wires - {"options"}) | raw
    for entry in entries:
        assert entry.rule.startswith("ollama."), entry
        assert entry.outcome != "refused"
        if entry.outcome in ("translated", "emulated", "omitted"):
            assert entry.note, entry
        if entry.outcome == "omitted":
            assert not entry.wire
        if entry.outcome == "sent":
            assert entry.wire, entry
    sampling = request.sampling
    for name in encoded.receipt.defaults:
        assert getattr(sampling, name, UNSET) is UNSET
    assert not {"tools", "format"} <= set(encoded.call.json)
    assert encoded.call.framing == ("ndjson" if encoded.call.json["stream"] else "json")
    if not stream:
        assert encoded.call.json["stream"] is False


relaxed = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)


@relaxed
@given(engine=st.sampled_from(ENGINES), request=chats, stream=st.booleans())
def test_the_body_of_any_chat_is_what_its_receipt_says(engine, request, stream):
    try:
        encoded = engine.encode(request, stream=stream)
    except (BadRequest, Unsupported):
        return
    check(encoded, request, stream)


@relaxed
@given(engine=st.sampled_from(ENGINES), request=completions, stream=st.booleans())
def test_the_body_of_any_completion_is_what_its_receipt_says(engine, request, stream):
    try:
        encoded = engine.encode(request, stream=stream)
    except (BadRequest, Unsupported):
        return
    check(encoded, request, stream)


@relaxed
@given(request=chats)
def test_encoding_is_pure(request):
    """The same request gives the same body, and is not changed by it."""
    engine = ENGINES[1]
    before = repr(request)
    try:
        first = engine.encode(request).call.json
        second = engine.encode(request).call.json
    except (BadRequest, Unsupported):
        return
    assert first == second
    assert repr(request) == before
