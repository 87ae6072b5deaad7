"""Starting a keeper and its server, and saying why when that fails. The caller holds the lock."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginekit.errors import LaunchError, ModelFileError
from enginekit.launch import _share, _spec, modelfile
from enginekit.launch._causes import likely, tail
from enginekit.launch._flags import Setting

if TYPE_CHECKING:
    from enginekit.launch.embedded import Lease

LINGER = 0.5
"""Seconds a server outlives its last owner: enough for a program that restarts at once."""
_KEPT_LOGS = 3
_HERE = Path(__file__).parent
_started: list[subprocess.Popen[bytes]] = []


def start(
    spec: _spec.EmbeddedSpec,
    *,
    version: str,
    folder: Path,
    name: str,
    budget: float,
    deadline: float,
) -> Lease:
    """Start a server for `spec` and become its first owner.

    Raises:
        ModelFileError, UnknownSetting, LaunchError: see `enginekit.launch.embedded.acquire`.
    """
    from enginekit.launch.embedded import Lease

    chosen, settings = decide(spec, version)
    nonce = secrets.token_hex(8)
    api_key = secrets.token_urlsafe(24)
    log = _new_log(folder, name, nonce)
    state_path = folder / f"{name}.json"
    job = f"Local\\enginekit-{nonce}" if sys.platform == "win32" else ""
    python = _python()
    order = {
        "command": [python, "-P", str(_HERE / "_server.py")],
        "linger": LINGER,
        "log": str(log),
        "secret": secrets.token_urlsafe(24),
        "state_path": str(state_path),
        "state": {
            "nonce": nonce,
            "api_key": api_key,
            "version": version,
            "model": _spec.alias(spec),
            "flags": _spec.flags(spec, chosen),
            "notes": chosen.notes,
            "context": chosen.context,
            "slots": chosen.slots,
            "log": str(log),
            "started": time.time(),
            "job": job,
        },
        "server": {
            "settings": [*settings, ("api_keys", [api_key], "")],
            "sys_path": [path for path in sys.path if path],
        },
    }
    keeper = _spawn([python, "-P", str(_HERE / "_child.py")], order, log, folder, job)
    try:
        state = _wait(keeper, state_path, nonce, deadline)
        if state is None:
            raise _failure(spec, keeper, log, budget)
        answer = _share.connect(state)
        if answer is None:
            raise _failure(spec, keeper, log, budget)
        lease = Lease(state, answer[0], shared=False)
    except BaseException:
        _abort(keeper)
        raise
    # From here on our connection stands for us; the pipe has done its duty.
    assert keeper.stdin is not None
    keeper.stdin.close()
    _started.append(keeper)
    return lease


def decide(
    spec: _spec.EmbeddedSpec, version: str | None
) -> tuple[_spec.Chosen, tuple[Setting, ...]]:
    """The numbers and settings for a spec on this machine, its model file checked."""
    header = modelfile.check(spec.model_path, installed=version)
    chosen = _spec.choose(spec, header, cores=_cores(), memory=_memory())
    return chosen, _spec.settings(spec, chosen)


def reap() -> None:
    """Collect keepers of ours that have ended, so that none stays a zombie."""
    _started[:] = [process for process in _started if process.poll() is None]


def _forget() -> None:
    """A keeper outlives us if others own it: that is no leak, so no warning about it."""
    for process in _started:
        if process.poll() is None:
            process.returncode = 0
    _started.clear()


def _forget_after_fork() -> None:
    for process in _started:
        process.returncode = 0
    _started.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def _spawn(
    command: list[str], order: dict[str, Any], log: Path, folder: Path, job: str
) -> subprocess.Popen[bytes]:
    import atexit

    atexit.unregister(_forget)
    atexit.register(_forget)
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {
            "creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        }
    with log.open("ab") as out:
        try:
            keeper = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                cwd=folder,
                **options,
            )
        except OSError as error:
            raise LaunchError(
                f"cannot start {command[0]}: {error.strerror}", cause="no Python to run"
            ) from error
    if sys.platform == "win32":
        from enginekit.launch import _windows

        # The handle is never closed: it is this process's share in the server's life until it
        # holds a lease, and the kernel closes it when we end.
        _windows.create(job, int(keeper._handle))  # type: ignore[attr-defined]
    assert keeper.stdin is not None
    with contextlib.suppress(OSError):
        keeper.stdin.write(json.dumps(order).encode() + b"\n")
        keeper.stdin.flush()
    return keeper


def _wait(
    keeper: subprocess.Popen[bytes], state_path: Path, nonce: str, deadline: float
) -> _share.State | None:
    """The state once the server listens; None when the keeper ended or time ran out."""
    pause = 0.005
    while time.monotonic() < deadline:
        state = _share.State.read(state_path)
        if state is not None and state.nonce == nonce:
            return state
        if keeper.poll() is not None:
            return None
        time.sleep(pause)
        pause = min(pause * 1.2, 0.05)
    return None


def _abort(keeper: subprocess.Popen[bytes]) -> None:
    """End a start that failed or was interrupted; nothing may be left behind."""
    if keeper.stdin is not None:
        with contextlib.suppress(OSError):
            keeper.stdin.close()
    try:
        keeper.wait(LINGER + 2.0)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()


def _failure(
    spec: _spec.EmbeddedSpec, keeper: subprocess.Popen[bytes], log: Path, budget: float
) -> LaunchError | ModelFileError:
    lines = tail(log)
    if keeper.poll() is None:
        return LaunchError(
            f"llama.cpp did not finish loading {spec.model_path.name} in {budget:g} s",
            hint="raise the load budget, or use a smaller model",
            log=lines,
            cause="the load budget ran out",
        )
    cause = likely(tail(log, 60))
    text = "\n".join(f"  {line}" for line in lines)
    message = (
        f"llama.cpp did not start with {spec.model_path.name}. Likely cause: {cause.text}."
        f"\nThe last lines of {log}:\n{text}"
    )
    if cause.model_file:
        return ModelFileError(message, hint=cause.hint, field="model")
    return LaunchError(message, hint=cause.hint, log=lines, cause=cause.text)


def _new_log(folder: Path, name: str, nonce: str) -> Path:
    """A fresh log file, 0600; the last few of the same server are kept."""

    def age(path: Path) -> float:
        try:
            return path.stat().st_mtime
        except OSError:
            return 0.0

    for old in sorted(folder.glob(f"{name}-*.log"), key=age)[: -(_KEPT_LOGS - 1)]:
        with contextlib.suppress(OSError):
            old.unlink()
    path = folder / f"{name}-{nonce}.log"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    return path


def _python() -> str:
    """An interpreter to run the child with: not every host program's `sys.executable` is one."""
    candidates = [sys.executable]
    if sys.platform == "win32":
        candidates.append(str(Path(sys.exec_prefix) / "python.exe"))
    else:
        candidates.append(str(Path(sys.exec_prefix) / "bin" / "python3"))
    if not getattr(sys, "frozen", False):
        for path in candidates:
            if (
                path
                and Path(path).name.lower().startswith(("python", "pypy"))
                and Path(path).exists()
            ):
                return path
    raise LaunchError(
        f"no Python interpreter to start the embedded server with (sys.executable is "
        f"{sys.executable!r})",
        hint="run a llama-server yourself and name it: ENGINEKIT_ENGINE=llamacpp",
        cause="no Python to run",
    )


def _cores() -> int:
    """Physical cores this process may use."""
    import psutil

    from enginekit.hardware.detection import cpu_quota

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return _spec.usable_cores(psutil.cpu_count(logical=False), allowed, cpu_quota())


def _memory() -> int:
    """Bytes of memory that are free now."""
    import psutil

    return int(psutil.virtual_memory().available)
