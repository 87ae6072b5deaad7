"""The official OpenAI clients go where the configuration says, with its key and its limits."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from enginekit.kit import Client, async_openai_client, openai_client
from enginekit.kit.server_facts import forget_facts
from tests.support.server import Reply, Server, replay

openai = pytest.importorskip("openai", reason="nox -s witness installs it")

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "recordings" / "llamacpp"
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Say hi."}]}


@pytest.fixture(autouse=True)
def fresh():
    forget_facts()


def serve(server: Server) -> Server:
    for path, case in {
        "/props": "l_props",
        "/v1/models": "models",
        "/health": "health",
        "/v1/chat/completions": "chat_stream_usage",
    }.items():
        server.on(path, replay(RECORDINGS / f"{case}.json"))
    return server


def settings(server: Server) -> dict:
    return {"engine": "llamacpp", "base_url": server.url, "api_key": "k-1"}


def text_of(client: openai.OpenAI) -> str:
    pieces = client.chat.completions.create(**ASKED, stream=True)
    return "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)


def test_it_talks_to_the_engine_with_its_key(server):
    with openai_client(**settings(serve(server))) as client:
        assert text_of(client)
    asked = server.requests[-1]
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == "Bearer k-1"


def test_it_is_pointed_by_the_environment_alone(server, monkeypatch):
    monkeypatch.setenv("ENGINEKIT_ENGINE", "llamacpp")
    monkeypatch.setenv("ENGINEKIT_LLAMACPP_URL", serve(server).url)
    with openai_client() as client:
        assert text_of(client)
    assert client.api_key == "none"


def test_the_async_client_does_the_same(server):
    serve(server)

    async def talk() -> str:
        async with await async_openai_client(**settings(server)) as client:
            stream = await client.chat.completions.create(**ASKED, stream=True)
            return "".join([p.choices[0].delta.content or "" async for p in stream if p.choices])

    assert asyncio.run(talk())


def test_the_model_and_the_limits_are_those_of_the_settings(server):
    ours = Client({**settings(serve(server)), "timeout": 7.5, "max_retries": 0})
    with openai_client(ours) as client:
        assert client.max_retries == 0
        assert client._client.timeout.read == 7.5
        assert client._client.timeout.connect == 5.0
        assert ours.model


def test_a_redirect_is_not_followed_with_the_prompt(server):
    serve(server).on("/v1/chat/completions", Reply(status=307, headers={"location": server.url}))
    client = openai_client(**settings(server), max_retries=0)
    with client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**ASKED)
    assert caught.value.status_code == 307
    assert [seen.path for seen in server.requests].count("/v1/chat/completions") == 1


def test_a_unix_socket_works(tmp_path):
    with (
        serve(Server(unix=tmp_path / "s")) as server,
        openai_client(engine="llamacpp", base_url=server.url) as client,
    ):
        assert text_of(client)


def test_a_proxy_of_the_environment_is_not_used_for_loopback(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with openai_client(**settings(serve(server))) as client:
        assert text_of(client)


def test_a_client_and_settings_together_are_refused():
    with pytest.raises(TypeError, match="not both"):
        openai_client(Client(), model="m")


def test_without_the_package_the_extra_is_named():
    code = "import sys; sys.modules['openai'] = None\nfrom enginekit.kit import openai_client\nopenai_client()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "hint: pip install 'enginekit[openai]'" in done.stderr
