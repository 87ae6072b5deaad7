"""The command in the hint of a server that does not answer starts one where it was looked for."""

from __future__ import annotations

import pytest

from enginekit import registry
from enginekit.errors import Unreachable
from enginekit.kit.client import Client
from enginekit.kit.route import start_command
from enginekit.types import ChatRequest, Message
from tests.support.server import refused_url


@pytest.mark.parametrize(
    ("engine", "url", "command"),
    [
        ("ollama", "http://127.0.0.1:11434", "ollama serve"),
        ("ollama", "http://127.0.0.1:11500", "OLLAMA_HOST=127.0.0.1:11500 ollama serve"),
        (
            "llamacpp",
            "http://127.0.0.1:18080/x",
            "llama-server -m m --host 127.0.0.1 --port 18080 -c 8192 --metrics",
        ),
        (
            "llamacpp",
            "unix:///run/llama.sock",
            "llama-server -m m --host 127.0.0.1 --port 8080 -c 8192 --metrics",
        ),
    ],
)
def test_it_names_the_port(engine, url, command):
    assert start_command(registry.engine_class(engine).profile, url, "m") == command


@pytest.mark.parametrize("engine", sorted(registry.names()))
def test_every_command_survives_a_port_of_its_own(engine):
    profile = registry.engine_class(engine).profile
    start = start_command(profile, "http://127.0.0.1:45678", "m")

    if profile.start_command and ("--port" in profile.start_command or profile.url_env):
        assert "45678" in start


def test_the_hint_of_a_dead_address_has_it():
    url = refused_url()
    client = Client({"engine": "ollama", "base_url": url, "model": "m", "max_retries": 0})
    with pytest.raises(Unreachable) as caught:
        client.chat(ChatRequest(model="", messages=(Message(role="user", content="Hi."),)))
    where = url.removeprefix("http://")
    assert caught.value.hint == f"start it: OLLAMA_HOST={where} ollama serve"
