"""The page for newcomers runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings

from tests.langchain.wires import VLLM
from tests.llama_index.subjects import GREETING, on_wire

PAGE = Path(__file__).parents[2] / "docs" / "llama_index.md"


@pytest.mark.usefixtures("swept")
@pytest.mark.filterwarnings("ignore:<aiosqlite:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
def test_every_block_of_the_page_runs(
    vllm: VLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other in one program; only the environment names the engine."""
    on_wire(vllm)
    monkeypatch.setenv("ENGINEKIT_ENGINE", "vllm")
    monkeypatch.setenv("ENGINEKIT_MODEL", "tiny")
    monkeypatch.setenv("ENGINEKIT_BASE_URL", vllm.server.url)
    monkeypatch.setattr(Settings, "_llm", None)
    monkeypatch.setattr(Settings, "_embed_model", None)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    program: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{PAGE.name} block {number}", "exec"), program)
    printed = capsys.readouterr().out
    assert printed.startswith(GREETING)
    assert "Ann 31" in printed
    assert "sunny in Rome" in printed
    assert "2048 " in printed
