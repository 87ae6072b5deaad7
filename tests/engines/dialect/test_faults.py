"""What a refusal means: every recorded one, every shape of body, and the rows no recording has."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from enginekit.engine import Engine, Target
from enginekit.engines._fault import read_fault
from enginekit.engines.llamacpp import LlamaCpp
from enginekit.engines.vllm import VLLM
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineDied,
    EngineError,
    EngineFault,
    EngineLoading,
    EngineTimeout,
    ModelNotFound,
    Overloaded,
    Redirected,
    Unauthorized,
    Unsupported,
)
from tests.engines import recordings
from tests.engines.recordings import Recording

HERE = Path(__file__).parents[1]
LC = LlamaCpp(Target(base_url="http://server"), name="llamacpp")
VL = VLLM(Target(base_url="http://server"), name="vllm")
ENGINES: dict[str, Engine] = {"llamacpp": LC, "vllm": VL}


def refusals(engine: str) -> list[Recording]:
    """Every recorded answer of status 400 and more."""
    found = []
    for path in sorted((recordings.ROOT / engine).glob("*.json")):
        if path.stem.startswith("scene_"):
            found += recordings.scene(engine, path.stem)
        elif path.stem not in ("s_call_required", "s_call_required_stream") and (
            json.loads(path.read_text("utf-8")).get("response")
        ):
            found.append(recordings.load(engine, path.stem))
    return [recording for recording in found if recording.status >= 400]


def line(engine: str, recording: Recording) -> str:
    """Recording, request and what enginekit makes of it."""
    error = ENGINES[engine].failure(
        recording.status, recording.headers, recording.body, path=recording.path
    )
    said = [
        f"{name}={getattr(error, name)!r}"
        for name in ("limit", "requested", "model", "near", "feature")
        if getattr(error, name, None) not in (None, "", ())
    ]
    shown = " ".join([type(error).__name__, *said])
    return f"{recording.name} {recording.path} {recording.status}: {shown}"


@pytest.mark.parametrize("engine", ENGINES)
def test_every_recorded_refusal(engine: str) -> None:
    """The table `refusals.txt` says what each of them means; a person can check it."""
    known = (HERE / engine / "refusals.txt").read_text("utf-8").splitlines()
    told = list(dict.fromkeys(line(engine, recording) for recording in refusals(engine)))
    assert told == known
    assert len(told) > 40


@pytest.mark.parametrize("engine", ENGINES)
def test_errors_name_the_server_and_survive_pickling(engine: str) -> None:
    """Every error says which engine and address, keeps status and body, and can be pickled."""
    for recording in refusals(engine):
        error = ENGINES[engine].failure(recording.status, recording.headers, recording.body)
        assert isinstance(error, EngineError)
        assert engine in str(error)
        assert "http://server" in str(error)
        assert error.status == recording.status
        assert error.response.status_code == recording.status
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.status) == (type(error), str(error), error.status)


def body(message: str, code: int, **more: Any) -> bytes:
    return json.dumps({"error": {"message": message, "code": code, **more}}).encode()


ROWS: list[tuple[Engine, int, bytes, type[EngineError], dict[str, Any]]] = [
    (LC, 400, body("model 'x' not found", 400), ModelNotFound, {"model": "x"}),
    (LC, 400, body("model name is missing from the request", 400), BadRequest, {}),
    (LC, 500, body("model name=x failed to load", 500), EngineFault, {}),
    (LC, 503, body("Loading model", 503), EngineLoading, {}),
    (LC, 503, b"<html>bad gateway</html>", Overloaded, {}),
    (LC, 502, b"<html>bad gateway</html>", EngineFault, {}),
    (
        LC,
        500,
        body("Failed to load image or audio file", 500),
        BadRequest,
        {},
    ),
    (
        LC,
        500,
        body("input (601 tokens) is too large to process. (current batch size: 512)", 500),
        ContextOverflow,
        {"limit": 512, "requested": 601},
    ),
    (LC, 200, body("Context size has been exceeded.", 500), Overloaded, {"retry_after": None}),
    (LC, 200, body("something else", 500), EngineFault, {}),
    (LC, 500, b"", EngineFault, {}),
    (VL, 500, body("anything", 500), EngineFault, {}),
    (VL, 200, body("EngineCore encountered an issue.", 500), EngineDied, {}),
    (VL, 422, body("could not fetch the image", 422), BadRequest, {}),
    (VL, 408, b"Request x timed out after 6.0s.", EngineTimeout, {}),
    (VL, 429, b"", Overloaded, {"retry_after": 7.0}),
    (VL, 403, b"", Unauthorized, {}),
    (VL, 307, b"", Redirected, {"location": "http://elsewhere/"}),
    (VL, 404, b'{"detail":"Not Found"}', Unsupported, {"feature": "/path"}),
    (VL, 405, b"", Unsupported, {}),
    (
        VL,
        404,
        body("The model `x` does not exist. Valid aliases: a, b.", 404, param="model"),
        ModelNotFound,
        {"model": "x", "near": ("a", "b")},
    ),
]


@pytest.mark.parametrize(("engine", "status", "content", "kind", "facts"), ROWS)
def test_row(
    engine: Engine, status: int, content: bytes, kind: type[EngineError], facts: dict[str, Any]
) -> None:
    """Conditions of the fact sheet that no recording holds."""
    headers = {"retry-after": "7", "location": "http://elsewhere/"}
    error = engine.failure(status, headers, content, path="/path")
    assert type(error) is kind
    for name, value in facts.items():
        assert getattr(error, name) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"error":{"message":"m","code":400}}', "m"),
        (b'{"error":"m","error_type":"validation"}', "m"),
        (b'"{\\"object\\":\\"error\\",\\"message\\":\\"m\\",\\"code\\":400}"', "m"),
        (b'{"error":"{\\"error\\":{\\"message\\":\\"m\\",\\"type\\":\\"t\\"}}"}', "m"),
        (b'{"error":"chat error: {\\"error\\":{\\"message\\":\\"m\\"}}"}', "m"),
        (b'{"detail":"m"}', "m"),
        (b'{"detail":[{"loc":["body","stop"],"msg":"m","type":"x"}]}', "body.stop: m"),
        (b'{"message":"m"}', "m"),
        (b'[{"message":"m"}]', "m"),
        (b'"m"', "m"),
        (b"m", "m"),
        (b"", ""),
        (b"null", "null"),
        (b"\xff", "\ufffd"),
        (
            b'{"error":{"message":"Message: m (Request ID: 1), Internal exception: \\u001b[1m"}}',
            "m",
        ),
    ],
)
def test_shapes_of_error_bodies(content: bytes, message: str) -> None:
    """Every shape that the six engines were seen to answer with."""
    assert read_fault(400, {}, content).message == message


def test_overloaded_and_loading_may_be_retried_but_overflow_not() -> None:
    """What a retry can mend says so."""
    assert LC.failure(503, {}, body("Loading model", 503)).retryable
    assert VL.failure(429, {}, b"").retryable
    assert not LC.failure(
        400, {}, body("too long", 400, type="exceed_context_size_error", n_ctx=5)
    ).retryable
