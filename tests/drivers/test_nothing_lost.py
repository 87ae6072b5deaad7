"""What had arrived before a connection broke is read, though the library reports the break first."""

from __future__ import annotations

import asyncio

from enginekit.kit.client import Client
from enginekit.types import ChatRequest, Message
from tests.support.server import Server, json_reply, sse

REQUEST = ChatRequest(model="m", messages=(Message(role="user", content="hi"),))


def piece(text: str, finish: str | None = None) -> dict:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


def test_a_reply_whose_end_came_with_the_break_is_whole():
    """Text, finish reason and a body cut off without its terminator, all in one go, many times."""
    with Server() as server:
        server.on("/version", json_reply({"version": "0.32.0"}))
        server.on("/v1/models", json_reply({"data": [{"id": "m", "max_model_len": 2048}]}))
        server.on(
            "/v1/chat/completions",
            sse(piece("a"), 0.01, *[piece("b")] * 20, piece("c", "stop"), fault="clean_eof"),
        )
        client = Client({"engine": "vllm", "base_url": server.url, "max_retries": 0})

        async def ask() -> list[str]:
            texts = []
            for _ in range(40):
                stream = await client.astream(REQUEST)
                texts.append("".join([chunk.text async for chunk in stream]))
            return texts

        assert asyncio.run(ask()) == ["a" + "b" * 20 + "c"] * 40
