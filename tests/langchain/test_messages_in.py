"""LangChain messages and blocks become ours without loss, or are refused by name."""

from __future__ import annotations

import base64
import copy

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from enginekit.errors import Unsupported
from enginekit.langchain._messages import to_messages
from enginekit.types import AudioPart, FilePart, ImagePart, Message, TextPart, ToolCall

PIXEL = b"\x89PNG\r\n"
PIXEL_64 = base64.b64encode(PIXEL).decode()


def one(message: object) -> Message:
    (only,) = to_messages([message])  # type: ignore[list-item]
    return only


def part(block: object) -> object:
    content = one(HumanMessage([block, "look"])).content  # type: ignore[list-item]
    assert isinstance(content, tuple)
    assert content[1] == TextPart(text="look")
    return content[0]


def test_plain_roles_and_names() -> None:
    assert to_messages(
        [
            SystemMessage("be brief"),
            HumanMessage("hi", name="ann"),
            AIMessage("hello"),
            ChatMessage("from the lead", role="developer"),
        ]
    ) == (
        Message(role="system", content="be brief"),
        Message(role="user", content="hi", name="ann"),
        Message(role="assistant", content="hello"),
        Message(role="developer", content="from the lead"),
    )


def test_system_message_that_openai_classes_mark_as_developer() -> None:
    marked = SystemMessage("x", additional_kwargs={"__openai_role__": "developer"})
    assert one(marked).role == "developer"


@pytest.mark.parametrize(
    "block",
    [
        pytest.param({"type": "image", "base64": PIXEL_64, "mime_type": "image/png"}, id="v1"),
        pytest.param(
            {"type": "image", "source_type": "base64", "data": PIXEL_64, "mime_type": "image/png"},
            id="v0",
        ),
        pytest.param(
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/png", "data": PIXEL_64},
            },
            id="anthropic",
        ),
    ],
)
def test_image_bytes_in_every_spelling(block: object) -> None:
    assert part(block) == ImagePart(data=PIXEL, mime_type="image/png")


@pytest.mark.parametrize(
    "block",
    [
        pytest.param({"type": "image", "url": "https://x/y.png"}, id="v1"),
        pytest.param({"type": "image", "source_type": "url", "url": "https://x/y.png"}, id="v0"),
        pytest.param({"type": "image_url", "image_url": "https://x/y.png"}, id="bare"),
        pytest.param(
            {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}, id="anthropic"
        ),
    ],
)
def test_image_urls_in_every_spelling(block: object) -> None:
    assert part(block) == ImagePart(url="https://x/y.png")


def test_openai_image_keeps_its_detail() -> None:
    block = {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}
    assert part(block) == ImagePart(url="https://x/y.png", detail="low")


def test_audio_in_both_spellings() -> None:
    wav = AudioPart(data=b"RIFF", format="wav")
    encoded = base64.b64encode(b"RIFF").decode()
    assert part({"type": "audio", "base64": encoded, "mime_type": "audio/x-wav"}) == wav
    assert part({"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}}) == wav


def test_documents_keep_name_and_type() -> None:
    encoded = base64.b64encode(b"%PDF").decode()
    pdf = FilePart(data=b"%PDF", mime_type="application/pdf", name="a.pdf")
    assert (
        part(
            {
                "type": "file",
                "base64": encoded,
                "mime_type": "application/pdf",
                "extras": {"filename": "a.pdf"},
            }
        )
        == pdf
    )
    assert (
        part(
            {
                "type": "file",
                "file": {
                    "file_data": f"data:application/pdf;base64,{encoded}",
                    "filename": "a.pdf",
                },
            }
        )
        == pdf
    )


def test_a_text_document_is_text() -> None:
    encoded = base64.b64encode(b"notes").decode()
    assert part({"type": "text-plain", "text": "notes"}) == TextPart(text="notes")
    block = {"type": "file", "base64": encoded, "mime_type": "text/markdown"}
    assert part(block) == TextPart(text="notes")


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"type": "video", "url": "https://x/y.mp4"}, "'video'"),
        ({"type": "image", "file_id": "file-1"}, "id of a stored file"),
        ({"type": "image", "base64": "no base64!", "mime_type": "image/png"}, "'image'"),
        ({"no": "type"}, "None"),
    ],
)
def test_a_block_without_a_place_is_refused_by_name(block: object, said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        to_messages([HumanMessage([block])])  # type: ignore[list-item]


def test_a_single_text_block_is_a_plain_string() -> None:
    assert one(HumanMessage([{"type": "text", "text": "hi"}])).content == "hi"


def test_tool_round_trip_keeps_ids_names_and_raw_arguments() -> None:
    history = [
        AIMessage(
            [],
            tool_calls=[
                {"name": "add", "args": {"a": 1, "ß": "é"}, "id": "c1"},
                {"name": "add", "args": {"a": 2}, "id": "c2"},
            ],
        ),
        ToolMessage("3", tool_call_id="c2"),
        ToolMessage("boom", tool_call_id="c1", status="error"),
    ]
    assistant, second, first = to_messages(history)
    assert assistant.content == ""
    assert assistant.tool_calls == (
        ToolCall(id="c1", name="add", arguments='{"a": 1, "ß": "é"}'),
        ToolCall(id="c2", name="add", arguments='{"a": 2}'),
    )
    assert (second.tool_call_id, second.tool_name, second.tool_error) == ("c2", "add", False)
    assert (first.tool_call_id, first.tool_name, first.tool_error) == ("c1", "add", True)


def test_tool_use_blocks_that_repeat_tool_calls_are_sent_once() -> None:
    message = AIMessage(
        [
            {"type": "text", "text": "let me see"},
            {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
        ],
        tool_calls=[{"name": "add", "args": {"a": 1}, "id": "c1"}],
    )
    sent = one(message)
    assert sent.content == "let me see"
    assert sent.tool_calls == (ToolCall(id="c1", name="add", arguments='{"a": 1}'),)


def test_a_tool_use_block_without_its_tool_call_is_not_lost() -> None:
    block = {"type": "tool_use", "id": "c9", "name": "add", "input": {"a": 1}}
    message = AIMessage([block])
    message.tool_calls = []
    assert one(message).tool_calls == (ToolCall(id="c9", name="add", arguments='{"a": 1}'),)


def test_anthropic_tool_results_become_tool_messages() -> None:
    history = [
        AIMessage("", tool_calls=[{"name": "add", "args": {}, "id": "c1"}]),
        HumanMessage(
            [
                {"type": "tool_result", "tool_use_id": "c1", "content": "3", "is_error": True},
                {"type": "text", "text": "and now?"},
            ]
        ),
    ]
    _, result, question = to_messages(history)
    assert result == Message(
        role="tool", content="3", tool_call_id="c1", tool_name="add", tool_error=True
    )
    assert question == Message(role="user", content="and now?")


def test_broken_calls_go_back_as_they_were_written() -> None:
    message = AIMessage(
        "", invalid_tool_calls=[{"name": "add", "args": '{"a"', "id": "c1", "error": "cut"}]
    )
    assert one(message).tool_calls == (
        ToolCall(id="c1", name="add", arguments='{"a"', problem="cut"),
    )


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("4", additional_kwargs={"reasoning_content": "2+2"}),
        AIMessage([{"type": "reasoning", "reasoning": "2+2"}, {"type": "text", "text": "4"}]),
        AIMessage([{"type": "thinking", "thinking": "2+2"}, {"type": "text", "text": "4"}]),
        AIMessageChunk("4", additional_kwargs={"reasoning_content": "2+2"}),
    ],
)
def test_reasoning_is_kept_apart_from_the_answer(message: AIMessage) -> None:
    assert one(message) == Message(role="assistant", content="4", reasoning="2+2")


def test_function_messages_are_tool_results_without_an_id() -> None:
    assert one(FunctionMessage(name="f", content="1")) == Message(
        role="tool", content="1", tool_name="f"
    )


def test_unknown_kinds_and_roles_are_refused() -> None:
    with pytest.raises(Unsupported, match="remove"):
        to_messages([RemoveMessage(id="1")])
    with pytest.raises(Unsupported, match="'narrator'"):
        to_messages([ChatMessage("x", role="narrator")])


def test_the_callers_messages_are_not_touched() -> None:
    history = [
        HumanMessage([{"type": "text", "text": "hi"}]),
        AIMessage(
            [{"type": "tool_use", "id": "c1", "name": "add", "input": {}}],
            tool_calls=[{"name": "add", "args": {}, "id": "c1"}],
        ),
        ToolMessage("x", tool_call_id="c1"),
    ]
    before = copy.deepcopy(history)
    to_messages(history)
    assert before == history
