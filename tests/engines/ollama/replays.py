"""The Ollama recordings, by folder, and one readable line for what enginekit makes of each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from enginekit.engine import Target
from enginekit.engines.ollama import Ollama
from enginekit.engines.ollama.decode import OllamaDecoder, OllamaWholeDecoder
from enginekit.errors import ContextOverflow, EngineKitError, ModelNotFound, Unsupported
from tests.engines.recordings import ROOT, Decoded, Recording, _made, decode, load

ENGINE = Ollama(Target(base_url="http://127.0.0.1:11434"))

FOLDERS = ("", "native/", "thinker/", "embed/", "broken/", "random/", "random-native/")
GENERATES = ("/api/chat", "/api/generate")


def recordings() -> Iterator[Recording]:
    """Every recording with one exchange, by its name with the folder."""
    for folder in FOLDERS:
        for path in sorted((ROOT / "ollama" / folder).glob("n_*.json")):
            yield load("ollama", f"{folder}{path.stem}")


def exchanges(name: str) -> list[Recording]:
    """The exchanges of a recording of `faults/` that were answered."""
    value = json.loads((ROOT / "ollama" / "faults" / f"{name}.json").read_text("utf-8"))
    return [_made(name, one) for one in value["exchanges"] if one.get("response")]


def limit_of(recording: Recording) -> int | None:
    options = recording.request.get("options") if isinstance(recording.request, dict) else None
    value = options.get("num_predict") if isinstance(options, dict) else None
    return int(value) if isinstance(value, int | float) and value >= 0 else None


def streamed(recording: Recording) -> bool:
    return "ndjson" in recording.headers.get("content-type", "")


def decoder_for(recording: Recording, **more: Any) -> OllamaDecoder:
    kind = OllamaDecoder if streamed(recording) else OllamaWholeDecoder
    return kind(ENGINE, path=recording.path, limit=limit_of(recording), **more)


def decoded(recording: Recording) -> Decoded:
    """A whole reply, in one piece."""
    return decode(decoder_for(recording), [recording.body])


def error_line(error: EngineKitError) -> str:
    """The class, and the attributes that callers branch on."""
    parts = [type(error).__name__]
    if isinstance(error, ContextOverflow):
        parts.append(f"limit={error.limit} requested={error.requested}")
    if isinstance(error, ModelNotFound):
        parts.append(f"model={error.model!r}")
    if isinstance(error, Unsupported):
        parts.append(f"feature={error.feature!r}")
    if error.retryable:
        parts.append("retryable")
    return " ".join(parts)


def golden(recording: Recording) -> str:
    """What enginekit makes of one recording, for people."""
    if recording.status >= 300:
        error = ENGINE.failure(
            recording.status, recording.headers, recording.body, path=recording.path
        )
        return f"{recording.status} {error_line(error)}"
    result = decoded(recording)
    if result.failure is not None:
        partial = getattr(result.failure, "partial", "")
        return shortened(f"{error_line(result.failure)} after {partial!r}")
    line = shortened(result.line())
    if result.end is not None and result.end.extra.get("cut_by"):
        line += f" | cut by {result.end.extra['cut_by']}"
    return line


def shortened(line: str) -> str:
    """The line with long texts cut in the middle."""

    def cut(found: re.Match[str]) -> str:
        text = found[0]
        return text if len(text) < 120 else f"{text[:60]}…{text[-30:]} ({len(text) - 2})"

    return re.sub(r"'(?:[^'\\]|\\.)*'", cut, line)


def goldens() -> Iterator[str]:
    """One line for each recorded chat or generate request: `name => what enginekit makes of it`."""
    for recording in recordings():
        if recording.path in GENERATES and b"_debug_info" not in recording.body:
            yield f"{recording.name} => {golden(recording)}"
