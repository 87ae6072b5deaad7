"""Nothing is left behind: many requests and many abandoned streams, then sockets, tasks and memory."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from enginekit.drivers.async_ import AsyncDriver
from enginekit.drivers.sync import SyncDriver
from tests.drivers.test_calls import call
from tests.drivers.toy import DONE, PATH, STOP, delta, opening, toy
from tests.support.server import sse, text_reply
from tests.support.soak import SOAK, seconds

ROUNDS = 40 if SOAK else 2
"""Rounds of 500 requests and 500 streams, of which 50 are given up. A soak run makes 20,000
requests and gives up 2,000 streams on each driver."""

pytestmark = [pytest.mark.soak, pytest.mark.timeout(seconds(240))]


def resources() -> tuple[int, int, float]:
    gc.collect()
    process = psutil.Process()
    files = process.num_fds() if sys.platform != "win32" else process.num_handles()
    return files, threading.active_count(), process.memory_info().rss / 2**20


def assert_where_they_were(before: tuple[int, int, float], after: tuple[int, int, float]) -> None:
    print(
        f"open files {before[0]} → {after[0]}, threads {before[1]} → {after[1]}, "
        f"memory {before[2]:.1f} → {after[2]:.1f} MiB"
    )
    assert after[0] <= before[0] + 4, "open files"
    assert after[1] <= before[1] + 2, "threads"
    assert after[2] <= before[2] + 8, "MiB"


def test_the_blocking_driver_leaves_nothing(server):
    server.on("/x", text_reply("ok" * 500))
    server.on(PATH, sse(delta("a"), delta("b"), STOP, DONE))
    server.on("/endless", sse(delta("a"), fault="silence"))
    driver = SyncDriver()
    engine = toy(server.url)

    def work(number: int) -> None:
        driver.run(call(server.url))
        stream = driver.run(opening(engine))
        next(stream)
        if number % 10:
            list(stream)
        elif number % 20:
            stream.close()

    def all_of(count: int) -> None:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(count)))
        driver.close()
        assert server.wait(lambda s: s.open_connections == 0)
        server.requests.clear()
        server.hung_up.clear()

    all_of(500)
    before = resources()
    for _ in range(ROUNDS):
        all_of(500)  # what the server notes down is cleared each time: it is memory, too
    assert_where_they_were(before, resources())


def test_the_async_driver_leaves_nothing(server):
    server.on("/x", text_reply("ok" * 500))
    server.on(PATH, sse(delta("a"), delta("b"), 0.02, STOP, DONE))

    async def main() -> None:
        driver = AsyncDriver()
        engine = toy(server.url)

        async def work(number: int) -> None:
            await driver.run(call(server.url))
            stream = await driver.run(opening(engine))
            if number % 10:
                async for _ in stream:
                    pass
            elif number % 20:
                await stream.aclose()

        async def all_of(count: int) -> None:
            for start in range(0, count, 50):
                tasks = [asyncio.create_task(work(start + n)) for n in range(50)]
                if start % 100:
                    await asyncio.sleep(0.02)
                    for task in tasks[::10]:
                        task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await driver.close()
            assert await asyncio.to_thread(server.wait, lambda s: s.open_connections == 0)
            server.requests.clear()
            server.hung_up.clear()

        await all_of(500)
        before = resources()
        for _ in range(ROUNDS):
            await all_of(500)
        assert_where_they_were(before, resources())
        assert asyncio.all_tasks() == {asyncio.current_task()}
        sessions = await driver._loops.current()
        assert not sessions.streaming
        assert not sessions.finishing

    asyncio.run(main())
