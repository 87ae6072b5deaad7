"""With nothing but the core installed, what is missing is named with the command that brings it."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str, *blocked: str) -> subprocess.CompletedProcess[str]:
    block = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    return subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("EngineKitChat", "langchain_core", "langchain"),
        ("EngineKitLLM", "llama_index", "llama-index"),
    ],
)
def test_a_class_without_its_framework_names_the_extra(name, package, extra):
    done = run(f"from enginekit import {name}", package, f"{package}.core")
    assert done.returncode == 1
    assert "MissingExtra" in done.stderr
    assert f"hint: pip install 'enginekit[{extra}]'" in done.stderr


def test_the_command_line_without_its_packages_names_the_extra():
    done = run("from enginekit.cli import main; sys.exit(main(['--help']))", "cyclopts")
    assert done.returncode == 2
    assert done.stderr == (
        "error: the command line needs the cyclopts package\n\nhint: pip install 'enginekit[cli]'\n"
    )


def test_the_client_and_the_planner_need_no_extra():
    code = (
        "from enginekit import Client, plan\n"
        "Client({'engine': 'vllm'})\n"
        "print(plan('llama3.1', hardware='rtx4090').verdict)"
    )
    done = run(code, "langchain_core", "llama_index", "cyclopts", "rich", "xllamacpp")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "fits"
