"""Write docs/engines/index.md from the engines' profiles; with --check, fail when it is stale."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from enginekit import registry
from enginekit.facts.engine import EngineProfile, Feature
from tests.contract.evidence import LIVE, ON_TAPE, PROVED_BY, cassette

PAGE = Path(__file__).parent.parent / "docs" / "engines" / "index.md"

RECORDINGS = Path(__file__).parent.parent / "tests" / "fixtures" / "recordings"

MARKS = {"native": "yes", "emulated": "emulated", "server": "depends", "none": "no"}

HEAD = """# Engines

Generated from the engines' profiles by `python scripts/engine_docs.py`; a test fails when it is stale.

"""

LEGEND = """
**yes**: the server does it. **emulated**: the server cannot, enginekit does it by other means and the receipt says so.
**depends**: on the server's flags or model; enginekit asks the running server. **no**: refused before anything is sent.
The letters are the evidence: **d** documented or read in the source, **p** asked of the running server, **o** seen happening on
a running server of a tested version, **c** replayed from a cassette of a real server, **l** proved on a live server by the
contract suite. `enginekit engines NAME` prints the notes behind each cell.

`embedded` is the llama.cpp server, started by enginekit in a child process; its column is that of `llamacpp`.
"""


def profiles() -> list[EngineProfile]:
    """The profile of each server engine, in the registry's order."""
    return [
        registry.engine_class(name).profile
        for name in registry.names()
        if name not in registry.LAUNCHED
    ]


def evidence(profile: EngineProfile, feature: Feature) -> str:
    """The letters of one cell."""
    letters = [profile.capability(feature).evidence[0]]
    if feature in ON_TAPE and cassette(profile.name):
        letters.append("c")
    if feature in PROVED_BY and profile.name in LIVE:
        letters.append("l")
    return ", ".join(letters)


def evidence_table(shown: list[EngineProfile]) -> list[str]:
    """What the contract suite runs against: three kinds of evidence, kept apart."""
    lines = [
        "## Evidence\n",
        "| | fake replaying recordings | cassette | live |",
        "|---|---|---|---|",
    ]
    for profile in shown:
        held = len(list((RECORDINGS / profile.name).rglob("*.json")))
        tape = cassette(profile.name)
        told = f"{tape['version']}, {tape['date']}" if tape else "none"
        live = LIVE.get(profile.name, f"`nox -s live -- {profile.name} URL`, on your server")
        lines.append(f"| {profile.name} | {held} recordings | {told} | {live} |")
    lines.append("")
    lines.append(
        "The same request on all of them, answer by answer: [differences](differences.md). "
        "LangChain's and LlamaIndex's suites on each: [standard suites](standard-suites.md).\n"
    )
    return lines


def render() -> str:
    """The whole page."""
    shown = profiles()
    lines = [HEAD]
    lines.append("| engine | wire | default address | versions tested | start it |")
    lines.append("|---|---|---|---|---|")
    for profile in shown:
        start = f"`{profile.start_command.format(model='MODEL')}`" if profile.start_command else ""
        lines.append(
            f"| [{profile.name}]({profile.docs_url}) | {profile.wire} | `{profile.default_url}` | "
            f"{', '.join(profile.tested)} | {start} |"
        )
    lines.append("\n## Capabilities\n")
    lines.append("| | " + " | ".join(profile.name for profile in shown) + " |")
    lines.append("|---|" + "---|" * len(shown))
    for feature in get_args(Feature):
        cells = []
        for profile in shown:
            fact = profile.capability(feature)
            letter = f" ({evidence(profile, feature)})" if fact.support != "none" else ""
            cells.append(MARKS[fact.support] + letter)
        lines.append(f"| {feature.replace('_', ' ')} | " + " | ".join(cells) + " |")
    lines.append(LEGEND)
    lines.extend(evidence_table(shown))
    retired = [f"- **{p.name}**: {p.retired}" for p in shown if p.retired]
    if retired:
        lines.append("## Retired upstream\n")
        lines.extend(retired)
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Write the page, or compare it."""
    page = render()
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text("utf-8") != page:
            print(f"{PAGE} is stale: python scripts/engine_docs.py")
            return 1
        return 0
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
