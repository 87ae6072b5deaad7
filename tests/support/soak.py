"""The one switch of the long runs: `ENGINEKIT_SOAK=1`, set by `nox -s soak`.

Tests that take more under it carry the marker `soak`; that session runs these and no others. Read
when the tests are collected, before the test environment is cleaned.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

SOAK = os.environ.get("ENGINEKIT_SOAK", "") not in ("", "0")
FUZZ, ROUNDS = 100_000, 10
"""Examples of each fuzz test in a soak run, and in how many parts: hypothesis remembers all that it
drew, 15 kB an example."""


def seconds(usual: int) -> int:
    """How long a test may take before it counts as hung: an hour in a soak run."""
    return 3600 if SOAK else usual


def fuzz(usual: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a hypothesis test that takes `usual` examples, and `FUZZ` of them in a soak run."""

    def marked(test: Callable[..., None]) -> Callable[..., None]:
        limits = settings(
            max_examples=FUZZ // ROUNDS if SOAK else usual,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        )
        if not SOAK:
            return pytest.mark.soak(limits(test))
        # Where CI is set hypothesis would draw the same examples in every part.
        one_part = settings(limits, derandomize=False)(test)

        def soaked(part: int) -> None:
            one_part()

        soaked.__name__, soaked.__doc__, soaked.__module__ = (
            test.__name__,
            test.__doc__,
            test.__module__,
        )
        return pytest.mark.soak(pytest.mark.parametrize("part", range(ROUNDS))(soaked))

    return marked
