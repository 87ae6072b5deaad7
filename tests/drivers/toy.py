"""A small engine of the OpenAI dialect and both drivers behind one face, for driver tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

from enginekit.drivers.async_ import AsyncDriver, AsyncStream
from enginekit.drivers.sync import SyncDriver, SyncStream
from enginekit.engine import Budgets, Encoded, Engine, Open, Target
from enginekit.engines._openai_decode import OpenAIDecoder
from enginekit.errors import EngineFault, EngineLoading, Overloaded
from enginekit.facts.engine import EngineProfile
from enginekit.types import Chunk

PATH = "/v1/chat/completions"
PROMPT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


class Toy(Engine):
    """Sends what it is given and reads server-sent events."""

    profile = EngineProfile(name="toy", title="Toy", wire="OpenAI", tested=("1",))

    def encode(self, request: Any, *, stream: bool = True) -> Encoded:
        framing = "sse" if stream else "json"
        return Encoded(
            call=self.call("POST", PATH, request, framing=framing),
            receipt=self.receipt(),
            decoder=lambda: OpenAIDecoder(self),
        )

    def failure(self, status, headers, body, *, path=""):
        text = body.decode("utf-8", "replace")
        about = {"engine": self.name, "url": self.target.base_url, "status": status, "body": text}
        if status == 503 and "loading" in text:
            return EngineLoading(text, **about)
        if status in (429, 503):
            return Overloaded(text, **about)
        return EngineFault(f"{status}: {text}", **about)

    def probe(self):
        raise AssertionError("a driver never probes by itself")

    def ready(self, model):
        raise AssertionError("a driver never waits for a model by itself")


def toy(url: str, **target: Any) -> Toy:
    return Toy(Target(base_url=url, **target))


def opening(engine: Engine, request: Any = PROMPT, *, stream: bool = True, **budgets: float) -> Any:
    """An operation that opens one reply and returns the driver's stream."""
    return (
        yield Open(
            engine=engine,
            encoded=engine.encode(request, stream=stream),
            budgets=Budgets(**({"first_token": 5.0, "between_tokens": 5.0} | budgets)),
        )
    )


def one(effect: Any) -> Any:
    """An operation of a single effect."""
    return (yield effect)


def delta(text: str = "", **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text, **more}, "finish_reason": None}]}


ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}
STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
DONE = "data: [DONE]\n\n"


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


class Blocking:
    """The blocking driver as the tests use it."""

    name = "sync"

    def __init__(self) -> None:
        self.driver = SyncDriver()

    def run(self, operation: Any) -> Any:
        return self.driver.run(operation)

    def read(self, stream: SyncStream, into: list[Chunk] | None = None) -> list[Chunk]:
        chunks = [] if into is None else into
        for chunk in stream:
            chunks.append(chunk)
        return chunks

    def next(self, stream: SyncStream) -> Chunk:
        return next(stream)

    def hang_up(self, stream: SyncStream) -> None:
        stream.close()

    def hang_up_and_read(self, stream: SyncStream) -> list[Chunk]:
        stream.close()
        return list(stream)

    def close(self) -> None:
        self.driver.close()


class OnLoop:
    """The async driver, on a loop in a thread of its own that keeps turning between steps."""

    name = "async"

    def __init__(self) -> None:
        self.driver = AsyncDriver()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._turn, daemon=True)
        self._thread.start()

    def _turn(self) -> None:
        asyncio.set_event_loop(self.loop)
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            self._stop = asyncio.Event()
            runner.run(self._wait())

    async def _wait(self) -> None:
        await self._stop.wait()

    def do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def run(self, operation: Any) -> Any:
        return self.do(self.driver.run(operation))

    def read(self, stream: AsyncStream, into: list[Chunk] | None = None) -> list[Chunk]:
        chunks = [] if into is None else into

        async def read() -> list[Chunk]:
            async for chunk in stream:
                chunks.append(chunk)
            return chunks

        return self.do(read())

    def next(self, stream: AsyncStream) -> Chunk:
        async def step() -> Chunk:
            return await stream.__anext__()

        return self.do(step())

    def hang_up(self, stream: AsyncStream) -> None:
        self.do(stream.aclose())

    def hang_up_and_read(self, stream: AsyncStream) -> list[Chunk]:
        async def both() -> list[Chunk]:
            await stream.aclose()
            return [chunk async for chunk in stream]

        return self.do(both())

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


Driver = Blocking | OnLoop


def drivers(kind: str) -> Iterator[Driver]:
    driver: Driver = Blocking() if kind == "sync" else OnLoop()
    try:
        yield driver
    finally:
        driver.close()
