"""LangChain's standard integration suites, on a server that answers now and on cassettes.

The live server is the one of `tests/contract`: by default a real llama.cpp with scripted weights, else
the one that is named in the environment.

What an engine cannot pass stands in `marks.py`; `counting.py` counts and compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from enginekit.facts.engine import Feature
from enginekit.kit.client import Client
from tests.contract.conftest import LIVE, Place, no_cached_facts, place
from tests.standard.counting import (
    COLLECTED,
    collected,
    pytest_runtest_makereport,
    pytest_terminal_summary,
)
from tests.standard.marks import NO_EMBEDDINGS
from tests.standard.places import Player, Where, add_marks, places, replayed
from tests.support.models import scripted_gguf

__all__ = [
    "no_cached_facts",
    "place",
    "pytest_runtest_makereport",
    "pytest_terminal_summary",
]


@dataclass(frozen=True, kw_only=True)
class Served(Place):
    """The server under test and what it said of itself.

    Attributes:
        lacking: features that it says it has not.
        other: the model that override tests name.
        player: what answers in its place, when nobody answers now.
    """

    lacking: frozenset[Feature] = frozenset()
    other: str = ""
    player: Player | None = None

    def has(self, feature: Feature) -> bool:
        """Whether a test may ask for the feature."""
        return feature not in self.lacking


_FEATURES: tuple[Feature, ...] = (
    "tools", "tool_choice_required", "json", "json_schema", "images", "image_urls", "audio",
)  # fmt: skip


def _asked(settings: dict[str, Any], scripted: bool, other: str, player: Player | None) -> Served:
    """A server, asked once what it is."""
    client = Client(settings)
    client.connect()
    assert client.engine is not None
    lacking = {
        name
        for name in _FEATURES
        if client.engine.of(client.model).capability(name).support == "none"
    }
    named = {name: value for name, value in settings.items() if value is not None}
    named.setdefault("model", client.model)
    return Served(
        settings=named,
        scripted=scripted,
        lacking=frozenset(lacking),
        other=other or str(client.model),
        player=player,
    )


@pytest.fixture(scope="session")
def served(place: Place) -> Served:
    """The server that answers now."""
    return _asked(place.settings, place.scripted, LIVE["other"], None)


@pytest.fixture(scope="session", params=places("chat"), ids=str)
def suite(request: pytest.FixtureRequest) -> Iterator[Served]:
    """Each place where LangChain's suite for chat models runs."""
    where: Where = request.param
    if where.kind == "live":
        yield request.getfixturevalue("served")
        return
    with replayed(where, "chat") as (settings, other, player):
        yield _asked(settings, True, other, player)


@pytest.fixture(scope="session", params=places("embeddings"), ids=str)
def embedding_suite(request: pytest.FixtureRequest) -> Iterator[Served]:
    """Each place where LangChain's suite for embeddings runs."""
    where: Where = request.param
    if where.kind == "live":
        live: Place = request.getfixturevalue("embedding_place")
        settings = {name: value for name, value in live.settings.items() if value is not None}
        yield Served(settings=settings, scripted=live.scripted)
        return
    with replayed(where, "embeddings") as (settings, _, player):
        yield Served(settings=settings, scripted=True, player=player)


@pytest.fixture(autouse=True)
def _all_is_on_the_tape(request: pytest.FixtureRequest) -> Iterator[None]:
    """A request that nothing recorded answers fails its test, also where an error is expected."""
    names = [name for name in ("suite", "embedding_suite") if name in request.fixturenames]
    players = [request.getfixturevalue(name).player for name in names]
    yield
    for player in filter(None, players):
        missed, player.missed[:] = list(player.missed), []
        assert missed == [], "nothing recorded answers this: record it anew"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[COLLECTED] = collected(items)
    add_marks(items)


@pytest.fixture(scope="session")
def embedding_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server that embeds: the same llama.cpp in its embedding mode, unless one is named."""
    if LIVE["embed_url"]:
        yield Place(
            {
                "engine": LIVE["engine"],
                "base_url": LIVE["embed_url"],
                "model": LIVE["embed_model"] or None,
                "api_key": LIVE["embed_key"] or None,
            },
            LIVE["scripted"] == "1",
        )
        return
    if LIVE["url"]:
        pytest.skip(NO_EMBEDDINGS)
    from enginekit.launch.embedded import EmbeddedSpec, acquire

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINEKIT_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        spec = EmbeddedSpec(model_path=scripted_gguf(), context=2048, slots=2, embeddings=True)
        with acquire(spec, budget=90) as lease:
            settings = {
                "engine": "llamacpp",
                "base_url": lease.base_url,
                "api_key": lease.api_key,
                "model": "scripted",
            }
            yield Place(settings, scripted=True)
