"""What `docs/drivers.md` promises and no other file here proves; that page names the test of each."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from enginekit import registry
from enginekit.drivers import _request, _session
from enginekit.drivers.async_ import AsyncDriver
from enginekit.engine import Budgets, Open, Target
from enginekit.errors import EngineFault, StreamTruncated
from enginekit.types import ChatRequest, Message
from tests.drivers.toy import DONE, PATH, STOP, Driver, delta, one, opening, text_of, toy
from tests.support.server import Reply, Server, sse, text_reply

PAGE = Path(__file__).parents[2] / "docs" / "drivers.md"


def test_the_page_names_tests_that_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text())
    assert len(named) > 30
    root = PAGE.parents[1]
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not re.search(rf"^\s*(async )?def {test}\(", (root / file).read_text(), re.M)
    ]
    assert not missing


# ------------------------------------------------------------------------------- budgets


def test_no_clock_but_our_budgets_ends_a_reply(driver: Driver, server: Server, monkeypatch):
    """aiohttp ends a request after 300 s and a socket may have a default: both made tiny here."""
    import aiohttp.client

    tiny = aiohttp.ClientTimeout(total=0.05, sock_read=0.05, sock_connect=0.05)
    monkeypatch.setattr(aiohttp.client, "DEFAULT_TIMEOUT", tiny)
    server.on(PATH, sse(delta("a"), 0.3, delta("b"), STOP, DONE))
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.05)
    try:
        stream = driver.run(opening(toy(server.url)))
        assert text_of(driver.read(stream)) == "ab"
    finally:
        socket.setdefaulttimeout(before)


async def test_a_stream_has_one_timer_however_many_chunks_it_has(server, monkeypatch):
    """A timer per chunk (`asyncio.timeout`, `wait_for`) costs more than parsing the chunk."""
    loop = asyncio.get_running_loop()
    set_timers: list[float] = []
    call_at = loop.call_at

    def noted(when, *args, **more):
        set_timers.append(when)
        return call_at(when, *args, **more)

    pieces = [x for _ in range(150) for x in (delta("x"), 0.001)]
    server.on(PATH, sse(*pieces, STOP, DONE))
    stream = await AsyncDriver().run(opening(toy(server.url), between_tokens=60.0))
    monkeypatch.setattr(loop, "call_at", noted)
    content, reads = stream._content, 0

    class Counting:
        async def readany(self):
            nonlocal reads
            reads += 1
            return await content.readany()

    monkeypatch.setattr(stream, "_content", Counting())
    assert text_of([chunk async for chunk in stream]) == "x" * 150
    assert reads > 20, "the chunks came one by one"
    assert len(set_timers) <= 2, "the watchdog, and the wait for the connection's return"


# ------------------------------------------------------------------------------- reading


def test_a_reply_that_ends_with_its_connection_is_read_as_it_comes(driver, server):
    """urllib3's `stream(n)` gives such a body in one piece, at its end."""
    gate = threading.Event()
    server.on(PATH, sse(delta("a"), gate, delta("b"), STOP, DONE, framing="close"))
    stream = driver.run(opening(toy(server.url)))
    assert driver.next(stream).text == "a"
    gate.set()
    assert text_of(driver.read(stream)) == "b"


def test_an_event_longer_than_any_limit_on_lines(driver, server):
    """aiohttp's line iteration refuses lines of more than 512 KiB."""
    long = "x" * (2 << 20)
    server.on(PATH, sse(delta(long), STOP, DONE))
    assert text_of(driver.read(driver.run(opening(toy(server.url))))) == long


# ------------------------------------------------------------------------------- stale sockets


def kept() -> Reply:
    """A reply that is over with its last event, so that the next request finds its connection free:
    the terminator of a chunked one may come later."""
    return sse(delta("a"), STOP, DONE, framing="length")


@pytest.mark.parametrize("fault", ["close_without_response", "reset_without_response"])
def test_a_prompt_on_a_stale_connection_is_sent_once_more_and_no_more(driver, server, fault):
    answer = kept()
    dead = Reply(fault=fault)
    server.on(PATH, answer, dead, answer, dead, dead)
    engine = toy(server.url)
    for _ in range(2):
        assert text_of(driver.read(driver.run(opening(engine)))) == "a"
    assert [seen.connection for seen in server.requests] == [1, 1, 2]
    with pytest.raises(EngineFault):
        driver.run(opening(engine))
    assert [seen.connection for seen in server.requests] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("fault", ["close_without_response", "reset_without_response"])
def test_a_server_that_hangs_up_later_was_at_work_and_gets_the_prompt_once(
    driver, server, monkeypatch, fault
):
    """A stale connection says so at once; after that the server may have died of the prompt."""
    monkeypatch.setattr(_request, "STALE_WITHIN", -1.0)
    answer = kept()
    server.on(PATH, answer, Reply(fault=fault), answer)
    engine = toy(server.url)
    driver.read(driver.run(opening(engine)))
    with pytest.raises(EngineFault, match="not sent again"):
        driver.run(opening(engine))
    assert [seen.connection for seen in server.requests] == [1, 1]


@pytest.mark.parametrize("fault", ["close_without_response", "reset_without_response"])
async def test_a_loop_that_was_busy_hears_of_a_stale_connection_late_and_asks_again(
    server, monkeypatch, fault
):
    """The connection had ended at once; the loop was at something else for longer than it takes."""
    monkeypatch.setattr(_request, "STALE_WITHIN", 0.05)
    answer = kept()
    server.on(PATH, answer, Reply(fault=fault), answer)
    driver, engine = AsyncDriver(), toy(server.url)
    stream = await driver.run(opening(engine))
    assert text_of([chunk async for chunk in stream]) == "a"
    written = _session._Protocol.start_timeout

    def busy(self):
        written(self)
        if self.used > 1:
            assert server.wait(lambda _: server.open_connections == 0)
            time.sleep(0.1)

    monkeypatch.setattr(_session._Protocol, "start_timeout", busy)
    stream = await driver.run(opening(engine))
    assert text_of([chunk async for chunk in stream]) == "a"
    assert [seen.connection for seen in server.requests] == [1, 1, 2]


async def test_a_server_at_work_that_hangs_up_later_gets_the_prompt_once(server, monkeypatch):
    monkeypatch.setattr(_request, "STALE_WITHIN", 0.05)
    late = threading.Event()
    answer = kept()
    server.on(PATH, answer, Reply(framing="raw", body=[late], fault="reset"), answer)
    driver, engine = AsyncDriver(), toy(server.url)
    stream = await driver.run(opening(engine))
    assert text_of([chunk async for chunk in stream]) == "a"
    heard = _session._Protocol._listen

    def listen(self, turns):
        heard(self, turns)
        if self.late:
            late.set()

    monkeypatch.setattr(_session._Protocol, "_listen", listen)
    with pytest.raises(EngineFault, match="not sent again"):
        await driver.run(opening(engine))
    assert [seen.connection for seen in server.requests] == [1, 1]


@pytest.mark.parametrize("fault", ["clean_eof", "reset"])
def test_a_prompt_is_not_sent_again_once_the_answer_has_begun(driver, server, fault):
    """The head came, no event did: the server has the prompt and may be generating."""
    server.on(PATH, sse(delta("a"), STOP, DONE), sse(0.05, fault=fault))
    engine = toy(server.url)
    driver.read(driver.run(opening(engine)))
    with pytest.raises(StreamTruncated):
        driver.run(opening(engine))
    assert len(server.requests) == 2


async def test_a_whole_reply_of_llama_cpp_can_be_cancelled(server):
    """It notices a client that left only when it has something to write, so it is asked to stream."""
    engine = registry.engine_class("llamacpp")(Target(base_url=server.url))
    request = ChatRequest(messages=(Message(role="user", content="hi"),), model="m")
    encoded = engine.encode(request, stream=False)
    first = threading.Event()
    server.on(encoded.call.path, sse(delta("a"), first, delta("b"), fault="silence"))

    async def whole() -> str:
        budgets = Budgets(first_token=30.0, between_tokens=30.0)
        effect = Open(engine=engine, encoded=encoded, budgets=budgets)
        stream = await AsyncDriver().run(one(effect))
        begun.set()
        return text_of([chunk async for chunk in stream])

    begun = asyncio.Event()
    task = asyncio.create_task(whole())
    await begun.wait()
    assert server.requests[0].json["stream"] is True
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    first.set()
    assert await asyncio.to_thread(server.wait_hung_up)


# ------------------------------------------------------------------------------- forks

FORK = """
import os, sys
from enginekit.drivers import sync
from enginekit.engine import Call, Target

def get():
    call = Call(target=Target(base_url={url!r}), method="GET", path="/x", timeout=30)
    return sync.default().run((lambda: (yield call))()).body

assert get() == b"ok"
child = os.fork()
if child == 0:
    sys.exit(0)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert get() == b"ok"
print("quiet")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_exits_leaves_the_parents_connections_alone(server):
    """The exit cleanup was registered before the fork, so the child runs it, too."""
    server.on("/x", text_reply("ok"))
    code = FORK.format(url=server.url)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("quiet", "")
    assert server.connections == 1
