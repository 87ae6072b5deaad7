"""Where output goes: data to stdout, everything else to stderr; readable without colour."""

from __future__ import annotations

import json
import sys
import threading
import time
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

stderr = Console(stderr=True, highlight=False)
WIDE = 200
"""Columns of a table in a pipe, where wrapping would split paths."""
stdout = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)

PLAIN_EVERY = 10.0
"""Seconds between progress lines when stderr is not a terminal."""


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    ascii_only = not is_unicode(sys.stdout)
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=ascii_only, default=str) + "\n")


def is_unicode(stream: TextIO) -> bool:
    """Whether every character can be written to a stream."""
    return (stream.encoding or "").lower().replace("-", "").startswith("utf")


class ProgressDisplay:
    """A bar or spinner on stderr for whatever takes over a second.

    Implements the progress protocol of downloads and launches: `start`, `advance`, `finish`. When
    stderr is not a terminal it writes a plain line now and then instead.
    """

    def __init__(self, delay: float = 1.0) -> None:
        self._delay = delay
        self._lock = threading.Lock()
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._timer: threading.Timer | None = None
        self._label = ""
        self._total: int | None = None
        self._done = 0
        self._said = 0.0

    def start(self, total: int | None, label: str) -> None:
        """Something begins: `total` bytes of a download, or None for a wait without measure."""
        self.finish()
        with self._lock:
            self._label, self._total, self._done = label, total, 0
            self._said = time.monotonic() - PLAIN_EVERY + self._delay
            self._timer = threading.Timer(self._delay, self._appear)
            self._timer.daemon = True
            self._timer.start()

    def advance(self, amount: int) -> None:
        """`amount` more bytes are there."""
        with self._lock:
            self._done += amount
            if self._live is not None and self._task is not None:
                self._live.update(self._task, completed=self._done)
            elif not stderr.is_terminal and time.monotonic() - self._said >= PLAIN_EVERY:
                self._say()

    def finish(self) -> None:
        """It is over, well or not."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._live is not None:
                self._live.stop()
                self._live = None

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish()

    def _appear(self) -> None:
        with self._lock:
            if self._timer is None:
                return
            if not stderr.is_terminal:
                if time.monotonic() - self._said >= PLAIN_EVERY:
                    self._say()
                return
            columns: tuple[Any, ...] = (
                (
                    TextColumn("{task.description}"),
                    BarColumn(),
                    DownloadColumn(binary_units=False),
                    TransferSpeedColumn(),
                )
                if self._total
                else (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            )
            self._live = Progress(*columns, console=stderr, transient=True)
            self._task = self._live.add_task(self._label, total=self._total, completed=self._done)
            self._live.start()

    def _say(self) -> None:
        self._said = time.monotonic()
        line = f"{self._label} ..."
        if self._total:
            line = f"{self._label}: {self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB"
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
