"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import enginekit
from enginekit import errors, registry

SRC = Path(enginekit.__file__).parent


def sources() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def test_the_drawing_of_the_error_tree_is_the_tree():
    def draw(cls: type, prefix: str = "") -> list[str]:
        children = [
            c
            for c in vars(errors).values()
            if isinstance(c, type) and cls in c.__bases__ and c.__module__ == errors.__name__
        ]
        lines = []
        for number, child in enumerate(children):
            last = number == len(children) - 1
            lines.append(f"{prefix}{'└── ' if last else '├── '}{child.__name__}")
            lines += draw(child, prefix + ("    " if last else "│   "))
        return lines

    drawn = [line for line in (errors.__doc__ or "").splitlines() if re.match(r"[│├└ ]+── ", line)]
    assert drawn == draw(errors.EngineKitError)


def test_public_names_resolve_and_are_listed():
    for name in enginekit.__all__:
        assert getattr(enginekit, name) is not None
    assert set(enginekit._PUBLIC) | {"__version__"} == set(enginekit.__all__)


def _about_formats(node: ast.Compare) -> bool:
    """`"mlc" in profile.weight_formats`: a weight format may be called as an engine is."""
    return any(
        isinstance(c, ast.Attribute) and c.attr.endswith("formats") for c in node.comparators
    )


def test_no_branch_on_an_engines_name_outside_its_own_file():
    allowed = {"engines", "launch"}
    names = set(registry.names())
    found = []
    for path in sources():
        parts = path.relative_to(SRC).parts
        if parts[0] in allowed or parts[-1] == "registry.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Compare) and not _about_formats(node):
                found += [
                    f"{path.relative_to(SRC)}:{node.lineno} {side.value}"
                    for side in (node.left, *node.comparators)
                    if isinstance(side, ast.Constant) and side.value in names
                ]
    assert found == []


def test_client_libraries_are_imported_lazily_or_in_their_own_room():
    """A top-level import of a heavy library is allowed only in the room that is about it."""
    rooms = {
        "urllib3": {"drivers/", "kit/_fetch.py"},
        "aiohttp": {"drivers/"},
        "langchain_core": {"langchain/"},
        "llama_index": {"llama_index/"},
        "cyclopts": {"cli/"},
        "rich": {"cli/"},
    }
    found = []
    for path in sources():
        relative = path.relative_to(SRC).as_posix()
        for node in ast.parse(path.read_text("utf-8")).body:
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            for module in modules:
                root = module.partition(".")[0]
                if root in rooms and not any(relative.startswith(room) for room in rooms[root]):
                    found.append(f"{relative} imports {root}")
                if root in ("openai", "ollama", "huggingface_hub", "xllamacpp", "psutil", "pynvml"):
                    found.append(f"{relative} imports {root} at its top level")
    assert found == []


@pytest.mark.parametrize("name", registry.names())
def test_every_registered_engine_is_a_whole_engine(name):
    cls = registry.engine_class(name)
    assert not inspect.isabstract(cls), cls.__abstractmethods__
    profile = cls.profile
    assert profile.name
    assert profile.title
    assert profile.wire
    assert profile.tested or profile.sources, "say what was seen running, or what was read"


def test_files_stay_small():
    assert [
        str(path.relative_to(SRC))
        for path in sources()
        if len(path.read_text("utf-8").splitlines()) > 500
    ] == []
