"""LlamaIndex messages, blocks and tools become ours, and what cannot be sent is refused by name."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from enginekit.errors import ConfigError, Unsupported
from enginekit.kit.formats import to_tool_choice
from enginekit.llama_index._messages import to_messages
from enginekit.llama_index._tools import openai_tool, to_constraint, to_tools
from enginekit.types import (
    AudioPart,
    Constraint,
    FilePart,
    ImagePart,
    Message,
    TextPart,
    ToolChoice,
)

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def one(*blocks: Any, role: str = "user", **more: Any) -> Message:
    return to_messages([ChatMessage(role=role, blocks=list(blocks), **more)])[0]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("system", "system"),
        ("developer", "developer"),
        ("user", "user"),
        ("assistant", "assistant"),
        ("chatbot", "assistant"),
        ("model", "assistant"),
        ("tool", "tool"),
        ("function", "tool"),
    ],
)
def test_every_role_has_its_place(theirs: str, ours: str) -> None:
    (message,) = to_messages([ChatMessage(role=theirs, content="hi")])
    assert (message.role, message.content) == (ours, "hi")


def test_texts_are_joined_as_llama_index_shows_them() -> None:
    message = ChatMessage(blocks=[TextBlock(text="a"), TextBlock(text="b")])
    assert to_messages([message])[0].content == message.content == "a\nb"
    assert to_messages([ChatMessage(role="assistant")])[0].content == ""


def test_images_by_bytes_path_and_url(tmp_path: Path) -> None:
    """A URL is handed on, never fetched: the tests' sockets are closed to it."""
    file = tmp_path / "dot.png"
    file.write_bytes(PNG)
    message = one(
        TextBlock(text="look"),
        ImageBlock(image=PNG, detail="low"),
        ImageBlock(path=file),
        ImageBlock(url="https://example.com/cat.jpg"),
    )
    assert message.content == (
        TextPart(text="look"),
        ImagePart(data=PNG, mime_type="image/png", detail="low"),
        ImagePart(data=PNG, mime_type="image/png"),
        ImagePart(url="https://example.com/cat.jpg", mime_type="image/jpeg"),
    )


def test_audio_and_documents(tmp_path: Path) -> None:
    text = tmp_path / "note.txt"
    text.write_text("hello")
    message = one(
        AudioBlock(audio=b"RIFF....WAVE", format="wav"),
        DocumentBlock(path=text, title="note"),
        DocumentBlock(data=b"%PDF-1.4 x", document_mimetype="application/pdf", title="p.pdf"),
    )
    audio, note, pdf = message.content
    assert isinstance(audio, AudioPart)
    assert audio.format == "wav"
    assert note == TextPart(text="hello")
    assert pdf == FilePart(data=b"%PDF-1.4 x", mime_type="application/pdf", name="p.pdf")


def test_citable_blocks_count_by_their_content_and_cache_points_not_at_all() -> None:
    message = one(
        CachePoint(cache_control=CacheControl(type="ephemeral")),
        CitableBlock(title="t", source="s", content="one"),
        CitationBlock(cited_content="two", source="s", title="t", additional_location_info={}),
    )
    assert message.content == "one\ntwo"


@pytest.mark.parametrize(
    ("block", "role"),
    [
        (VideoBlock(video=b"1234"), "user"),
        (DocumentBlock(url="https://example.com/a.pdf"), "user"),
        (ThinkingBlock(content="hm"), "user"),
        (ToolCallBlock(tool_name="f"), "user"),
        (ImageBlock(image=b""), "user"),
    ],
    ids=["video", "document by url", "thinking of a user", "call of a user", "empty image"],
)
def test_what_cannot_be_sent_is_refused_by_its_type(block: Any, role: str) -> None:
    with pytest.raises(Unsupported, match=block.block_type) as caught:
        one(block, role=role)
    assert caught.value.feature == "content"


def test_an_assistant_turn_keeps_text_thinking_and_calls() -> None:
    message = one(
        ThinkingBlock(content="hm"),
        TextBlock(text="so"),
        ToolCallBlock(tool_call_id="1", tool_name="f", tool_kwargs={"a": "é"}),
        ToolCallBlock(tool_call_id="2", tool_name="f", tool_kwargs='{"a": 2}'),
        ToolCallBlock(tool_call_id="3", tool_name="f", tool_kwargs='{"a": '),
        role="assistant",
    )
    assert (message.content, message.reasoning) == ("so", "hm")
    assert [(c.id, c.arguments) for c in message.tool_calls] == [
        ("1", '{"a": "é"}'),
        ("2", '{"a": 2}'),
        ("3", '{"a": '),
    ]
    assert [bool(c.problem) for c in message.tool_calls] == [False, False, True]


def test_calls_in_the_older_place_are_read_once() -> None:
    """Other integrations leave OpenAI dicts or SDK objects in additional_kwargs; so do we, beside the blocks."""
    spec = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    as_object = SimpleNamespace(
        id="y", function=SimpleNamespace(name="g", arguments='{"b": 1}'), type="function"
    )
    old = one(role="assistant", additional_kwargs={"tool_calls": [spec, as_object]})
    assert [(c.id, c.name, c.arguments) for c in old.tool_calls] == [
        ("x", "f", "{}"),
        ("y", "g", '{"b": 1}'),
    ]
    both = one(
        ToolCallBlock(tool_call_id="x", tool_name="f"),
        role="assistant",
        additional_kwargs={"tool_calls": [spec]},
    )
    assert len(both.tool_calls) == 1
    with pytest.raises(Unsupported, match="not understood"):
        one(role="assistant", additional_kwargs={"tool_calls": ["nonsense"]})


def test_two_results_of_one_tool_keep_their_own_ids() -> None:
    history = [
        ChatMessage(
            role="assistant",
            blocks=[
                ToolCallBlock(tool_call_id="a", tool_name="f", tool_kwargs={"x": 1}),
                ToolCallBlock(tool_call_id="b", tool_name="f", tool_kwargs={"x": 2}),
            ],
        ),
        ChatMessage(role="tool", content="two", additional_kwargs={"tool_call_id": "b"}),
        ChatMessage(role="tool", content="one", additional_kwargs={"tool_call_id": "a"}),
    ]
    _, two, first = to_messages(history)
    assert (two.tool_call_id, two.tool_name, first.tool_call_id) == ("b", "f", "a")


def test_a_result_without_id_belongs_to_the_first_open_call() -> None:
    calls = [
        ToolCallBlock(tool_name="f"),
        ToolCallBlock(tool_name="g"),
        ToolCallBlock(tool_name="f"),
    ]
    history = [
        ChatMessage(role="assistant", blocks=calls),
        ChatMessage(role="tool", content="g", additional_kwargs={"name": "g"}),
        ChatMessage(role="tool", content="f1"),
        ChatMessage(role="tool", content="f2", additional_kwargs={"name": "f"}),
    ]
    asked, *results = to_messages(history)
    ids = [call.id for call in asked.tool_calls]
    assert len(set(ids)) == 3
    assert [r.tool_call_id for r in results] == [ids[1], ids[0], ids[2]]


def test_history_is_never_changed() -> None:
    history = [
        ChatMessage(role="user", blocks=[TextBlock(text="a"), ImageBlock(image=PNG)]),
        ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_call_id="1", tool_name="f")]),
    ]
    before = [message.model_dump() for message in history]
    to_messages(history)
    assert [message.model_dump() for message in history] == before


# ---------------------------------------------------------------------------------- tools


def weather(city: str, days: int = 1) -> str:
    """The weather."""
    return city * days


class Joke(BaseModel):
    """A joke."""

    setup: str


def test_tools_of_every_kind() -> None:
    tool = FunctionTool.from_defaults(weather)
    spec = openai_tool(tool)
    for kind in (tool, tool.metadata, spec, spec["function"]):
        (made,) = to_tools([kind])
        assert made.name == "weather"
        assert "The weather" in made.description
        assert made.parameters["required"] == ["city"]
        assert set(made.parameters["properties"]) == {"city", "days"}
    with pytest.raises(ConfigError, match="FunctionTool"):
        to_tools([weather])
    with pytest.raises(ConfigError, match="web_search"):
        to_tools([{"type": "web_search", "name": "web"}])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (None, None),
        ("auto", ToolChoice(mode="auto")),
        ("none", ToolChoice(mode="none")),
        ("required", ToolChoice(mode="required")),
        ("any", ToolChoice(mode="required")),
        (True, ToolChoice(mode="required")),
        ("weather", ToolChoice(mode="named", name="weather")),
        (
            {"type": "function", "function": {"name": "weather"}},
            ToolChoice(mode="named", name="weather"),
        ),
    ],
)
def test_tool_choice(theirs: Any, ours: ToolChoice | None) -> None:
    assert to_tool_choice(theirs, ["weather"]) == ours


def test_a_choice_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'weather'"):
        to_tool_choice("wether", ["weather", "add"])


def test_response_formats() -> None:
    schema = Joke.model_json_schema()
    expected = Constraint(kind="json_schema", value=schema, name="Joke")
    assert to_constraint(Joke) == expected
    assert to_constraint(schema) == expected
    wrapped = {"type": "json_schema", "json_schema": {"name": "Joke", "schema": schema}}
    assert to_constraint(wrapped) == expected
    assert to_constraint({"type": "json_object"}) == Constraint(kind="json")
    assert to_constraint({"type": "text"}) is None
    assert to_constraint({"type": "regex", "regex": "a+"}) == Constraint(kind="regex", value="a+")
    with pytest.raises(ConfigError, match="xml"):
        to_constraint({"type": "xml"})
