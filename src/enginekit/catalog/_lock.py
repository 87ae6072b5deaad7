"""A lock between the processes of one user: a file, locked by the kernel, freed by any death.

The kernel drops the lock when its holder dies, however it dies, so there is no stale lock to
recognise. Lock files are never deleted: deleting one that another process waits on would give two
processes "the" lock.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

_held: set[int] = set()
_POLL = 0.05


def _forget_after_fork() -> None:
    # The descriptor is shared with the parent: closing our copy leaves the parent's lock alone,
    # keeping it would hold the lock for as long as this child lives.
    for fd in _held:
        os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)

if sys.platform == "win32":
    import msvcrt

    def _try_lock(fd: int) -> bool:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class FileLock:
    """Exclusive between processes and between threads; not re-entrant.

    Args:
        path: the lock file; created with its folder when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._pid = 0

    def acquire(
        self, timeout: float | None = None, waiting: Callable[[], None] | None = None
    ) -> bool:
        """Take the lock. False when `timeout` seconds pass first; None waits without end.

        `waiting` is called about twenty times a second while another holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        deadline = None if timeout is None else time.monotonic() + timeout
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        _held.add(fd)
        taken = False
        try:
            while not (taken := _try_lock(fd)):
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                if waiting is not None:
                    waiting()
                time.sleep(_POLL)
        finally:
            if not taken:
                _held.discard(fd)
                os.close(fd)
        self._fd, self._pid = fd, os.getpid()
        return True

    def release(self) -> None:
        """Give the lock back; does nothing in a process that inherited it by fork."""
        fd, self._fd = self._fd, None
        if fd is not None and self._pid == os.getpid():
            _held.discard(fd)
            os.close(fd)

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
