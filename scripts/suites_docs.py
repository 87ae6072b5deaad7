"""Write docs/engines/standard-suites.md from the stored outcomes; with --check, fail when stale."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from enginekit import registry
from tests.contract.evidence import LIVE, cassette

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "engines" / "standard-suites.md"
OUTCOMES = ROOT / "tests" / "standard" / "outcomes.json"
SUITES = ("LangChain chat", "LangChain embeddings", "LlamaIndex contract")
TAPES = {"LangChain chat": "", "LangChain embeddings": "-embeddings", "LlamaIndex contract": ""}

HEAD = """# The frameworks' test suites, engine by engine

Generated from the outcomes of the tests by `python scripts/suites_docs.py`; a test fails when it is
stale, and each test fails when its outcome is another than here.

Three suites run on every engine: LangChain's own `langchain-tests` for chat models (twice: with
structured output by constrained decoding, and by forced tool calls) and for embeddings, and
enginekit's contract for LlamaIndex, which has no suite of its own. The servers run
[scripted weights](../../tests/support/scripted.py), so that no test measures intelligence.

* **live**: on a server that answers now, in a session that `.ci/run` calls.
* **cassette**: recorded from such a server by its lane, replayed to the unchanged drivers over
  loopback in every `nox -s tests`. It names server, version, command and date.
* **recordings**: of MLC there is no server that could be installed for this. Its answers have the
  form of recorded ones, field by field, with the words of the scripted weights; what the real server
  refused is refused in the recorded words. This is weaker than a cassette.

**skipped**: the suite leaves the test out by itself, for want of a property. **never**: the server
cannot do it; the test runs and must fail by a typed error. **notyet**: the same of a thing that is to
come upstream.
"""


def outcomes() -> dict[str, dict[str, dict[str, str]]]:
    """By engine, suite and test, what came of it."""
    found: dict[str, dict[str, dict[str, str]]] = json.loads(OUTCOMES.read_text("utf-8"))
    return found


def stands(engine: str, suite: str) -> str:
    """What kind of evidence the row has."""
    tape = cassette(f"standard/{engine}{TAPES[suite]}")
    kinds = [f"live ({LIVE[engine]})"] if engine in LIVE else []
    if tape:
        kinds.append(f"cassette of {tape['date']}")
    return ", ".join(kinds) or "recordings"


def table(stored: dict[str, dict[str, dict[str, str]]]) -> list[str]:
    """One row for each engine and suite."""
    kinds = ("passed", "skipped", "never", "notyet")
    lines = [
        "| engine | suite | " + " | ".join(kinds) + " | stands on |",
        "|---|---|" + "---|" * len(kinds) + "---|",
    ]
    for engine in registry.names():
        if engine in registry.LAUNCHED or not registry.engine_class(engine).profile.tested:
            continue
        if engine not in stored:
            lines.append(f"| {engine} | none has run yet |  |  |  |  |  |")
        for suite in SUITES:
            tests = stored.get(engine, {}).get(suite)
            if tests is None:
                continue
            counted = Counter(outcome.partition(": ")[0] for outcome in tests.values())
            cells = " | ".join(str(counted[kind]) for kind in kinds)
            lines.append(f"| {engine} | {suite} | {cells} | {stands(engine, suite)} |")
    return lines


def reasons(engine: str, suites: dict[str, dict[str, str]]) -> list[str]:
    """Why tests of an engine did not pass, grouped by the reason."""
    found: dict[str, list[str]] = {}
    for tests in suites.values():
        for test, outcome in tests.items():
            if outcome != "passed":
                name = test.rpartition("::")[2].partition("[")[0]
                found.setdefault(outcome, []).append(name)
    lines = [f"\n### {engine}\n"]
    for outcome, names in sorted(found.items()):
        kind, _, reason = outcome.partition(": ")
        each = ", ".join(f"`{name}`" for name in sorted(set(names)))
        lines.append(f"* **{kind}**, {len(names)}: {reason}. {each}")
    if not found:
        lines.append("Everything passed.")
    return lines


def servers(stored: dict[str, dict[str, dict[str, str]]]) -> list[str]:
    """What the cassettes are of."""
    lines = ["\n## The servers\n"]
    lines += ["| cassette | server | version | command | date |", "|---|---|---|---|---|"]
    for engine in registry.names():
        for suffix in ("", "-embeddings"):
            tape = cassette(f"standard/{engine}{suffix}")
            if tape and engine in stored:
                told = (
                    f"{tape['server']} | {tape['version']} | `{tape['command']}` | {tape['date']}"
                )
                lines.append(f"| {engine}{suffix} | {told} |")
    return lines


def render() -> str:
    """The whole page."""
    stored = outcomes()
    lines = [HEAD, *table(stored), *servers(stored), "\n## What did not pass, and why"]
    for engine in registry.names():
        if engine in stored:
            lines += reasons(engine, stored[engine])
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or compare it."""
    page = render()
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text("utf-8") != page:
            print(f"{PAGE} is stale: python scripts/suites_docs.py")
            return 1
        return 0
    PAGE.write_text(page, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
