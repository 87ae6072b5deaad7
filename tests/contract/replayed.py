"""Recordings of any registered engine, as requests of ours and as what must come of them.

What counts as the terminal fact is read here by a plain scan of the recorded events, so that the
tests do not ask the decoders what the decoders should say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from enginekit import registry
from enginekit.engine import Engine, Target
from enginekit.types import ChatRequest, Message, Sampling, Tool
from tests.engines.recordings import ROOT, Decoded, Recording, _made, decode

SERVER = Target(base_url="http://server")
ALL = [name for name in registry.names() if name not in registry.LAUNCHED]
ENGINES = [name for name in ALL if registry.engine_class(name).profile.tested]
"""Engines of which a real server was run: of these, and only these, there are recordings."""
ROWS = [name for name in ALL if name not in ENGINES]
"""Engines that are known from their documentation only; `tests/engines/rows` is about them."""


def engine_at(name: str, url: str = SERVER.base_url) -> Engine:
    return registry.engine_class(name)(Target(base_url=url))


def exchanges(name: str) -> Iterator[Recording]:
    """Every recording of one exchange that was answered, folders of an engine included."""
    folder = ROOT / name
    for path in sorted(folder.rglob("*.json")):
        stored = json.loads(path.read_text("utf-8"))
        asked = stored.get("request")
        if not stored.get("response") or not isinstance(asked, dict):
            continue
        if isinstance(asked.get("json", {}), dict):
            yield _made(path.relative_to(folder).with_suffix("").as_posix(), stored)


def request_of(recording: Recording) -> ChatRequest:
    """A request of ours that asks for what the recording answers: tools, limit, text."""
    told = recording.request
    options = told.get("options") or {}
    limit = told.get("max_tokens") or options.get("num_predict")
    tools = tuple(
        Tool(name=item["function"]["name"], parameters=item["function"].get("parameters") or {})
        for item in told.get("tools") or ()
    )
    sampling = Sampling(max_tokens=limit) if limit and limit > 0 else Sampling()
    messages = (Message(role="user", content="Say hi."),)
    return ChatRequest(model="tiny", messages=messages, sampling=sampling, tools=tools)


def events(body: bytes) -> Iterator[tuple[int, int, Any]]:
    """Start, end and value of each JSON event: lines of JSON, with or without `data:` before."""
    at = 0
    for line in body.split(b"\n"):
        text = line.removeprefix(b"data:").strip()
        if text.startswith(b"{"):
            yield at, at + len(line.rstrip(b"\r")), json.loads(text)
        at += len(line) + 1


def is_terminal(event: Any) -> bool:
    """A finish reason of the OpenAI dialect, or `done` of Ollama's."""
    if event.get("done") is True:
        return True
    choices = event.get("choices") or ()
    return any(choice.get("finish_reason") for choice in choices)


def terminal_fact(recording: Recording) -> tuple[int, int]:
    """Between which offsets the last event with the terminal fact becomes whole.

    The first is where its JSON is complete, the second where its line and blank line are.
    """
    (_, end, _) = [event for event in events(recording.body) if is_terminal(event[2])][-1]
    return end, end + len(b"\r\n\r\n")


PLAIN = {"format", "response_format", "logprobs", "prompt", "grammar", "guided_choice"}
"""Keys of requests that change how an answer is read beyond what `request_of` asks for."""


@cache
def streams(name: str) -> tuple[Recording, ...]:
    """Chat streams of an engine that ended well, at most six, as different as they can be."""
    engine = engine_at(name)
    path = engine.encode(request_of_nothing(), stream=True).call.path
    found: dict[tuple[bool, ...], Recording] = {}
    for recording in exchanges(name):
        if recording.path != path or recording.status != 200 or not streamed(recording):
            continue
        if recording.request.get("n", 1) != 1 or PLAIN & {
            key for key, value in recording.request.items() if value
        }:
            continue
        whole = decoded(name, recording)
        if whole.failure is not None or not 300 < len(recording.body) < 30_000:
            continue
        end = whole.end
        if (
            end.usage is None
        ):  # enginekit asks for it always, so an answer without is no answer to it
            continue
        kind = (
            bool(end.tool_calls),
            len(end.tool_calls) > 1,
            bool(whole.reasoning),
            not whole.text.isascii(),
            end.finish_reason == "length",
        )
        found.setdefault(kind, recording)
    order = sorted(found, key=lambda kind: (-sum(kind), kind))
    return tuple(found[kind] for kind in order[:6])


def request_of_nothing() -> ChatRequest:
    return ChatRequest(model="tiny", messages=(Message(role="user", content="Say hi."),))


def streamed(recording: Recording) -> bool:
    kind = recording.headers.get("content-type", "")
    return "event-stream" in kind or "ndjson" in kind


def decoded(name: str, recording: Recording) -> Decoded:
    """The whole recording through the engine's decoder, without a socket."""
    encoded = engine_at(name).encode(request_of(recording), stream=streamed(recording))
    return decode(encoded.decoder(), [recording.body])
