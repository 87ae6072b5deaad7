"""Cassettes of real servers, served by a loopback server to the unchanged drivers.

A cassette says which server it is of, in which version, started how, and when; one that does not
is refused. `nox -s live_vllm -- --record` and its like make them anew.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from enginekit.kit.client import Client
from tests.cassettes import programme
from tests.cassettes.tape import FACTS, HERE, STANDARD, UndatedCassetteError, key, load, playing

CASSETTES = sorted(HERE.glob("*.yaml"))


@pytest.mark.parametrize("path", CASSETTES, ids=lambda path: path.stem)
def test_a_cassette_replays(path: Path):
    """The same requests go out as when it was made, and the same exact answers are read."""
    with playing(path) as (url, player):
        client = Client({"engine": path.stem, "base_url": url, "model": "scripted"})
        assert programme.run(client) == {}
        assert player.missed == []


def test_there_is_one_of_each_engine_that_runs_here():
    assert {path.stem for path in CASSETTES} >= {"llamacpp", "ollama", "vllm", "rayserve", "tgi"}


@pytest.mark.parametrize("path", [*CASSETTES, *STANDARD.glob("*.yaml")], ids=lambda path: path.stem)
def test_a_cassette_says_what_it_is_of(path: Path):
    assert all(load(path).recorded[name] for name in FACTS)


def test_a_request_is_found_whatever_ids_and_indentation_it_has():
    def body(one: str, other: str, told: str) -> str:
        calls = [{"id": one, "name": "f"}, {"id": other, "name": "f"}]
        return json.dumps({"description": told, "calls": calls, "tool_call_id": one})

    asked = key("POST", "/x", body("a", "b", "Do it.\n\n    Well."))
    assert asked == key("POST", "/x", body("c", "d", "Do it.\n\nWell.").encode())
    assert asked != key("POST", "/x", body("a", "a", "Do it.\n\nWell."))
    assert asked != key("POST", "/y", body("a", "b", "Do it.\n\nWell."))


def test_what_is_not_on_the_tape_is_said():
    with playing(CASSETTES[0]) as (url, player):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{url}/nowhere", timeout=10)
        caught.value.close()
        assert caught.value.code == 418
        assert player.missed == ["GET /nowhere null"]


@pytest.mark.parametrize("lacking", FACTS)
def test_a_cassette_without_its_facts_is_refused(tmp_path: Path, lacking: str):
    stored = yaml.safe_load(CASSETTES[0].read_text("utf-8"))
    del stored["recorded"][lacking]
    path = tmp_path / "undated.yaml"
    path.write_text(yaml.safe_dump(stored), "utf-8")
    with pytest.raises(UndatedCassetteError, match=lacking):
        load(path)
