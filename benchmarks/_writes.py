"""A server, in a process of its own, that writes events in the three ways that `drivers.py` measures."""

from __future__ import annotations

import asyncio
import json
from typing import Any

EVENT = {
    "id": "chatcmpl-8f0b2f1d6a1c4c55",
    "object": "chat.completion.chunk",
    "created": 1764000000,
    "model": "smollm2:135m",
    "system_fingerprint": "b6000-abcdef",
    "choices": [{"index": 0, "delta": {"content": " token"}, "finish_reason": None}],
}
STOP = EVENT | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def serve(pipe: Any) -> None:
    """Run the fake server and send its port through `pipe`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        event = b"data: " + json.dumps(EVENT).encode() + b"\n\n"
        tail = b"data: " + json.dumps(STOP).encode() + b"\n\ndata: [DONE]\n\n"
        whole = json.dumps(EVENT | {"pad": "x" * 400}).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

        def chunk(data: bytes) -> bytes:
            return b"%x\r\n%b\r\n" % (len(data), data)

        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                size = int(request.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                await reader.readexactly(size)
                _, kind, count = request.split(b" ", 2)[1].decode().split("/")
                if kind == "call":
                    writer.write(
                        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d"
                        b"\r\n\r\n%b" % (len(whole), whole)
                    )
                elif kind in ("paced", "small"):
                    writer.write(head)
                    for _ in range(int(count)):
                        writer.write(chunk(event))
                        if kind == "paced":
                            await asyncio.sleep(0.0003)
                        elif writer.transport.get_write_buffer_size():
                            await writer.drain()
                    writer.write(chunk(tail) + b"0\r\n\r\n")
                else:
                    writer.write(head)
                    for _ in range(int(count) // 50):
                        writer.write(chunk(event) * 50)
                        await writer.drain()
                        await asyncio.sleep(0.0003)
                    writer.write(chunk(tail) + b"0\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())
