"""Which server the live contract runs against.

By default a real llama.cpp server with scripted weights, started here. `nox -s live -- ENGINE URL
[MODEL]` points it at any server; the lanes for vLLM and Ray Serve do the same. Environment, read
once before tests clean it: ENGINEKIT_LIVE_ENGINE, _URL, _MODEL, _KEY, and _SCRIPTED=1 when the
server runs the weights of `tests.support.scripted`. The standard suites and the examples read more:
_OTHER, a second model that the server has, for the tests that override the model (without it the
override names the same one), and _EMBED_URL, _EMBED_MODEL, _EMBED_KEY, an embedding server of the
same engine. _PARSER=none says that the server was started without a tool parser.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from enginekit.kit.client import Client
from enginekit.kit.server_facts import forget_facts
from enginekit.types import ChatRequest, Chunk, Message, Reply, Sampling
from tests.support.models import scripted_gguf

LIVE = {
    name: os.environ.get(f"ENGINEKIT_LIVE_{name.upper()}", "")
    for name in (
        *("engine", "url", "model", "key", "scripted"),
        *("other", "embed_url", "embed_model", "embed_key", "parser"),
    )
}


@dataclass(frozen=True)
class Place:
    """A running server and how to reach it."""

    settings: dict[str, Any]
    scripted: bool

    def client(self, **more: Any) -> Client:
        return Client({**self.settings, **more})


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if LIVE["url"]:
        settings = {
            "engine": LIVE["engine"],
            "base_url": LIVE["url"],
            "model": LIVE["model"] or None,
            "api_key": LIVE["key"] or None,
        }
        yield Place(settings, LIVE["scripted"] == "1")
        return
    from enginekit.launch.embedded import EmbeddedSpec, acquire

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINEKIT_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        spec = EmbeddedSpec(
            model_path=scripted_gguf(), context=8192, slots=4, extra_args=("--metrics",)
        )
        with acquire(spec, budget=90) as lease:
            settings = {
                "engine": "llamacpp",
                "base_url": lease.base_url,
                "api_key": lease.api_key,
                "model": "scripted",
            }
            yield Place(settings, scripted=True)


@pytest.fixture(autouse=True)
def no_cached_facts() -> None:
    """A test that runs alone makes its own probe; so does one that runs after others."""
    forget_facts()


@pytest.fixture
def client(place: Place) -> Client:
    return place.client()


@pytest.fixture
def scripted(place: Place) -> None:
    """For expectations that only scripted weights can meet."""
    if not place.scripted:
        pytest.skip("exact expectations need the scripted weights on the server")


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Callable[[Client, ChatRequest], Reply]:
    """One whole reply, through either driver."""
    if request.param == "sync":
        return lambda client, wanted: client.chat(wanted)
    return lambda client, wanted: asyncio.run(client.achat(wanted))


@pytest.fixture(params=["sync", "async"])
def listen(request: pytest.FixtureRequest) -> Callable[[Client, ChatRequest], list[Chunk]]:
    """All chunks of a stream, through either driver."""
    if request.param == "sync":
        return lambda client, wanted: list(client.stream(wanted))

    async def collect(client: Client, wanted: ChatRequest) -> list[Chunk]:
        return [chunk async for chunk in await client.astream(wanted)]

    return lambda client, wanted: asyncio.run(collect(client, wanted))


def chat(text: str, *, max_tokens: int = 64, **more: Any) -> ChatRequest:
    """A request with one user message, greedy."""
    sampling = {"temperature": 0.0, "max_tokens": max_tokens, **more.pop("sampling", {})}
    return ChatRequest(
        model="",
        messages=(*more.pop("before", ()), Message(role="user", content=text)),
        sampling=Sampling(**sampling),
        **more,
    )


RECORDINGS = Path(__file__).parents[1] / "fixtures" / "recordings"
