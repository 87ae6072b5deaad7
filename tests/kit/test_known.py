"""What is said of an engine and model before anyone was asked: in which order, from where."""

from __future__ import annotations

import builtins
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enginekit import config, registry
from enginekit.facts.engine import Capability, ServerFacts
from enginekit.kit import embedded, known, server_facts
from enginekit.kit.known import SMALLEST_WINDOW, Known, OneEngine


@pytest.fixture(autouse=True)
def fresh() -> None:
    server_facts.forget_facts()


def looked(**settings: Any) -> Known:
    return known.look(config.load(settings, files=False))


def remember(engine: str, url: str, model: str, **facts: Any) -> None:
    """As if some instance had asked this server."""
    server_facts._facts[engine, url, model] = ServerFacts(**facts)


def test_the_smallest_window_is_the_smallest_of_all_engines() -> None:
    profiles = [registry.engine_class(name).profile for name in registry.names()]
    assert min(profile.min_context for profile in profiles) == SMALLEST_WINDOW
    assert embedded.smallest_window() >= SMALLEST_WINDOW


@pytest.mark.parametrize("engine", [*registry.names(), None, "vllm,ollama", "no-such-engine"])
@pytest.mark.parametrize("model", ["llama3.1", "no-such-model", None])
def test_nobody_is_promised_more_than_an_engine_starts_with(
    engine: str | None, model: str | None
) -> None:
    found = looked(engine=engine, model=model).window()
    names = [name for name in (engine or "").split(",") if name in registry.names()]
    least = [registry.engine_class(name).profile.min_context for name in names]
    if engine == "embedded":
        least = [embedded.smallest_window()]
    assert found.value == (min(least) if least else SMALLEST_WINDOW)
    assert "smallest" in found.origin


def test_a_model_trained_for_less_lowers_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    small = OneEngine(name="vllm", profile=registry.engine_class("vllm").profile, model="tiny")
    monkeypatch.setattr(
        known.catalog,
        "find",
        lambda name: type("M", (), {"spec": replace(_spec(), context_length=512)}),
    )
    found = small.window(None)
    assert found.value == 512
    assert "catalog" in found.origin


def _spec() -> Any:
    from enginekit import catalog

    return catalog.get("llama3.1").spec


def test_context_counts_only_for_a_server_of_ours_and_a_model_that_is_known() -> None:
    assert looked(engine="vllm", context=8000, model="llama3.1").window().value == 2048
    assert looked(engine="embedded", context=4000, model="smollm2:135m").window().value == 4000
    assert (
        looked(engine="embedded", context=16384).window().value == 8192
    )  # what it was trained for
    # A file that nobody has read yet may have been trained for less than was asked for.
    assert looked(engine="embedded", context=16384, model="/x.gguf").window().value == 2048
    assert looked(engine="embedded", context=512, model="/x.gguf").window().value == 512


def test_a_window_per_request_is_what_requests_ask_for() -> None:
    assert looked(engine="ollama", model="llama3.1").window(32768).value == 32768
    capped = looked(engine="ollama", model="qwen3:8b").window(200_000)
    assert (capped.value, "trained" in capped.origin) == (40960, True)
    assert looked(engine="vllm", model="llama3.1").window(32768).value == 2048  # refused there


def test_the_catalog_says_what_a_model_can() -> None:
    seen = looked(engine="ollama", model="gemma3")
    assert seen.can("images").value is True
    assert seen.can("image_urls").value is False  # the engine takes bytes only
    assert seen.can("reasoning").value is False
    assert "the catalog: gemma3 has no thinking" in seen.can("reasoning").origin
    assert looked(engine="vllm", model="qwen3:8b").can("reasoning").value is True
    assert "--reasoning-parser" in looked(engine="vllm", model="qwen3:8b").can("reasoning").origin
    assert looked(model="gemma3").can("images").value is True


def test_what_nobody_said_is_read_cautiously() -> None:
    for engine in (None, *registry.names()):
        unknown = looked(engine=engine, model="no-such-model")
        for feature in known._OF_THE_MODEL:
            assert unknown.can(feature).value is False
            assert unknown.can(feature).origin


def test_the_server_wins_over_the_catalog() -> None:
    url = "http://127.0.0.1:11434"
    blind = Capability(support="none", evidence="probed")
    remember(
        "ollama",
        url,
        "gemma3",
        context_window=777,
        context_source="it",
        capabilities={"images": blind},
    )
    found = looked(engine="ollama", model="gemma3")
    assert (found.window().value, found.window().origin) == (777, "it")
    assert (found.can("images").value, found.can("images").origin) == (False, "ollama itself")
    other = looked(engine="ollama", model="gemma3", base_url="http://elsewhere:11434")
    assert other.window().value == 4096
    assert other.can("images").value is True


def test_an_address_alone_is_known_again() -> None:
    remember("vllm", "http://gpu:8000", "m", context_window=999)
    assert looked(base_url="http://gpu:8000/v1/").window().value == 999
    assert looked(base_url="http://gpu:8001").window().value == SMALLEST_WINDOW


def test_the_environments_address_is_the_one_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    remember("ollama", "http://box:11434", "", context_window=555)
    monkeypatch.setenv("OLLAMA_HOST", "box:11434")
    assert looked(engine="ollama").window().value == 555
    monkeypatch.setenv("ENGINEKIT_OLLAMA_URL", "http://other:1")
    assert looked(engine="ollama").window().value == 4096
    monkeypatch.setenv("ENGINEKIT_ENGINE", "vllm")
    monkeypatch.setenv("ENGINEKIT_BASE_URL", "http://box:11434")
    monkeypatch.setenv("ENGINEKIT_MODEL", "of-the-other")
    assert looked(engine="ollama").model.value == ""


def test_of_a_list_the_window_fits_all_and_a_feature_is_had_by_one() -> None:
    remember("vllm", "http://127.0.0.1:8000", "gemma3", context_window=9000)
    both = looked(engine="vllm,ollama", model="gemma3")
    assert both.window().value == 4096
    assert both.can("image_urls").value is True  # vLLM fetches them; Ollama does not


def test_looking_touches_neither_network_nor_files(monkeypatch: pytest.MonkeyPatch) -> None:
    looked(engine="embedded", model="llama3.1").can("images")  # imports, and the package's own data

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("I/O")

    for place, name in (
        (socket, "socket"), (builtins, "open"), (os, "stat"), (os, "listdir"), (Path, "open"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, never)
    for engine in (None, "embedded", "ollama", "vllm,mlc"):
        found = looked(engine=engine, model="gemma3")
        assert found.window().value
        assert found.can("images").origin
