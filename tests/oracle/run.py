"""Ask the real llama.cpp, in child processes, what header-only models would take."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.oracle.log import Breakdown, parse

CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Order:
    id: str
    path: str
    context: int
    slots: int = 1
    settings: dict[str, Any] = field(default_factory=dict)


def ask(orders: Sequence[Order], *, timeout: float = 300) -> dict[str, Breakdown]:
    """One breakdown per order. After a model that kills the child, another goes on with the next."""
    found: dict[str, Breakdown] = {}
    with tempfile.TemporaryDirectory() as folder:
        # A link of its own for every order: the log names files, and nothing else of an order.
        lines = {}
        for number, order in enumerate(orders):
            link = Path(folder) / f"{number}.gguf"
            link.symlink_to(Path(order.path).resolve())
            lines[str(number)] = json.dumps(asdict(order) | {"path": str(link)}) + "\n"
        left = list(lines)
        while left:
            log = _child("".join(lines[key] for key in left), timeout)
            got = list(parse(log.splitlines()))
            if not got:
                raise RuntimeError(f"the oracle's child said nothing of {left[0]}: {log[-2000:]}")
            if not got[-1].ended:
                got[-1].errors.append("the process died: " + log[-300:])
            for plan in got:
                found[orders[int(plan.id)].id] = plan
            left = left[left.index(got[-1].id) + 1 :]
    return found


def _child(lines: str, timeout: float) -> str:
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        child = subprocess.Popen(
            [sys.executable, str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
        )
        try:
            child.communicate(lines, timeout)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        log.seek(0)
        return log.read()
