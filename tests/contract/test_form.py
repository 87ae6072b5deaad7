"""What a reply means does not hang on how it happens to be written.

Every recorded reply of every engine is rewritten in ways that leave its meaning alone (the order of
keys, nulls that are written or left out, fields and events that nobody knows, token counts told
early or as text, a finish reason beside the last piece or after it) and must be read the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from enginekit.errors import EngineKitError
from tests.contract.replayed import (
    ENGINES,
    engine_at,
    exchanges,
    request_of,
    request_of_nothing,
    streamed,
)
from tests.engines.recordings import Decoded, Recording, decode

Event = Any
"""One JSON value of a stream, or a line that is none (`[DONE]`)."""


# ------------------------------------------------------------------------------------ the corpus


def replies(name: str) -> Iterator[Recording]:
    """Recordings of the engine's own chat route, of requests that can be asked for at all."""
    chat = engine_at(name).encode(request_of_nothing()).call.path
    for recording in exchanges(name):
        body = recording.body.strip()
        if recording.path != chat or recording.status != 200 or not 0 < len(body) < 12_000:
            continue
        try:
            engine_at(name).encode(request_of(recording), stream=streamed(recording))
            if not streamed(recording):
                json.loads(body)
        except (EngineKitError, TypeError, KeyError, AttributeError, ValueError):
            continue  # a malformed request, or a body that the server broke off
        yield recording


def read(name: str, recording: Recording, body: bytes) -> Decoded:
    encoded = engine_at(name).encode(request_of(recording), stream=streamed(recording))
    return decode(encoded.decoder(), [body])


def meaning(decoded: Decoded) -> tuple[Any, ...]:
    """Everything a caller sees, pieces put together."""
    end = decoded.end
    if decoded.failure is not None or end is None:
        return (type(decoded.failure).__name__, decoded.text)
    others = {
        index: "".join(chunk.text for chunk in decoded.chunks if chunk.index == index)
        for index in {chunk.index for chunk in decoded.chunks}
    }
    calls = [(call.name, call.arguments, bool(call.problem)) for call in end.tool_calls]
    logprobs = [
        (entry.token, entry.logprob, len(entry.top))
        for chunk in decoded.chunks
        for entry in chunk.logprobs or ()
    ]
    return (others, decoded.reasoning, calls, end.finish_reason, end.usage, repr(logprobs))


# ------------------------------------------------------------------------------------ rewriting


def rewrite(recording: Recording, change: Callable[[list[Event], bool], Iterable[Event]]) -> bytes:
    """The body with its events changed, in the framing it has."""
    if not streamed(recording):
        (value,) = change([json.loads(recording.body)], False)
        return json.dumps(value, ensure_ascii=False).encode()
    sse = recording.body.lstrip().startswith((b"data:", b":", b"event:"))
    events: list[Event] = []
    for line in recording.body.replace(b"\r\n", b"\n").split(b"\n"):
        text = line.removeprefix(b"data:").strip()
        if text.startswith(b"{"):
            events.append(json.loads(text))
        elif text and not line.startswith(b":"):
            events.append(text.decode())
    out = []
    for event in change(events, True):
        text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
        out.append(f"data: {text}\n\n" if sse else f"{text}\n")
    return "".join(out).encode()


def each(change: Callable[[Any], Any]) -> Callable[[list[Event], bool], list[Event]]:
    """Change every object of every event, the innermost first."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return change({key: walk(inner) for key, inner in value.items()})
        if isinstance(value, list):
            return [walk(item) for item in value]
        return value

    return lambda events, stream: [
        event if isinstance(event, str) else walk(event) for event in events
    ]


def not_arguments(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Leave what a model wrote alone: the arguments of a call are data, not form."""
    return lambda value: change(value) if FORM & set(value) else value


FORM = {
    "choices", "delta", "message", "finish_reason", "done", "usage", "function", "prompt_tokens",
    "content", "tool_calls", "role", "arguments", "index", "token", "generated_text",
}  # fmt: skip


def backwards(value: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(value.items()))


def without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    keep = ("generated_text",)  # null is a fact there: not the last token yet
    return {key: inner for key, inner in value.items() if inner is not None or key in keep}


def with_more(value: dict[str, Any]) -> dict[str, Any]:
    more: dict[str, Any] = {"x_new": {"a": [1, None, {"b": "c"}]}, "x_null": None, "x_n": 1.5}
    return {"x_first": "z", **value, **more}


def with_nulls(value: dict[str, Any]) -> dict[str, Any]:
    """Optional fields that a server leaves out, written as null."""
    optional: dict[str, tuple[str, ...]] = {
        "choices": ("usage", "error", "system_fingerprint", "timings", "metrics", "service_tier"),
        "finish_reason": ("logprobs", "stop_reason", "token_ids"),
        "role": ("reasoning", "reasoning_content", "refusal", "audio", "function_call"),
        "done": ("error", "logprobs"),
    }
    found = dict(value)
    for mark, names in optional.items():
        if mark in value:
            found = {**dict.fromkeys(names), **found}
    return found


COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_eval_count", "eval_count")


def counts_as_text(value: dict[str, Any]) -> dict[str, Any]:
    return {k: str(v) if k in COUNTS and v is not None else v for k, v in value.items()}


def calls_of(event: Event) -> list[dict[str, Any]]:
    """The tool calls of a message or of a delta."""
    held = [*(event.get("choices") or ()), event] if isinstance(event, dict) else []
    parts = [one.get("delta") or one.get("message") or {} for one in held]
    return [call for part in parts for call in part.get("tool_calls") or () if call]


def without_call_keys(*names: str) -> Callable[[list[Event], bool], list[Event]]:
    """Calls, or pieces of calls, without some of their keys."""

    def change(events: list[Event], stream: bool) -> list[Event]:
        changed = json.loads(json.dumps(events))
        for event in changed:
            for call in calls_of(event):
                for name in names:
                    call.pop(name, None)
        return list(changed)

    return change


def arguments_as_objects(events: list[Event], stream: bool) -> list[Event]:
    """Whole arguments as an object, not as its text; for a text that the object gives back."""
    changed = json.loads(json.dumps(events))
    for event in changed:
        for call in [] if stream else calls_of(event):
            function = call.get("function") or {}
            text = function.get("arguments")
            try:
                value = json.loads(text) if isinstance(text, str) else None
            except ValueError:
                continue
            if isinstance(value, dict) and json.dumps(value, ensure_ascii=False) == text:
                function["arguments"] = value
    return list(changed)


def choice_of(event: Event) -> dict[str, Any] | None:
    """The only choice of a streamed event."""
    choices = event.get("choices") if isinstance(event, dict) else None
    return choices[0] if choices and len(choices) == 1 and "delta" in choices[0] else None


def finish_apart(events: list[Event], stream: bool) -> list[Event]:
    """A finish reason that came beside a piece comes in an event of its own."""
    out = []
    for event in events:
        choice = choice_of(event)
        if choice is None or not choice.get("finish_reason") or not any(choice["delta"].values()):
            out.append(event)
            continue
        first = {key: value for key, value in event.items() if key != "usage"}
        out.append({**first, "choices": [{**choice, "finish_reason": None}]})
        out.append({**event, "choices": [{**choice, "delta": {}, "logprobs": None}]})
    return out


def noise(events: list[Event], stream: bool) -> list[Event]:
    """Events that say nothing, between those that do."""
    if not stream or not any(choice_of(event) for event in events):
        return events
    ids = (event["id"] for event in events if isinstance(event, dict) and event.get("id"))
    id_ = next(ids, "")
    role = {"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}
    nothing: list[Event] = [
        {"id": id_, "choices": []},
        {"id": id_, "choices": None, "usage": None},
        {"id": id_, "choices": [role]},
        {"id": id_, "choices": [{**role, "delta": {"content": None}}]},
        {"id": id_, "choices": [{**role, "delta": None}]},
        {"id": id_, "choices": [{**role, "delta": {"content": "", "tool_calls": []}}]},
        {"type": "ping"},
        "",
    ]
    out: list[Event] = []
    for number, event in enumerate(events):
        out += [nothing[number % len(nothing)], event]
    return out


def usage_all_along(events: list[Event], stream: bool) -> list[Event]:
    """Counts on every event, as with `continuous_usage_stats`; the last ones count."""
    told = [event.get("usage") for event in events if isinstance(event, dict)]
    if not stream or not any(told):
        return events
    early = {"prompt_tokens": 1, "completion_tokens": 0, "total_tokens": 1}
    return [
        {**event, "usage": early} if choice_of(event) and not event.get("usage") else event
        for event in events
    ]


def usage_in_the_choice(events: list[Event], stream: bool) -> list[Event]:
    """Counts inside the choice that ends, and nowhere else."""
    told = [event["usage"] for event in events if isinstance(event, dict) and event.get("usage")]
    last = [event for event in events if (choice := choice_of(event)) and choice["finish_reason"]]
    if not stream or not told or len(last) != 1:
        return events
    out = []
    for event in events:
        if event is last[0]:
            event = {**event, "choices": [{**event["choices"][0], "usage": told[-1]}]}
        if isinstance(event, dict):
            event = {key: value for key, value in event.items() if key != "usage"}
        out.append(event)
    return out


def together(events: list[Event], stream: bool) -> list[Event]:
    """Events of different choices that follow each other, in one event."""
    out: list[Event] = []
    for event in events:
        choice, last = choice_of(event), out[-1] if out else None
        held = last.get("choices") or [] if isinstance(last, dict) else []
        seen = {one.get("index") for one in held}
        mergeable = choice is not None and held and choice["index"] not in seen
        if mergeable and not event.get("usage") and isinstance(last, dict):
            out[-1] = {**last, "choices": [*held, choice]}
        else:
            out.append(event)
    return out


REWRITINGS: dict[str, Callable[[list[Event], bool], Iterable[Event]]] = {
    "as it is": lambda events, stream: events,
    "keys backwards": each(not_arguments(backwards)),
    "nulls left out": each(not_arguments(without_nulls)),
    "nulls written": each(not_arguments(with_nulls)),
    "fields that nobody knows": each(not_arguments(with_more)),
    "counts as text": each(counts_as_text),
    "calls without ids": without_call_keys("id"),
    "calls without types": without_call_keys("type"),
    "pieces of calls without places": without_call_keys("index"),
    "arguments as objects": arguments_as_objects,
    "finish reason apart": finish_apart,
    "events that say nothing": noise,
    "usage all along": usage_all_along,
    "usage inside the choice": usage_in_the_choice,
    "choices together": together,
}


@pytest.mark.parametrize("how", REWRITINGS)
@pytest.mark.parametrize("name", ENGINES)
def test_a_reply_means_the_same_however_it_is_written(name: str, how: str):
    changed = 0
    for recording in replies(name):
        body = rewrite(recording, REWRITINGS[how])
        expected = meaning(read(name, recording, recording.body))
        assert meaning(read(name, recording, body)) == expected, f"{recording.name}: {body[:600]!r}"
        changed += body != rewrite(recording, REWRITINGS["as it is"])
    if how in ("keys backwards", "fields that nobody knows"):
        assert changed > 30, "hardly anything was rewritten"
