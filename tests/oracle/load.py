"""Load a small real model with the real llama.cpp in a child process and read what it took."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.oracle.log import Breakdown, parse
from tests.support import models

CHILD = Path(__file__).with_name("loaded.py")


@dataclass(frozen=True)
class Loaded:
    plan: Breakdown
    """What llama.cpp planned right before it loaded, from its log."""
    resident: int
    """Bytes by which the process grew."""


def load(
    path: Path, context: int, slots: int = 1, settings: Mapping[str, Any] | None = None
) -> Loaded:
    """Start, measure, end. `settings` are those of `tests.oracle.child`.

    Raises:
        RuntimeError: the model did not load.
    """
    order = json.dumps(
        {"path": str(path), "context": context, "slots": slots} | {"settings": settings or {}}
    )
    done = subprocess.run(
        [sys.executable, str(CHILD), order],
        capture_output=True,
        text=True,
        check=False,
        errors="replace",
        timeout=300,
        env=models.environment(),
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    line = json.loads(done.stdout)
    (plan,) = parse(done.stderr.splitlines())
    return Loaded(plan, line["after"] - line["before"])
