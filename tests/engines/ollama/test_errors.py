"""From a refusal to an error: every row of the table, on recorded bodies where there is one."""

from __future__ import annotations

import json

import pytest

from enginekit.engines.ollama.faults import FAULTS
from enginekit.errors import (
    BadOutput,
    BadRequest,
    ContextOverflow,
    EngineDied,
    EngineError,
    EngineFault,
    EngineLoading,
    EngineTimeout,
    ModelNotFound,
    Overloaded,
    Redirected,
    Unauthorized,
    Unsupported,
)
from tests.engines.ollama.replays import ENGINE, error_line, exchanges
from tests.engines.recordings import load

RECORDED = {
    # context_exceeded: the runner's JSON inside the text has both numbers
    "n_truncate_false": "ContextOverflow limit=512 requested=45047",
    "native/n_overflow_system": "ContextOverflow limit=512 requested=4540",
    "n_ctx_padded": "ContextOverflow limit=768 requested=822",
    "n_overflow_shift_false": "ContextOverflow limit=None requested=None",
    "embed/n_embed_long": "ContextOverflow limit=None requested=None",
    "embed/n_embed_over": "ContextOverflow limit=None requested=None",
    "embed/n_embed_batch": "ContextOverflow limit=None requested=None",
    # model_not_found: four wordings
    "n_err_model": "ModelNotFound model='no-such-model'",
    "n_err_model_stream": "ModelNotFound model='no-such-model'",
    "n_show_missing": "ModelNotFound model='no-such-model:latest'",
    "n_embed_err_model": "ModelNotFound model='no-such-model'",
    "n_unload_missing": "ModelNotFound model='no-such-model'",
    "n_generate_no_model": "ModelNotFound model=''",
    # unsupported_feature: by what the model lacks
    "n_think": "Unsupported feature='reasoning'",
    "n_generate_suffix": "Unsupported feature='fim'",
    "n_embed": "Unsupported feature='embeddings'",
    "n_embeddings_old": "Unsupported feature='embeddings'",
    "embed/n_chat": "Unsupported feature='chat'",
    "embed/n_generate": "Unsupported feature='completion'",
    "n_images": "Unsupported feature='images'",
    "native/n_images": "Unsupported feature='images'",
    "native/n_tools_logprobs_stream": "Unsupported feature='combination'",
    "native/n_tools_logprobs_plain": "Unsupported feature='combination'",
    "n_cloud_model": "Unsupported feature='cloud'",
    "n_err_route": "Unsupported feature='/api/nope'",
    "n_err_method": "Unsupported feature='/api/chat'",
    # bad_request: 400, and 500 for what is the caller's mistake all the same
    "n_err_bad_json": "BadRequest",
    "embed/n_embed_no_text": "BadRequest",
    "n_err_empty": "BadRequest",
    "n_err_no_model": "BadRequest",
    "n_model_bad_name": "BadRequest",
    "n_chat_bad_option_type": "BadRequest",
    "n_chat_stop_str": "BadRequest",
    "n_option_stop_ints": "BadRequest",
    "n_format_number": "BadRequest",
    "n_format_unknown_stream": "BadRequest",
    "n_format_bad": "BadRequest",
    "native/n_format_bad": "BadRequest",
    "native/n_tools_bad": "BadRequest",
    "native/n_tools_no_type": "BadRequest",
    "n_tool_args_string": "BadRequest",
    "n_images_data_url": "BadRequest",
    "n_think_bad": "BadRequest",
    "n_keep_alive_bad": "BadRequest",
    "n_top_logprobs_over": "BadRequest",
    "n_embed_ints": "BadRequest",
    # auth: a Host or Origin header that the server does not like is a 403 without a body
    "n_foreign_host": "Unauthorized",
    "n_origin_foreign": "Unauthorized",
    # bad_output, engine_fault
    "random-native/n_tools": "BadOutput retryable",
    "random-native/n_tools_stream": "BadOutput retryable",
    "native/n_tools_forced": "EngineDied retryable",
    "broken/n_chat": "EngineFault",
    "broken/n_chat_stream": "EngineFault",
    "broken/n_embed": "EngineFault",
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_refusal_is_the_right_error(name):
    recording = load("ollama", name)
    error = ENGINE.failure(recording.status, recording.headers, recording.body, path=recording.path)
    assert error_line(error) == RECORDED[name]
    assert isinstance(error, EngineError)
    assert error.status == recording.status
    assert error.engine == "ollama"
    assert error.url == ENGINE.target.base_url


WRITTEN = [
    # texts of the server's source that no recording has
    (401, '{"error":"unauthorized","signin_url":"https://ollama.com/x"}', Unauthorized),
    (500, '{"error":"model requires more system memory (9.0 GiB) than is available (3.1 GiB)"}',
     EngineFault),
    (500, '{"error":"timed out waiting for llama-server to start: context deadline exceeded"}',
     EngineTimeout),
    (500, '{"error":"llama-server process no longer running: exit status 1 "}', EngineFault),
    (400, '{"error":"this server cannot run this remote model"}', Unsupported),
    # before 0.5.0 (api/types.go, `ChatRequest.Format string`): no schemas
    (400, '{"error":"json: cannot unmarshal object into Go struct field ChatRequest.format of type '
     'string"}', Unsupported),
    (400, '{"error":"\\"m\\" does not support tools"}', Unsupported),
    (404, '{"error":"model \\"m\\" not found, try pulling it first"}', ModelNotFound),
    (499, '{"error":"request canceled"}', BadRequest),
    (500, '{"error":"something new"}', EngineFault),
    (502, "<html>bad gateway</html>", EngineFault),
    (503, '{"error":"server busy, please try again.  maximum pending requests exceeded"}',
     Overloaded),
    (307, "", Redirected),
    (429, "", Overloaded),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "expected"), WRITTEN)
def test_a_refusal_from_the_sources_is_the_right_error(status, body, expected):
    assert type(ENGINE.failure(status, {}, body.encode())) is expected


def test_a_busy_server_is_overloaded_with_its_retry_after():
    recorded = [one for one in exchanges("queue_full") if one.status == 503]
    assert recorded
    for one in recorded:
        error = ENGINE.failure(one.status, {**one.headers, "retry-after": "3"}, one.body)
        assert isinstance(error, Overloaded)
        assert error.retry_after == 3.0
        assert "OLLAMA_MAX_QUEUE" in (error.hint or "")


def test_what_trying_again_would_not_mend_is_not_retryable():
    """A model that cannot be loaded and one that does not fit stay so."""
    broken = load("ollama", "broken/n_chat")
    error = ENGINE.failure(broken.status, {}, broken.body)
    assert type(error) is EngineFault
    assert error.retryable is False
    assert "output_norm.weight" in error.message
    died = load("ollama", "native/n_tools_forced")
    assert ENGINE.failure(died.status, {}, died.body).retryable is True


def test_a_load_that_took_too_long_is_a_timeout_of_that_phase():
    body = b'{"error":"timed out waiting for llama-server to start: deadline"}'
    error = ENGINE.failure(500, {}, body)
    assert isinstance(error, EngineTimeout)
    assert error.phase == "load"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("an error was encountered while running the model: unexpected EOF", EngineDied),
        ("llama-server chat error: map[code:500 message:The model produced output that does not "
         "match the expected peg-native format type:server_error]", BadOutput),
        ("request (9 tokens) exceeds the available context size (4 tokens), try increasing it",
         ContextOverflow),
        ("something else", EngineFault),
    ],
)  # fmt: skip
def test_an_error_line_inside_a_stream_goes_through_the_same_rows(text, expected):
    error = ENGINE.failure(200, {}, json.dumps({"error": text}).encode())
    assert type(error) is expected
    assert "inside the stream" in error.message


def test_no_row_ever_says_that_the_engine_is_loading():
    """Ollama answers at once and makes the request wait: there is nothing to poll for."""
    assert EngineLoading not in {case.error for case in FAULTS}


def test_row_names_are_unique_and_unsupported_rows_name_a_feature():
    names = [case.name for case in FAULTS]
    assert len(set(names)) == len(names)
    assert all(case.facts for case in FAULTS if case.error is Unsupported)


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("llama3.1:8b", "ollama pull llama3.1:8b; ollama list shows the models there are"),
        ("x; rm y", "ollama list shows the models there are; ollama pull NAME fetches one"),
    ],
)
def test_the_hint_of_a_missing_model_is_the_command_to_get_it(model, hint):
    body = json.dumps({"error": f"model '{model}' not found"}).encode()
    error = ENGINE.failure(404, {}, body, path="/api/chat")
    assert error.hint == hint
