"""One run of the real llama.cpp for the whole folder."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.oracle.log import Breakdown
from tests.oracle.models import one_per_architecture, specs
from tests.oracle.run import Order, ask
from tests.support.headers import Header, header_of, write
from tests.support.soak import SOAK

CONTEXTS = ((4096, 1), (32768, 4), (131072, 1))
"""Context and slots."""
CHOSEN = specs() if SOAK else one_per_architecture()

needs_llamacpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or sys.platform != "linux",
    reason="the oracle is llama.cpp in the xllamacpp wheel, held by Linux's address-space limit",
)


def pytest_itemcollected(item: pytest.Item) -> None:
    """What runs over the chosen models runs over all of them in a soak run."""
    if isinstance(item, pytest.Function) and {"headers", "plans"} & set(item.fixturenames):
        item.add_marker("soak")


@pytest.fixture(scope="session")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, Header]]]:
    """A sparse file for each chosen model, gone at the end."""
    folder = tmp_path_factory.mktemp("headers")
    found = {}
    for name, spec in CHOSEN.items():
        header = header_of(spec)
        found[name] = (write(folder / f"{name}.gguf", header), header)
    yield found
    for path, _ in found.values():
        path.unlink()


@pytest.fixture(scope="session")
def plans(headers: dict[str, tuple[Path, Header]]) -> dict[tuple[str, int], Breakdown]:
    """What llama.cpp plans for each model at each context."""
    orders = [
        Order(f"{name}@{context}", str(path), context, slots)
        for name, (path, _) in headers.items()
        for context, slots in CONTEXTS
    ]
    found = ask(orders)
    return {
        (name, int(context)): plan
        for order, plan in found.items()
        for name, _, context in [order.rpartition("@")]
    }
