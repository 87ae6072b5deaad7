"""The command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys


def enginekit(*arguments: str | bytes, text: str | bytes = "", stdout=subprocess.PIPE, **env: str):
    """Run `python -m enginekit`; what comes out is decoded as UTF-8."""
    return subprocess.run(
        [sys.executable, "-m", "enginekit", *arguments],
        input=text if isinstance(text, bytes) else text.encode(),
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "80", **env},
    )
