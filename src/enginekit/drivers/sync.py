"""The blocking driver: runs operations and reads replies on the calling thread.

    from enginekit.drivers import sync
    facts = sync.default().run(engine.probe())

Threads share one driver. Nothing needs to be closed, but what is closed early is hung up at once,
so that the server stops generating.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from typing import Any, TypeVar

from enginekit.drivers import _gather
from enginekit.drivers._pool import Pool
from enginekit.drivers._reading import inflated
from enginekit.drivers._request import (
    MAX_ANSWER,
    MAX_REFUSAL,
    REFUSAL_WAIT,
    first_wait,
    prepare,
    redirected,
    refused,
)
from enginekit.drivers._sync_send import FOREIGN, Attempt, read_all
from enginekit.drivers._sync_stream import SyncStream
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

__all__ = ["FOREIGN", "SyncDriver", "SyncStream", "default"]


class SyncDriver:
    """Runs operations, blocking. Holds the idle connections; safe for threads, empty after a fork."""

    def __init__(self) -> None:
        self._pool = Pool()
        _drivers.add(self)

    def run(self, operation: Operation[_T]) -> _T:
        """Run an operation to its end and return what it returns.

        Raises what the operation raises: an EngineKitError, whatever happened on the wire.
        """
        return self._run(operation, None)

    def close(self) -> None:
        """Close idle connections. The driver stays usable."""
        self._pool.clear()

    def _run(self, operation: Operation[_T], until: _gather.Until | None) -> _T:
        opened: list[SyncStream] = []
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
                    outcome = self._perform(effect, until)
                    if isinstance(outcome, SyncStream):
                        opened.append(outcome)
                except EngineKitError as error:
                    failed = error
                except Exception as error:
                    if not isinstance(effect, Blocking):
                        raise
                    failed = error
                if until is not None and until.passed:
                    if isinstance(effect, Blocking):
                        _gather.release(outcome)
                    raise _gather.AbandonedError
        except StopIteration as end:
            value: _T = end.value
            return value
        except BaseException:
            for stream in opened:
                stream.close()
            raise
        finally:
            operation.close()

    def _perform(self, effect: Any, until: _gather.Until | None) -> Any:
        match effect:
            case Call():
                return self._call(effect, until)
            case Open():
                return self._open(effect, until)
            case Sleep():
                seconds = max(0.0, effect.seconds)
                time.sleep(seconds if until is None else min(seconds, until.left))
                return None
            case Blocking():
                return effect.function()
            case Gather():
                return _gather.run_threads(self._run, effect, until)
        raise TypeError(f"an operation yielded {effect!r}, which is no effect")

    # -- whole answers ------------------------------------------------------------------

    def _call(self, call: Call, until: _gather.Until | None) -> Answer:
        budget = call.timeout if until is None else min(call.timeout, until.left)
        request = prepare(call)
        attempt = Attempt(call, request, "", "whole reply", budget, call.target.connect)
        link, answer = attempt.send(self._pool)
        try:
            if 300 <= answer.status < 400:
                raise redirected(call, answer.status, answer.headers)
            try:
                body = read_all(answer, MAX_ANSWER)
            except FOREIGN as error:
                raise attempt.cut(error) from error
            if body is None:
                raise MalformedReply(
                    f"the answer of {call.target.base_url}{call.path} is larger than "
                    f"{MAX_ANSWER >> 20} MiB",
                    url=call.target.base_url,
                    status=answer.status,
                )
        finally:
            self._pool.give(link, answer) if answer.over else link.close()
        body = inflated(answer.headers, body, call.target.base_url)
        return Answer(status=answer.status, headers=answer.headers, body=body)

    # -- streams ------------------------------------------------------------------------

    def _open(self, effect: Open, until: _gather.Until | None) -> SyncStream:
        encoded, budgets, engine = effect.encoded, effect.budgets, effect.engine
        call = encoded.call
        phase, budget = first_wait(call, budgets)
        if until is not None:
            budget = min(budget, until.left)
        attempt = Attempt(call, prepare(call), engine.name, phase, budget, budgets.connect)
        link, answer = attempt.send(self._pool)
        stream: SyncStream | None = None
        try:
            if 300 <= answer.status < 400:
                raise redirected(call, answer.status, answer.headers, engine.name)
            if not 200 <= answer.status < 300:
                link.wire.until(min(attempt.deadline, time.monotonic() + REFUSAL_WAIT))
                body = b""
                with contextlib.suppress(*FOREIGN):
                    body = read_all(answer, MAX_REFUSAL, keep_partial=True) or b""
                with contextlib.suppress(EngineKitError):
                    body = inflated(answer.headers, body, call.target.base_url)
                raise refused(engine, call, answer.status, answer.headers, body)
            stream = SyncStream(self._pool, link, answer, encoded, attempt, budgets.between_tokens)
            stream.start()
            return stream
        finally:
            if stream is None:
                self._pool.give(link, answer) if answer.over else link.close()


# ------------------------------------------------------------------------------------ life

_drivers: weakref.WeakSet[SyncDriver] = weakref.WeakSet()
_default: SyncDriver | None = None
_default_lock = threading.Lock()
_pid = os.getpid()


def default() -> SyncDriver:
    """The driver that the whole process shares."""
    global _default
    if _default is None:
        with _default_lock:
            if _default is None:
                _default = SyncDriver()
    return _default


def _after_fork() -> None:
    """In a child: the parent's connections are not ours to use, and its locks may be held."""
    global _default_lock, _pid
    _default_lock = threading.Lock()
    _pid = os.getpid()
    for driver in list(_drivers):
        driver._pool.after_fork()
        driver._pool = Pool()


def _at_exit() -> None:
    if os.getpid() == _pid:
        for driver in list(_drivers):
            driver.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
