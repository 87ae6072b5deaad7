"""The one switch of the long runs: `ENGINEKIT_SOAK=1`, set by `nox -s soak`.

Tests that take more under it carry the marker `soak`; that session runs these and no others. Read
when the tests are collected, before the test environment is cleaned.
"""

from __future__ import annotations

import os

SOAK = os.environ.get("ENGINEKIT_SOAK", "") not in ("", "0")
FUZZ = 100_000
"""Examples of each fuzz test in a soak run."""


def examples(usual: int) -> int:
    """How many examples a fuzz test takes."""
    return FUZZ if SOAK else usual


def seconds(usual: int) -> int:
    """How long a test may take before it counts as hung: an hour in a soak run."""
    return 3600 if SOAK else usual
