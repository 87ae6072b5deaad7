"""Which test of the live contract stands behind which capability, and where it runs.

`scripts/engine_docs.py` draws the evidence table from this; no third-party import.
"""

from __future__ import annotations

from pathlib import Path

CASSETTES = Path(__file__).parents[1] / "cassettes"

PROVED_BY: dict[str, str] = {
    "chat": "test_the_greeting_is_exact",
    "stream": "test_a_stream_adds_up_to_the_whole_reply",
    "tools": "test_a_tool_call_is_exact",
    "tool_choice_required": "test_a_forced_call_is_a_call_or_an_error_never_prose",
    "tool_choice_named": "test_a_forced_call_is_a_call_or_an_error_never_prose",
    "parallel_tool_calls": "test_two_calls_keep_their_order_and_ids",
    "stream_tools": "test_streamed_calls_are_the_whole_calls",
    "json_schema": "test_a_schema_is_obeyed",
    "regex": "test_choices_and_patterns_are_obeyed",
    "choice": "test_choices_and_patterns_are_obeyed",
    "logprobs": "test_logprobs_come_one_per_token",
    "reasoning": "test_thinking_is_apart_from_the_answer",
    "tokenize": "test_tokens_go_there_and_back",
    "detokenize": "test_tokens_go_there_and_back",
    "count_tokens": "test_counting_tokens_agrees_with_the_reply",
    "metrics": "test_closing_a_stream_early_stops_the_generation",
    "version": "test_the_server_is_what_the_facts_say",
}
"""A capability, and the test of tests/contract/test_live.py that fails where it is not true."""

PROVED_ALONE: dict[str, dict[str, str]] = {
    "llamacpp": {
        "images": "test_images.py::test_an_image_is_taken_and_costs_its_patches",
        "embeddings": "test_pooling.py::test_vectors_come_in_the_order_of_the_texts",
        "rerank": "test_pooling.py::test_documents_come_best_first",
    }
}
"""What a server of its own is started for, by engine: the test of tests/contract that shows it."""

LIVE: dict[str, str] = {
    "llamacpp": "`nox -s tests`",
    "vllm": "`nox -s live_vllm`",
    "rayserve": "`nox -s live_rayserve`",
}
"""Engines whose real server is started by a session that `.ci/run` calls."""

ON_TAPE = frozenset({"chat", "stream", "tools", "tool_choice_named", "stream_tools", "reasoning"})
"""Capabilities that tests/cassettes/programme.py asks for."""


def cassette(engine: str) -> dict[str, str]:
    """Server, version, command and date of an engine's cassette; empty when there is none."""
    path = CASSETTES / f"{engine}.yaml"
    if not path.exists():
        return {}
    head = path.read_text("utf-8").partition("interactions:")[0]
    told = (line.strip().partition(": ") for line in head.splitlines()[1:])
    return {name: value.strip("'\"") for name, _, value in told if value}
