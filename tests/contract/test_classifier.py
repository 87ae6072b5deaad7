"""Every refusal that is known of the six servers, by engine, status and body, and what it means.

The rows are those of the fact sheet: shapes of bodies, conditions, and the classifier from status
and text to one error; most are recorded as well, and each recorded refusal is pinned in the
`refusals.txt` beside its engine's tests. Here they stand side by side, one condition after another.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

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
    Unauthorized,
    Unsupported,
)
from tests.contract.replayed import engine_at


def error(message: str, **more: Any) -> str:
    return json.dumps({"error": {"message": message, **more}})


def detail(message: str) -> str:
    return json.dumps({"detail": message})


def ollama(message: str) -> str:
    return json.dumps({"error": message})


def nested(message: str, **more: Any) -> str:
    """A runner's JSON as text inside Ollama's own."""
    return json.dumps({"error": json.dumps({"error": {"message": message, **more}})})


def mlc(message: str) -> str:
    """JSON inside a JSON string."""
    return json.dumps(json.dumps({"object": "error", "message": message, "code": 400}))


OVERFLOW = {"type": "exceed_context_size_error", "n_prompt_tokens": 600, "n_ctx": 512}
TOO_LONG = "request (600 tokens) exceeds the available context size (512 tokens), try increasing it"

ROWS: list[tuple[str, int, str, type[EngineError]]] = [
    # not ready
    ("llamacpp", 503, error("Loading model", type="unavailable_error", code=503), EngineLoading),
    ("rayserve", 503, "Route table is not populated yet.", EngineLoading),
    (
        "rayserve",
        404,
        "Path '/v1/models' not found. Ping http://.../-/routes for available routes.",
        EngineLoading,
    ),
    # overloaded
    (
        "ollama",
        503,
        ollama("server busy, please try again.  maximum pending requests exceeded"),
        Overloaded,
    ),
    ("vllm", 503, error("queue is full", type="Service Unavailable", code=503), Overloaded),
    ("tgi", 429, '{"error":"Model is overloaded","error_type":"overloaded"}', Overloaded),
    ("tgi", 200, '{"error":"Model is overloaded","error_type":"overloaded"}', Overloaded),
    (
        "rayserve",
        503,
        "Request dropped due to backpressure (num_queued_requests=1, max_queued_requests=1).",
        Overloaded,
    ),
    ("llamacpp", 500, error("Context size has been exceeded.", code=500), Overloaded),
    ("llamacpp", 200, error("Context size has been exceeded.", code=500), Overloaded),
    ("llamacpp", 503, error("no slot available", type="unavailable_error"), Overloaded),
    # the server's own time limit
    ("rayserve", 408, "Request abc timed out after 6.0s.", EngineTimeout),
    # the prompt does not fit
    ("llamacpp", 400, error(TOO_LONG, **OVERFLOW), ContextOverflow),
    ("llamacpp", 400, error(TOO_LONG), ContextOverflow),
    (
        "llamacpp",
        500,
        error("input (601 tokens) is too large to process. increase the physical batch size"),
        ContextOverflow,
    ),
    (
        "vllm",
        400,
        error(
            "This model's maximum context length is 2048 tokens. However, you requested 8 output "
            "tokens and your prompt contains at least 2041 input tokens, for a total of at least "
            "2049 tokens.",
            type="BadRequestError",
            param="input_tokens",
            code=400,
        ),
        ContextOverflow,
    ),
    (
        "rayserve",
        400,
        error("Message: This model's maximum context length is 2048 tokens. (Request ID: x)"),
        ContextOverflow,
    ),
    (
        "tgi",
        422,
        json.dumps(
            {
                "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= "
                "1024. Given: 1000 `inputs` tokens and 100 `max_new_tokens`",
                "error_type": "validation",
            }
        ),
        ContextOverflow,
    ),
    (
        "tgi",
        200,
        json.dumps(
            {
                "error": {
                    "message": "Input validation error: `inputs` must have less than 512 tokens. "
                    "Given: 600",
                    "http_status_code": 422,
                }
            }
        ),
        ContextOverflow,
    ),
    ("ollama", 400, nested(TOO_LONG, **OVERFLOW), ContextOverflow),
    (
        "ollama",
        400,
        ollama(
            "the prompt is longer than the context length currently available to the model; "
            "reduce it"
        ),
        ContextOverflow,
    ),
    ("ollama", 400, ollama("the input length exceeds the context length"), ContextOverflow),
    (
        "mlc",
        400,
        mlc("Request prompt has 900 tokens, larger than the model input length limit 512."),
        ContextOverflow,
    ),
    # no such model
    ("ollama", 404, ollama("model 'x' not found"), ModelNotFound),
    ("ollama", 404, ollama('model "x" not found, try pulling it first'), ModelNotFound),
    (
        "vllm",
        404,
        error(
            "The model `x` does not exist.", type="NotFoundError", param="model", code=404
        ),
        ModelNotFound,
    ),
    ("rayserve", 404, detail('Got request for model "x". It is not configured.'), ModelNotFound),
    ("rayserve", 404, error("Unable to find x. Please ensure it is configured"), ModelNotFound),
    ("llamacpp", 400, error("model 'x' not found", code=400), ModelNotFound),
    # not supported
    ("ollama", 404, "404 page not found", Unsupported),
    ("ollama", 405, "405 method not allowed", Unsupported),
    ("llamacpp", 404, error("File Not Found", type="not_found_error", code=404), Unsupported),
    ("vllm", 404, detail("Not Found"), Unsupported),
    ("vllm", 405, detail("Method Not Allowed"), Unsupported),
    ("rayserve", 404, detail("Not Found"), Unsupported),
    ("mlc", 404, detail("Not Found"), Unsupported),
    ("tgi", 404, "", Unsupported),
    ("tgi", 405, "", Unsupported),
    (
        "llamacpp",
        501,
        error("This server does not support embeddings. Start it with `--embeddings`"),
        Unsupported,
    ),
    (
        "ollama",
        501,
        ollama("This server does not support embeddings. Start it with `--embeddings`"),
        Unsupported,
    ),
    ("ollama", 400, ollama('"m" does not support chat'), Unsupported),
    ("ollama", 403, ollama("ollama cloud is disabled: remote model is unavailable"), Unsupported),
    ("vllm", 400, error("The model does not support Embeddings API", code=400), Unsupported),
    (
        "vllm",
        400,
        error('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser'),
        Unsupported,
    ),
    ("vllm", 400, error("tiny is not a multimodal model", code=400), Unsupported),
    ("rayserve", 400, error("Message: tiny is not a multimodal model (Request ID: x)"), Unsupported),
    (
        "tgi",
        422,
        '{"error":"Input validation error: grammar is not supported","error_type":"validation"}',
        Unsupported,
    ),
    ("llamacpp", 500, error("image input is not supported - hint: mmproj"), Unsupported),
    ("ollama", 500, nested("image input is not supported - hint: mmproj"), Unsupported),
    ("llamacpp", 500, error("error: cannot make GET request", code=500), BadRequest),
    ("llamacpp", 500, error("Failed to download image", code=500), BadRequest),
    ("mlc", 400, mlc("Model m is not served as an embedding model"), Unsupported),
    ("llamacpp", 500, error("tools param requires --jinja flag", code=500), Unsupported),
    # the engine is well, its output is not
    (
        "tgi",
        422,
        '{"error":"Tool error: Failed to parse generated text: x","error_type":"tool_error"}',
        BadOutput,
    ),
    (
        "ollama",
        500,
        ollama(
            "llama-server chat error: map[code:500 message:The model produced output that does "
            "not match the expected peg-native format type:server_error]"
        ),
        BadOutput,
    ),
    # the request is wrong
    ("vllm", 400, error("1 validation error", type="Bad Request", code=400), BadRequest),
    ("rayserve", 400, detail("x"), BadRequest),
    ("tgi", 422, "Failed to deserialize the JSON body into the target type: stop", BadRequest),
    ("tgi", 400, "Failed to parse the request body as JSON", BadRequest),
    ("tgi", 415, "Expected request with `Content-Type: application/json`", BadRequest),
    ("tgi", 413, "Failed to buffer the request body: length limit exceeded", BadRequest),
    ("tgi", 424, '{"error":"Request failed during generation: Server error: ","error_type":"generation"}', BadRequest),
    ("llamacpp", 500, error("Failed to parse tools: x", code=500), BadRequest),
    ("llamacpp", 500, error("Cannot use both json_schema and grammar", code=500), BadRequest),
    ("llamacpp", 500, error("Unknown reasoning format: x", code=500), BadRequest),
    ("ollama", 500, ollama('option "num_predict" must be of type integer'), BadRequest),
    ("ollama", 500, ollama("invalid format: x"), BadRequest),
    ("mlc", 500, "Internal Server Error", BadRequest),
    ("mlc", 422, json.dumps({"detail": [{"loc": ["body", "n"], "msg": "bad", "type": "t"}]}), BadRequest),
    (
        "rayserve",
        500,
        error("Message: Object of type bytes is not JSON serializable (Request ID: x)"),
        BadRequest,
    ),
    # the key
    ("llamacpp", 401, error("Invalid API Key", type="authentication_error"), Unauthorized),
    ("vllm", 401, '{"error":"Unauthorized"}', Unauthorized),
    ("tgi", 401, "", Unauthorized),
    ("mlc", 401, detail("Invalid API key"), Unauthorized),
    ("ollama", 403, "", Unauthorized),
    ("rayserve", 403, "Forbidden: Invalid authentication token", Unauthorized),
    # the engine is not well
    (
        "ollama",
        500,
        ollama("an error was encountered while running the model: unexpected EOF"),
        EngineFault,
    ),
    (
        "ollama",
        500,
        ollama("model runner has unexpectedly stopped, this may be due to resource limitations"),
        EngineFault,
    ),
    (
        "vllm",
        500,
        error("EngineCore encountered an issue. See stack trace", type="InternalServerError"),
        EngineDied,
    ),
    (
        "tgi",
        424,
        '{"error":"Request failed during generation: Server error: boom","error_type":"generation"}',
        EngineFault,
    ),
    (
        "tgi",
        500,
        '{"error":"Incomplete generation","error_type":"incomplete_generation"}',
        EngineFault,
    ),
    ("llamacpp", 500, error("Compute error.", code=500), EngineFault),
    ("vllm", 500, "", EngineFault),
    ("mlc", 502, "<html>bad gateway</html>", EngineFault),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "status", "body", "meant"),
    ROWS,
    ids=[
        f"{name}-{status}-{meant.__name__}-{i}" for i, (name, status, _, meant) in enumerate(ROWS)
    ],
)
def test_what_it_means(name: str, status: int, body: str, meant: type[EngineError]):
    found = engine_at(name).failure(status, {}, body.encode(), path="/v1/chat/completions")
    assert isinstance(found, meant), repr(found)
    if meant in (EngineFault, BadRequest):  # not one of the finer kinds
        assert type(found) in (meant, EngineDied), repr(found)
    assert found.status == status
    assert found.engine == name
