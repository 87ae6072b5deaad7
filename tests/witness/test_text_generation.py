"""TGI's own client on our fake of its native routes."""

from __future__ import annotations

import json

import pytest

from tests.engines.recordings import load
from tests.witness.support import serve

text_generation = pytest.importorskip("text_generation", reason="nox -s witness_tgi installs it")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its pydantic calls are old


def test_it_reads_the_recorded_stream(server):
    request = serve(server, "tgi", "t_generate_stream_details")
    client = text_generation.Client(server.url)
    parts = list(client.generate_stream(request["inputs"], max_new_tokens=7))
    recorded = [
        json.loads(line[5:])
        for line in load("tgi", "t_generate_stream_details").body.splitlines()
        if line.startswith(b"data:")
    ]
    assert [part.token.text for part in parts] == [event["token"]["text"] for event in recorded]
    assert parts[-1].generated_text == recorded[-1]["generated_text"]
    assert parts[-1].details.generated_tokens == recorded[-1]["details"]["generated_tokens"]


def test_it_sees_a_refusal_where_we_do(server):
    request = serve(server, "tgi", "t_err_zero")
    with pytest.raises(text_generation.errors.ValidationError):
        text_generation.Client(server.url).generate(request["inputs"], max_new_tokens=7)
