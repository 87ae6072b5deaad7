"""The same recorded bytes for an official client and for enginekit."""

from __future__ import annotations

import json
from typing import Any

from tests.contract.replayed import ROOT, decoded
from tests.engines.recordings import Decoded, load
from tests.support.server import Server, replay


def serve(server: Server, engine: str, case: str) -> dict[str, Any]:
    """Let the server answer everything with a recording; returns the recorded request."""
    path = ROOT / engine / f"{case}.json"
    server.always(replay(path))
    return dict(json.loads(path.read_text("utf-8"))["request"].get("json") or {})


def ours(engine: str, case: str) -> Decoded:
    """What enginekit reads in the same recording."""
    return decoded(engine, load(engine, case))


def calls(told: Decoded) -> list[tuple[str, Any]]:
    assert told.end is not None
    return [(call.name, json.loads(call.arguments)) for call in told.end.tool_calls]
