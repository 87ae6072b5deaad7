"""The page about LangChain: its programs run, on a real llama.cpp, and its tables are complete."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from enginekit.kit.keywords import CHAT_FIELDS, SAMPLING
from enginekit.langchain import EngineKitChat
from enginekit.langchain._errors import TABLE
from tests.contract.conftest import Place, place
from tests.standard.conftest import embedding_place
from tests.support.scripted import GREETING

__all__ = ["embedding_place", "place"]

PAGE = (Path(__file__).parents[2] / "docs" / "langchain.md").read_text("utf-8")


def use(settings: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings.items():
        if value is not None:
            monkeypatch.setenv(f"ENGINEKIT_{name.upper()}", value)


def programs(kind: str = "") -> list[str]:
    """The programs of the page that are marked so; none may be marked as not to be run."""
    marked = re.findall(r"^```python(.*?)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert {mark.strip() for mark, _ in marked} == {"", "embeds"}
    return [program for mark, program in marked if mark.strip() == kind]


@pytest.mark.embedded
def test_the_programs_of_the_page_run(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(place.settings, monkeypatch)
    names: dict[str, Any] = {"__name__": "page"}
    assert len(programs()) > 8
    for program in programs():
        exec(compile(program, "docs/langchain.md", "exec"), names)
    said = capsys.readouterr().out
    assert "did you mean 'context_window'" in said
    assert names["person"].name == "Ann"
    assert names["reply"].tool_calls[0]["args"] == {"city": "Rome"}
    facts = place.client().connect()
    assert facts is not None
    assert names["model"].profile["max_input_tokens"] == facts.context_window
    assert "own tokenizer" in said
    assert "tool sunny in Rome" in said
    assert f"ai {GREETING}" in said


@pytest.mark.embedded
def test_the_program_that_embeds_runs(
    embedding_place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(embedding_place.settings, monkeypatch)
    (program,) = programs("embeds")
    exec(compile(program, "docs/langchain.md", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out.strip() in ("The Danube is a river.", "Olive oil is green.")


def test_every_setting_is_on_the_page() -> None:
    missing = [
        name
        for name in (*SAMPLING, *CHAT_FIELDS)
        if f"`{name}`" not in PAGE and name.removeprefix("mirostat") not in ("_tau", "_eta")
    ]
    assert missing == []
    assert set(SAMPLING) <= set(EngineKitChat.model_fields)


def test_every_error_is_on_the_page() -> None:
    general = {"EngineError", "EngineDied", "BadOutput"}
    named = {cls.__name__ for cls in TABLE} - general
    assert [name for name in sorted(named) if f"`{name}`" not in PAGE] == []
