"""Images by URL through the client: engines that take bytes, engines that take URLs, the setting."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from enginekit import config
from enginekit.errors import ConfigError, DownloadError, Unsupported
from enginekit.kit import _fetch, images
from enginekit.kit.client import Client
from enginekit.kit.server_facts import forget_facts
from enginekit.types import ChatRequest, Constraint, ImagePart, Message, TextPart
from tests.kit.test_images import JPEG, PNG, image_reply, lenient
from tests.support.server import Reply, Seen, Server, replay

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "recordings"


@pytest.fixture(autouse=True)
def fresh():
    forget_facts()


def sighted(seen: Seen) -> Reply:
    """The recorded answer of /api/show, of a model that sees."""
    recording = json.loads((RECORDINGS / "ollama" / "n_show.json").read_text("utf-8"))
    shown = json.loads(replay(recording).payload)
    shown["capabilities"] = [*shown.get("capabilities", ()), "vision"]
    return replay(recording, framing="length", body=[json.dumps(shown)])


@pytest.fixture
def ollama():
    cases = {"/": "n_root", "/api/tags": "n_tags", "/api/ps": "n_ps", "/api/version": "n_version"}
    whole, stream = (
        replay(RECORDINGS / "ollama" / f"{case}.json") for case in ("n_chat", "n_chat_stream")
    )
    with Server() as running:
        for path, case in cases.items():
            running.on(path, replay(RECORDINGS / "ollama" / f"{case}.json"))
        running.on("/api/show", sighted)
        running.on("/api/chat", lambda seen: stream if seen.json["stream"] else whole)
        yield running


def prompts(server: Server) -> list[Seen]:
    return [seen for seen in server.requests if "chat" in seen.path]


def asking(*urls: str, **more: object) -> ChatRequest:
    parts = (TextPart(text="What is this?"), *(ImagePart(url=url) for url in urls))
    return ChatRequest(model="", messages=(Message(role="user", content=parts),), **more)


def client_of(server: Server, engine: str = "ollama", **more: object) -> Client:
    return Client(
        {"engine": engine, "base_url": server.url, "model": "llama3.1", "api_key": "hush", **more}
    )


@pytest.fixture
def reachable(monkeypatch):
    """Let the client fetch from loopback."""
    monkeypatch.setattr(_fetch, "fetch_image", lenient())


def test_by_default_nothing_is_fetched_and_the_refusal_says_how_to_allow_it(ollama, server):
    with pytest.raises(Unsupported, match="fetches no image unless told to") as caught:
        client_of(ollama).chat(asking(f"{server.url}/a.png"))
    assert "ENGINEKIT_FETCH_IMAGES=1" in caught.value.hint
    assert caught.value.feature == "image_urls"
    assert server.connections == 0
    assert prompts(ollama) == []


@pytest.mark.parametrize("how", ["chat", "stream", "achat", "astream"])
async def test_on_both_drivers_the_engine_gets_bytes_and_the_receipt_notes_it(
    ollama, server, reachable, how
):
    server.on("/a.png", image_reply()).on("/b.jpg", image_reply(JPEG, "image/jpeg"))
    client = client_of(ollama, fetch_images=True)
    inline = "data:image/gif;base64,R0lGODlh"
    asked = asking(f"{server.url}/a.png", f"{server.url}/b.jpg", f"{server.url}/a.png", inline)
    result = getattr(client, how)(asked)
    if how.startswith("a"):
        result = await result
    if how == "stream":
        list(result)
    elif how == "astream":
        async for _ in result:
            pass
    notes = [note for note in result.receipt.notes if "fetched" in note]
    assert notes == [
        f"an image of {len(data)} bytes was fetched from 127.0.0.1 and sent as bytes"
        for data in (PNG, JPEG)
    ]
    (prompt,) = prompts(ollama)
    sent = [base64.b64decode(text) for text in prompt.json["messages"][0]["images"]]
    assert sent == [PNG, JPEG, PNG, b"GIF89a"]
    assert server.paths() == ["GET /a.png", "GET /b.jpg"]
    assert not any("hush" in value for seen in server.requests for value in seen.headers.values())
    assert prompt.headers["authorization"] == "Bearer hush"


def test_allowed_the_real_guard_still_holds(ollama, server):
    with pytest.raises(Unsupported, match="guarded"):
        client_of(ollama, fetch_images=True).chat(asking(f"{server.url}/a.png"))
    assert server.connections == 0
    assert prompts(ollama) == []


def test_an_engine_that_takes_urls_gets_the_url(server, reachable):
    with Server() as vllm:
        for path, case in {
            "/version": "version",
            "/v1/models": "models",
            "/health": "health",
            "/v1/chat/completions": "chat",
        }.items():
            vllm.on(path, replay(RECORDINGS / "vllm" / f"{case}.json"))
        client_of(vllm, "vllm", fetch_images=True).chat(asking(f"{server.url}/a.png"))
        (prompt,) = prompts(vllm)
    assert prompt.json["messages"][0]["content"][1]["image_url"]["url"] == f"{server.url}/a.png"
    assert server.connections == 0


def test_what_the_engine_refuses_anyway_is_refused_before_anything_is_fetched(
    ollama, server, reachable
):
    constraint = Constraint(kind="grammar", value="root ::= [a-z]+")
    with pytest.raises(Unsupported) as caught:
        client_of(ollama, fetch_images=True).chat(
            asking(f"{server.url}/a.png", constraint=constraint)
        )
    assert caught.value.feature == "constraint"
    assert server.connections == 0


def test_a_model_that_sees_nothing_is_not_fetched_for(ollama, server, reachable):
    ollama.on("/api/show", replay(RECORDINGS / "ollama" / "n_show.json"))
    with pytest.raises(Unsupported) as caught:
        client_of(ollama, fetch_images=True).chat(asking(f"{server.url}/a.png"))
    assert caught.value.feature == "images"
    assert server.connections == 0


def test_no_prompt_leaves_when_the_image_does_not_come(ollama, server, reachable):
    with pytest.raises(DownloadError, match="answered 404"):
        client_of(ollama, fetch_images=True).chat(asking(f"{server.url}/a.png"))
    assert prompts(ollama) == []


# ---------------------------------------------------------------------------------- the setting


def test_the_setting_comes_from_the_environment_and_never_from_a_project(tmp_path):
    told = config.load(environ={"ENGINEKIT_FETCH_IMAGES": "1"}, directory=tmp_path)
    assert told.value("fetch_images") is True
    (tmp_path / "enginekit.toml").write_text("fetch_images = true\n")
    with pytest.raises(ConfigError, match="may not set 'fetch_images'") as caught:
        config.load(environ={}, directory=tmp_path)
    assert "ENGINEKIT_FETCH_IMAGES" in caught.value.hint


def test_text_alone_costs_no_look_at_the_engine():
    """The step is on the way of every chat: without an image it asks nothing of anyone."""
    request = ChatRequest(model="m", messages=(Message(role="user", content="hi"),))
    operation = images.with_bytes(None, request, allowed=False)  # type: ignore[arg-type]
    with pytest.raises(StopIteration) as stopped:
        next(operation)
    assert stopped.value.value == (request, ())
