"""huggingface-hub's inference client on our fake of TGI."""

from __future__ import annotations

import pytest

from tests.witness.support import ours, serve

hub = pytest.importorskip("huggingface_hub", minversion="1.3", reason="nox -s witness installs it")


def test_it_reads_the_chat_that_we_read(server):
    serve(server, "tgi", "chat_stream_usage")
    client = hub.InferenceClient(base_url=server.url, api_key="none")
    text, usage = "", None
    for part in client.chat_completion(
        [{"role": "user", "content": "Say hi."}], stream=True, max_tokens=16
    ):
        usage = part.usage or usage
        text += "".join(choice.delta.content or "" for choice in part.choices)
    told = ours("tgi", "chat_stream_usage")
    assert text == told.text
    assert usage.completion_tokens == told.end.usage.completion_tokens
