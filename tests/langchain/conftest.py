"""Servers to talk to. The standard suite's skips are counted, printed, and none may appear without a reason here."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from enginekit.kit.server_facts import forget_facts
from tests.langchain.wires import VLLM, WIRES, Wire
from tests.support.server import Server


@pytest.fixture(autouse=True)
def no_facts() -> Iterator[None]:
    """What one test's server said of itself is not known to the next test."""
    forget_facts()
    yield
    forget_facts()


@pytest.fixture(params=WIRES, ids=lambda wire: wire.engine)
def wire(request: pytest.FixtureRequest, server: Server) -> Wire:
    """Each engine's server in turn."""
    made: Wire = request.param(server)
    return made


@pytest.fixture
def vllm(server: Server) -> VLLM:
    """One engine, where they do not differ."""
    return VLLM(server)


SKIPS = {
    "test_serdes": "langchain-core loads only classes from its own table, so nobody else can pass",
}
"""Standard tests that may skip, and why."""


def _is_standard(nodeid: str) -> bool:
    return "test_standard" in nodeid


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    name = item.name.partition("[")[0]
    if report.skipped and _is_standard(item.nodeid) and name not in SKIPS:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skipped without a reason in {__name__}: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    def names(outcome: str) -> list[str]:
        reports = terminalreporter.stats.get(outcome, ())
        return [r.nodeid.rpartition("::")[2] for r in reports if _is_standard(r.nodeid)]

    passed, skipped = names("passed"), names("skipped")
    if passed or skipped:
        listed = "".join(f"\n  {name}: {SKIPS.get(name, '?')}" for name in skipped)
        terminalreporter.write_line(
            f"langchain-tests: {len(passed)} passed, {len(skipped)} skipped{listed}"
        )
