"""Several engines that are one engine: try them in order, before the first token only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from enginekit.engine import Operation
from enginekit.errors import (
    BadRequest,
    ConfigError,
    EngineKitError,
    ModelFileError,
    NoEngine,
)

FINAL: tuple[type[EngineKitError], ...] = (BadRequest, ConfigError, ModelFileError)
"""What another engine would not mend: the request or the settings are wrong."""


def open_first(count: int, open_on: Callable[[int], Operation[Any]]) -> Operation[Any]:
    """Open the reply on the first of `count` engines that takes it.

    An engine that cannot do this very call (Unsupported, raised before anything is sent), that is
    not there, overloaded, too slow or broken before its first token is passed over; the receipt of
    the one that answers says which and why. Raises NoEngine when none does, with the last error as
    its cause, and at once what another engine would not mend.
    """
    passed: list[str] = []
    last: EngineKitError | None = None
    for number in range(count):
        try:
            stream = yield from open_on(number)
        except FINAL:
            raise
        except EngineKitError as error:
            passed.append(f"{getattr(error, 'engine', '') or f'engine {number + 1}'}: {error}")
            last = error
            continue
        stream.receipt.notes.extend(f"passed over {line}" for line in passed)
        return stream
    raise NoEngine(
        "no engine of the list could answer. Tried, in order:\n"
        + "\n".join(f"  {number}. {line}" for number, line in enumerate(passed, 1)),
        hint=last.hint if last is not None else None,
        tried=tuple(passed),
    ) from last
