"""The page about LangChain: its programs run, on a real llama.cpp, and its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from enginekit.langchain import EngineKitChat
from enginekit.langchain._errors import TABLE
from enginekit.langchain._request import REQUEST_FIELDS, SAMPLING
from tests.contract.conftest import Place, place

__all__ = ["place"]

PAGE = (Path(__file__).parents[2] / "docs" / "langchain.md").read_text("utf-8")


@pytest.mark.embedded
def test_the_programs_of_the_page_run(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in place.settings.items():
        if value is not None:
            monkeypatch.setenv(f"ENGINEKIT_{name.upper()}", value)
    names: dict[str, Any] = {"__name__": "page"}
    programs = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(programs) > 5
    for program in programs:
        exec(compile(program, "docs/langchain.md", "exec"), names)
    said = capsys.readouterr().out
    assert "did you mean 'context_window'" in said
    assert names["person"].name == "Ann"
    assert names["reply"].tool_calls[0]["args"] == {"city": "Rome"}
    facts = place.client().connect()
    assert facts is not None
    assert names["model"].profile["max_input_tokens"] == facts.context_window
    assert "own tokenizer" in said


def test_every_setting_is_on_the_page() -> None:
    missing = [
        name
        for name in (*SAMPLING, *REQUEST_FIELDS)
        if f"`{name}`" not in PAGE and name.removeprefix("mirostat") not in ("_tau", "_eta")
    ]
    assert missing == []
    assert set(SAMPLING) <= set(EngineKitChat.model_fields)


def test_every_error_is_on_the_page() -> None:
    general = {"EngineError", "EngineDied", "BadOutput"}
    named = {cls.__name__ for cls in TABLE} - general
    assert [name for name in sorted(named) if f"`{name}`" not in PAGE] == []
