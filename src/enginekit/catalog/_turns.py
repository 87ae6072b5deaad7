"""One process fetches a file, the others wait and show how far it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from enginekit.catalog._lock import FileLock
from enginekit.catalog.download import Progress, human, step
from enginekit.errors import DownloadError


class OnlyOne:
    """Holds the lock of one file; while another process fetches it, shows that one's progress."""

    def __init__(self, target: Path, progress: Progress, size: int, label: str) -> None:
        self._lock = FileLock(target.parent.with_name(target.parent.name + ".lock"))
        self._part = target.with_name(target.name + ".part")
        self._progress = progress
        self._size = size
        self._label = label

    def __enter__(self) -> None:
        try:
            if self._lock.acquire(timeout=0.0):
                return
        except OSError as error:
            raise DownloadError(
                f"{self._label} ({human(self._size)}) cannot be kept in {self._lock.path.parent}: "
                f"{error.strerror or error}",
                hint="set ENGINEKIT_CACHE_DIR to a folder you can write to",
            ) from error
        with step(self._progress, self._size, f"{self._label} (another process is fetching it)"):
            self._lock.acquire(waiting=self._waiting())

    def _waiting(self) -> Callable[[], None]:
        seen = 0

        def look() -> None:
            nonlocal seen
            try:
                there = self._part.stat().st_size
            except OSError:
                return
            self._progress.advance(there - seen)
            seen = there

        return look

    def __exit__(self, *exc: object) -> None:
        self._lock.release()
