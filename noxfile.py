"""Every task of the project: `nox -l` lists them, `nox -s tests` runs one."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests"]
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2024.10.9"

ROOT = Path(__file__).parent
EXTRAS = "embedded,langchain,llama-index,cli"
GROUPS = nox.project.load_toml("pyproject.toml")["dependency-groups"]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "enginekit-dev"


def install(
    session: nox.Session, *groups: str, extras: str = EXTRAS, editable: bool = True
) -> None:
    """Install the project with extras, then dependency groups."""
    target = f".[{extras}]" if extras else "."
    session.install(*(["-e"] if editable else []), target)
    for group in groups:
        session.install(*GROUPS[group])


@nox.session
def demo(session: nox.Session) -> None:
    """The main job on the embedded engine: chain, tool, extraction, query engine, engine swap."""
    install(session)
    session.run("python", "examples/demo.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, real llama.cpp server included."""
    install(session, "test")
    session.run("pytest", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Every program in examples/, the notebook too, on a real server."""
    install(session, "test", "examples")
    session.run("pytest", "tests/examples", *session.posargs)


@nox.session
def light(session: nox.Session) -> None:
    """With no extra installed the core still imports, configures and says what is missing."""
    install(session, extras="")
    session.install(
        "pytest>=8.3,<10",
        "pytest-asyncio>=1.3,<2",
        "pytest-timeout>=2.3",
        "hypothesis",
        "gguf>=0.17",
    )
    rooms = ("tests/core", "tests/sizing", "tests/meta/test_import_budget.py")
    session.run("pytest", *rooms, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format."""
    session.install(*GROUPS["lint"])
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def layers(session: nox.Session) -> None:
    """Which way imports go."""
    install(session, "lint", extras="")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Strict types over the whole package."""
    install(session, "types", extras="langchain,llama-index,cli,openai")
    session.run("mypy")


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel once and test that, not the checkout."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", "--outdir", str(dist))
    (built,) = dist.glob("*.whl")
    session.install("--force-reinstall", "--no-deps", str(built))
    session.install(f"{built}[{EXTRAS}]")
    session.install(*GROUPS["test"])
    rooms = ("core", "kit", "cli", "meta", "engines", "contract", "langchain", "llama_index")
    session.run("pytest", *(f"tests/{room}" for room in rooms), *session.posargs)


@nox.session
def witness(session: nox.Session) -> None:
    """The official clients against our fakes: they read the same answers as we do."""
    install(session, "test", "witness")
    session.run("pytest", "tests/witness", "-rs", *session.posargs)


@nox.session
def witness_tgi(session: nox.Session) -> None:
    """TGI's own client, which needs a huggingface-hub of its own age."""
    session.install("-e", ".", "pytest>=8.3,<10", "pytest-asyncio>=1.3,<2", "pytest-timeout>=2.3")
    session.install(*GROUPS["witness-tgi"])
    session.run("pytest", "tests/witness/test_text_generation.py", "-rs", *session.posargs)


@nox.session
def live_vllm(session: nox.Session) -> None:
    """Contract, standard suites and examples on a real vLLM on CPU, in an environment of its own."""
    install(session, "test", "examples")
    session.run("python", "-m", "tests.lanes.run", "vllm", *session.posargs)


@nox.session
def live_rayserve(session: nox.Session) -> None:
    """The same on a real Ray Serve over vLLM on CPU, in the same environment."""
    install(session, "test", "examples")
    session.run("python", "-m", "tests.lanes.run", "rayserve", *session.posargs)


@nox.session
def live(session: nox.Session) -> None:
    """The live contract on any server: `nox -s live -- ENGINE URL [MODEL] [-- pytest arguments]`."""
    named, _, more = " ".join(session.posargs).partition(" -- ")
    told = dict(zip(("ENGINE", "URL", "MODEL"), named.split()))
    if "URL" not in told:
        session.error("which server? nox -s live -- ENGINE URL [MODEL]")
    install(session, "test")
    env = {f"ENGINEKIT_LIVE_{name}": value for name, value in told.items()}
    session.run("pytest", "tests/contract/test_live.py", *more.split(), env=env)


@nox.session
@nox.parametrize("what", ["drivers", "langchain", "llama_index", "sizing"])
def bench(session: nox.Session, what: str) -> None:
    """Ratios against bare loops and peers; an environment each, because the peers' pins fight."""
    framework = {"langchain": "langchain,fast", "llama_index": "llama-index,fast"}.get(what)
    groups = [] if what == "sizing" else [f"bench-{what.replace('_', '-')}"]
    install(session, *groups, extras=framework or "fast")
    peers = ["--peers"] if framework else []
    session.run("python", f"benchmarks/{what}.py", *peers, *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Leaks over 20,000 requests, fuzz at 100,000 examples, every model against llama.cpp."""
    install(session, "test")
    session.run("pytest", "-m", "soak", *session.posargs, env={"ENGINEKIT_SOAK": "1"})


if sys.version_info < (3, 11):  # noqa: UP036 - nox itself runs on older Pythons
    raise SystemExit("enginekit needs Python 3.11 or newer")
