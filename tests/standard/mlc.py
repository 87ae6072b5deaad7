"""MLC LLM, which nobody can install here: recorded answers, with the words of the scripted weights.

No recording holds the requests of the standard suites, so this is no cassette. Every status, header
and field is a recording's of a real MLC server (tests/fixtures/recordings/mlc); of an answer to a
chat or a completion the text, the finish reason and the number of tokens are those of the scripted
weights. What the real server refused is refused in the recorded words.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.server import Reply, Seen, Server, json_reply, replay, sse
from tests.support.spoken import Spoken, answered, continued

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "recordings" / "mlc"
MODEL = "tiny"


def recorded(name: str) -> dict[str, Any]:
    """One recording."""
    found: dict[str, Any] = json.loads((RECORDINGS / f"{name}.json").read_text("utf-8"))
    return found


def _text(name: str) -> str:
    return "".join(text for _, text in recorded(name)["response"]["chunks"])


def _events(name: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in _text(name).splitlines() if line]
    return [json.loads(line) for line in lines if line.startswith("{")]


class Answers:
    """Answers each request of the suites.

    Attributes:
        missed: requests that no recording tells the answer of; they get a 418.
    """

    def __init__(self) -> None:
        self.missed: list[str] = []

    def __call__(self, seen: Seen) -> Reply:
        path = seen.path.partition("?")[0]
        if path == "/v1/models":
            return replay(recorded("models"))
        if path == "/metrics":
            return replay(recorded("m_metrics"))
        if path == "/v1/embeddings":
            return replay(recorded("embeddings"))
        if path == "/v1/chat/completions":
            return self._chat(seen.json)
        if path == "/v1/completions":
            told = continued(seen.json["prompt"], seen.json.get("max_tokens"))
            if seen.json.get("stream"):
                return _streamed("completion_stream", told, seen.json)
            return _whole("completion", told, seen.json)
        return self._miss(seen.path)

    def _miss(self, what: str) -> Reply:
        self.missed.append(what)
        return json_reply({"detail": "no recording tells the answer"}, 418)

    def _chat(self, body: Mapping[str, Any]) -> Reply:
        for message in body["messages"]:
            calls = message.get("tool_calls") or ()
            if any(isinstance(call["function"]["arguments"], str) for call in calls):
                return replay(recorded("chat_tool_result"))
            if calls:
                return replay(recorded("m_tool_calls_dict_args"))
            if message["role"] == "tool":
                return replay(recorded("m_tool_role_plain"))
            content = message.get("content")
            if isinstance(content, list) and any(part["type"] == "image_url" for part in content):
                return replay(recorded("chat_image"))
        if body.get("tools"):
            return self._miss("tools, which are not sent unless native_tools is on")
        told = answered(body)
        wanted = body.get("response_format") or {}
        if wanted.get("type") == "json_object" and told.finish == "stop":
            try:
                json.loads(told.text)
            except ValueError:
                return self._miss(f"JSON of a schema that the script does not know: {wanted}")
        if body.get("stream"):
            return _streamed("chat_stream_usage", told, body)
        return _whole("chat", told, body)


def _usage(stored: Mapping[str, Any], told: Spoken) -> dict[str, Any]:
    prompt = stored["prompt_tokens"]
    return {**stored, "completion_tokens": told.tokens, "total_tokens": prompt + told.tokens}


def _whole(name: str, told: Spoken, body: Mapping[str, Any]) -> Reply:
    answer = json.loads(_text(name))
    (choice,) = answer["choices"]
    choice["finish_reason"] = told.finish
    if "message" in choice:
        choice["message"]["content"] = told.text
    else:
        choice["text"] = told.text
    answer |= {"model": body.get("model"), "usage": _usage(answer["usage"], told)}
    return json_reply(answer, headers=_headers(name))


def _streamed(name: str, told: Spoken, body: Mapping[str, Any]) -> Reply:
    """A chunk for each token; the last of them has the finish reason, then the counts, then the end."""
    first, *_, ended, counted = _events(name)

    def chunk(event: dict[str, Any], text: str, finish: str | None) -> dict[str, Any]:
        made = copy.deepcopy(event) | {"model": body.get("model")}
        (choice,) = made["choices"]
        choice["finish_reason"] = finish
        if "delta" in choice:
            choice["delta"]["content"] = text
        else:
            choice["text"] = text
        return made

    # Cut by the limit, the last token comes with the finish reason; else nothing does.
    *pieces, last = told.pieces if told.finish == "length" else (*told.pieces, "")
    events = [chunk(first, piece, None) for piece in pieces]
    events.append(chunk(ended, last, told.finish))
    if (body.get("stream_options") or {}).get("include_usage"):
        events.append(
            {**counted, "model": body.get("model"), "usage": _usage(counted["usage"], told)}
        )
    return sse(*events, "data: [DONE]\n\n", headers=_headers(name))


def _headers(name: str) -> dict[str, str]:
    kept = ("content-type", "server", "vary")
    stored = recorded(name)["response"]["headers"]
    return {key: value for key, value in stored.items() if key in kept}


@contextmanager
def answering() -> Iterator[tuple[str, Answers]]:
    """The URL of a loopback server that gives these answers."""
    answers = Answers()
    with Server() as server:
        server.always(answers)
        yield server.url, answers
