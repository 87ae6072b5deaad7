"""What of the standard suites an engine cannot pass, and why.

Three words. **skip**: the suite leaves the test out by itself, since the property that asks for it is
false. **never**: the server lacks what the test asks for, by design, and enginekit refuses with a
typed error; the test runs, and must fail by that error (strictly: the day it passes, the mark is
wrong). **notyet**: the same of a thing that upstream says will come. Each has a reason; for a
server's refusal it is the server's own answer, as recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NO_MEDIA = "the weights read text only; enginekit refuses media that the server says it cannot read"
NO_PDF = "no self-hosted engine reads PDF files; enginekit refuses them"
NO_EMBEDDINGS = "the live server chats; name one that embeds by ENGINEKIT_LIVE_EMBED_URL"

NO_JSON_MODE = "the server gives no JSON without a schema; enginekit refuses to ask for it"

SKIPS: dict[str, str] = {
    "test_json_mode": NO_JSON_MODE,
    "test_image_inputs": NO_MEDIA,
    "test_audio_inputs": NO_MEDIA,
    "test_image_tool_message": NO_MEDIA,
    "test_pdf_inputs": NO_PDF,
    "test_pdf_tool_message": NO_PDF,
    "test_stream_time": "upstream measures time on a cassette only; benchmarks/ measures streams",
    "test_embed_query": NO_EMBEDDINGS,
    "test_embed_documents": NO_EMBEDDINGS,
    "test_aembed_query": NO_EMBEDDINGS,
    "test_aembed_documents": NO_EMBEDDINGS,
    "test_each_text_has_its_own_vector_in_its_own_place": NO_EMBEDDINGS,
}
"""Tests that may skip, on any engine."""


@dataclass(frozen=True)
class Mark:
    """A test that must fail with a typed error of enginekit."""

    kind: Literal["never", "notyet"]
    reason: str


_MLC_HISTORY = Mark(
    "never",
    "MLC continues no tool conversation: it answers 400 'Assistant message having `tool_calls` is not "
    "supported yet.' and 500 to a message of role tool, so enginekit refuses before it sends "
    '(option tool_history = "text" tells the history as plain turns)',
)
_MLC_IMAGES = Mark(
    "never",
    "a text model of MLC answers an image with 500 'Internal Server Error', and nothing else",
)
_MLC_EMBEDDINGS = Mark(
    "never",
    "MLC answers 400 'The requested model \"tiny\" is not served as an embedding model.': it embeds "
    "by a model of its own (--embedding-model), and of that there is no recording",
)

_VLLM_TEXT = Mark(
    "never",
    "the weights read text only, and vLLM says so when it is asked: it answers 400 'scripted is not a "
    "multimodal model'",
)
_VLLM: dict[str, Mark] = {
    "test_image_inputs": _VLLM_TEXT,
    "test_audio_inputs": _VLLM_TEXT,
    "test_image_tool_message": _VLLM_TEXT,
    "test_anthropic_inputs": _VLLM_TEXT,
}

MARKS: dict[str, dict[str, Mark]] = {
    "vllm": _VLLM,
    "rayserve": _VLLM,
    "mlc": {
        "test_tool_message_histories_string_content": _MLC_HISTORY,
        "test_tool_message_histories_list_content": _MLC_HISTORY,
        "test_tool_message_error_status": _MLC_HISTORY,
        "test_structured_few_shot_examples": _MLC_HISTORY,
        "test_anthropic_inputs": _MLC_HISTORY,
        "test_agent_loop": _MLC_HISTORY,
        "test_a_tool_result_goes_back_with_its_id": _MLC_HISTORY,
        "test_image_tool_message": _MLC_HISTORY,
        "test_image_inputs": _MLC_IMAGES,
        "test_embed_query": _MLC_EMBEDDINGS,
        "test_embed_documents": _MLC_EMBEDDINGS,
        "test_aembed_query": _MLC_EMBEDDINGS,
        "test_aembed_documents": _MLC_EMBEDDINGS,
        "test_each_text_has_its_own_vector_in_its_own_place": _MLC_EMBEDDINGS,
    },
}
"""By engine, then by the test: its name, or `Class::name` where only one class is meant."""


def mark_of(engine: str, test: str, owner: str = "") -> Mark | None:
    """The mark of a test on an engine."""
    of_engine = MARKS.get(engine, {})
    return of_engine.get(f"{owner}::{test}") or of_engine.get(test)
