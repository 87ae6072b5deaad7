"""Cassettes of real servers: how one is stored, how a request finds its answer, who plays it.

A cassette is vcrpy's YAML with one more key, `recorded`: the server, its version, the command that
started it and the date. One that lacks any of these is refused. A loopback server plays it to the
unchanged drivers, because vcrpy's own replay is bypassed by them (and gives a stream in one piece).
"""

from __future__ import annotations

import datetime
import inspect
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.server import Reply, Seen, Server, json_reply

HERE = Path(__file__).parent
STANDARD = HERE / "standard"
"""Cassettes of the standard suites: `ENGINE.yaml` for chat, `ENGINE-embeddings.yaml`."""

FACTS = ("server", "version", "command", "date")
HOPS = ("transfer-encoding", "content-length", "connection", "keep-alive")
PIECE = 97
"""Bytes of a replayed body that go out at once: small, as a server writes a stream."""

Key = tuple[str, str, str]


class UndatedCassetteError(Exception):
    """A cassette that does not say what it is of."""


@dataclass(frozen=True, kw_only=True)
class Tape:
    """A cassette as read.

    Attributes:
        recorded: `FACTS`, and the names of the models: `model`, and `other` where there was one.
    """

    path: Path
    recorded: dict[str, str]
    interactions: list[dict[str, Any]]


@cache
def load(path: Path) -> Tape:
    """Read a cassette. Raises UndatedCassetteError when one of `FACTS` lacks."""
    stored = yaml.load(path.read_text("utf-8"), Loader=_LOADER)
    told = {name: str(value or "") for name, value in (stored.get("recorded") or {}).items()}
    lacking = [name for name in FACTS if not told.get(name, "").strip()]
    if lacking:
        raise UndatedCassetteError(f"{path.name} does not say its {', '.join(lacking)}")
    datetime.date.fromisoformat(told["date"])
    return Tape(path=path, recorded=told, interactions=list(stored["interactions"]))


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def key(method: str, path: str, body: Any) -> Key:
    """What of a request decides its answer.

    Ids are numbered in their order, since tests and frameworks draw them at random; descriptions
    are stripped of the indentation that Python before 3.13 leaves in docstrings.
    """
    text = body.decode() if isinstance(body, bytes) else body or ""
    parsed = _canonical(json.loads(text), {}) if text else None
    return method, path, json.dumps(parsed, sort_keys=True, ensure_ascii=False)


def _canonical(value: Any, ids: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _field(name, held, ids) for name, held in value.items()}
    if isinstance(value, list):
        return [_canonical(one, ids) for one in value]
    return value


def _field(name: str, value: Any, ids: dict[str, str]) -> Any:
    if isinstance(value, str):
        if name in ("id", "tool_call_id"):
            return ids.setdefault(value, f"id {len(ids)}")
        if name == "description":
            return inspect.cleandoc(value)
    return _canonical(value, ids)


def key_of(interaction: dict[str, Any]) -> Key:
    """The key of a stored request."""
    request = interaction["request"]
    return key(request["method"], request["uri"].removeprefix("http://server"), request["body"])


@dataclass
class Player:
    """Answers each request as it was answered on the tape; in order where it was asked again.

    Attributes:
        missed: requests that are not on the tape, since the last look. They get a 418, and the test
            that made them must fail by this list: an error alone could be what a test expects.
    """

    tape: Tape
    missed: list[str] = field(default_factory=list)
    _answers: dict[Key, list[Reply]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for one in self.tape.interactions:
            self._answers.setdefault(key_of(one), []).append(_reply(one["response"]))

    def __call__(self, seen: Seen) -> Reply:
        asked = key(seen.method, seen.path, seen.body)
        with self._lock:
            answers = self._answers.get(asked)
            if answers:
                return answers.pop(0) if len(answers) > 1 else answers[0]
            self.missed.append(f"{seen.method} {seen.path} {asked[2]}")
        return json_reply({"error": {"message": f"not on the tape: {seen.path}"}}, 418)


def _reply(response: dict[str, Any]) -> Reply:
    headers = {name.lower(): values[0] for name, values in response["headers"].items()}
    for hop in HOPS:
        headers.pop(hop, None)
    body = response["body"]["string"]
    data = body.encode() if isinstance(body, str) else body
    pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
    return Reply(status=response["status"]["code"], headers=headers, body=pieces)


@contextmanager
def playing(path: Path) -> Iterator[tuple[str, Player]]:
    """The URL of a loopback server that plays this cassette, and the player."""
    player = Player(load(path))
    with Server() as server:
        server.always(player)
        yield server.url, player
