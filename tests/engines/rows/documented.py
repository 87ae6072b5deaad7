"""Fixtures of servers that nobody has run: what their documentation or source says they answer.

They have the form of a recording, with `source` (repository and files) where a recording has its
server; `tests/fixtures/documented` holds nothing else, and no recording is ever put there.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from enginekit.engine import Answer
from tests.engines.recordings import Recording, _made

ROOT = Path(__file__).parents[2] / "fixtures" / "documented"


def stored(row: str, case: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / row / f"{case}.json").read_text("utf-8")))


@cache
def load(row: str, case: str) -> Recording:
    return _made(case, stored(row, case))


def cases(row: str, prefix: str = "") -> list[str]:
    return sorted(path.stem for path in (ROOT / row).glob(f"{prefix}*.json"))


NOWHERE = Answer(status=404, headers={}, body=b"")
"""What a route answers that is not there."""
