"""Several engines that are one engine: try them in order, before the first token only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from enginekit.config import Config
from enginekit.engine import Budgets, Call, Effect, Gather, Open, Operation
from enginekit.errors import (
    BadRequest,
    ConfigError,
    ContextOverflow,
    EngineKitError,
    EngineLoading,
    EngineTimeout,
    ModelFileError,
    NoEngine,
    Unreachable,
    Unsupported,
)

_T = TypeVar("_T")

FINAL: tuple[type[EngineKitError], ...] = (BadRequest, ConfigError, ModelFileError)
"""What another engine would not mend: the request or the settings are wrong. A prompt that does not
fit is not among it: another engine may have more room."""

COOLDOWN = 30.0
"""Seconds for which an engine of a list is passed over once it let a call wait in vain."""
LONG = 1.0
"""Seconds after which a connection that failed counts as waited for. One that is refused at once
costs nothing to try, so it is tried by every call."""


@dataclass(frozen=True, slots=True)
class _Rest:
    at: float
    until: float
    error: str


class Resting:
    """Which engines of a list rest, because a call waited for them in vain.

    A call passes over one that rests and comes to it last, when nobody else could answer. When the
    rest is over one call tries it, while the others still pass it over; an answer of any kind ends
    the rest, another wait in vain begins a new one; what asks no server changes nothing. One list has one of these; threads may share it.

    Args:
        seconds: how long a rest is; 0 lets every call wait for every engine.
        clock: seconds that only grow.
    """

    def __init__(
        self, seconds: float = COOLDOWN, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds = seconds
        self.clock = clock
        self._rests: dict[int, _Rest] = {}

    def why(self, number: int) -> str | None:
        """Why this engine is to be passed over now, or None to ask it."""
        rest, now = self._rests.get(number), self.clock()
        if rest is None or now >= rest.until:
            return None
        return (
            f"not asked, because it did not answer {now - rest.at:.0f} s ago ({rest.error}); "
            f"asked again in {rest.until - now:.0f} s (cooldown={self.seconds:g})"
        )

    def claim(self, number: int) -> None:
        """Be the one that tries an engine whose rest is over: others pass it over meanwhile."""
        rest, now = self._rests.get(number), self.clock()
        if rest is not None and now >= rest.until:
            # The caller may be cancelled, so even this claim ends.
            self._rests[number] = _Rest(rest.at, now + self.seconds, rest.error)

    def watched(self, number: int, operation: Operation[_T]) -> Operation[_T]:
        """Run an operation on this engine, and learn from what its server was asked.

        An operation that asks nothing (the facts are known, the request is refused before it is
        sent) says nothing of the server: it neither begins nor ends a rest.
        """
        heard = _Heard()
        step: Callable[[Any], Effect] = operation.send
        sent: Any = None
        while True:
            try:
                effect = step(sent)
            except StopIteration as stop:
                if heard.answer:
                    self._rests.pop(number, None)
                return stop.value  # type: ignore[no-any-return]
            except EngineKitError as error:
                self._failed(number, error, heard)
                raise
            asks = isinstance(effect, (Call, Open, Gather))
            if asks and not heard.asked:
                self.claim(number)
                heard.asked = True
            begin = self.clock()
            try:
                step, sent = operation.send, (yield effect)
                heard.answer |= asks and _answered(sent)
            except GeneratorExit:
                operation.close()
                raise
            except BaseException as error:
                step, sent = operation.throw, error
                took = self.clock() - begin
                heard.silence |= _silence(error, took)
                heard.answer |= asks and not _silence(error, took)

    def _failed(self, number: int, error: EngineKitError, heard: _Heard) -> None:
        if heard.silence and self.seconds > 0 and _silence(error, LONG):
            now = self.clock()
            self._rests[number] = _Rest(now, now + self.seconds, error.message)
        elif heard.answer:
            self._rests.pop(number, None)


@dataclass(slots=True)
class _Heard:
    """What an operation learnt of its server so far: it was asked, it answered, it let us wait."""

    asked: bool = False
    answer: bool = False
    silence: bool = False


def _silence(error: BaseException, took: float) -> bool:
    """Whether so failing after so many seconds is a wait in vain: loading is none."""
    if isinstance(error, EngineTimeout):
        return error.phase != "load"
    return isinstance(error, Unreachable) and took >= LONG


def _answered(outcome: Any) -> bool:
    """Whether an effect brought anything; of several asked side by side one is enough."""
    if not isinstance(outcome, list):
        return True
    return any(not isinstance(one, BaseException) or not _silence(one, LONG) for one in outcome)


def resting_of(config: Config, engines: tuple[str, ...], budgets: Budgets) -> Resting:
    """Who of a list rests, as all clients with the same list, addresses and budgets know it.

    Frameworks make a new instance for a call (`configurable_fields`), and services one a request:
    each would wait anew for a server that does not answer.
    """
    key: list[Any] = [budgets, config.value("cooldown", COOLDOWN)]
    for engine in engines:
        url = config.for_engine("base_url", engine)
        key.append((engine, None if url is None else str(url.value)))
    return _resting(tuple(key))


@lru_cache(maxsize=256)
def _resting(key: tuple[Any, ...]) -> Resting:
    return Resting(float(key[1]))


def forget_rests() -> None:
    """Let every engine be asked again."""
    _resting.cache_clear()


def open_first(
    names: Sequence[str],
    open_on: Callable[[int, bool], Operation[Any]],
    resting: Resting | None = None,
) -> Operation[Any]:
    """Open the reply on the first of the named engines that takes it.

    `open_on(number, patient)` opens it on one; only when patient does it retry, or wait for a server
    that is loading. An engine that cannot do this very call (Unsupported, raised before anything is
    sent), whose window is too small, that is not there, overloaded, too slow or broken before its
    first token is passed over at once while there is another to ask; the receipt of the one that
    answers says which and why. Those found loading are waited for when nobody else could answer, and
    those that rest are asked only then.

    Raises at once what another engine would not mend. When none could answer, one error that names
    each: ContextOverflow when some engine said it (a shorter prompt would be answered), Unsupported
    when all did, else NoEngine. The last error is the cause.
    """
    stream, passed = yield from first(names, open_on, resting)
    stream.receipt.passed_over.extend(passed)
    stream.receipt.notes.extend(f"passed over {line}" for line in passed)
    return stream


def first(
    names: Sequence[str],
    run_on: Callable[[int, bool], Operation[_T]],
    resting: Resting | None = None,
) -> Operation[tuple[_T, list[str]]]:
    """What the first of the named engines makes of an operation, and who was passed over and why.

    As `open_first`, for operations without a receipt.
    """
    resting = resting or Resting(0.0)
    rests = {n: why for n in range(len(names)) if (why := resting.why(n)) is not None}
    if len(rests) == len(names):
        rests = {}  # nobody is better than another: ask as if nobody rested
    failures: dict[int, EngineKitError] = {}
    loading: list[int] = []
    fresh = [number for number in range(len(names)) if number not in rests]
    for number in (*fresh, *rests):
        patient = number == fresh[-1] and not loading
        # Of those that rest only who would have been asked before this one was passed over.
        others: dict[int, object] = {n: why for n, why in rests.items() if n < number}
        others |= failures
        try:
            done = yield from resting.watched(number, run_on(number, patient))
        except EngineKitError as error:
            if _final(error):
                _note(error, _lines(names, others))
                raise
            failures[number] = error
            if _loads(error) and not patient:
                loading.append(number)
        else:
            return done, _lines(names, others)
    for number in loading:
        others = {key: failures[key] for key in failures if key != number}
        try:
            return (yield from run_on(number, True)), _lines(names, others)
        except EngineKitError as error:
            if _final(error):
                _note(error, _lines(names, others))
                raise
            failures[number] = error
    raise none_could(names, [failures[number] for number in range(len(names))])


def none_could(names: Sequence[str], failures: Sequence[EngineKitError]) -> EngineKitError:
    """The one error for a call that every engine of the list failed; names each and why."""
    lines = _lines(names, dict(enumerate(failures)))
    message = "no engine of the list could answer. Tried, in order:\n" + "\n".join(
        f"  {number}. {line}" for number, line in enumerate(lines, 1)
    )
    last = failures[-1]
    made: EngineKitError
    full = [error for error in failures if isinstance(error, ContextOverflow)]
    if full:
        made = ContextOverflow(
            message,
            hint=full[-1].hint,
            limit=max((error.limit for error in full if error.limit), default=None),
            requested=max((error.requested for error in full if error.requested), default=None),
        )
    elif isinstance(last, Unsupported) and all(isinstance(e, Unsupported) for e in failures):
        made = Unsupported(message, hint=last.hint, feature=last.feature, rule=last.rule)
    else:
        made = NoEngine(message, hint=last.hint, tried=tuple(lines), errors=tuple(failures))
    made.__cause__ = last
    return made


def _final(error: EngineKitError) -> bool:
    return isinstance(error, FINAL) and not isinstance(error, ContextOverflow)


def _loads(error: EngineKitError) -> bool:
    return isinstance(error, EngineLoading) or (
        isinstance(error, EngineTimeout) and error.phase == "load"
    )


def _lines(names: Sequence[str], reasons: Mapping[int, object]) -> list[str]:
    return [f"{names[number]}: {reasons[number]}" for number in sorted(reasons)]


def _note(error: EngineKitError, lines: Sequence[str]) -> None:
    for line in lines:
        error.add_note(f"passed over before: {line}")
