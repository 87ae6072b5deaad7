"""Several processes that want one model, and processes that end in the middle of fetching it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enginekit.catalog.sources import resolve

from .fileserver import FileServer
from .tiny import DATA, ENTRY, WHEEL, cache, on_index, server

__all__ = ["cache", "server"]


class TestProcesses:
    """Several processes, and processes that end in the middle."""

    @pytest.fixture(autouse=True)
    def _processes(self) -> Iterator[None]:
        self.started: list[subprocess.Popen[str]] = []
        yield
        for process in self.started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def start(self, cache: Path) -> subprocess.Popen[str]:
        row: dict[str, Any] = dataclasses.asdict(ENTRY)
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("pull.py")), json.dumps(row)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=dict(os.environ),
        )
        self.started.append(process)
        return process

    def test_four_at_once_make_one_transfer_and_one_file(
        self, cache: Path, server: FileServer
    ) -> None:
        on_index(server).pace = 0.01
        started = [self.start(cache) for _ in range(4)]
        told = [json.loads(p.communicate()[0].splitlines()[-1]) for p in started]
        assert len({row["path"] for row in told}) == 1
        assert Path(told[0]["path"]).read_bytes() == DATA
        assert server.ranges(f"/files/{WHEEL}") == [""]
        assert sorted(row["source"] for row in told)[0] == "the model cache"

    @pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
    @pytest.mark.parametrize(
        "number",
        [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL],
        ids=lambda number: number.name,
    )
    def test_ending_a_transfer_leaves_no_half_file_and_the_next_one_goes_on(
        self, cache: Path, server: FileServer, number: signal.Signals
    ) -> None:
        served = on_index(server)
        served.pace = 0.2
        process = self.start(cache)
        assert process.stdout is not None
        assert process.stdout.readline() == "bytes\n"
        process.send_signal(number)
        process.wait()
        assert not list(cache.rglob("*.gguf"))
        [part] = cache.rglob("*.part")
        kept = part.stat().st_size
        assert kept > 0
        served.pace = 0.0
        assert resolve("tiny").path.read_bytes() == DATA
        assert server.ranges(f"/files/{WHEEL}")[-1] == f"bytes={kept}-"
        assert not list(cache.rglob("*.part"))
