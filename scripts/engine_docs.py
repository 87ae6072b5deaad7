"""Write docs/engines/index.md and documented.md from the engines' profiles; with --check, fail when
one is stale."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from enginekit import registry
from enginekit.engine import Target
from enginekit.errors import BadRequest, Unsupported
from enginekit.facts.engine import EngineProfile, Feature
from enginekit.types import ChatRequest, Message, Sampling
from tests.contract.evidence import LIVE, ON_TAPE, PROVED_ALONE, PROVED_BY, cassette

PAGE = Path(__file__).parent.parent / "docs" / "engines" / "index.md"
DOCUMENTED = PAGE.with_name("documented.md")

RECORDINGS = Path(__file__).parent.parent / "tests" / "fixtures" / "recordings"
FIXTURES = RECORDINGS.with_name("documented")

MARKS = {"native": "yes", "emulated": "emulated", "server": "depends", "none": "no"}

HEAD = """# Engines

Generated from the engines' profiles by `python scripts/engine_docs.py`; a test fails when it is stale.

"""

DOCUMENTED_HEAD = """# Documented, not run

Generated from the engines' profiles by `python scripts/engine_docs.py`; a test fails when it is stale.

These servers are known from their documentation or source, in the version named. **Nobody ran them with enginekit**: a probe
of one says so, its facts are marked unverified, and its fixtures hold what the source says, not what a server answered. Use one
by its name, `ENGINEKIT_ENGINE=sglang`, with `ENGINEKIT_BASE_URL` where it is not at its default address; without settings it is
found at its default address as the others are. `nox -s live -- sglang URL` runs the live contract on yours: tell us what it says.

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


def run_ones() -> list[EngineProfile]:
    """Those of which a real server was run."""
    return [profile for profile in profiles() if profile.tested]


def rows() -> list[EngineProfile]:
    """Those that are known from their documentation only."""
    return [profile for profile in profiles() if not profile.tested]


def evidence(profile: EngineProfile, feature: Feature) -> str:
    """The letters of one cell."""
    letters = [profile.capability(feature).evidence[0]]
    if feature in ON_TAPE and cassette(profile.name):
        letters.append("c")
    alone = PROVED_ALONE.get(profile.name, {})
    if (feature in PROVED_BY or feature in alone) and profile.name in LIVE:
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
        "What surprises a plain client, and the test of each: [traps](traps.md). "
        "LangChain's and LlamaIndex's suites on each: [standard suites](standard-suites.md).\n"
    )
    return lines


def render() -> str:
    """The whole page."""
    shown = run_ones()
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
    lines.append("## Documented, not run\n")
    named = ", ".join(f"`{profile.name}` ({profile.title})" for profile in rows())
    lines.append(
        f"{named}: their documentation or source was read, but nobody ran them with enginekit. "
        "What is known of them: [documented](documented.md). Any other OpenAI-compatible server "
        "is used by saying which engine it is like: [configuration](../configuration.md).\n"
    )
    retired = [f"- **{p.name}**: {p.retired}" for p in shown if p.retired]
    if retired:
        lines.append("## Retired upstream\n")
        lines.extend(retired)
        lines.append("")
    return "\n".join(lines)


def render_documented() -> str:
    """The page of the engines that nobody ran."""
    shown = rows()
    lines = [DOCUMENTED_HEAD]
    lines.append("| engine | default address | wire | start it | sources |")
    lines.append("|---|---|---|---|---|")
    lines.extend(
        f"| [{profile.name}]({profile.docs_url}) | `{profile.default_url}` | {profile.wire} | "
        f"`{profile.start_command.format(model='MODEL')}` | {'; '.join(profile.sources)} |"
        for profile in shown
    )
    lines.append("\n## Capabilities\n")
    lines.append("| | " + " | ".join(profile.name for profile in shown) + " |")
    lines.append("|---|" + "---|" * len(shown))
    for feature in get_args(Feature):
        cells = [MARKS[profile.capability(feature).support] for profile in shown]
        lines.append(f"| {feature.replace('_', ' ')} | " + " | ".join(cells) + " |")
    lines.append("\n`enginekit engines NAME` prints the notes behind each cell.\n")
    lines.append("## Parameters\n")
    lines.append("| | " + " | ".join(profile.name for profile in shown) + " |")
    lines.append("|---|" + "---|" * len(shown))
    for field in fields(Sampling):
        cells = [parameter(profile.name, field.name) for profile in shown]
        lines.append(f"| `{field.name}` | " + " | ".join(cells) + " |")
    lines.append("\n## Errors\n")
    lines.append("Each is a fixture of `tests/fixtures/documented`, which names its source.\n")
    lines.append("| engine | the server says | enginekit raises |")
    lines.append("|---|---|---|")
    for profile in shown:
        refusals = [
            error_row(profile.name, json.loads(path.read_text("utf-8")))
            for path in sorted((FIXTURES / profile.name).glob("err_*.json"))
        ]
        lines += refusals or [f"| {profile.name} | documented nowhere | by the HTTP status |"]
    lines.append("")
    return "\n".join(lines)


def parameter(name: str, field: str) -> str:
    """What becomes of one sampling parameter on one engine, asked of its encoder."""
    wanted = Sampling(**{field: VALUES[field]})
    request = ChatRequest(
        model="m", messages=(Message(role="user", content="hi"),), sampling=wanted
    )
    engine = registry.engine_class(name)(Target(base_url="http://server"))
    try:
        receipt = engine.encode(request).receipt
    except Unsupported:
        return "refused"
    except BadRequest:
        return "sent"
    (entry,) = [one for one in receipt.entries if one.field == f"sampling.{field}"]
    wire = entry.wire.split(" ")[-1]
    return f"as `{wire}`" if wire and wire != field else entry.outcome


VALUES = {
    "temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "typical_p": 0.5, "seed": 1,
    "max_tokens": 9, "min_tokens": 1, "stop": ("x",), "repetition_penalty": 1.1,
    "repetition_window": 9, "frequency_penalty": 0.1, "presence_penalty": 0.1,
    "logit_bias": {1: 1.0}, "ignore_eos": True, "mirostat": 1, "mirostat_tau": 5.0,
    "mirostat_eta": 0.1, "logprobs": True, "top_logprobs": 2, "n": 2,
}  # fmt: skip
"""A value of each sampling parameter that any server with the parameter takes."""


def error_row(name: str, stored: dict[str, Any]) -> str:
    """One refusal: its status and sentence, and the error it becomes."""
    response = stored["response"]
    body = "".join(piece for _, piece in response["chunks"])
    engine = registry.engine_class(name)(Target(base_url="http://server"))
    error = engine.failure(
        response["status"], response["headers"], body.encode(), path=stored["request"]["path"]
    )
    told = error.message.partition(": ")[2] or body
    said = " ".join(told.split()).replace("|", "\\|")
    said = said if len(said) <= 100 else f"{said[:97]}…"
    return f"| {name} | {response['status']} {said} | `{type(error).__name__}` |"


def main() -> int:
    """Write the pages, or compare them."""
    for path, page in ((PAGE, render()), (DOCUMENTED, render_documented())):
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page, "utf-8")
        elif not path.exists() or path.read_text("utf-8") != page:
            print(f"{path} is stale: python scripts/engine_docs.py")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
