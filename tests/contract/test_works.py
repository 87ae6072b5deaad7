"""A capability that says yes is true: a real server answered such a request, and we read it as asked.

For every engine of which there are recordings, and every feature that its profile says it has
(native or emulated), there is a recording of a request with that feature whose answer, decoded as
the answer to our own request for it, has what was asked for. That the request is sent is in
`test_flags.py`; that it works on a server that answers now, in `test_live.py`. What nobody recorded
is marked, with its reason, and a mark that has become needless fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from enginekit.engine import Encoded
from enginekit.errors import EngineKitError
from enginekit.types import ChatRequest, CompletionRequest, Constraint, Message
from tests.contract.replayed import ENGINES, engine_at, exchanges, streamed
from tests.contract.test_flags import OPERATIONS, REQUESTS, WHERE_IT_IS, features
from tests.engines.recordings import Decoded, Recording, decode

SCHEMA_WISH = Constraint(kind="json_schema", name="a")
ROOT = Path(__file__).parents[2]

ASKS: dict[str, tuple[str, ...]] = {
    "tools": ('"tools"', "functions"),
    "tool_choice_required": ("get_weather",),
    "tool_choice_named": ("get_weather",),
    "parallel_tool_calls": ('"tools"',),
    "stream_tools": ("get_weather",),
    "json": ("json",),
    "json_schema": ("schema", '"format"', '"value"'),
    "regex": ("regex", "pattern"),
    "grammar": ("grammar",),
    "choice": ("choice", "enum"),
    "logprobs": ("logprobs",),
    "n": ('"n"', "best_of"),
    "images": ("image",),
    "image_urls": ("http",),
    "context_per_request": ("num_ctx",),
    "keep_alive": ("keep_alive",),
}
"""Words of which the recorded request has one: it asked for the feature."""


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


CHECKS: dict[str, Callable[[Decoded], bool]] = {
    "chat": lambda d: bool(d.text),
    "completion": lambda d: bool(d.text),
    "stream": lambda d: sum(1 for chunk in d.chunks if chunk.text) > 1,
    "tools": lambda d: whole_calls(d) >= 1,
    "tool_choice_required": lambda d: whole_calls(d) >= 1,
    "tool_choice_named": lambda d: whole_calls(d) >= 1,
    "parallel_tool_calls": lambda d: whole_calls(d) >= 2,
    "stream_tools": lambda d: whole_calls(d) >= 1 and bool(d.calls),
    "json": lambda d: is_object(d.text),
    "json_schema": lambda d: is_object(d.text),
    "logprobs": lambda d: any(chunk.logprobs for chunk in d.chunks),
    "n": lambda d: len({chunk.index for chunk in d.chunks}) > 1,
    "reasoning": lambda d: bool(d.reasoning),
}
"""What the answer has that was asked for; text is enough where nothing else could show it."""


def whole_calls(decoded: Decoded) -> int:
    end = decoded.end
    return sum(1 for call in end.tool_calls if call.problem is None) if end is not None else 0


@cache
def recorded(name: str) -> tuple[Recording, ...]:
    return tuple(one for one in exchanges(name) if one.status == 200 and 0 < len(one.body) < 40_000)


def attempts(name: str, feature: str) -> Iterator[tuple[Recording, Encoded]]:
    """Recorded answers to requests with this feature, and our own request for it."""
    wanted: ChatRequest | CompletionRequest = WHERE_IT_IS.get((name, feature), REQUESTS[feature])
    if isinstance(wanted, ChatRequest):
        wanted = replace(wanted, messages=(Message(role="user", content="Say hi."),), lossy="warn")
    if feature == "json_schema":
        # Recorded requests had other schemas: one that all of their whole answers satisfy.
        loose = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
        wanted = replace(wanted, constraint=replace(SCHEMA_WISH, value=loose))
    for stream in (False, True):
        try:
            encoded = engine_at(name).encode(wanted, stream=stream)
        except EngineKitError:
            continue
        is_stream = encoded.call.framing in ("sse", "ndjson")
        for recording in recorded(name):
            words = ASKS.get(feature, ())
            text = json.dumps(recording.request)
            if recording.path != encoded.call.path or streamed(recording) != is_stream:
                continue
            if not words or any(word in text for word in words):
                yield recording, encoded


STREAMED = "recorded without streaming only, and enginekit streams here; test_live.py shows it live"
RANDOM = (
    "recorded with random weights only, which never close an object; test_live.py shows it live"
)
BY_SCHEMA = (
    "nobody recorded this server's answer to the schema that enginekit sends: its recorded weights "
    "are random, or called by another form"
)
NO_THOUGHT = (
    "no recorded model of this engine thinks; the tag is split by ThinkSplitter's own tests"
)

NOTYET: dict[tuple[str, str], str] = {
    ("llamacpp", "tool_choice_required"): STREAMED,
    ("llamacpp", "tool_choice_named"): STREAMED,
    ("llamacpp", "regex"): STREAMED,
    ("llamacpp", "grammar"): STREAMED,
    ("ollama", "tool_choice_required"): BY_SCHEMA,
    ("ollama", "tool_choice_named"): BY_SCHEMA,
    ("ollama", "json"): "recorded with random weights only, which never close an object",
    ("ollama", "regex"): BY_SCHEMA,
    ("ollama", "choice"): BY_SCHEMA,
    ("vllm", "json"): RANDOM,
    ("vllm", "json_schema"): RANDOM,
    ("rayserve", "json"): RANDOM,
    ("rayserve", "json_schema"): RANDOM,
    ("tgi", "reasoning"): NO_THOUGHT,
    ("mlc", "tools"): BY_SCHEMA,
    ("mlc", "tool_choice_required"): BY_SCHEMA,
    ("mlc", "tool_choice_named"): BY_SCHEMA,
    ("mlc", "stream_tools"): BY_SCHEMA,
    ("mlc", "choice"): BY_SCHEMA,
    ("mlc", "reasoning"): NO_THOUGHT,
}
NEVER: dict[tuple[str, str], str] = {}


def pairs() -> list[Any]:
    found = []
    for name, feature in features("native", "emulated", soft=True):
        if name not in ENGINES or feature in OPERATIONS:
            continue
        marks = [pytest.mark.notyet(NOTYET[name, feature])] if (name, feature) in NOTYET else []
        marks += [pytest.mark.never(NEVER[name, feature])] if (name, feature) in NEVER else []
        found.append(pytest.param(name, feature, marks=marks, id=f"{name}-{feature}"))
    return found


@pytest.mark.parametrize(("name", "feature"), pairs())
def test_a_real_answer_has_what_was_asked_for(name: str, feature: str):
    check = CHECKS.get(feature, CHECKS["chat"])
    tried = 0
    for recording, encoded in attempts(name, feature):
        tried += 1
        decoded = decode(encoded.decoder(), [recording.body])
        if decoded.failure is None and check(decoded):
            return
    pytest.fail(f"none of {tried} recorded answers of {name} has {feature}")


# ------------------------------------------------------------------------------------ the marks


def collected(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """A test file run by a pytest of its own, under these marks."""
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  never: x\n  notyet: x\n")
    (folder / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.support import marks\n"
        "def pytest_collection_modifyitems(items):\n    marks.apply(items)\n"
    )
    (folder / "test_it.py").write_text(f"import pytest\n{text}")
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=100)


def test_a_mark_is_strict(tmp_path: Path):
    done = collected(
        tmp_path,
        "@pytest.mark.never('the server has none')\n"
        "def test_fails():\n    assert False\n"
        "@pytest.mark.notyet('nobody recorded one yet')\n"
        "def test_passes():\n    pass\n",
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "1 failed, 1 xfailed" in done.stdout
    assert "[XPASS(strict)] notyet: nobody recorded one yet" in done.stdout


@pytest.mark.parametrize("reason", ["", "'because'", "'', ''"])
def test_a_mark_wants_a_reason(tmp_path: Path, reason: str):
    done = collected(
        tmp_path, f"@pytest.mark.never({reason})\ndef test_fails():\n    assert False\n"
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout + done.stderr
    assert "needs one sentence of reason" in done.stderr
