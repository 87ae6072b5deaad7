"""A server as a child process that is always stopped, with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

MARK = "ENGINEKIT_LANE"
"""Environment variable by which a server's descendants are known, whatever group they are in."""

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "PYTHONUNBUFFERED": "1",
}


class LaneError(Exception):
    """A server did not come up; the message ends with the last lines of its log."""


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
_ONE_TOKEN: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 1},
    EMBEDDINGS: {"input": "Hi."},
}


@contextlib.contextmanager
def starting(
    command: Sequence[str],
    *,
    log: Path,
    url: str,
    models: Mapping[str, str],
    budget: float,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Callable[[], None]]:
    """Start a server and stop it at the end; what is given waits until it is ready.

    Ready is when each of `models` did its work once; the wait raises LaneError when it does not come.

    Args:
        log: file for its output.
        models: each model's name, and the path that it answers (`CHAT`, `EMBEDDINGS`).
        budget: seconds it may take to come up, from now on.
    """
    end = time.monotonic() + budget
    mark = uuid.uuid4().hex
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        child = subprocess.Popen(
            [*command],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **QUIET, **(environment or {}), MARK: mark},
            start_new_session=True,
        )
        try:
            yield lambda: _wait(child, url, models, end, log)
        finally:
            stop(child, mark)


def _wait(
    child: subprocess.Popen[bytes], url: str, models: Mapping[str, str], end: float, log: Path
) -> None:
    left = list(models.items())
    while left:
        if child.poll() is not None:
            raise LaneError(f"the server ended with status {child.returncode}\n{_tail(log)}")
        if _works(url, *left[0]):
            left.pop(0)
        elif time.monotonic() > end:
            raise LaneError(f"the server was not ready in time\n{_tail(log)}")
        else:
            time.sleep(0.5)


def _works(url: str, model: str, path: str) -> bool:
    request = urllib.request.Request(
        url + path,
        data=json.dumps({"model": model, **_ONE_TOKEN[path]}).encode(),
        headers={"content-type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def _tail(log: Path, count: int = 30) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-count:])


def stop(child: subprocess.Popen[bytes], mark: str, patience: float = 20.0) -> None:
    """SIGTERM to the server, and after `patience` seconds SIGKILL to whatever bears its mark.

    vLLM waits without end for open connections when it is told to stop, hence the limit.
    """
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
    for process in marked(mark):
        with contextlib.suppress(psutil.Error):
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(10)


def marked(mark: str) -> list[Any]:
    """Processes that inherited this mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found
