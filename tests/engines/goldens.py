"""Every recording of one engine against two tables that a person can check.

`replies.txt` says what each recorded 200 decodes to, `refusals.txt` what each refusal means. An
engine's tests give a function that makes the decoder for a recording; the rest is the same for all.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from enginekit.engine import Decoder, Engine
from enginekit.errors import EngineError, MalformedReply, StreamTruncated
from tests.engines import recordings
from tests.engines.recordings import Decoded, Recording, decode

MakeDecoder = Callable[[Recording], Decoder]
Decides = Callable[[Recording], bool]


def exchanges(engine: str) -> Iterator[tuple[str, Recording]]:
    """Every POST that was answered, under its recording's name; in scenes with its place."""
    for path in sorted((recordings.ROOT / engine).glob("*.json")):
        stored = json.loads(path.read_text("utf-8"))
        events = stored.get("events", [stored])
        answered = [e for e in events if e.get("response") and e.get("request")]
        for place, event in enumerate(answered):
            if event["request"]["method"] != "POST":
                continue
            name = f"{path.stem}#{place}" if "events" in stored else path.stem
            yield name, recordings._made(name, event)


def refused(engine: str) -> Iterator[Recording]:
    """Every answer of status 400 and more, of whatever method."""
    for path in sorted((recordings.ROOT / engine).glob("*.json")):
        stored = json.loads(path.read_text("utf-8"))
        if "events" in stored:
            found = recordings.scene(engine, path.stem)
        else:
            found = [recordings.load(engine, path.stem)] if stored.get("response") else []
        yield from (recording for recording in found if recording.status >= 400)


def refusal_line(engine: Engine, recording: Recording) -> str:
    error = engine.failure(recording.status, recording.headers, recording.body, path=recording.path)
    said = [
        f"{name}={getattr(error, name)!r}"
        for name in ("limit", "requested", "model", "near", "feature", "budget")
        if getattr(error, name, None) not in (None, "", ())
    ]
    shown = " ".join([type(error).__name__, *said])
    return f"{recording.name} {recording.path} {recording.status}: {shown}"


def check_table(path: Path, told: list[str]) -> None:
    """The table on disk says exactly this."""
    assert told == path.read_text("utf-8").splitlines()


def check_refusals(engine: Engine, name: str, path: Path) -> None:
    """Every refusal means what the table says; each error names the server and can be pickled."""
    told = []
    for recording in refused(name):
        told.append(refusal_line(engine, recording))
        error = engine.failure(recording.status, recording.headers, recording.body)
        assert isinstance(error, EngineError)
        assert "http://server" in str(error)
        assert error.status == recording.status
        assert "\x1b" not in str(error)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
    check_table(path, list(dict.fromkeys(told)))


def reply_table(name: str, make: MakeDecoder, generates: Decides) -> list[str]:
    """One line for each recorded reply of a generation."""
    return [
        f"{key}: {decode(make(recording), [recording.body]).line()}"
        for key, recording in exchanges(name)
        if recording.status == 200 and generates(recording)
    ]


def cut_everywhere(
    recording: Recording, make: MakeDecoder, terminal: int, kinds: tuple[type, ...] = ()
) -> None:
    """A stream cut before `terminal` is a typed error with a prefix of the text; after it, whole."""
    whole = decode(make(recording), [recording.body])
    assert whole.end is not None
    for offset in range(len(recording.body)):
        cut = decode(make(recording), [recording.body[:offset]])
        if offset < terminal:
            assert isinstance(cut.failure, kinds or (StreamTruncated,)), offset
            assert cut.end is None
            assert whole.text.startswith(_partial(cut))
        else:
            assert cut.failure is None, offset
            assert cut.end is not None
            assert (cut.text, cut.reasoning) == (whole.text, whole.reasoning)
            assert cut.end.tool_calls == whole.end.tool_calls
            lost = cut.end.usage is None and whole.end.usage is not None
            assert any("usage lost" in repair for repair in cut.end.repairs) == lost


def split_everywhere(recording: Recording, make: MakeDecoder) -> None:
    """Where the network cuts the bytes makes no difference to what is decoded."""
    body = recording.body
    whole = decode(make(recording), [body])
    for offset in range(1, len(body), 3):
        assert _same(decode(make(recording), [body[:offset], body[offset:]]), whole), offset
    single = decode(make(recording), (body[i : i + 1] for i in range(len(body))))
    assert _same(single, whole)


def body_cut_everywhere(recording: Recording, make: MakeDecoder) -> None:
    """A plain reply is whole or an error: never a short answer."""
    for offset in range(len(recording.body)):
        cut = decode(make(recording), [recording.body[:offset]])
        assert isinstance(cut.failure, StreamTruncated | MalformedReply), offset
        assert cut.chunks == []


def last_finish(recording: Recording, fact: Callable[[Any], bool]) -> int:
    """Where the last event with the terminal fact is whole: by a plain reading of the events."""
    at, found = 0, -1
    for block in recording.body.split(b"\n\n"):
        if block.startswith((b"data: {", b"data:{")) and fact(json.loads(block[5:])):
            found = at + len(block)
        at += len(block) + 2
    assert found > 0
    return found


def finish_reason(event: Any) -> bool:
    """Whether an event of the OpenAI dialect holds a finish reason."""
    return any(choice.get("finish_reason") for choice in event.get("choices", ()))


def _partial(cut: Decoded) -> str:
    return str(getattr(cut.failure, "partial", ""))


def _same(one: Decoded, other: Decoded) -> bool:
    """Equal but for how text was dealt out to chunks, which wrappers may settle differently."""
    return (
        one.text == other.text
        and one.reasoning == other.reasoning
        and one.end == other.end
        and type(one.failure) is type(other.failure)
        and one.calls == other.calls
    )
