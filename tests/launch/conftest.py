from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import models

OWNER = Path(__file__).parent / "owner.py"
PATIENCE = 60.0
"""Hang guard in seconds; nothing here is a promise about speed."""


def until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until true; fail the test with `what` otherwise."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"still not so after {PATIENCE:g} s: {what}")


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def family(runtime: Path) -> list[psutil.Process]:
    """Every keeper and server whose state lies in this runtime folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            ours = any(word.endswith(("_child.py", "_server.py")) for word in words)
            if ours and process.cwd() == str(runtime) and not gone(process.pid):
                found.append(process)
    return found


class Owner:
    """A process that holds a lease; see owner.py for what it is told and says."""

    def __init__(self, runtime: Path, task: dict[str, Any], wrap: list[str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*(wrap or []), sys.executable, "-u", str(OWNER), json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**models.environment(), "ENGINEKIT_RUNTIME_DIR": str(runtime)},
        )

    def hear(self) -> dict[str, Any]:
        """The next line it says."""
        assert self.process.stdout is not None
        while True:
            line = self.process.stdout.readline()
            if not line:
                assert self.process.stderr is not None
                raise AssertionError(f"the owner ended: {self.process.stderr.read()}")
            with contextlib.suppress(ValueError):
                # A terminal echoes its control characters in front: ^C{…}
                return dict(json.loads(line[line.index("{") :]))

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word)
        self.process.stdin.flush()

    def kill(self, number: int) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder of the test's own. Afterwards no process of it may be left."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("ENGINEKIT_RUNTIME_DIR", str(folder))
    yield folder
    try:
        until(lambda: not family(folder), "no keeper or server is left")
    finally:
        for process in family(folder):
            process.kill()


@pytest.fixture
def owners(runtime: Path) -> Iterator[Callable[..., Owner]]:
    """Starts owner processes; they are ended with the test."""
    started: list[Owner] = []

    def start(wrap: list[str] | None = None, **task: Any) -> Owner:
        task.setdefault("model", str(models.scripted_gguf()))
        started.append(Owner(runtime, task, wrap))
        return started[-1]

    yield start
    for owner in started:
        owner.close()


@pytest.fixture
def scripted() -> Path:
    return models.scripted_gguf()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return models.smollm2()


@pytest.fixture(autouse=True)
def _quiet_children() -> Iterator[None]:
    """Keepers that this test started are collected before the next one; others may live on."""
    from enginekit.launch import _spawn

    before = list(_spawn._started)
    yield
    deadline = time.monotonic() + PATIENCE
    while any(keeper not in before for keeper in _spawn._started) and time.monotonic() < deadline:
        _spawn.reap()
        time.sleep(0.02)


def ask(lease: Any, text: str, **body: Any) -> dict[str, Any]:
    """One chat request to a lease's server."""
    import urllib.request

    request = urllib.request.Request(
        lease.base_url + "/v1/chat/completions",
        data=json.dumps({"messages": [{"role": "user", "content": text}], **body}).encode(),
        headers={"Authorization": f"Bearer {lease.api_key}"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return dict(json.load(answer))


def said(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


os.environ.setdefault("PYTHONUNBUFFERED", "1")
