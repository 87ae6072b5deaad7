"""Write the answers in docs/planning.md: run every command and program of the page and put what it
printed beneath it. With --check, fail when the page is stale.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "planning.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = "my-server.toml"
"""What the page calls the machine file that it shows."""


def run(command: list[str], folder: str) -> str:
    """What it printed. Of this computer nothing may show: no cache of it, no width of a terminal."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ENGINEKIT_")
    }
    environment |= {"ENGINEKIT_CACHE_DIR": folder, "COLUMNS": "80", "NO_COLOR": "1"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=folder, env=environment
    )
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def page(old: str) -> str:
    """The page with fresh answers."""
    with tempfile.TemporaryDirectory() as folder:
        last = ""

        def answered(match: re.Match[str]) -> str:
            nonlocal last
            kind, body = match.group(1), match.group(2)
            if kind == "toml":
                Path(folder, _FILE).write_text(body, "utf-8")
            elif kind == "python":
                last = run(["-c", body], folder)
            elif kind == "text":
                body = last
            elif kind == "console":
                line = body.splitlines()[0]
                body = f"{line}\n{run(['-m', *line.split()[1:]], folder)}"
            return f"```{kind}\n{body}```"

        return _BLOCK.sub(answered, old)


def main() -> int:
    """Write or check."""
    old = PAGE.read_text("utf-8")
    new = page(old)
    if "--check" in sys.argv:
        if new != old:
            print(f"{PAGE.name} is stale: python scripts/planning_docs.py")
        return int(new != old)
    PAGE.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
