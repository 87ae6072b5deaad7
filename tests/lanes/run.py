"""The live contract on a real server that this script installs, starts and stops.

    python -m tests.lanes.run vllm | rayserve | llamacpp [--models scripted,smollm2] [--record]

Two sets of weights, the same on every engine: the scripted ones of `tests.support.scripted`, whose
answers are known word for word, and SmolLM2-135M. Output of pip, servers and tests is kept in
.ci/log. Needs enginekit and the test group; the servers get an environment of their own.
`--record` makes the engine's cassette anew (tests/cassettes), through a proxy.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from tests.lanes.environment import RAY, ROOT, VLLM, server_python, smollm2
from tests.lanes.processes import LaneError, free_port, running
from tests.support.models import smollm2 as smollm2_gguf
from tests.support.scripted import write_gguf, write_hf

LOGS = ROOT / ".ci" / "log"
START_SECONDS = {"llamacpp": 90.0, "vllm": 300.0, "rayserve": 600.0}
TEST_SECONDS = 600.0


def vllm_command(python: Path, port: int, name: str, folder: Path) -> list[str]:
    """A vLLM server with tool calling, on CPU, small."""
    flags = {
        "--model": str(folder),
        "--served-model-name": name,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "float32",
        "--max-model-len": "8192",
        "--max-num-seqs": "8",
        "--tool-call-parser": "hermes",
    }
    return [
        str(python),
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--enforce-eager",
        "--enable-auto-tool-choice",
        *(word for flag in flags.items() for word in flag),
    ]


@contextmanager
def servers(engine: str, python: Path, models: Mapping[str, Path]) -> Iterator[Iterator[tuple]]:
    """An iterator of (model, url) with its server up; one server for each model, or for all."""
    if engine == "rayserve":
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        named = [f"{name}={folder}" for name, folder in models.items()]
        script = ROOT / "tests" / "lanes" / "ray_app.py"
        with running(
            [str(python), str(script), str(port), *named],
            log=LOGS / "live_rayserve-server.txt",
            url=url,
            models=list(models),
            budget=START_SECONDS[engine],
        ):
            yield iter([(name, url) for name in models])
        return

    def one_by_one() -> Iterator[tuple[str, str]]:
        for name, folder in models.items():
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            with running(
                vllm_command(python, port, name, folder),
                log=LOGS / f"live_vllm-{name}-server.txt",
                url=url,
                models=[name],
                budget=START_SECONDS[engine],
            ):
                yield name, url

    def embedded() -> Iterator[tuple[str, str]]:
        from enginekit.launch.embedded import EmbeddedSpec, acquire

        for name, path in models.items():
            spec = EmbeddedSpec(model_path=path, context=2048, slots=4, extra_args=("--metrics",))
            with acquire(spec, budget=START_SECONDS[engine]) as lease:
                os.environ["ENGINEKIT_LIVE_KEY"] = lease.api_key or ""
                yield name, lease.base_url

    each = embedded() if engine == "llamacpp" else one_by_one()
    try:
        yield each
    finally:
        each.close()


def contract(engine: str, url: str, name: str, arguments: list[str]) -> int:
    """Run the live contract against a server; returns pytest's status."""
    told = {
        "ENGINEKIT_LIVE_ENGINE": engine,
        "ENGINEKIT_LIVE_URL": url,
        "ENGINEKIT_LIVE_MODEL": name,
        "ENGINEKIT_LIVE_SCRIPTED": "1" if name == "scripted" else "0",
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "tests/contract/test_live.py", "-q", *arguments],
        cwd=ROOT,
        env={**os.environ, **told},
        timeout=TEST_SECONDS,
        check=False,
    ).returncode


def record(engine: str, url: str, name: str) -> int:
    """Make the cassette of a running server; returns the status of that."""
    told = {
        "llamacpp": (
            "llama.cpp server",
            f"xllamacpp {metadata.version('xllamacpp')}",
            "enginekit.launch.embedded, context 2048, 4 slots, --metrics",
        ),
        "vllm": ("vLLM, CPU", VLLM, " ".join(vllm_command(Path("python"), 8000, name, Path(name)))),
        "rayserve": (
            "Ray Serve LLM over vLLM, CPU",
            f"{RAY[0]}, {VLLM}",
            f"python tests/lanes/ray_app.py 8000 {name}={name}",
        ),
    }[engine]
    server, version, command = told
    return subprocess.run(
        [
            *(sys.executable, "-m", "tests.cassettes.record", engine, url, "--model", name),
            *("--server", server, "--version", version, "--command", command),
        ],
        cwd=ROOT,
        timeout=TEST_SECONDS,
        check=False,
    ).returncode


def main() -> int:
    """Run one lane."""
    parser = argparse.ArgumentParser(description="the live contract on a real server")
    parser.add_argument("engine", choices=sorted(START_SECONDS))
    parser.add_argument("--environment", type=Path, default=ROOT / ".nox" / "servers")
    parser.add_argument("--models", default="scripted,smollm2")
    parser.add_argument("--record", action="store_true", help="make the cassette anew")
    options, arguments = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped, too
    LOGS.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - begin:4.0f} s] {what}", flush=True)

    wanted = options.models.split(",")
    failed = []
    with tempfile.TemporaryDirectory(prefix="enginekit-lane-") as made:
        folder = Path(made)
        python = Path(sys.executable)
        if options.engine == "llamacpp":
            sources = {
                "scripted": lambda: write_gguf(folder / "scripted.gguf"),
                "smollm2": smollm2_gguf,
            }
        else:
            say("installing the server")
            python = server_python(
                options.environment,
                ray=options.engine == "rayserve",
                log=LOGS / f"live_{options.engine}-install.txt",
            )
            sources = {
                "scripted": lambda: write_hf(folder / "scripted"),
                "smollm2": lambda: smollm2(python),
            }
        models = {name: sources[name]() for name in wanted}
        say("starting the server")
        try:
            with servers(options.engine, python, models) as running_now:
                for name, url in running_now:
                    say(f"{options.engine} serves {name} at {url}")
                    if contract(options.engine, url, name, arguments):
                        failed.append(name)
                    if options.record and name == "scripted" and record(options.engine, url, name):
                        failed.append("the cassette")
        except (LaneError, subprocess.TimeoutExpired) as error:
            say(str(error))
            failed.append("the server")
    say(f"failed: {', '.join(failed)}" if failed else "green")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
