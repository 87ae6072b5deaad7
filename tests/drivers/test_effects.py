"""Operations: the same script through both drivers has the same trace."""

from __future__ import annotations

import contextvars
import threading
import time

import pytest

from enginekit.engine import Blocking, Call, Gather, Open, Sleep, Target
from enginekit.errors import EngineLoading, EngineTimeout, Redirected, Unreachable
from tests.drivers.toy import (
    DONE,
    PATH,
    PROMPT,
    STOP,
    Driver,
    delta,
    drivers,
    one,
    opening,
    text_of,
    toy,
)
from tests.support.server import Reply, Server, json_reply, refused_url, sse, text_reply


def get(url: str, path: str = "/x", **more) -> Call:
    return Call(target=Target(base_url=url), method="GET", path=path, **more)


def script(server: Server, trace: list, gate: threading.Event) -> None:
    def every_effect():
        """One of each effect, with its failures, noted down as they are answered."""
        engine = toy(server.url)
        answer = yield get(server.url, "/version")
        trace.append(("call", answer.status, answer.body))
        try:
            yield get(server.url, "/moved")
        except Redirected as error:
            trace.append(("moved", error.location))
        try:
            yield get(refused)
        except Unreachable as error:
            trace.append(("refused", str(error), type(error.__cause__) is not None))
        try:
            yield get(server.url, "/slow", timeout=0.2)
        except EngineTimeout as error:
            trace.append(("slow", error.phase, error.budget, str(error), error.hint))
        trace.append(("sleep", (yield Sleep(seconds=0.01))))
        trace.append(("blocking", (yield Blocking(function=lambda: 6 * 7))))
        try:
            yield Blocking(function=lambda: {}["no"])
        except KeyError as error:
            trace.append(("blocking failed", repr(error)))
        trace.append(("nothing gathered", (yield Gather(operations=(), deadline=1))))
        results = yield Gather(
            operations=(
                one(get(server.url, "/version")),
                one(get(refused)),
                one(get(server.url, "/slow")),
                one(Sleep(seconds=30)),
                nested(),
                failing(),
            ),
            deadline=2.0,
        )
        for result in results:
            if isinstance(result, Exception):
                trace.append((type(result).__name__, str(result)))
            else:
                trace.append(getattr(result, "body", result))
        try:
            yield Open(engine=engine, encoded=engine.encode(PROMPT), budgets=BUDGETS)
        except EngineLoading as error:
            trace.append(("loading", error.status))
        stream = yield Open(engine=engine, encoded=engine.encode(PROMPT), budgets=BUDGETS)
        trace.append(("opened", stream.receipt.engine, stream.closed))
        gate.set()
        return stream

    def nested():
        inner = yield Gather(operations=(one(get(server.url, "/version")),), deadline=5)
        return [answer.status for answer in inner]

    def failing():
        yield Sleep(seconds=0)
        raise ValueError("not ours")

    from enginekit.engine import Budgets

    BUDGETS = Budgets(first_token=5, between_tokens=5)
    return every_effect()


refused = refused_url()


def test_one_script_gives_one_trace():
    traces = {}
    with Server() as server:
        for kind in ("sync", "async"):
            server.on("/version", json_reply({"version": "1"}))
            server.on("/moved", Reply(status=307, headers={"location": "/y"}, framing="length"))
            server.on("/slow", Reply(fault="slow_first_byte", delay=20))
            gate = threading.Event()
            reply = sse(delta("a"), gate, delta("b"), STOP, DONE)
            server.on(PATH, text_reply("loading", 503), reply)
            trace: list = []
            for driver in drivers(kind):
                stream = driver.run(script(server, trace, gate))
                trace.append(text_of(driver.read(stream)))
            traces[kind] = trace
    assert traces["sync"] == traces["async"]
    kinds = [entry[0] if isinstance(entry, tuple) else entry for entry in traces["sync"]]
    assert kinds == [
        "call",
        "moved",
        "refused",
        "slow",
        "sleep",
        "blocking",
        "blocking failed",
        "nothing gathered",
        b'{"version": "1"}',
        "Unreachable",
        "EngineTimeout",
        "EngineTimeout",
        [200],
        "ValueError",
        "loading",
        "opened",
        "ab",
    ]


def test_gather_runs_side_by_side(driver: Driver, server: Server):
    """Each of the three is answered only once all three have asked."""
    together = threading.Barrier(3)

    def meet(seen):
        together.wait(5)
        return text_reply(seen.path)

    for path in ("/a", "/b", "/c"):
        server.on(path, meet)
    operations = tuple(one(get(server.url, path)) for path in ("/a", "/b", "/c"))
    results = driver.run(one(Gather(operations=operations, deadline=5)))
    assert [result.body for result in results] == [b"/a", b"/b", b"/c"]


def test_what_gather_gives_up_is_closed_and_hung_up(driver, server):
    server.on("/slow", Reply(fault="slow_first_byte", delay=20))
    closed = threading.Event()

    def slow():
        try:
            yield get(server.url, "/slow")
        finally:
            closed.set()

    def stubborn():
        while True:
            try:
                yield get(server.url, "/slow")
            except EngineTimeout:
                asked.append(1)

    asked: list = []
    start = time.monotonic()
    first, second = driver.run(one(Gather(operations=(slow(), stubborn()), deadline=0.3)))
    assert isinstance(first, EngineTimeout)
    assert isinstance(second, EngineTimeout)
    assert time.monotonic() - start < 10
    assert closed.wait(5)
    assert server.wait_hung_up(2)
    assert asked == [], "an operation that is given up is closed, not told to go on"


def test_a_stream_opened_inside_a_gather_can_be_read_after_it(driver, server):
    server.on(PATH, sse(delta("a"), 0.4, delta("b"), STOP, DONE))
    effect = Gather(operations=(opening(toy(server.url)),), deadline=0.3)
    (stream,) = driver.run(one(effect))
    assert text_of(driver.read(stream)) == "ab"


def test_a_result_that_comes_after_the_deadline_is_let_go(driver):
    released = threading.Event()

    class Lease:
        def release(self):
            released.set()

    def slowly():
        time.sleep(0.4)
        return Lease()

    operation = one(Blocking(function=slowly))
    (result,) = driver.run(one(Gather(operations=(operation,), deadline=0.1)))
    assert isinstance(result, EngineTimeout)
    assert released.wait(5)


def test_context_variables_reach_blocking_functions_and_gathered_operations(driver):
    variable = contextvars.ContextVar("variable", default="unset")

    def seen():
        yield Sleep(seconds=0)
        return variable.get()

    def operation():
        variable.set("set")
        blocking = yield Blocking(function=variable.get)
        (gathered,) = yield Gather(operations=(seen(),), deadline=5)
        return blocking, gathered

    assert contextvars.copy_context().run(lambda: driver.run(operation())) == ("set", "set")


def test_an_unknown_effect_is_a_programming_error(driver):
    with pytest.raises(TypeError, match="no effect"):
        driver.run(one("nonsense"))


def test_the_operation_is_closed_when_the_driver_is_interrupted():
    from enginekit.drivers.sync import SyncDriver

    closed = []

    def operation():
        try:
            yield Blocking(function=interrupt)
        finally:
            closed.append(True)

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SyncDriver().run(operation())
    assert closed == [True]
