"""Recordings of real servers, and how to put one through a decoder without a socket."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from enginekit.engine import Answer, Call, Decoder, Operation
from enginekit.errors import EngineKitError
from enginekit.types import Chunk, End

ROOT = Path(__file__).parents[1] / "fixtures" / "recordings"


@dataclass(frozen=True)
class Recording:
    """One request and what a real server answered."""

    name: str
    path: str
    request: Mapping[str, Any]
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def streamed(self) -> bool:
        return "event-stream" in self.headers.get("content-type", "")

    @property
    def answer(self) -> Answer:
        return Answer(status=self.status, headers=self.headers, body=self.body)


def body_of(response: Mapping[str, Any]) -> bytes:
    return b"".join(
        piece.encode() if isinstance(piece, str) else base64.b64decode(piece["b64"])
        for _, piece in response["chunks"]
    )


def _made(name: str, exchange: Mapping[str, Any]) -> Recording:
    response = exchange["response"]
    return Recording(
        name=name,
        path=exchange["request"]["path"],
        request=exchange["request"].get("json") or {},
        status=response["status"],
        headers={key.lower(): value for key, value in response["headers"].items()},
        body=body_of(response),
    )


@cache
def load(engine: str, name: str) -> Recording:
    return _made(name, json.loads((ROOT / engine / f"{name}.json").read_text("utf-8")))


def scene(engine: str, name: str) -> list[Recording]:
    """The exchanges of a recording that holds several, those without a response left out."""
    events = json.loads((ROOT / engine / f"{name}.json").read_text("utf-8"))["events"]
    return [_made(name, event) for event in events if event.get("response")]


def names(engine: str, *prefixes: str) -> list[str]:
    """Recordings with one exchange, by prefix, sorted."""
    found = sorted(path.stem for path in (ROOT / engine).glob("*.json"))
    return [
        name
        for name in found
        if not name.startswith("scene_") and (not prefixes or name.startswith(prefixes))
    ]


# ------------------------------------------------------------------------------------ decoding


@dataclass
class Decoded:
    """What came out of a decoder."""

    chunks: list[Chunk]
    failure: EngineKitError | None

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks if not chunk.index)

    @property
    def reasoning(self) -> str:
        return "".join(chunk.reasoning for chunk in self.chunks if not chunk.index)

    @property
    def end(self) -> End | None:
        return next((chunk.end for chunk in self.chunks if chunk.end is not None), None)

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Name and arguments of each call, put together from the deltas."""
        calls: dict[int, list[str]] = {}
        for chunk in self.chunks:
            for delta in chunk.tool_calls:
                call = calls.setdefault(delta.index, ["", ""])
                call[0] += delta.name or ""
                call[1] += delta.arguments
        return [(name, arguments) for name, arguments in calls.values()]

    def line(self) -> str:
        """One line that a person can check against the recording."""
        if self.failure is not None:
            return f"{type(self.failure).__name__} after {self.text!r}"
        end = self.end
        assert end is not None
        usage = end.usage
        parts = [
            f"{end.finish_reason}",
            f"{usage.prompt_tokens}+{usage.completion_tokens}" if usage else "no usage",
            _short(self.text),
        ]
        if self.reasoning:
            parts.append(f"thinks {_short(self.reasoning)}")
        for call in end.tool_calls:
            broken = " BROKEN" if call.problem else ""
            parts.append(f"calls {call.name}({_short(call.arguments)[1:-1]}){broken}")
        logprobs = [entry for chunk in self.chunks for entry in chunk.logprobs or ()]
        if logprobs:
            first = logprobs[0]
            parts.append(
                f"{len(logprobs)} logprobs, first {first.token!r} {first.logprob:.3f} "
                f"and {len(first.top)} others"
            )
        others = sorted({chunk.index for chunk in self.chunks} - {0})
        for index in others:
            text = "".join(chunk.text for chunk in self.chunks if chunk.index == index)
            parts.append(f"choice {index} {_short(text)}")
        return " | ".join(parts)


def _short(text: str) -> str:
    if len(text) <= 100:
        return repr(text)
    return f"{text[:60]!r} … {text[-20:]!r} ({len(text)} characters)"


def decode(decoder: Decoder, pieces: Iterable[bytes]) -> Decoded:
    """Feed the pieces, then a clean end of the body."""
    chunks: list[Chunk] = []
    for piece in pieces:
        chunks += decoder.feed(piece)
        if decoder.done or decoder.failure is not None:
            break
    else:
        chunks += decoder.eof()
    return Decoded(chunks, decoder.failure)


# ------------------------------------------------------------------------------------ operations


def play(operation: Operation[Any], answers: Mapping[str, Recording | Answer]) -> Any:
    """Run an operation on answers by `"METHOD path"`; what is not there is an assertion error."""
    calls: list[Call] = []
    try:
        effect = next(operation)
        while True:
            assert isinstance(effect, Call), effect
            calls.append(effect)
            key = f"{effect.method} {effect.path}"
            assert key in answers, f"unexpected call {key}; known: {sorted(answers)}"
            answer = answers[key]
            effect = operation.send(answer if isinstance(answer, Answer) else answer.answer)
    except StopIteration as stop:
        return stop.value


def answer(value: Any, status: int = 200) -> Answer:
    """An answer made by hand, for what a fact sheet says and no recording has."""
    return Answer(status=status, headers={}, body=json.dumps(value).encode())
