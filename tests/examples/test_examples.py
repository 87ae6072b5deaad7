"""Every program in `examples/` runs to its end on a real server and prints what it should."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import LIVE
from tests.examples.conftest import EXAMPLES
from tests.support.scripted import GREETING

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(300)]
Run = Callable[..., str]
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_docstring_says_what_it_shows_and_how_to_run_it(name: str) -> None:
    said = ast.get_docstring(ast.parse((EXAMPLES / name).read_text("utf-8"))) or ""
    assert len(said.splitlines()) > 2
    if name != "demo.py":  # it runs tour.py, and the README says how
        assert f"python examples/{name}" in said


def test_every_program_is_run_by_a_test() -> None:
    here = Path(__file__).read_text("utf-8")
    unrun = [name for name in PROGRAMS if f'"{name}"' not in here]
    assert unrun == []


def test_chain(run: Run, scripted: None) -> None:
    lines = run("chain.py").splitlines()
    assert lines[0] == f"whole:    {GREETING}"
    assert lines[1] == f"streamed: {GREETING}"
    assert lines[2] == f"batch:    {GREETING} / {GREETING}"
    assert "output_tokens" in lines[3]


def test_rag(run: Run, speaking: dict[str, str]) -> None:
    """On a real model: the vectors of a 135M chat model, and an answer in words."""
    if LIVE["url"] and (not LIVE["embed_url"] or LIVE["embed_key"] != LIVE["key"]):
        pytest.skip("no server that embeds, and wants the same key, was named")
    out = run("rag.py", **speaking)
    assert "4 sections" in out or "5 sections" in out
    assert "576 numbers each" in out
    assert re.search(r"answer: \S", out)
    assert out.count("source:") == 2


def test_agent(run: Run, scripted: None) -> None:
    """Both tools are called with the arguments the model wrote, and their results go back."""
    lines = run("agent.py").splitlines()
    assert lines[0] == "calls:   get_weather({'city': 'Oslo'})"
    assert lines[1] == "calls:   next_train({'destination': 'Oslo'})"
    assert sorted(lines[2:4]) == [
        "result:  get_weather: rain, 7 degrees",
        "result:  next_train: 10:10",
    ]
    assert lines[4] == f"answer:  {GREETING}"


def test_extract(run: Run, scripted: None) -> None:
    lines = run("extract.py").splitlines()
    assert lines[0] == "invoice 2026-0417 from Harbour Supplies Ltd"
    assert len(lines) == 4
    assert lines[-1] == "  total 210.00: adds up"


def test_batch(run: Run) -> None:
    out = run("batch.py", "200", "8")
    assert "200/200" in out
    assert "answered 200, failed 0" in out


@pytest.mark.parametrize("was", ["ollama", "openai"])
def test_migrate(run: Run, place: dict[str, str], scripted: None, was: str) -> None:
    """The address is the one a person's program has today; no engine is named anywhere."""
    if LIVE["url"]:
        address, key = LIVE["url"], LIVE["key"]
        model = LIVE["model"]
    else:
        address, key, model = embedded_address(place)
    nothing = {"ENGINEKIT_ENGINE": "", "ENGINEKIT_MODEL": ""}
    url = address if was == "ollama" else f"{address}/v1"
    out = run("migrate.py", was, model, url, **nothing, ENGINEKIT_API_KEY=key)
    assert GREETING in out
    assert "did you mean 'max_tokens'?" in out


def embedded_address(place: dict[str, str]) -> tuple[str, str, str]:
    from enginekit.kit.client import Client

    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.items():
            patch.setenv(name, value)
        client = Client({"engine": "embedded", "model": place["ENGINEKIT_MODEL"]})
        client.connect()
        assert client.route is not None
        assert client.route.lease is not None
        return client.route.lease.base_url, client.route.lease.api_key, "scripted"


def test_tour_runs_on_a_real_model(run: Run, speaking: dict[str, str]) -> None:
    """tour.py; "demo.py" runs the same program twice and has a nox session of its own."""
    out = run("tour.py", **speaking)
    assert "get_weather({'city': 'Rome'})" in out or "get_weather(" in out
    assert "extraction       Person(" in out
    assert "(from: " in out


# ---------------------------------------------------------------------------------- serving


@pytest.fixture
def service(environment: dict[str, str]) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "serve.py"), str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{url}/engine", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < deadline, "serve.py did not come up"
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)
        if process.stderr is not None:
            process.stderr.close()


def test_serve(service: str, scripted: None) -> None:
    """Tokens come one by one as events, then the counts."""
    request = urllib.request.Request(
        f"{service}/chat",
        data=json.dumps({"text": "Hi."}).encode(),
        headers={"content-type": "application/json"},
    )
    events = []
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for block in answer.read().decode().strip().split("\n\n"):
            name, data = block.split("\n")
            events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert [name for name, _ in events[:-1]] == ["token"] * (len(events) - 1)
    assert len(events) > 4
    assert "".join(text for _, text in events[:-1]) == GREETING
    assert events[-1][0] == "done"
    assert events[-1][1]["output_tokens"] > 0
    with urllib.request.urlopen(f"{service}/engine", timeout=30) as answer:
        assert json.load(answer)["max_input_tokens"] >= 2048


# ---------------------------------------------------------------------------------- notebook


def test_the_notebook_renders_and_runs(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scripted: None
) -> None:
    """In a real kernel, whose event loop is running: blocking and async calls both work there."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    nbformat.validate(book)
    assert not any(cell.get("outputs") for cell in book.cells), "stored without outputs"
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    script = (
        "import sys, nbformat; from nbclient import NotebookClient; "
        "book = nbformat.read(sys.argv[1], as_version=4); "
        "NotebookClient(book, timeout=120, kernel_name='python3').execute(); "
        "nbformat.write(book, sys.argv[2])"
    )
    assert NotebookClient is not None
    done = subprocess.run(
        [sys.executable, "-c", script, str(EXAMPLES / "quickstart.ipynb"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    ran = nbformat.read(tmp_path / "out", as_version=4)
    shown = [
        "".join(str(out.get("text") or out.get("data", "")) for out in cell.outputs)
        for cell in ran.cells
        if cell.cell_type == "code"
    ]
    assert GREETING in shown[0]
    assert shown[2] == GREETING
    assert "name='Ann', age=31" in shown[3]
    assert "'city': 'Rome'" in shown[4]
