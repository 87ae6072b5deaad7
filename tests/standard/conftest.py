"""LangChain's standard integration suites on a server that answers now.

The server is the one of `tests/contract`: by default a real llama.cpp with scripted weights, else
what ENGINEKIT_LIVE_ENGINE, _URL, _MODEL, _KEY and _SCRIPTED name. Two more are read here: _OTHER, a
second model that the server has, for the tests that override the model (without it the override
names the same one), and _EMBED_URL with _EMBED_MODEL, an embedding server of the same engine.

A standard test may skip only for a reason that stands in `SKIPS`; skips are counted and printed at
the end of the run.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from enginekit.facts.engine import Feature
from tests.contract.conftest import LIVE, Place, no_cached_facts, place
from tests.support.models import scripted_gguf

__all__ = ["no_cached_facts", "place"]

LIVE_MORE = {
    name: os.environ.get(f"ENGINEKIT_LIVE_{name.upper()}", "")
    for name in ("other", "embed_url", "embed_model")
}

NO_MEDIA = "the weights read text only"
SKIPS = {
    "test_image_inputs": NO_MEDIA,
    "test_audio_inputs": NO_MEDIA,
    "test_image_tool_message": NO_MEDIA,
    "test_pdf_inputs": "no self-hosted engine reads PDF files; enginekit refuses them",
    "test_pdf_tool_message": "no self-hosted engine reads PDF files; enginekit refuses them",
    **dict.fromkeys(
        (
            "test_embed_query",
            "test_embed_documents",
            "test_aembed_query",
            "test_aembed_documents",
            "test_each_text_has_its_own_vector_in_its_own_place",
        ),
        "the live server chats; name one that embeds by ENGINEKIT_LIVE_EMBED_URL",
    ),
    "test_stream_time": "upstream measures time on a cassette only; benchmarks/ measures streams",
}
"""Standard tests that may skip, and why."""


@dataclass(frozen=True, kw_only=True)
class Served(Place):
    """The server under test and what it said of itself.

    Attributes:
        lacking: features that it says it has not.
        other: the model that override tests name.
    """

    lacking: frozenset[Feature]
    other: str

    def has(self, feature: Feature) -> bool:
        """Whether a test may ask for the feature."""
        return feature not in self.lacking


_FEATURES: tuple[Feature, ...] = (
    "tools", "tool_choice_required", "json", "json_schema", "images", "image_urls", "audio",
)  # fmt: skip


@pytest.fixture(scope="session")
def served(place: Place) -> Served:
    """The server, asked once what it is."""
    client = place.client()
    client.connect()
    assert client.engine is not None
    lacking = {name for name in _FEATURES if client.engine.capability(name).support == "none"}
    settings = {name: value for name, value in place.settings.items() if value is not None}
    settings.setdefault("model", client.model)
    return Served(
        settings=settings,
        scripted=place.scripted,
        lacking=frozenset(lacking),
        other=LIVE_MORE["other"] or client.model,
    )


@pytest.fixture(scope="session")
def embedding_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server that embeds: the same llama.cpp in its embedding mode, unless one is named."""
    if LIVE_MORE["embed_url"]:
        yield Place(
            {
                "engine": LIVE["engine"],
                "base_url": LIVE_MORE["embed_url"],
                "model": LIVE_MORE["embed_model"] or None,
                "api_key": LIVE["key"] or None,
            },
            LIVE["scripted"] == "1",
        )
        return
    if LIVE["url"]:
        pytest.skip("the live server chats; name one that embeds by ENGINEKIT_LIVE_EMBED_URL")
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


# ---------------------------------------------------------------------------------- counting


def _is_standard(nodeid: str) -> bool:
    return "standard/test_chat.py" in nodeid or "standard/test_embeddings.py" in nodeid


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    name = item.name.partition("[")[0]
    if report.skipped and _is_standard(item.nodeid) and name not in SKIPS:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skipped without a reason in {__name__}: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    def names(outcome: str) -> list[str]:
        reports = terminalreporter.stats.get(outcome, ())
        return [r.nodeid.rpartition("::")[2] for r in reports if _is_standard(r.nodeid)]

    counts = {name: names(name) for name in ("passed", "skipped", "xfailed", "failed")}
    if not any(counts.values()):
        return
    engine = LIVE["engine"] or "llamacpp (embedded)"
    said = ", ".join(f"{len(found)} {name}" for name, found in counts.items() if found)
    terminalreporter.write_line(f"langchain-tests on {engine}: {said}")
    for name in counts["skipped"]:
        terminalreporter.write_line(f"  {name}: {SKIPS.get(name.partition('[')[0], '?')}")
