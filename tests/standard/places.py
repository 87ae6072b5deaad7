"""Where the suites run: a server that answers now, the cassettes of those that answered, and for
MLC, whose server nobody can install here, recorded answers (`mlc.py`).

By default the live one is llama.cpp, started here; ENGINEKIT_LIVE_URL (see
`tests/contract/conftest.py`) names another, and then nothing is replayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from tests.cassettes.tape import STANDARD, playing
from tests.contract.conftest import LIVE
from tests.standard import mlc
from tests.standard.marks import mark_of


@dataclass(frozen=True)
class Where:
    """One engine, and what stands for it."""

    kind: Literal["live", "cassette", "recordings"]
    engine: str

    def __str__(self) -> str:
        return f"{self.kind}.{self.engine}"

    def path(self, suite: str) -> Path:
        """The cassette of a suite, `chat` or `embeddings`."""
        return STANDARD / f"{self.engine}{'' if suite == 'chat' else f'-{suite}'}.yaml"


def places(suite: str) -> list[Where]:
    """The live server first, then the cassettes by name, then MLC."""
    live = Where("live", LIVE["engine"] or "llamacpp")
    if LIVE["url"]:
        return [live]
    suffix = "" if suite == "chat" else f"-{suite}"
    found = sorted(STANDARD.glob("*.yaml"))
    names = [path.stem.removesuffix(suffix) for path in found if path.stem.endswith(suffix)]
    cassettes = [Where("cassette", name) for name in names if "-" not in name]
    return [live, *cassettes, Where("recordings", "mlc")]


class Player(Protocol):
    """What answers in a server's place.

    Attributes:
        missed: requests that it has no answer for, since the last look.
    """

    missed: list[str]


@contextmanager
def replayed(where: Where, suite: str) -> Iterator[tuple[dict[str, Any], str, Player]]:
    """Settings that lead to what is replayed, the other model's name, and the player."""
    settings: dict[str, Any] = {"engine": where.engine}
    if where.kind == "recordings":
        with mlc.answering() as (url, answers):
            yield {**settings, "base_url": url, "model": mlc.MODEL}, "other", answers
        return
    with playing(where.path(suite)) as (url, player):
        told = player.tape.recorded
        settings |= {"base_url": url, "model": told["model"]}
        yield settings, told.get("other", told["model"]), player


def where_of(item: pytest.Item) -> Where | None:
    """Where a collected test runs; None when it is none of the suites'."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    return next((value for value in params.values() if isinstance(value, Where)), None)


def add_marks(items: list[pytest.Item]) -> None:
    """Expect the typed error where `tests/standard/marks.py` says that one must come."""
    from enginekit.errors import EngineKitError

    for item in items:
        where = where_of(item)
        if where is None or item.get_closest_marker("xfail"):
            continue
        owner = getattr(getattr(item, "cls", None), "__name__", "")
        mark = mark_of(where.engine, getattr(item, "originalname", item.name), owner)
        if mark is not None:
            reason = f"{mark.kind}: {mark.reason}"
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True, raises=EngineKitError))
