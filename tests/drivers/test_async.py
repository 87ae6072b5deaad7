"""What only the async driver can get wrong: loops, cancellation, concurrency, warnings."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref

import pytest

from enginekit.drivers import sync
from enginekit.drivers.async_ import AsyncDriver
from enginekit.engine import Blocking, Call, Target
from enginekit.errors import EngineTimeout
from tests.drivers.toy import DONE, PATH, STOP, USAGE, delta, one, opening, text_of, toy
from tests.support.server import Server, sse, text_reply


def get(url: str, path: str = "/x", **more):
    return one(Call(target=Target(base_url=url), method="GET", path=path, **more))


async def test_cancelling_a_task_that_waits_for_a_token_hangs_up(server: Server):
    server.on(PATH, sse(delta("a"), fault="silence"))
    driver = AsyncDriver()
    stream = await driver.run(opening(toy(server.url)))
    waiting = asyncio.Event()

    async def read():
        async for _ in stream:
            waiting.set()

    task = asyncio.create_task(read())
    await waiting.wait()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stream.closed
    assert await asyncio.to_thread(server.wait_hung_up)


async def test_cancelling_a_task_that_opens_hangs_up(server):
    server.on(PATH, sse(delta("a"), fault="slow_first_byte", delay=20))
    driver = AsyncDriver()
    closed = []

    def operation():
        try:
            return (yield from opening(toy(server.url)))
        finally:
            closed.append(True)

    task = asyncio.create_task(driver.run(operation()))
    assert await asyncio.to_thread(server.wait_requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed == [True]
    assert await asyncio.to_thread(server.wait_hung_up)


async def test_a_timeout_of_the_callers_own_is_not_ours(server):
    server.on(PATH, sse(delta("a"), fault="slow_first_byte", delay=20))
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.2):
            await AsyncDriver().run(opening(toy(server.url)))
    assert not isinstance(caught.value, EngineTimeout)


PROGRAM = """
import asyncio, gc, logging, sys
logging.getLogger("asyncio").setLevel(logging.ERROR)  # debug mode tells of a busy machine, too
sys.path.insert(0, {root!r})
from enginekit.drivers import async_
from tests.drivers.toy import *
driver = async_.default()

async def whole():
    stream = await driver.run(opening(toy({url!r})))
    return "".join([c.text async for c in stream])

async def left_open():
    stream = await driver.run(opening(toy({url!r})))
    async for chunk in stream:
        kept.append(stream)
        return chunk.text

kept = []
for _ in range(2):
    assert asyncio.run(whole()) == "ab"
    assert asyncio.run(left_open(), debug={debug}) == "a"
    gc.collect()
del kept
gc.collect()
loop = asyncio.new_event_loop()
assert loop.run_until_complete(whole()) == "ab"
loop.run_until_complete(loop.shutdown_asyncgens())
loop.close()
print("quiet")
"""


@pytest.mark.parametrize("debug", [False, True])
def test_one_driver_lives_through_many_loops_without_a_warning(server, debug):
    import tests

    server.on(PATH, sse(delta("a"), 0.05, delta("b"), STOP, USAGE, DONE))
    root = str(tests.__path__[0]).removesuffix("/tests")
    code = PROGRAM.format(root=root, url=server.url, debug=debug)
    flags = ["-W", "error", *(["-X", "dev"] if debug else [])]
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("quiet", "")
    assert server.wait(lambda s: s.open_connections == 0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_loop_that_was_closed_carelessly_does_not_stay_in_memory(server):
    server.on("/x", text_reply("ok"))
    driver = AsyncDriver()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(driver.run(get(server.url)))
    loop.close()
    dead = weakref.ref(loop)
    del loop
    assert asyncio.run(driver.run(get(server.url))).ok
    gc.collect()
    assert dead() is None


def test_one_driver_serves_loops_in_several_threads(server):
    server.on("/x", text_reply("ok"))
    driver = AsyncDriver()
    bodies: list[bytes] = []

    async def several():
        answers = await asyncio.gather(*(driver.run(get(server.url)) for _ in range(5)))
        bodies.extend(answer.body for answer in answers)

    threads = [threading.Thread(target=lambda: asyncio.run(several())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bodies == [b"ok"] * 20


async def test_the_blocking_driver_works_inside_a_running_loop(server):
    server.on("/x", text_reply("ok"))
    assert sync.SyncDriver().run(get(server.url)).body == b"ok"


async def test_a_stream_collected_in_another_thread_hangs_up(server):
    server.on(PATH, sse(delta("a"), fault="silence"))
    stream = await AsyncDriver().run(opening(toy(server.url)))
    holder = [stream]
    del stream
    await asyncio.to_thread(holder.clear)
    assert await asyncio.to_thread(server.wait_hung_up)


async def test_streams_are_not_queued_behind_a_limit_of_aiohttps(server):
    """aiohttp's default of 100 connections would make the 101st wait for a stream to end."""
    gate = threading.Event()
    server.on(PATH, sse(delta("a"), gate, STOP, DONE))
    driver = AsyncDriver()
    opened = await asyncio.gather(
        *(driver.run(opening(toy(server.url), first_token=30.0)) for _ in range(150))
    )
    assert len(opened) == 150
    gate.set()
    for stream in opened:
        assert text_of([chunk async for chunk in stream]) == "a"


async def test_our_own_limit_is_given_back_by_every_ending(server, monkeypatch):
    from enginekit.drivers import _session

    monkeypatch.setattr(_session, "open_limit", lambda: 2)
    whole = sse(delta("a"), STOP, DONE)
    cut = whole.but(cut=20, fault="reset")
    endless = sse(delta("a"), fault="silence")
    server.on(PATH, whole, cut, endless, endless, text_reply("no", 500), whole)
    driver = AsyncDriver()
    engine = toy(server.url)
    assert [c async for c in await driver.run(opening(engine))]
    with pytest.raises(Exception, match="broke"):
        await driver.run(opening(engine))
    stream = await driver.run(opening(engine))
    await stream.aclose()
    stream = await driver.run(opening(engine))
    del stream
    gc.collect()
    with pytest.raises(Exception, match="500"):
        await driver.run(opening(engine))
    await asyncio.sleep(0.05)
    slots = (await driver._loops.current()).slots
    assert slots._value == 2
    held = [await driver.run(opening(engine)) for _ in range(2)]
    for stream in held:
        assert [c async for c in stream]
    assert slots._value == 2


async def test_waiting_for_our_own_limit_is_bounded_by_the_first_token_budget(server, monkeypatch):
    from enginekit.drivers import _session

    monkeypatch.setattr(_session, "open_limit", lambda: 1)
    server.on(PATH, sse(delta("a"), fault="silence"))
    driver = AsyncDriver()
    held = await driver.run(opening(toy(server.url)))
    with pytest.raises(EngineTimeout):
        await driver.run(opening(toy(server.url), first_token=0.2))
    assert len(server.requests) == 1
    await held.aclose()


async def test_a_blocking_function_does_not_block_the_loop():
    turned = asyncio.Event()

    def wait_for_the_loop():
        asyncio.run_coroutine_threadsafe(turn(), loop).result(5)
        return "done"

    async def turn():
        turned.set()

    loop = asyncio.get_running_loop()
    assert await AsyncDriver().run(one(Blocking(function=wait_for_the_loop))) == "done"
    assert turned.is_set()


async def test_many_cancelled_streams_leave_nothing_behind(server):
    server.on(PATH, sse(delta("a"), fault="silence"))
    driver = AsyncDriver()

    async def start_and_be_cancelled():
        async for _ in await driver.run(opening(toy(server.url))):
            pass

    for _ in range(5):
        tasks = [asyncio.create_task(start_and_be_cancelled()) for _ in range(20)]
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert await asyncio.to_thread(server.wait, lambda s: s.open_connections == 0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    sessions = await driver._loops.current()
    assert not sessions.finishing


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
async def test_a_forked_child_has_sessions_of_its_own(server):
    """The parent's loop and sockets are in the child's memory; using either would disturb it."""
    server.on("/x", text_reply("ok"))
    server.on(PATH, sse(delta("a"), 0.3, delta("b"), STOP, DONE))
    driver = AsyncDriver()
    await driver.run(get(server.url))
    stream = await driver.run(opening(toy(server.url)))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            asyncio.events._set_running_loop(None)
            code = 0 if asyncio.run(driver.run(get(server.url))).body == b"ok" else 2
        finally:
            os._exit(code)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert text_of([chunk async for chunk in stream]) == "ab"
    await asyncio.sleep(0.1)  # for the last bytes of the framing, which come by themselves
    connections = server.connections
    await driver.run(get(server.url))
    assert server.connections == connections, "the parent still has its own"
