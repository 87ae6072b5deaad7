"""Several engines that are one engine: try them in order, before the first token only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from enginekit.engine import Operation
from enginekit.errors import (
    BadRequest,
    ConfigError,
    ContextOverflow,
    EngineKitError,
    EngineLoading,
    EngineTimeout,
    ModelFileError,
    NoEngine,
    Unsupported,
)

_T = TypeVar("_T")

FINAL: tuple[type[EngineKitError], ...] = (BadRequest, ConfigError, ModelFileError)
"""What another engine would not mend: the request or the settings are wrong. A prompt that does not
fit is not among it: another engine may have more room."""


def open_first(
    names: Sequence[str], open_on: Callable[[int, bool], Operation[Any]]
) -> Operation[Any]:
    """Open the reply on the first of the named engines that takes it.

    `open_on(number, patient)` opens it on one; only when patient does it retry, or wait for a server
    that is loading. An engine that cannot do this very call (Unsupported, raised before anything is
    sent), whose window is too small, that is not there, overloaded, too slow or broken before its
    first token is passed over at once while there is another to ask; the receipt of the one that
    answers says which and why. Those found loading are waited for when nobody else could answer.

    Raises at once what another engine would not mend. When none could answer, one error that names
    each: ContextOverflow when some engine said it (a shorter prompt would be answered), Unsupported
    when all did, else NoEngine. The last error is the cause.
    """
    stream, passed = yield from first(names, open_on)
    stream.receipt.passed_over.extend(passed)
    stream.receipt.notes.extend(f"passed over {line}" for line in passed)
    return stream


def first(
    names: Sequence[str], run_on: Callable[[int, bool], Operation[_T]]
) -> Operation[tuple[_T, list[str]]]:
    """What the first of the named engines makes of an operation, and who was passed over and why.

    As `open_first`, for operations without a receipt.
    """
    failures: dict[int, EngineKitError] = {}
    loading: list[int] = []
    for number in range(len(names)):
        patient = number == len(names) - 1 and not loading
        try:
            return (yield from run_on(number, patient)), _lines(names, failures)
        except EngineKitError as error:
            if _final(error):
                _note(error, _lines(names, failures))
                raise
            failures[number] = error
            if _loads(error) and not patient:
                loading.append(number)
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


def _lines(names: Sequence[str], failures: Mapping[int, EngineKitError]) -> list[str]:
    return [f"{names[number]}: {error}" for number, error in sorted(failures.items())]


def _note(error: EngineKitError, lines: Sequence[str]) -> None:
    for line in lines:
        error.add_note(f"passed over before: {line}")
