"""The async driver: runs operations and reads replies on the running event loop.

    from enginekit.drivers import async_
    facts = await async_.default().run(engine.probe())

One driver serves any number of event loops, one after another or in several threads. Nothing needs
to be closed: connections are closed with their loop. A cancelled task hangs up at once, so that the
server stops generating.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from enginekit.drivers import _session
from enginekit.drivers._async_send import (
    FOREIGN,
    Attempt,
    Within,
    headers_of,
    read_all,
    read_refusal,
)
from enginekit.drivers._async_stream import AsyncStream
from enginekit.drivers._gather import late, release
from enginekit.drivers._reading import inflated
from enginekit.drivers._request import (
    MAX_ANSWER,
    first_wait,
    prepare,
    redirected,
    refused,
)
from enginekit.drivers._session import Loops
from enginekit.engine import (
    Answer,
    Blocking,
    Call,
    Gather,
    Open,
    Operation,
    Sleep,
)
from enginekit.errors import (
    EngineKitError,
    MalformedReply,
)

_T = TypeVar("_T")

__all__ = ["FOREIGN", "AsyncDriver", "AsyncStream", "default"]


class AsyncDriver:
    """Runs operations on the running event loop."""

    def __init__(self) -> None:
        self._loops = Loops()
        _session.register(self)

    async def run(self, operation: Operation[_T]) -> _T:
        """Run an operation to its end and return what it returns.

        Raises what the operation raises: an EngineKitError, whatever happened on the wire.
        """
        opened: list[AsyncStream] = []
        outcome: Any = None
        failed: Exception | None = None
        try:
            while True:
                if failed is None:
                    effect = operation.send(outcome)
                else:
                    thrown, failed = failed, None
                    effect = operation.throw(thrown)
                outcome = None
                try:
                    if isinstance(effect, Open):
                        outcome = await self._open(effect)
                        opened.append(outcome)
                    elif isinstance(effect, Call):
                        outcome = await self._call(effect)
                    else:
                        outcome = await self._perform(effect)
                except EngineKitError as error:
                    failed = error
                except Exception as error:
                    if not isinstance(effect, Blocking):
                        raise
                    failed = error
        except StopIteration as end:
            value: _T = end.value
            return value
        except BaseException:
            for stream in opened:
                stream.give_up(keep=False)
            raise
        finally:
            operation.close()

    async def close(self) -> None:
        """Close the connections of the running loop. The driver stays usable."""
        await self._loops.close()

    def forget(self) -> Loops:
        """Drop every session without touching it, as a forked child must; returns them."""
        loops, self._loops = self._loops, Loops()
        return loops

    async def _perform(self, effect: Any) -> Any:
        match effect:
            case Sleep():
                return await asyncio.sleep(max(0.0, effect.seconds))
            case Blocking():
                return await in_thread(effect.function)
            case Gather():
                return await self._gather(effect)
        raise TypeError(f"an operation yielded {effect!r}, which is no effect")

    async def _gather(self, effect: Gather) -> list[Any]:
        tasks = [asyncio.create_task(self.run(operation)) for operation in effect.operations]
        if not tasks:
            return []
        try:
            await asyncio.wait(tasks, timeout=effect.deadline)
        finally:
            unfinished = [task for task in tasks if not task.done()]
            for task in unfinished:
                task.cancel()
            if unfinished:
                await asyncio.wait(unfinished)
        results: list[Any] = []
        for task in tasks:
            if task in unfinished or task.cancelled():
                if not task.cancelled():
                    task.exception()
                results.append(late(effect.deadline))
            else:
                results.append(task.exception() or task.result())
        return results

    # -- whole answers ------------------------------------------------------------------

    async def _call(self, call: Call) -> Answer:
        request = prepare(call)
        sessions = await self._loops.current()
        attempt = Attempt(call, request, "", "whole reply", call.timeout, call.target.connect)
        async with Within(attempt), sessions.slots:
            response = await attempt.send(sessions)
            try:
                headers = headers_of(response)
                if 300 <= response.status < 400:
                    raise redirected(call, response.status, headers)
                try:
                    body = await read_all(response, MAX_ANSWER)
                except FOREIGN as error:
                    raise attempt.cut(error) from error
                if body is None:
                    raise MalformedReply(
                        f"the answer of {call.target.base_url}{call.path} is larger than "
                        f"{MAX_ANSWER >> 20} MiB",
                        url=call.target.base_url,
                        status=response.status,
                    )
            finally:
                response.release()
        body = inflated(headers, body, call.target.base_url)
        return Answer(status=response.status, headers=headers, body=body)

    # -- streams ------------------------------------------------------------------------

    async def _open(self, effect: Open) -> AsyncStream:
        encoded, budgets, engine = effect.encoded, effect.budgets, effect.engine
        call = encoded.call
        phase, budget = first_wait(call, budgets)
        request = prepare(call)
        sessions = await self._loops.current()
        attempt = Attempt(call, request, engine.name, phase, budget, budgets.connect)
        stream: AsyncStream | None = None
        async with Within(attempt):
            await sessions.slots.acquire()
            try:
                response = await attempt.send(sessions)
                try:
                    headers = headers_of(response)
                    if 300 <= response.status < 400:
                        raise redirected(call, response.status, headers, engine.name)
                    if not 200 <= response.status < 300:
                        body = await read_refusal(response)
                        with contextlib.suppress(EngineKitError):
                            body = inflated(headers, body, call.target.base_url)
                        raise refused(engine, call, response.status, headers, body)
                    stream = AsyncStream(
                        sessions, response, encoded, headers, attempt, budgets.between_tokens
                    )
                finally:
                    if stream is None:
                        response.release()
            finally:
                if stream is None:
                    sessions.slots.release()
        # From here the stream's watchdog keeps the budget: a reply that has its terminal fact by then
        # is whole, which a cancelled task could not tell.
        await stream.start()
        return stream


async def in_thread(function: Callable[[], Any]) -> Any:
    """Run a function in a thread of its own and return what it returns.

    Not the loop's executor: its few threads may all wait for locks, and the loop's shutdown waits
    for them. When the waiting task is cancelled, the function runs to its end and what it returns
    is let go (`release()` or `close()` where there is one).
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    context = contextvars.copy_context()

    def deliver(outcome: tuple[Any, BaseException | None]) -> None:
        if not done.done():
            done.set_result(outcome)
        elif outcome[1] is None:
            release(outcome[0])

    def work() -> None:
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = (context.run(function), None)
        except BaseException as error:
            outcome = (None, error)
        try:
            loop.call_soon_threadsafe(deliver, outcome)
        except RuntimeError:  # the loop is closed
            release(outcome[0])

    threading.Thread(target=work, name="enginekit-blocking", daemon=True).start()
    value, error = await done
    if error is not None:
        raise error
    return value


_default: AsyncDriver | None = None


def default() -> AsyncDriver:
    """The driver that the whole process shares, whatever event loops come and go."""
    global _default
    if _default is None:
        _default = AsyncDriver()
    return _default
