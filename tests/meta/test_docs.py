"""Generated pages are fresh, and links inside the repository lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from enginekit import registry

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize(
    "script",
    ["engine_docs.py", "suites_docs.py", "differences.py", "accuracy.py", "planning_docs.py"],
)
def test_a_generated_page_is_fresh(script):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


HEADINGS = [
    "Start it",
    "Point enginekit at it",
    "What works",
    "What differs, and what enginekit does about it",
    "Errors",
    "Versions tested",
]


@pytest.mark.parametrize("name", registry.names())
def test_every_engine_has_a_page_with_the_same_headings(name):
    """Those that nobody ran share one generated page, which says so."""
    known = registry.engine_class(name).profile
    if not known.tested:
        shared = (ROOT / "docs" / "engines" / "documented.md").read_text("utf-8")
        assert f"[{name}]({known.docs_url})" in shared
        assert "Nobody ran them" in shared
        return
    page = (ROOT / "docs" / "engines" / f"{name}.md").read_text("utf-8")
    assert [h for h in re.findall(r"^## (.+)$", page, re.M) if h in HEADINGS] == HEADINGS


def test_an_engine_that_upstream_retired_says_so_with_its_successors():
    for name in registry.names():
        retired = registry.engine_class(name).profile.retired
        page = ROOT / "docs" / "engines" / f"{name}.md"
        if retired:
            assert "maintenance mode" in page.read_text("utf-8")
            assert "successor" in page.read_text("utf-8")


def test_every_trap_is_proven_by_a_test_that_exists():
    """`docs/engines/traps.md`: a part for each engine that was recorded, three cells a row, and no
    row without a test."""
    text = (ROOT / "docs" / "engines" / "traps.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    bare = [row for row in rows if "| proven by |" not in row and "::test_" not in row]
    torn = [row for row in rows if len(re.findall(r"(?<!\\)\|", row)) != 4]
    assert (bare, torn) == ([], [])
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text))
    assert len(named) > 150
    missing = [
        f"{file}::{name}"
        for file, name in sorted(named)
        if not re.search(
            rf"^\s*(async )?def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE
        )
    ]
    assert missing == []
    parts = set(re.findall(r"^## (\w+)$", text, re.M))
    recorded = {name for name in registry.names() if registry.engine_class(name).profile.tested}
    assert recorded - {"embedded"} <= parts


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    missing = [
        link
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
        if not (page.parent / link).exists()
    ]
    assert missing == []
