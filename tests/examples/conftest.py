"""A server for the example programs, and the environment that leads them to it.

By default a real embedded llama.cpp with scripted weights, held by the tests and shared by every
program; ENGINEKIT_LIVE_ENGINE, _URL, _MODEL, _KEY (see `tests/contract/conftest.py`) name another,
and _EMBED_URL, _EMBED_MODEL, _EMBED_KEY one that embeds.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enginekit.kit.client import Client
from tests.contract.conftest import LIVE
from tests.support import models

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NEEDED = ("langchain", "fastapi", "uvicorn", "nbclient", "ipykernel")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []
"""The examples' own dependencies are in the group `examples`: `nox -s examples`."""


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment variables that lead to the server; the same for every example."""
    if LIVE["url"]:
        yield {
            "ENGINEKIT_ENGINE": LIVE["engine"],
            "ENGINEKIT_BASE_URL": LIVE["url"],
            "ENGINEKIT_MODEL": LIVE["model"],
            **({"ENGINEKIT_API_KEY": LIVE["key"]} if LIVE["key"] else {}),
        }
        return
    pytest.importorskip("xllamacpp")
    found = {
        "ENGINEKIT_ENGINE": "embedded",
        "ENGINEKIT_MODEL": str(models.scripted_gguf()),
        "ENGINEKIT_RUNTIME_DIR": str(tmp_path_factory.mktemp("run")),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        holder = Client({"engine": "embedded", "model": found["ENGINEKIT_MODEL"]})
        holder.connect()
    yield found
    holder.close()


@pytest.fixture
def environment(place: dict[str, str]) -> dict[str, str]:
    """A whole environment for a subprocess."""
    inherited = {k: v for k, v in models.environment().items() if not k.startswith("ENGINEKIT_")}
    return {**inherited, **place, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture
def scripted() -> None:
    """For expectations that only scripted weights can meet."""
    if LIVE["url"] and LIVE["scripted"] != "1":
        pytest.skip("exact expectations need the scripted weights on the server")


@pytest.fixture
def speaking() -> dict[str, str]:
    """The environment of a program that wants a model that speaks, and of one that embeds."""
    if not LIVE["url"]:
        return {"ENGINEKIT_MODEL": str(models.smollm2())}
    if LIVE["scripted"] == "1":
        pytest.skip("this program runs on the lane's other model, which was not written down")
    return {f"ENGINEKIT_{name.upper()}": LIVE[name] for name in ("embed_url", "embed_model")}


@pytest.fixture
def run(environment: dict[str, str]) -> Callable[..., str]:
    """Run one example to its end; what it printed. Fails with its whole output otherwise."""

    def run(name: str, *arguments: str, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *arguments],
            env={**environment, **more},
            cwd=os.path.dirname(environment.get("ENGINEKIT_RUNTIME_DIR", str(EXAMPLES))),
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, f"{name} failed\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
