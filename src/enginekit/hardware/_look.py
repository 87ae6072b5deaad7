"""The only code of this package that touches the world: files, child processes, environment.

Everything else takes text. `root` lets a folder stand in for `/`, so that `/proc`, `/sys` and the
control-group tree of another machine can be looked at.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

_LARGEST_FILE = 16 * 1024 * 1024


class ProbeAbsentError(Exception):
    """The tool, library or file does not exist here; nothing is wrong."""


class ProbeFailedError(Exception):
    """The tool exists but did not answer as it should."""


class ProbeTimeoutError(Exception):
    """The tool did not answer within the budget and was ended."""


class Look:
    """Reads files and runs tools until a deadline.

    Args:
        timeout: seconds until the deadline, counted from now.
        root: folder that stands in for `/`.
        environ: environment variables; those of the process if not given.
        path: value of `PATH` for finding tools; that of `environ` if not given.
    """

    def __init__(
        self,
        timeout: float = 3.0,
        *,
        root: str | Path = "/",
        environ: Mapping[str, str] | None = None,
        path: str | None = None,
    ) -> None:
        self.deadline = time.monotonic() + timeout
        self.root = Path(root)
        self.environ: Mapping[str, str] = os.environ if environ is None else environ
        self.path = self.environ.get("PATH", os.defpath) if path is None else path

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.deadline - time.monotonic())

    def at(self, path: str) -> Path:
        """`path`, which is absolute, under the root."""
        return self.root / path.lstrip("/")

    def read(self, path: str) -> str:
        """Text of a file, or an empty string if it cannot be read."""
        try:
            with open(self.at(path), "rb") as file:
                return file.read(_LARGEST_FILE).decode("utf-8", "replace")
        except (OSError, ValueError):
            return ""

    def exists(self, path: str) -> bool:
        """Whether the path exists under the root."""
        try:
            return self.at(path).exists()
        except OSError:
            return False

    def glob(self, pattern: str) -> list[str]:
        """Absolute paths (as seen from the root) that match, sorted."""
        try:
            found = sorted(self.root.glob(pattern.lstrip("/")))
        except (OSError, ValueError):
            return []
        return ["/" + path.relative_to(self.root).as_posix() for path in found]

    def run(self, *argv: str) -> str:
        """Standard output of a tool.

        The tool is ended with everything it started (its process group) when the deadline passes.

        Raises:
            ProbeAbsentError: no such tool on the path.
            ProbeFailedError: it could not be started, or ended with an error and printed nothing.
            ProbeTimeoutError: the deadline passed first.
        """
        tool = shutil.which(argv[0], path=self.path)
        if tool is None:
            raise ProbeAbsentError(f"{argv[0]} is not installed")
        remaining = self.remaining()
        if remaining <= 0:
            raise ProbeTimeoutError(f"no time left for {argv[0]}")
        try:
            child = subprocess.Popen(
                [tool, *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**self.environ, "LC_ALL": "C", "LANG": "C"},
                start_new_session=os.name == "posix",
            )
        except (OSError, ValueError) as error:
            raise ProbeFailedError(f"{argv[0]} could not be started: {error}") from error
        try:
            output, problem = child.communicate(timeout=remaining)
        except subprocess.TimeoutExpired as error:
            _end(child)
            raise ProbeTimeoutError(f"{' '.join(argv)}: no answer in time") from error
        text = output[:_LARGEST_FILE].decode("utf-8", "replace")
        if child.returncode != 0 and not text.strip():
            said = problem.decode("utf-8", "replace").strip().splitlines()
            reason = said[0][:200] if said else "it printed nothing"
            raise ProbeFailedError(f"{' '.join(argv)} exited with {child.returncode}: {reason}")
        return text


def _end(child: subprocess.Popen[bytes]) -> None:
    try:
        if os.name == "posix":
            os.killpg(child.pid, 9)
        else:
            child.kill()
    except (OSError, ProcessLookupError):
        child.kill()
    try:
        child.communicate(timeout=0.2)
    except (subprocess.TimeoutExpired, OSError, ValueError):
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
