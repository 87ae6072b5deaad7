"""A server that answers chats at once, in a process of its own, on vLLM's and Ollama's wire.

It is no test double: it knows one text and sends as much of it as `max_tokens` (`num_predict`) asks
for, whole or as one event per token, every event in a write of its own. The optional delay before
an answer stands for a server that thinks.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

TOKEN = "token"
MODEL = "fake"


def text_of(tokens: int) -> str:
    """What a reply of so many tokens says."""
    return f"{TOKEN} " * tokens


def _head(kind: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-ae20950b22ae7a29",
        "object": kind,
        "created": 1795404764,
        "model": MODEL,
    }


@cache
def whole_openai(tokens: int) -> bytes:
    """The body of a reply that is not streamed."""
    message = {
        "role": "assistant",
        "content": text_of(tokens),
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": [],
        "reasoning": None,
    }
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": None,
    }
    usage = {"prompt_tokens": 20, "total_tokens": 20 + tokens, "completion_tokens": tokens}
    return json.dumps({**_head("chat.completion"), "choices": [choice], "usage": usage}).encode()


@cache
def stream_openai(tokens: int) -> tuple[bytes, ...]:
    """The events of a streamed reply."""

    def event(choices: list[Any], **more: Any) -> bytes:
        made = {**_head("chat.completion.chunk"), "choices": choices, **more}
        return b"data: " + json.dumps(made).encode() + b"\n\n"

    def choice(delta: dict[str, Any], finish: str | None = None) -> list[Any]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]

    usage = {"prompt_tokens": 20, "total_tokens": 20 + tokens, "completion_tokens": tokens}
    return (
        event(choice({"role": "assistant", "content": ""})),
        *(event(choice({"content": f"{TOKEN} "})) for _ in range(tokens)),
        event(choice({}, "stop")),
        event([], usage=usage),
        b"data: [DONE]\n\n",
    )


def _line(content: str, **more: Any) -> bytes:
    made = {
        "model": MODEL,
        "created_at": "2026-11-23T03:53:48.358179329Z",
        "message": {"role": "assistant", "content": content},
        "done": False,
        **more,
    }
    return json.dumps(made).encode() + b"\n"


def _last_line(content: str, tokens: int) -> bytes:
    return _line(
        content,
        done=True,
        done_reason="stop",
        total_duration=5_000_000,
        load_duration=1_000_000,
        prompt_eval_count=20,
        prompt_eval_duration=1_000_000,
        eval_count=tokens,
        eval_duration=1_000_000,
    )


@cache
def whole_ollama(tokens: int) -> bytes:
    """Ollama's reply that is not streamed."""
    return _last_line(text_of(tokens), tokens)


@cache
def stream_ollama(tokens: int) -> tuple[bytes, ...]:
    """The lines of Ollama's streamed reply."""
    return (*(_line(f"{TOKEN} ") for _ in range(tokens)), _last_line("", tokens))


_FACTS = {
    "/version": {"version": "0.32.0"},
    "/health": {},
    "/v1/models": {
        "object": "list",
        "data": [{"id": MODEL, "object": "model", "owned_by": "vllm", "max_model_len": 8192}],
    },
    "/api/version": {"version": "0.33.0"},
}


class _Connection(asyncio.Protocol):
    """One keep-alive connection; requests are read without a parser."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            path = self._buffer.split(b" ", 2)[1].decode().partition("?")[0]
            self._buffer = self._buffer[end + 4 + length :]
            if self._delay and body:
                loop = asyncio.get_running_loop()
                loop.call_later(self._delay, self._answer, path, body)
            else:
                self._answer(path, body)

    def _answer(self, path: str, body: bytes) -> None:
        if self._transport.is_closing():
            return
        if path in _FACTS:
            self._whole(json.dumps(_FACTS[path]).encode())
            return
        request = json.loads(body)
        if path == "/api/chat":
            tokens = request["options"]["num_predict"]
            if request.get("stream") is False:
                self._whole(whole_ollama(tokens))
                return
            self._events(stream_ollama(tokens), b"application/x-ndjson")
            return
        tokens = request.get("max_tokens") or request.get("max_completion_tokens")
        if request.get("stream"):
            self._events(stream_openai(tokens), b"text/event-stream")
        else:
            self._whole(whole_openai(tokens))

    def _whole(self, body: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )

    def _events(self, events: tuple[bytes, ...], kind: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind
        )
        for event in events:
            self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self._transport.write(b"0\r\n\r\n")


def _serve(pipe: Any, delay: float) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(delay), "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        await loop.run_in_executor(None, pipe.poll, None)

    asyncio.run(run())


@contextmanager
def fake_server(delay: float = 0.0) -> Iterator[str]:
    """The address of a running fake; its process ends with the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, delay), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        ours.close()
        process.terminate()
        process.join()
