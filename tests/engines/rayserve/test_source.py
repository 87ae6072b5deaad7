"""What Ray Serve LLM's source says it can send and no recording has.

Files are those of Ray 2.60.0, below ray/llm/_internal/serve.
"""

from __future__ import annotations

import json

import pytest

from enginekit.engine import Target
from enginekit.engines.rayserve import RayServe
from enginekit.engines.rayserve.facts import model_cards
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineFault,
    EngineTimeout,
    ModelNotFound,
    Overloaded,
)
from enginekit.facts.engine import ServerFacts
from enginekit.types import ChatRequest, Constraint, Message

TARGET = Target(base_url="http://server")


def ingress(message: str, type: str, code: int, cause: str = "") -> bytes:
    """`get_response_for_error` of utils/server_utils.py."""
    told = (
        f"Message: {message} (Request ID: 1-2), Internal exception: {cause or message} "
        f"(Request ID: 1-2), original exception: {cause or message}"
    )
    return json.dumps(
        {"error": {"message": told, "type": type, "param": None, "code": code}}
    ).encode()


def detail(message: str) -> bytes:
    """An `HTTPException` that FastAPI answers itself."""
    return json.dumps({"detail": message}).encode()


@pytest.mark.parametrize("shape", ["ingress", "detail"])
@pytest.mark.parametrize(
    ("code", "message", "kind", "model"),
    [
        # core/ingress/ingress.py
        (404, 'Could not find model with id "x:y".', ModelNotFound, "x:y"),
        (
            404,
            'Got request for model "x:y". Could not find base model with ID "x".',
            ModelNotFound,
            "x:y",
        ),
        (
            404,
            "Unable to find x. Please ensure that the model exists and you have permission.",
            ModelNotFound,
            "x",
        ),
        (400, "Model parameter is required when multiple models are configured.", BadRequest, ""),
        # utils/lora_serve_utils.py
        (
            404,
            'Unable to find LoRA adapter config file "adapter_config.json" in folder s3://b/loras/'
            "x:y. Check that the file exists and that you have read permissions.",
            ModelNotFound,
            "x:y",
        ),
    ],
)
def test_every_refusal_of_the_ingress(
    shape: str, code: int, message: str, kind: type[Exception], model: str
) -> None:
    """In either envelope, with the name of the model where one is meant."""
    told = detail(message) if shape == "detail" else ingress(message, "HTTPException", code)
    error = RayServe(TARGET).failure(code, {}, told, path="/v1/chat/completions")
    assert type(error) is kind
    assert "Request ID" not in str(error)
    if model:
        assert getattr(error, "model", "") == model


def test_a_prompt_that_is_too_long_for_older_versions() -> None:
    """`InputTooLong` of configs/error_handling.py (Ray 2.44): both numbers, or the limit alone."""
    engine = RayServe(TARGET)
    for said, requested in (("Received 600 tokens, but the", 600), ("The", None)):
        told = ingress(f"Input too long. {said} maximum input length is 512 tokens.", "x", 400)
        error = engine.failure(400, {}, told, path="/v1/chat/completions")
        assert isinstance(error, ContextOverflow)
        assert (error.limit, error.requested) == (512, requested)


def test_models_of_older_versions() -> None:
    """`ModelData.rayllm_metadata` of configs/server_models.py (Ray 2.44)."""
    item = {
        "id": "m",
        "object": "model",
        "owned_by": "organization-owner",
        "permission": [],
        "rayllm_metadata": {
            "model_id": "m",
            "input_modality": "text",
            "max_request_context_length": 4096,
        },
    }
    (card,) = model_cards({"object": "list", "data": [item]})
    assert (card.id, card.context_window) == ("m", 4096)


def test_constraints_over_a_vllm_of_unknown_version() -> None:
    """No fingerprint (vLLM before it sent one): both fields, of which each version knows one."""
    engine = RayServe(TARGET, facts=ServerFacts(version=None))
    for version, fields in (
        (None, {"guided_choice", "structured_outputs"}),
        ("vllm 0.10.1", {"guided_choice"}),
        ("vllm 0.32.0", {"structured_outputs"}),
    ):
        engine.facts = ServerFacts(version=version)
        request = ChatRequest(
            model="m",
            messages=(Message(role="user", content="Hi"),),
            constraint=Constraint(kind="choice", value=("a", "b")),
        )
        body = engine.encode(request).call.json
        assert {key for key in body if key.startswith(("guided", "structured"))} == fields


def test_its_own_time_limit() -> None:
    """`router_request_timeout` of core/ingress/ingress.py: in the OpenAI shape, no seconds told."""
    told = ingress("Request server side timeout", "OpenAIHTTPException", 408, "TimeoutError")
    assert isinstance(RayServe(TARGET).failure(408, {}, told), EngineTimeout)


def test_a_busy_engine_behind_the_ingress() -> None:
    """An `ErrorResponse` of vLLM goes on with its own code."""
    busy = ingress("The engine is currently busy and cannot accept", "OpenAIHTTPException", 503)
    assert isinstance(RayServe(TARGET).failure(503, {}, busy), Overloaded)
    fault = ingress("Internal Server Error", "InternalServerError", 500, "RuntimeError: out")
    assert isinstance(RayServe(TARGET).failure(500, {}, fault), EngineFault)


def test_a_value_of_the_wrong_type() -> None:
    """`_handle_validation_error` of core/ingress/middleware.py: `param` is the input, of any type."""
    for given in ("hot", 3, None, ["a"], {"b": 1}):
        error = {
            "message": "Invalid request format: Input should be a valid number at ('body', 'n')",
            "type": "float_parsing",
            "param": given,
            "code": "invalid_parameter",
        }
        body = json.dumps({"error": error}).encode()
        assert type(RayServe(TARGET).failure(400, {}, body)) is BadRequest
