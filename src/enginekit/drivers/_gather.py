"""`Gather` for the blocking driver: one thread per operation, all under one deadline."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any

from enginekit.engine import Gather
from enginekit.errors import EngineTimeout


class AbandonedError(BaseException):
    """Internal: the deadline of a Gather has passed, so its operation is closed."""


class Until:
    """The moment at which operations that run side by side are given up."""

    __slots__ = ("_moment",)

    def __init__(self, seconds: float) -> None:
        self._moment = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, at least a thousandth: a wait of none would be taken for a failure."""
        return max(self._moment - time.monotonic(), 0.001)

    @property
    def passed(self) -> bool:
        """Whether it is over."""
        return time.monotonic() >= self._moment

    def give_up(self) -> None:
        """Let it be over now."""
        self._moment = 0.0


def late(deadline: float) -> EngineTimeout:
    """What an operation that was not finished in time yields."""
    return EngineTimeout(
        f"not finished within {deadline:g} s, when its side-by-side wait ended",
        phase="whole reply",
        budget=deadline,
    )


def run_threads(
    run: Callable[[Any, Until | None], Any], effect: Gather, outer: Until | None
) -> Any:
    """Results or exceptions of the operations, in order.

    Waits inside the threads end with the deadline; a `Blocking` function cannot be interrupted and
    finishes unheard.
    """
    count = len(effect.operations)
    if not count:
        return []
    seconds = effect.deadline if outer is None else min(effect.deadline, outer.left)
    until = Until(seconds)
    results: list[Any] = [None] * count
    open_ones = set(range(count))
    changed = threading.Condition()

    def work(number: int) -> None:
        outcome: Any
        try:
            outcome = run(effect.operations[number], until)
        except AbandonedError:
            return
        except BaseException as error:
            outcome = error
        with changed:
            if number in open_ones:
                open_ones.discard(number)
                results[number] = outcome
                changed.notify()
                return
        release(outcome)

    for number in range(count):
        context = contextvars.copy_context()
        threading.Thread(
            target=context.run, args=(work, number), name="enginekit-gather", daemon=True
        ).start()
    try:
        with changed:
            changed.wait_for(lambda: not open_ones, seconds)
    finally:
        with changed:
            for number in open_ones:
                results[number] = late(effect.deadline)
            open_ones.clear()
        until.give_up()
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, Exception):
            raise result
    return results


def release(outcome: Any) -> None:
    """Let go of a result that nobody waits for any more: a stream, a lock, a started child."""
    for name in ("release", "close"):
        method = getattr(outcome, name, None)
        if callable(method):
            method()
            return
