"""Loopback servers that answer in the shape of recorded ones, for three engines.

What a server says of itself is replayed from recordings; what it answers to a chat is an `Answer`,
rendered as that engine's wire renders it (compare `s_call*`, `n_tools_stream`, `chat_stream_usage`
among the recordings).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from enginekit.langchain import EngineKitChat
from tests.support.server import Reply, Script, Seen, Server, json_reply, ndjson, replay, sse

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "recordings"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model says: pieces of text and thinking, and calls as (id, name, pieces)."""

    text: Sequence[str] = ()
    reasoning: Sequence[str] = ()
    calls: Sequence[tuple[str, str, Sequence[str]]] = ()
    finish: str = "stop"
    usage: tuple[int, int] | None = (7, 5)
    model: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Attributes of the `Reply` (`fault="reset"`), for streams."""
    pause: Any = None
    """A pause (seconds or an Event) after the first piece."""
    torn: bool = False
    """Leave out everything from the finish reason on."""


class Wire:
    """One engine's server. `requests` holds the bodies of the chats it was asked for."""

    engine = ""
    path = ""
    model = "tiny"
    window = 0
    reasoning_key = ""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.facts()

    def facts(self) -> None:
        """Replay what the recorded server said of itself."""

    def says(self, *answers: Answer | Reply, text: Sequence[str] = ()) -> Wire:
        """Answer chats with these in order; the last repeats."""
        queue = list(answers) or [Answer(text=text)]

        def script(seen: Seen) -> Reply:
            if _is_trial(seen):
                return replay(RECORDINGS / self.engine / "err_temp_range.json")
            answer = queue.pop(0) if len(queue) > 1 else queue[0]
            return answer if isinstance(answer, Reply) else self.render(answer, seen.json)

        self.server.on(self.path, script)
        return self

    def overflows(self) -> Script:
        """How the recorded server says that the prompt is too long."""
        return replay(RECORDINGS / self.engine / "err_overflow.json")

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Those with something of the caller's in them."""
        asked = [seen for seen in self.server.requests if seen.path == self.path]
        return [seen.json for seen in asked if not _is_trial(seen)]

    @property
    def settings(self) -> dict[str, Any]:
        return {"engine": self.engine, "base_url": self.server.url, "model": self.model}

    def render(self, answer: Answer, body: Any) -> Reply:
        raise NotImplementedError


def _is_trial(seen: Seen) -> bool:
    """The request by which a vLLM is asked for its tool parser: nothing can come of it."""
    return bool(seen.json.get("temperature") == -1)


class OpenAIWire(Wire):
    path = "/v1/chat/completions"

    def render(self, answer: Answer, body: Any) -> Reply:
        if "prompt" in body:
            raise AssertionError("a text completion was sent to the chat route")
        return self._stream(answer, body) if body.get("stream") else self._whole(answer, body)

    def _head(self, answer: Answer, body: Any, kind: str) -> dict[str, Any]:
        model = answer.model or body.get("model") or self.model
        return {"id": "chatcmpl-1", "object": kind, "created": 1795404764, "model": model}

    def _usage(self, answer: Answer) -> dict[str, Any]:
        if answer.usage is None:
            return {}
        prompt, completion = answer.usage
        return {
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "prompt_tokens_details": {"cached_tokens": 3},
            }
        }

    def _whole(self, answer: Answer, body: Any) -> Reply:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(answer.text) or (None if answer.calls else ""),
        }
        if answer.reasoning:
            message[self.reasoning_key] = "".join(answer.reasoning)
        if answer.calls:
            message["tool_calls"] = [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": name, "arguments": "".join(pieces)},
                }
                for call_id, name, pieces in answer.calls
            ]
        choice = {"index": 0, "message": message, "finish_reason": answer.finish}
        head = self._head(answer, body, "chat.completion")
        return json_reply({**head, "choices": [choice], **self._usage(answer)})

    def _stream(self, answer: Answer, body: Any) -> Reply:
        head = self._head(answer, body, "chat.completion.chunk")

        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        events: list[Any] = [chunk({"role": "assistant", "content": ""})]
        events += [chunk({self.reasoning_key: piece}) for piece in answer.reasoning]
        events += [chunk({"content": piece}) for piece in answer.text]
        for index, (call_id, name, pieces) in enumerate(answer.calls):
            for number, piece in enumerate(pieces):
                function: dict[str, Any] = {"arguments": piece}
                call: dict[str, Any] = {"index": index, "function": function}
                if number == 0:
                    call |= {"id": call_id, "type": "function"}
                    function["name"] = name
                events.append(chunk({"tool_calls": [call]}))
        if answer.pause is not None:
            events.insert(2, answer.pause)
        if not answer.torn:
            events.append(chunk({}, answer.finish))
            if (body.get("stream_options") or {}).get("include_usage") and answer.usage:
                events.append({**head, "choices": [], **self._usage(answer)})
            events.append("data: [DONE]\n\n")
        return sse(*events, **answer.extra)


class VLLM(OpenAIWire):
    engine = "vllm"
    window = 2048
    reasoning_key = "reasoning"

    def facts(self) -> None:
        for path, name in {
            "/version": "version",
            "/v1/models": "models",
            "/health": "health",
        }.items():
            self.server.on(path, replay(RECORDINGS / "vllm" / f"{name}.json"))
        self.server.on("/tokenize", replay(RECORDINGS / "vllm" / "v_tokenize_chat.json"))


class LlamaCpp(OpenAIWire):
    engine = "llamacpp"
    window = 1024
    reasoning_key = "reasoning_content"

    def facts(self) -> None:
        for path, name in {
            "/props": "l_props",
            "/v1/models": "models",
            "/health": "health",
            "/tokenize": "l_tokenize",
            "/apply-template": "l_template",
        }.items():
            self.server.on(path, replay(RECORDINGS / "llamacpp" / f"{name}.json"))
        self.server.on("/lora-adapters", json_reply([]))


class Ollama(Wire):
    engine = "ollama"
    path = "/api/chat"
    model = "llama3.1"
    window = 4096

    def facts(self) -> None:
        for path, name in {
            "/api/version": "n_version",
            "/api/tags": "n_tags",
            "/api/ps": "n_ps",
            "/api/show": "n_show",
        }.items():
            self.server.on(path, replay(RECORDINGS / "ollama" / f"{name}.json"))

    def overflows(self) -> Script:
        return replay(RECORDINGS / "ollama" / "n_overflow_both_false.json")

    def render(self, answer: Answer, body: Any) -> Reply:
        head = {"model": answer.model or body["model"], "created_at": "2026-11-23T03:53:48Z"}

        def line(**message: Any) -> dict[str, Any]:
            return {
                **head,
                "message": {"role": "assistant", "content": "", **message},
                "done": False,
            }

        calls = [
            {
                "id": call_id,
                "function": {"index": number, "name": name, "arguments": json.loads("".join(args))},
            }
            for number, (call_id, name, args) in enumerate(answer.calls)
        ]
        lines: list[Any] = [line(thinking=piece) for piece in answer.reasoning]
        lines += [line(content=piece) for piece in answer.text]
        lines += [line(tool_calls=[call]) for call in calls]
        last = {**line(), "done": True, "done_reason": answer.finish.replace("tool_calls", "stop")}
        last |= {"total_duration": 5_000_000, "load_duration": 1_000_000}
        if answer.usage is not None:
            last |= {"prompt_eval_count": answer.usage[0], "eval_count": answer.usage[1]}
        if not body.get("stream", True):
            whole = {"role": "assistant", "content": "".join(answer.text)}
            if answer.reasoning:
                whole["thinking"] = "".join(answer.reasoning)
            if calls:
                whole["tool_calls"] = calls  # type: ignore[assignment]
            return json_reply({**last, "message": whole})
        if answer.pause is not None:
            lines.insert(1, answer.pause)
        return ndjson(*lines, *(() if answer.torn else (last,)), **answer.extra)


WIRES: tuple[type[Wire], ...] = (VLLM, LlamaCpp, Ollama)

HELLO = Answer(text=("Hel", "lo", " there"))


def torn(answer: Answer) -> Answer:
    """The same answer, its connection ended in good order before the finish reason."""
    return replace(answer, torn=True, extra={"fault": "clean_eof"})


def model_of(wire: Wire, **more: Any) -> EngineKitChat:
    """A chat model that talks to the wire's server and does not retry."""
    return EngineKitChat(**{**wire.settings, "max_retries": 0, "timeout": 20, **more})
