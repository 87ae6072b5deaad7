"""The live suites on real servers that this script installs, starts and stops.

    python -m tests.lanes.run vllm | rayserve | llamacpp [--models scripted,smollm2] [--record]

Two sets of weights, the same on every engine: the scripted ones of `tests.support.scripted`, whose
answers are known word for word, and SmolLM2-135M. Scripted weights get the contract, LangChain's
standard suites (chat, and embeddings on a second server), the LlamaIndex contract and the programs
of `examples/`; SmolLM2 gets the contract and the programs that want a model that speaks, and is the
one that embeds. vLLM serves the scripted weights once more without a tool parser, for the contract
and what is emulated then. Output of pip, servers and tests is kept in .ci/log. Needs enginekit and the test group; the servers get an
environment of their own. `--record` first makes the engine's cassettes anew (tests/cassettes),
through a proxy. Further arguments go to pytest.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lanes.environment import ROOT, server_python, smollm2
from tests.lanes.processes import CHAT, EMBEDDINGS, LaneError, free_port, starting
from tests.lanes.told import ray_command, told, vllm_command, vllm_embed_command
from tests.support.models import smollm2 as smollm2_gguf
from tests.support.scripted import write_gguf, write_hf

LOGS = ROOT / ".ci" / "log"
START_SECONDS = {"llamacpp": 90.0, "vllm": 400.0, "rayserve": 600.0}
TEST_SECONDS = 1200.0
RECORDED = ("programme", "chat", "embeddings")
EMBEDDER = "embedder"
"""SmolLM2 once more, for embeddings: a server either chats or embeds."""

ROOMS: dict[str, tuple[str, ...]] = {
    "scripted": (
        "tests/contract/test_live.py",
        "tests/standard",
        "tests/llama_index/test_contract.py",
        "tests/examples",
    ),
    "smollm2": ("tests/contract/test_live.py", "tests/examples"),
    "no parser": ("tests/contract/test_live.py", "tests/contract/test_no_parser.py"),
}
"""What runs on which weights, and on a server without a tool parser."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A server that chats and, beside it, one that embeds.

    Attributes:
        other: a second model that the first server has.
        parser: whether the first server can call tools by itself.
    """

    model: str
    url: str
    key: str = ""
    other: str = ""
    parser: bool = True
    embed_url: str = ""
    embed_model: str = ""
    embed_key: str = ""

    @property
    def name(self) -> str:
        """What people and `ROOMS` call it."""
        return self.model if self.parser else "no parser"

    def environment(self, engine: str) -> dict[str, str]:
        """How the tests are told."""
        found = {
            "ENGINE": engine,
            "URL": self.url,
            "MODEL": self.model,
            "KEY": self.key,
            "OTHER": self.other,
            "PARSER": "" if self.parser else "none",
            "SCRIPTED": "1" if self.model == "scripted" else "0",
            "EMBED_URL": self.embed_url,
            "EMBED_MODEL": self.embed_model,
            "EMBED_KEY": self.embed_key,
        }
        told = {f"ENGINEKIT_LIVE_{name}": value for name, value in found.items()}
        return {"ENGINEKIT_LIVE_OUTCOMES": "check", **os.environ, **told}


def llamacpp(models: Mapping[str, Path], python: Path) -> Generator[Stage, None, None]:
    """An embedded llama.cpp for each model, and one that embeds by SmolLM2's weights."""
    from enginekit.launch.embedded import EmbeddedSpec, acquire

    budget = START_SECONDS["llamacpp"]
    embeds = EmbeddedSpec(model_path=models[EMBEDDER], context=2048, slots=2, embeddings=True)
    with acquire(embeds, budget=budget) as embedder:
        for name, path in chatting(models):
            spec = EmbeddedSpec(model_path=path, context=2048, slots=4, extra_args=("--metrics",))
            with acquire(spec, budget=budget) as lease:
                yield Stage(
                    model=name,
                    url=lease.base_url,
                    key=lease.api_key or "",
                    embed_url=embedder.base_url,
                    embed_model=embedder.model,
                    embed_key=embedder.api_key or "",
                )


def vllm(models: Mapping[str, Path], python: Path) -> Generator[Stage, None, None]:
    """A vLLM for each model in turn, then one without a tool parser; beside them one that embeds."""

    @contextmanager
    def server(
        what: str, command: list[str], url: str, ready: dict[str, str]
    ) -> Iterator[Callable[[], None]]:
        log = LOGS / f"live_vllm-{what}-server.txt"
        budget = START_SECONDS["vllm"]
        with starting(command, log=log, url=url, models=ready, budget=budget) as wait:
            yield wait

    with ExitStack() as whole:
        port = free_port()
        embed_url = f"http://127.0.0.1:{port}"
        command = vllm_embed_command(python, port, EMBEDDER, models[EMBEDDER])
        wait_for_embedder = whole.enter_context(
            server(EMBEDDER, command, embed_url, {EMBEDDER: EMBEDDINGS})
        )
        stages = [(name, folder, True) for name, folder in chatting(models)]
        stages += [(name, folder, False) for name, folder, _ in stages if name == "scripted"]
        for name, folder, parser in stages:
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            command = vllm_command(python, port, name, folder, parser=parser)
            with server(name if parser else "no-parser", command, url, {name: CHAT}) as wait:
                wait()
                wait_for_embedder()  # at once, from the second time on
                yield Stage(
                    model=name,
                    url=url,
                    parser=parser,
                    embed_url=embed_url,
                    embed_model=EMBEDDER,
                )


def rayserve(models: Mapping[str, Path], python: Path) -> Generator[Stage, None, None]:
    """One Ray Serve application with all models, and one more that embeds by SmolLM2's weights."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ray_command(python, port, models)
    names = [name for name, _ in chatting(models)]
    ready = {**dict.fromkeys(names, CHAT), EMBEDDER: EMBEDDINGS}
    log = LOGS / "live_rayserve-server.txt"
    budget = START_SECONDS["rayserve"]
    with starting(command, log=log, url=url, models=ready, budget=budget) as wait:
        wait()
        for name in names:
            # SmolLM2 is no second model for the suites: they set no limit, and an answer of its that
            # does not end takes minutes to fill its window.
            yield Stage(model=name, url=url, embed_url=url, embed_model=EMBEDDER)


def chatting(models: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """The models that chat."""
    return ((name, path) for name, path in models.items() if name != EMBEDDER)


ENGINES: dict[str, Callable[[Mapping[str, Path], Path], Generator[Stage, None, None]]] = {
    "llamacpp": llamacpp,
    "vllm": vllm,
    "rayserve": rayserve,
}


def tests(engine: str, stage: Stage, arguments: list[str]) -> int:
    """Run what belongs to a stage's weights; returns pytest's status."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", *ROOMS[stage.name], "-q", *arguments],
        cwd=ROOT,
        env=stage.environment(engine),
        timeout=TEST_SECONDS,
        check=False,
    ).returncode


def record(engine: str, stage: Stage, suite: str) -> int:
    """Make one cassette of a stage's server; returns the status of the tests that asked."""
    embeds = suite == "embeddings"
    facts = told(engine, suite)
    return subprocess.run(
        [
            *(sys.executable, "-m", "tests.cassettes.record", engine),
            stage.embed_url if embeds else stage.url,
            *("--suite", suite, "--model", stage.embed_model if embeds else stage.model),
            *(() if embeds or not stage.other else ("--other", stage.other)),
            *("--server", facts.server, "--version", facts.version, "--command", facts.command),
        ],
        cwd=ROOT,
        env={**os.environ, "ENGINEKIT_LIVE_KEY": stage.embed_key if embeds else stage.key},
        timeout=TEST_SECONDS,
        check=False,
    ).returncode


def main() -> int:
    """Run one lane."""
    parser = argparse.ArgumentParser(description="the live suites on a real server")
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("--environment", type=Path, default=ROOT / ".nox" / "servers")
    parser.add_argument("--models", default="scripted,smollm2")
    parser.add_argument(
        "--record",
        nargs="?",
        default="",
        const=",".join(RECORDED),
        help="first make the cassettes anew: all, or those of these suites",
    )
    options, arguments = parser.parse_known_args()
    engine = options.engine
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped, too
    LOGS.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - begin:4.0f} s] {what}", flush=True)

    wanted = [*options.models.split(","), EMBEDDER]
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="enginekit-lane-") as made:
        folder = Path(made)
        python = Path(sys.executable)
        if engine == "llamacpp":
            sources = {
                "scripted": lambda: write_gguf(folder / "scripted.gguf"),
                "smollm2": smollm2_gguf,
                EMBEDDER: smollm2_gguf,
            }
        else:
            say("installing the server")
            python = server_python(
                options.environment,
                ray=engine == "rayserve",
                log=LOGS / f"live_{engine}-install.txt",
            )
            sources = {
                "scripted": lambda: write_hf(folder / "scripted"),
                "smollm2": lambda: smollm2(python),
                EMBEDDER: lambda: smollm2(python),
            }
        models = {name: sources[name]() for name in wanted}
        say("starting the server")
        stages = ENGINES[engine](models, python)
        try:
            for stage in stages:
                say(f"{engine} serves {stage.name} at {stage.url}")
                if options.record and stage.name == "scripted":
                    suites = options.record.split(",")
                    failed += [one for one in suites if record(engine, stage, one)]
                if tests(engine, stage, arguments):
                    failed.append(stage.name)
                say(f"done with {stage.name}")
        except (LaneError, subprocess.TimeoutExpired) as error:
            say(str(error))
            failed.append("the server")
        finally:
            stages.close()
    say(f"failed: {', '.join(failed)}" if failed else "green")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
