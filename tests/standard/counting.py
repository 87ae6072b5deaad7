"""How many tests of each suite passed, skipped or must fail, per engine, each with its reason.

A test may skip only for a reason in `tests/standard/marks.py`. The outcomes are printed at the end
of a run, and compared with those in `outcomes.json`, from which the page
docs/engines/standard-suites.md is drawn: a test whose outcome is another than there fails.
ENGINEKIT_LIVE_OUTCOMES=write makes the file anew for the engines that ran.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.standard.marks import SKIPS
from tests.standard.places import where_of

STORED = Path(__file__).parent / "outcomes.json"
SUITES = {
    "test_chat.py": "LangChain chat",
    "test_embeddings.py": "LangChain embeddings",
    "test_contract.py": "LlamaIndex contract",
}
TOLD = os.environ.get("ENGINEKIT_LIVE_OUTCOMES", "")
REMOTE = bool(os.environ.get("ENGINEKIT_LIVE_URL"))

Outcomes = dict[str, dict[str, dict[str, str]]]
"""By engine, suite and test: the outcome, and after a colon its reason."""

COLLECTED = pytest.StashKey[dict[str, dict[str, set[str]]]]()
"""Names by engine and suite, before -k and -m take tests away."""

seen: Outcomes = {}
counts: dict[tuple[str, str], Counter[str]] = {}
reasons: dict[tuple[str, str], dict[str, str]] = {}


def collected(items: list[pytest.Item]) -> dict[str, dict[str, set[str]]]:
    """By engine and suite, the names of these tests."""
    found: dict[str, dict[str, set[str]]] = {}
    for item in items:
        where, suite = where_of(item), SUITES.get(item.path.name)
        if where is not None and suite is not None:
            names = found.setdefault(where.engine, {}).setdefault(suite, set())
            names.add(_name(item, str(where)))
    return found


@cache
def stored() -> Outcomes:
    """What is in the file."""
    found: Outcomes = json.loads(STORED.read_text("utf-8")) if STORED.exists() else {}
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """For a conftest to import."""
    report = yield
    where = where_of(item)
    suite = SUITES.get(item.path.name)
    if where is None or suite is None:
        return report
    test = getattr(item, "originalname", item.name)
    marked = str(getattr(report, "wasxfail", ""))
    if report.skipped and not marked and test not in SKIPS:
        report.outcome = "failed"
        report.longrepr = f"skipped without a reason in tests/standard/marks.py: {report.longrepr}"
    if report.when == "call" or report.outcome != "passed":
        kind, reason = report.outcome, ""
        if marked:
            kind, _, reason = marked.partition(": ")
        elif report.skipped:
            reason = SKIPS[test]
        name = _name(item, str(where))
        outcome = f"{kind}: {reason}" if reason else kind
        if kind != "failed" and not _as_stored(report, where.engine, suite, name, outcome):
            kind, reason = "failed", f"its outcome is another than in {STORED.name}"
        _count(str(where), suite, name, kind, reason)
        seen.setdefault(where.engine, {}).setdefault(suite, {})[name] = outcome
    return report


def _name(item: pytest.Item, where: str) -> str:
    """The test's own name: its class, its name and its parameters but for the place."""
    name, _, ids = item.name.partition("[")
    left = [part for part in ids.rstrip("]").split("-") if part and part != where]
    owner = getattr(getattr(item, "cls", None), "__name__", "")
    whole = f"{owner}::{name}" if owner else name
    return f"{whole}[{'-'.join(left)}]" if left else whole


def _as_stored(report: Any, engine: str, suite: str, name: str, outcome: str) -> bool:
    if TOLD == "write" or (REMOTE and TOLD != "check"):
        return True
    if REMOTE and engine not in stored():  # a live server that nobody has recorded yet
        return True
    expected = stored().get(engine, {}).get(suite, {}).get(name)
    if expected == outcome:
        return True
    report.outcome = "failed"
    report.longrepr = (
        f"{name} on {engine}: {outcome!r}, and {STORED.name} says {expected!r}; "
        "ENGINEKIT_LIVE_OUTCOMES=write makes it anew"
    )
    return False


def _count(where: str, suite: str, name: str, kind: str, reason: str) -> None:
    counts.setdefault((where, suite), Counter())[kind] += 1
    if kind != "passed":
        reasons.setdefault((where, suite), {})[f"{name}: {kind}"] = reason


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """For a conftest to import."""
    for (where, suite), counted in counts.items():
        said = ", ".join(f"{number} {kind}" for kind, number in counted.items())
        terminalreporter.write_line(f"{suite} on {where}: {said}")
        for name, reason in reasons.get((where, suite), {}).items():
            terminalreporter.write_line(f"  {name}: {reason}")
    if TOLD == "write" and seen:
        merged = stored()
        for engine, suites in seen.items():
            merged.setdefault(engine, {}).update(suites)
        text = json.dumps(merged, indent=1, sort_keys=True, ensure_ascii=False)
        STORED.write_text(text + "\n", "utf-8")
    counts.clear()
