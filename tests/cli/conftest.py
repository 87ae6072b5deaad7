"""A server for the commands to talk to."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginekit.kit.server_facts import forget_facts
from tests.support.server import Server, replay

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "recordings" / "llamacpp"


@pytest.fixture
def llamacpp(monkeypatch):
    """A llama.cpp server on loopback that answers chats as a recorded one did."""
    forget_facts()
    with Server() as server:
        for path, case in (
            ("/props", "l_props"),
            ("/v1/models", "models"),
            ("/health", "health"),
            ("/v1/chat/completions", "chat_stream_usage"),
        ):
            server.on(path, replay(RECORDINGS / f"{case}.json"))
        monkeypatch.setenv("ENGINEKIT_ENGINE", "llamacpp")
        monkeypatch.setenv("ENGINEKIT_BASE_URL", server.url)
        yield server
