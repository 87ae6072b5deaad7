"""`notyet` and `never`: what a contract test cannot show, why, and that this is still so.

    pytest.mark.never("the server has no such route")      by design, it stays so
    pytest.mark.notyet("nobody recorded one")              it may come

The test runs and must fail: one that passes unexpectedly is a failure, so no mark outlives its reason.
A mark without a reason, or with two of them, is refused when tests are collected.
"""

from __future__ import annotations

import pytest

KINDS = ("never", "notyet")


def apply(items: list[pytest.Item]) -> None:
    """Turn the marks of collected tests into strict expectations of failure.

    Raises pytest.UsageError for a mark without one sentence of reason.
    """
    for item in items:
        marks = [mark for mark in item.iter_markers() if mark.name in KINDS]
        if len(marks) > 1:
            raise pytest.UsageError(
                f"{item.nodeid} has {len(marks)} marks of {' and '.join(KINDS)}"
            )
        for mark in marks:
            reason = mark.args[0] if len(mark.args) == 1 and not mark.kwargs else None
            if not isinstance(reason, str) or len(reason.split()) < 3:
                raise pytest.UsageError(
                    f"{item.nodeid}: mark.{mark.name} needs one sentence of reason"
                )
            item.add_marker(
                pytest.mark.xfail(strict=True, reason=f"{mark.name}: {reason}"), append=False
            )
