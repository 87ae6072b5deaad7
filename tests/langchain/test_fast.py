"""Chunks filled without validation are what validation makes; else they are validated."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk

from enginekit.langchain import _fast


def both(*given: Any) -> tuple[Any, Any]:
    return _fast._filler()(*given), _fast._validated(*given)


def test_the_installed_versions_can_be_trusted() -> None:
    assert _fast._trusted()


@pytest.mark.parametrize(
    "given", [("", {}, {}), ("a", {"reasoning_content": "b"}, {"logprobs": {"content": []}})]
)
def test_a_filled_chunk_behaves_as_a_validated_one(given: Any) -> None:
    filled, validated = both(*given)
    assert filled == validated
    assert filled.message == validated.message
    assert repr(filled) == repr(validated)
    assert filled.model_dump_json() == validated.model_dump_json()
    assert (filled + validated).model_dump() == (validated + validated).model_dump()
    assert filled.message.text == validated.message.text
    for chunk in (filled, validated):
        chunk.message.id = "run"
        chunk.message.response_metadata = {"k": 1}
    assert filled == validated
    assert isinstance(filled.message.model_copy(deep=True), AIMessageChunk)


def test_chunks_share_nothing_that_can_change() -> None:
    make = _fast._filler()
    one, other = make("a", {}, {}), make("a", {}, {})
    one.message.tool_calls.append({"name": "x", "args": {}, "id": "1"})  # type: ignore[attr-defined]
    one.message.additional_kwargs["k"] = 1
    assert other.message.tool_calls == []  # type: ignore[attr-defined]
    assert other.message.additional_kwargs == {}


def test_a_framework_that_adds_a_field_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Newer(AIMessageChunk):
        invented: int = 0

    monkeypatch.setattr(_fast, "AIMessageChunk", Newer)
    _fast._trusted.cache_clear()
    try:
        assert not _fast._trusted()
        assert _fast.text_chunk_maker()("a", {}, {}).message.invented == 0  # type: ignore[attr-defined]
    finally:
        _fast._trusted.cache_clear()
