"""A server that hangs up before the request could be written has not got it: it is sent again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from enginekit.drivers import _session
from enginekit.drivers.async_ import AsyncDriver
from enginekit.engine import Answer, Call, Target
from enginekit.errors import EngineFault, Unreachable
from tests.drivers.toy import one

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Impatient:
    """Hangs up on its first connections without reading from them, then answers."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.hung_up = 0
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.hung_up < self.most:
            self.hung_up += 1
        else:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
            self.requests += 1
            writer.write(ANSWER)
        writer.close()

    async def asked(self, prompt: str = "hi") -> Answer:
        listener = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        async with listener:
            port = listener.sockets[0].getsockname()[1]
            driver = AsyncDriver()
            target = Target(base_url=f"http://127.0.0.1:{port}")
            try:
                call = Call(target=target, method="POST", path="/x", json={"prompt": prompt})
                return await driver.run(one(call))
            finally:
                await driver.close()


@pytest.fixture(params=["closing", "lost"])
def impatient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Impatient:
    """The loop is so busy that it has seen the hanging up when it comes to write."""
    server = Impatient(1)
    opened = _session._Notes.connect

    async def connect(self: Any, *args: Any, **more: Any) -> Any:
        doomed = server.hung_up < server.most
        connection = await opened(self, *args, **more)
        while doomed and not _seen(connection.protocol.transport, request.param):
            await asyncio.sleep(0)
        return connection

    monkeypatch.setattr(_session._Notes, "connect", connect)
    return server


def _seen(transport: Any, how: str) -> bool:
    return transport is None or (how == "closing" and transport.is_closing())


async def test_what_could_not_be_written_is_written_to_a_new_connection(
    impatient: Impatient,
) -> None:
    assert (await impatient.asked()).body == b"{}"
    assert (impatient.hung_up, impatient.requests) == (1, 1)


async def test_a_server_that_always_hangs_up_first_is_unreachable(impatient: Impatient) -> None:
    impatient.most = 9
    with pytest.raises(Unreachable) as caught:
        await impatient.asked()
    assert caught.value.retryable
    assert impatient.hung_up == 2


async def test_a_large_body_is_not_sent_again_because_a_part_may_be_there(
    impatient: Impatient,
) -> None:
    with pytest.raises(EngineFault) as caught:
        await impatient.asked("x" * 100_000)
    assert not caught.value.retryable
    assert (impatient.hung_up, impatient.requests) == (1, 0)
