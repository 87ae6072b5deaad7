"""Cassettes of real servers, served by a loopback server to the unchanged drivers.

A cassette says which server it is of, in which version, started how, and when; one that does not
is refused. `nox -s live_vllm -- --record` and its like make them anew.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from enginekit.kit.client import Client
from tests.cassettes import programme
from tests.cassettes.record import FACTS, HERE
from tests.support.server import Reply, Seen, Server, json_reply

CASSETTES = sorted(HERE.glob("*.yaml"))


class UndatedCassetteError(Exception):
    """A cassette that does not say what it is of."""


def load(path: Path) -> list[dict[str, Any]]:
    """The interactions. Raises UndatedCassetteError when server, version, command or date lack."""
    stored = yaml.safe_load(path.read_text("utf-8"))
    told = stored.get("recorded") or {}
    lacking = [name for name in FACTS if not str(told.get(name) or "").strip()]
    if lacking:
        raise UndatedCassetteError(f"{path.name} does not say its {', '.join(lacking)}")
    datetime.date.fromisoformat(str(told["date"]))
    return list(stored["interactions"])


def key(method: str, path: str, body: Any) -> tuple[str, str, str]:
    text = body.decode() if isinstance(body, bytes) else body or ""
    parsed = json.loads(text) if text else None
    return method, path, json.dumps(parsed, sort_keys=True)


def player(interactions: list[dict[str, Any]]) -> Any:
    """Answers each request as it was answered on the tape; in order where it was asked again."""
    tape: dict[tuple[str, str, str], list[Reply]] = {}
    for one in interactions:
        request, response = one["request"], one["response"]
        path = request["uri"].removeprefix("http://server")
        headers = {name.lower(): values[0] for name, values in response["headers"].items()}
        body = response["body"]["string"]
        data = body.encode() if isinstance(body, str) else body
        for hop in ("transfer-encoding", "content-length", "connection", "keep-alive"):
            headers.pop(hop, None)
        # Small pieces, as a server writes them: vcrpy keeps a stream in one.
        pieces = [data[at : at + 97] for at in range(0, len(data), 97)]
        reply = Reply(status=response["status"]["code"], headers=headers, body=pieces)
        tape.setdefault(key(request["method"], path, request["body"]), []).append(reply)

    def play(seen: Seen) -> Reply:
        answers = tape.get(key(seen.method, seen.path, seen.body))
        if not answers:
            return json_reply({"error": {"message": f"not on the tape: {seen.path}"}}, 418)
        return answers.pop(0) if len(answers) > 1 else answers[0]

    return play


@pytest.mark.parametrize("path", CASSETTES, ids=lambda path: path.stem)
def test_a_cassette_replays(path: Path):
    """The same requests go out as when it was made, and the same exact answers are read."""
    with Server() as server:
        server.always(player(load(path)))
        client = Client({"engine": path.stem, "base_url": server.url, "model": "scripted"})
        assert programme.run(client) == {}


def test_there_is_one_of_each_engine_that_runs_here():
    assert {path.stem for path in CASSETTES} >= {"llamacpp", "vllm", "rayserve"}


@pytest.mark.parametrize("lacking", FACTS)
def test_a_cassette_without_its_facts_is_refused(tmp_path: Path, lacking: str):
    stored = yaml.safe_load(CASSETTES[0].read_text("utf-8"))
    del stored["recorded"][lacking]
    path = tmp_path / "undated.yaml"
    path.write_text(yaml.safe_dump(stored), "utf-8")
    with pytest.raises(UndatedCassetteError, match=lacking):
        load(path)
