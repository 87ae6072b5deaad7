"""The ollama client on our fake of Ollama."""

from __future__ import annotations

import pytest

from tests.support.server import Server
from tests.witness.support import calls, ours, serve

ollama = pytest.importorskip("ollama", reason="nox -s witness installs it")


def chat(server: Server, request: dict):
    client = ollama.Client(host=server.url)
    try:
        answer = client.chat(**request)
        return list(answer) if request.get("stream") else [answer]
    finally:
        client._client.close()


@pytest.mark.parametrize(
    "case", ["n_chat", "n_chat_stream", "n_tools_stream", "thinker/n_chat_stream"]
)
def test_it_reads_what_we_read(server, case):
    parts = chat(server, serve(server, "ollama", case))
    told = ours("ollama", case)
    assert "".join(part.message.content or "" for part in parts) == told.text
    assert "".join(part.message.thinking or "" for part in parts) == told.reasoning
    made = [call.function for part in parts for call in part.message.tool_calls or ()]
    assert [(call.name, dict(call.arguments)) for call in made] == calls(told)
    assert parts[-1].done is True
    assert parts[-1].eval_count == told.end.usage.completion_tokens


def test_it_sees_a_refusal_where_we_do(server):
    with pytest.raises(ollama.ResponseError) as caught:
        chat(server, serve(server, "ollama", "n_err_model"))
    assert caught.value.status_code == 404
