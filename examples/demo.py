"""The README's demo: run `tour.py` on the embedded engine, then on another, by configuration alone.

The second engine is a real llama.cpp server in a process of its own. Both runs get the same
environment but for one variable, ENGINEKIT_ENGINE.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from enginekit.cli.output import ProgressDisplay
from enginekit.kit.client import Client

TOUR = Path(__file__).with_name("tour.py")


def run(engine: str, environment: dict[str, str]) -> float:
    """Run the tour with only ENGINEKIT_ENGINE changed; returns the seconds it took."""
    print(f"\n$ ENGINEKIT_ENGINE={engine} python examples/{TOUR.name}", flush=True)
    start = time.monotonic()
    subprocess.run(
        [sys.executable, str(TOUR)], env={**environment, "ENGINEKIT_ENGINE": engine}, check=True
    )
    return time.monotonic() - start


def main() -> None:
    """Fetch the model once, start a second server, run the same program on both."""
    print(
        "Model: SmolLM2-135M-Instruct (98 MB, Apache-2.0). It proves the plumbing on real traffic;\n"
        "it is far too small to be clever. Name a bigger one with ENGINEKIT_MODEL."
    )
    with ProgressDisplay() as progress:
        settings = {"engine": "embedded", "context": 4096}
        second = Client(settings, progress=progress, where="demo")
        second.connect()
    route = second.route
    assert route is not None
    assert route.lease is not None
    environment = {
        **os.environ,
        "ENGINEKIT_LLAMACPP_URL": route.lease.base_url,
        "ENGINEKIT_LLAMACPP_API_KEY": route.lease.api_key,
    }
    seconds = {engine: run(engine, environment) for engine in ("embedded", "llamacpp")}
    second.close()
    print("\n" + "; ".join(f"{name}: {took:.1f} s" for name, took in seconds.items()))
    print("The same program ran on two engines; only ENGINEKIT_ENGINE differed.")


if __name__ == "__main__":
    main()
