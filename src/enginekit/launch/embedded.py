"""The embedded engine: a llama.cpp server in a child process, shared by this user's processes.

`acquire` gives a `Lease` on a running server, starting one if there is none. As long as any process
holds a lease the server lives; it ends within a second or two of the last one, also when that one
was killed. xllamacpp is never imported here: a fault in it would take this process along.

Two processes are started. The keeper (`_child.py`) counts owners and answers on a control port; the
server (`_server.py`) holds the model. They run in a session of their own, so a Ctrl-C in the
terminal reaches the owner only, who decides.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from enginekit.errors import LaunchError
from enginekit.launch import _share, _spec
from enginekit.launch._causes import tail
from enginekit.launch._spec import EmbeddedSpec

if TYPE_CHECKING:
    from enginekit.catalog.download import Progress

__all__ = ["EmbeddedSpec", "Lease", "Running", "acquire", "command_line", "running", "unavailable"]

_leases: weakref.WeakSet[Lease] = weakref.WeakSet()


class Lease:
    """A hold on a running server. Let go with `release()`, or by ending the process.

    Attributes:
        base_url: `http://127.0.0.1:PORT`.
        api_key: to send as `Authorization: Bearer`.
        pid: of the process that holds the model.
        version: xllamacpp's.
        model: the name the server gives the model.
        flags: what the server runs with, in llama-server's words.
        notes: one sentence per thing the caller may not expect, for the receipt.
        context: tokens per slot.
        slots: requests that run at the same time.
        log_path: the server's log.
        shared: whether it was running already when this lease was taken.
    """

    def __init__(self, state: _share.State, connection: socket.socket, *, shared: bool) -> None:
        self.base_url = state.url
        self.api_key = state.api_key
        self.pid = state.pid
        self.version = state.version
        self.model = state.model
        self.flags = state.flags
        self.notes = state.notes
        self.context = state.context
        self.slots = state.slots
        self.log_path = Path(state.log)
        self.shared = shared
        self._connection: socket.socket | None = connection
        self._guard = threading.Lock()
        self._process = _watch(state.pid)
        self._job = 0
        if sys.platform == "win32" and state.job:
            from enginekit.launch import _windows

            self._job = _windows.hold(state.job)
        _leases.add(self)

    def __repr__(self) -> str:
        return f"Lease({self.base_url!r}, model={self.model!r}, pid={self.pid})"

    def alive(self) -> bool:
        """Whether the server still runs and is still ours. Costs microseconds, sends nothing.

        False after `release()`, and in a process that was forked from the one that took the lease:
        there, `acquire` again.
        """
        with self._guard:
            connection = self._connection
            if connection is None or (self._process >= 0 and _ended(self._process)):
                return False
            try:
                # The keeper says nothing while all is well: any byte, or the end, is bad news.
                connection.recv(1, socket.MSG_PEEK)
            except (BlockingIOError, InterruptedError):
                return True
            except OSError:
                pass
            return False

    def last_words(self, count: int = 15) -> tuple[str, ...]:
        """The last lines of the server's log."""
        return tail(self.log_path, count)

    def release(self) -> None:
        """Let go; the last one out stops the server. Does nothing the second time."""
        with self._guard:
            self._close()
        if sys.platform == "win32" and self._job:
            from enginekit.launch import _windows

            _windows.release(self._job)
            self._job = 0

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def __del__(self) -> None:
        # A connection that is simply dropped would warn; a dropped lease is an ended lease.
        if hasattr(self, "_process"):
            self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        process, self._process = self._process, -1
        if process >= 0:
            os.close(process)

    def _abandon(self) -> None:
        """In a forked child: close our copies of the descriptors; the parent's stay."""
        self._guard = threading.Lock()
        self._close()


def _watch(pid: int) -> int:
    """A descriptor that tells of a process's end at once (Linux), or -1.

    The keeper tells as well, a few milliseconds later: too late for a caller who tries again as
    soon as a stream has broken.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    return -1


def _ended(process: int) -> bool:
    if sys.platform == "win32":
        return False
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(0))


def _after_fork() -> None:
    for lease in list(_leases):
        lease._abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An embedded server of this user, for listings. Carries no key."""

    url: str
    pid: int
    model: str
    version: str
    flags: tuple[str, ...]
    context: int
    slots: int
    owners: int
    started: float
    log_path: Path


def unavailable() -> Exception | None:
    """The error that `acquire` would raise here for lack of a wheel, or None."""
    from enginekit.launch import _platform

    return _platform.obstacle(_platform.here())


def acquire(
    spec: EmbeddedSpec, *, budget: float = 600.0, progress: Progress | None = None
) -> Lease:
    """A lease on a server for `spec`, started if none runs. Blocks until it answers.

    Args:
        budget: seconds for everything: waiting for another process that starts the same server,
            starting, loading.
        progress: told when a load begins and ends.

    Raises:
        MissingExtra: xllamacpp is not installed.
        UnsupportedPlatform: there is no current wheel of it for this system.
        ModelFileError: the model file is truncated, not a GGUF, or of an unknown architecture.
        UnknownSetting: an extra flag that is not known.
        LaunchError: the server could not be started; holds the last lines of its log.
    """
    from enginekit.catalog._lock import FileLock
    from enginekit.launch import _platform, _spawn

    deadline = time.monotonic() + budget
    obstacle = _platform.obstacle(_platform.here())
    if obstacle is not None:
        raise obstacle
    version = _platform.installed_version() or ""
    spec = replace(spec, model_path=_spec.existing(spec.model_path))
    folder = _share.folder()
    name = _share.key(spec, version)
    state_path = folder / f"{name}.json"
    _spawn.reap()
    lease = _join(state_path)
    if lease is not None:
        return lease
    lock = FileLock(folder / f"{name}.lock")
    with _loading(progress, spec):
        if not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise LaunchError(
                f"another process has been starting {spec.model_path.name} for {budget:g} s",
                hint=f"see {folder} for its log, or end that process",
                cause="the load budget ran out",
            )
        try:
            lease = _join(state_path)
            if lease is not None:
                return lease
            return _spawn.start(
                spec, version=version, folder=folder, name=name, budget=budget, deadline=deadline
            )
        finally:
            lock.release()


def running() -> list[Running]:
    """The embedded servers of this user, oldest first. Asks each keeper; holds none."""
    found: list[Running] = []
    for path in _share.folder().glob("*.json"):
        state = _share.State.read(path)
        answer = None if state is None else _share.connect(state, "look")
        if state is None or answer is None:
            continue
        connection, owners = answer
        connection.close()
        found.append(
            Running(
                url=state.url,
                pid=state.pid,
                model=state.model,
                version=state.version,
                flags=state.flags,
                context=state.context,
                slots=state.slots,
                owners=owners,
                started=state.started,
                log_path=Path(state.log),
            )
        )
    return sorted(found, key=lambda row: row.started)


def command_line(spec: EmbeddedSpec) -> tuple[str, ...]:
    """The llama-server command that runs the same model in the same way, for a person to type.

    Raises:
        ModelFileError: the model file is not what it should be.
    """
    from enginekit.launch import _spawn

    chosen, _ = _spawn.decide(spec, None)
    return ("llama-server", *_spec.flags(spec, chosen))


def _join(state_path: Path) -> Lease | None:
    state = _share.State.read(state_path)
    answer = None if state is None else _share.connect(state)
    if state is None or answer is None:
        return None
    return Lease(state, answer[0], shared=True)


@contextlib.contextmanager
def _loading(progress: Progress | None, spec: EmbeddedSpec) -> Iterator[None]:
    if progress is None:
        yield
        return
    progress.start(None, f"loading {_spec.alias(spec)}")
    try:
        yield
    finally:
        progress.finish()
