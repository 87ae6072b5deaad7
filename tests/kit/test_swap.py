"""One program, three wires: only the environment differs. Answers are replayed recordings.

The engines are loopback servers that replay what real ones said (Ollama's JSON lines, llama.cpp's
and vLLM's events); that the same works on running servers is shown by tests/contract and the demo.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from enginekit.engine import Target
from enginekit.engines.ollama import Ollama
from enginekit.errors import ConfigError, NoEngine, UntrustedOrigin
from enginekit.kit import embedded
from enginekit.kit.client import Client
from enginekit.kit.discover import Found
from enginekit.kit.route import Route
from enginekit.kit.server_facts import forget_facts
from enginekit.types import ChatRequest, Message
from tests.support.server import Server, refused_url, replay

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "recordings"

CASES = {
    "llamacpp": {
        "/props": "l_props",
        "/v1/models": "models",
        "/health": "health",
        "/v1/chat/completions": "chat_stream_usage",
    },
    "vllm": {
        "/version": "version",
        "/v1/models": "models",
        "/health": "health",
        "/v1/chat/completions": "chat",
    },
    "ollama": {
        "/": "n_root",
        "/api/tags": "n_tags",
        "/api/ps": "n_ps",
        "/api/show": "n_show",
        "/api/version": "n_version",
        "/api/chat": "n_chat_stream",
    },
}

REQUEST = ChatRequest(model="", messages=(Message(role="user", content="Say hi."),))


def served(engine: str) -> Server:
    server = Server()
    for path, case in CASES[engine].items():
        server.on(path, replay(RECORDINGS / engine / f"{case}.json"))
    if engine == "ollama":
        whole, stream = (
            replay(RECORDINGS / engine / f"{case}.json") for case in ("n_chat", "n_chat_stream")
        )
        server.on("/api/chat", lambda seen: stream if seen.json["stream"] else whole)
    return server


@pytest.fixture(autouse=True)
def fresh():
    forget_facts()


PROGRAM = """
from enginekit.langchain import EngineKitChat
model = EngineKitChat(max_tokens=16)
pieces = [chunk.text for chunk in model.stream("Say hi.")]
print("".join(pieces))
"""


@pytest.mark.parametrize("engine", ["llamacpp", "ollama"])
def test_the_same_program_crosses_wires_by_one_variable(engine, monkeypatch):
    """Both addresses are in the environment; only ENGINEKIT_ENGINE differs between the runs."""
    with served("llamacpp") as first, served("ollama") as second:
        monkeypatch.setenv("ENGINEKIT_LLAMACPP_URL", first.url)
        monkeypatch.setenv("ENGINEKIT_OLLAMA_URL", second.url)
        monkeypatch.setenv("ENGINEKIT_MODEL", "llama3.1")
        monkeypatch.setenv("ENGINEKIT_ENGINE", engine)
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        spoken = [seen.path for seen in (*first.requests, *second.requests) if "chat" in seen.path]
    assert spoken == [{"llamacpp": "/v1/chat/completions", "ollama": "/api/chat"}[engine]]


@pytest.mark.parametrize("engine", ["llamacpp", "ollama", "vllm"])
def test_an_address_alone_is_enough(engine):
    """The kind of server is recognised by its own signature."""
    with served(engine) as server:
        client = Client({"base_url": server.url, "model": "llama3.1"})
        client.connect()
        assert client.engine.profile.name == engine


def test_nothing_anywhere_lists_what_was_tried(monkeypatch):
    monkeypatch.setattr("enginekit.launch._platform.installed_version", lambda: None, raising=True)
    with pytest.raises(NoEngine) as caught:
        Client().chat(REQUEST)
    assert len(caught.value.tried) >= 3
    assert caught.value.tried[-1].startswith("embedded: ")
    assert "none given (no ENGINEKIT_* variable, no enginekit.toml)" in str(caught.value)
    assert caught.value.hint == "pip install 'enginekit[embedded]'"


def test_settings_and_their_origin_are_in_that_error(monkeypatch):
    monkeypatch.setattr("enginekit.launch._platform.installed_version", lambda: None)
    monkeypatch.setenv("ENGINEKIT_MODEL", "llama3.1")
    with pytest.raises(NoEngine, match=r"model=llama3\.1 from ENGINEKIT_MODEL"):
        Client().chat(REQUEST)


def test_no_request_carries_a_key_to_a_projects_address(tmp_path, monkeypatch):
    with served("vllm") as server:
        (tmp_path / ".git").mkdir()
        (tmp_path / "enginekit.toml").write_text(
            f'engine = "vllm"\nbase_url = "{server.url}"\nmodel = "m"\n'
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ENGINEKIT_API_KEY", "secret")
        with pytest.raises(UntrustedOrigin):
            Client().chat(REQUEST)
        assert server.requests == []
        monkeypatch.setenv("ENGINEKIT_TRUST_PROJECT", "1")
        Client().connect()
        assert server.requests[0].headers["authorization"] == "Bearer secret"


def test_no_request_carries_a_key_to_an_address_that_was_only_found(monkeypatch):
    with served("ollama") as server:
        found = Found(url=server.url, asked=("ollama",), engine=Ollama(Target(base_url=server.url)))
        facts = Client({"engine": "ollama", "base_url": server.url}).connect()
        seen = len(server.requests)

        def discovered():
            return [replace(found, facts=facts)]
            yield

        monkeypatch.setattr("enginekit.kit.route.discover", discovered)
        monkeypatch.setenv("ENGINEKIT_API_KEY", "secret")
        with pytest.raises(UntrustedOrigin, match="discovery"):
            Client().chat(REQUEST)
        assert len(server.requests) == seen


def test_a_server_of_ours_that_died_is_started_again_by_the_same_call():
    lease = Mock(alive=Mock(side_effect=[True, False, False]))
    with served("llamacpp") as server:
        client = Client({"engine": "llamacpp", "base_url": server.url, "max_retries": 0})
        client.connect()
        dead = replace(client.route.engine.target, base_url=refused_url())
        engine = type(client.route.engine)(dead)
        client._routes[0] = Route(engine=engine, model="m", lease=lease, probed=True)
        assert client.chat(REQUEST).text


def test_fallback_takes_the_next_engine_and_says_why(monkeypatch):
    with served("ollama") as server:
        monkeypatch.setenv("ENGINEKIT_VLLM_URL", refused_url())
        monkeypatch.setenv("ENGINEKIT_OLLAMA_URL", server.url)
        client = Client({"engine": "vllm,ollama", "model": "llama3.1", "max_retries": 0})
        reply = client.chat(REQUEST)
    assert reply.receipt.engine == "ollama"
    assert any("passed over" in note and "vllm" in note for note in reply.receipt.notes)


def test_another_async_framework_is_told_what_to_do_instead():
    call = Client({"engine": "vllm", "model": "m"}).achat(REQUEST)
    with pytest.raises(ConfigError, match="no asyncio event loop") as caught:
        call.send(None)  # as trio would
    assert "trio.to_thread" in caught.value.hint


def test_a_used_client_can_be_pickled():
    with served("llamacpp") as server:
        client = Client({"engine": "llamacpp", "base_url": server.url})
        client.connect()
        again = pickle.loads(pickle.dumps(client))
        assert again.settings == client.settings
        assert again.engine is None
        assert again.chat(REQUEST).text


def test_a_model_file_is_told_from_a_name(tmp_path):
    file = tmp_path / "model.bin"
    file.write_bytes(b"GGUF")
    assert embedded.is_model_file("hf://a/b/c.gguf")
    assert embedded.is_model_file(str(file))
    assert not embedded.is_model_file("llama3.1")
