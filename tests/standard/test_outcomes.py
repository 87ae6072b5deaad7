"""The stored outcomes, from which a page of the docs is drawn, are those of the tests there are."""

from __future__ import annotations

import re

import pytest

from tests.standard.counting import COLLECTED, stored
from tests.standard.marks import MARKS, SKIPS


def test_no_outcome_is_of_a_test_that_is_gone(request: pytest.FixtureRequest) -> None:
    """Whole files only: where single tests were named on the command line, those alone are there."""
    if any("::" in argument for argument in request.config.args):
        pytest.skip("single tests were named on the command line")
    for engine, suites in request.config.stash[COLLECTED].items():
        for suite, names in suites.items():
            assert set(stored().get(engine, {}).get(suite, {})) <= names, (engine, suite)


def test_every_mark_is_of_a_test_that_has_it() -> None:
    for engine, marks in MARKS.items():
        if engine not in stored():  # nobody has recorded it yet
            continue
        outcomes = {
            re.sub(r"\[.*", "", name).rpartition("::")[2]: outcome
            for tests in stored().get(engine, {}).values()
            for name, outcome in tests.items()
            if not outcome.startswith("passed")
        }
        for test, mark in marks.items():
            assert outcomes[test.rpartition("::")[2]] == f"{mark.kind}: {mark.reason}"


def test_a_reason_says_something() -> None:
    told = [*SKIPS.values(), *(mark.reason for marks in MARKS.values() for mark in marks.values())]
    assert all(len(reason) > 20 for reason in told)
