"""Servers for the LlamaIndex classes to talk to."""

from __future__ import annotations

import asyncio
import gc
import inspect
import warnings
from collections.abc import Iterator

import pytest

from enginekit.kit.server_facts import forget_facts
from tests.langchain.wires import VLLM
from tests.standard.counting import pytest_runtest_makereport, pytest_terminal_summary
from tests.standard.places import add_marks
from tests.support.server import Server

__all__ = ["pytest_runtest_makereport", "pytest_terminal_summary"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    add_marks(items)


@pytest.fixture(autouse=True)
def no_facts() -> Iterator[None]:
    """What one test's server said of itself is not known to the next test."""
    forget_facts()
    yield
    forget_facts()


@pytest.fixture(autouse=True)
def no_loop_left_behind(request: pytest.FixtureRequest) -> None:
    """LlamaIndex's own `asyncio_run` takes the thread's loop, or makes one and never closes it.

    Where the thread has been told that it has none, it uses `asyncio.run`, which does.
    """
    if not inspect.iscoroutinefunction(request.function):
        asyncio.set_event_loop(None)


@pytest.fixture
def swept() -> Iterator[None]:
    """LlamaIndex's memories leave SQLite connections to the garbage collector: let it find them now."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def vllm(server: Server) -> VLLM:
    """One engine, where they do not differ."""
    return VLLM(server)
