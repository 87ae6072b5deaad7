"""Our errors as LangChain's: each class inherits both families, so either can be caught.

`dual` re-creates an error as its double with the same message, hint, facts and traceback. Errors of
configuration, downloads and launches are no model errors and stay what they are.

LangChain's `is_retryable` says whether a new call may succeed; our `retryable` whether enginekit
itself sends the same request again. They differ for `StreamTruncated`, where text was delivered
already, and for an `EngineFault` of an engine that hung up without an answer: it may have died of
the request. Neither is repeated by enginekit, but a caller may.
"""

from __future__ import annotations

from collections.abc import Mapping

from langchain_core.exceptions import (
    ContextOverflowError,
    LangChainException,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
)

from enginekit import errors
from enginekit.errors import EngineKitError


class Unreachable(errors.Unreachable, ModelConnectionError):
    """No connection. Nothing that was sent can have been worked on."""


class EngineLoading(errors.EngineLoading, ModelAPIError):
    """The model is not loaded yet."""


class EngineTimeout(errors.EngineTimeout, ModelTimeoutError):
    """A wait ran out; `phase` says which."""


class Unauthorized(errors.Unauthorized, ModelAuthenticationError):
    """The engine wants a key or refuses the one sent."""


class PermissionDenied(errors.Unauthorized, ModelPermissionDeniedError):
    """The key is known but may not do this (HTTP 403)."""


class ModelNotFound(errors.ModelNotFound, ModelNotFoundError):
    """The engine does not serve this model."""


class BadRequest(errors.BadRequest, ModelInvalidRequestError):
    """The engine refused the request as malformed or out of range."""


class ContextOverflow(errors.ContextOverflow, ContextOverflowError, ModelInvalidRequestError):
    """Prompt plus requested output do not fit."""


class Unsupported(errors.Unsupported, ModelInvalidRequestError):
    """The engine cannot do this; nothing was sent."""


class Overloaded(errors.Overloaded, ModelRateLimitError):
    """The engine refuses work because its queue or cache is full."""


class BadOutput(errors.BadOutput, ModelError):
    """What the model wrote could not be read as what was asked for."""

    is_retryable = True


class StreamTruncated(errors.StreamTruncated, ModelConnectionError):
    """A reply ended without its protocol's terminal fact; `partial` holds the text that came."""


class EngineFault(errors.EngineFault, ModelAPIError):
    """The engine failed on its side."""


class EngineDied(errors.EngineDied, ModelAPIError):
    """The engine process is gone or its worker is dead."""


class MalformedReply(errors.MalformedReply, ModelAPIError):
    """The engine answered something that is not its protocol."""

    is_retryable = False


class Redirected(errors.Redirected, ModelInvalidRequestError):
    """The engine answered 3xx; it is not followed."""


class EngineError(errors.EngineError, ModelError):
    """Any other thing an engine did."""


class NoEngine(errors.NoEngine, ModelConnectionError):
    """No engine could be found or started."""

    is_retryable = False


TABLE: Mapping[type[EngineKitError], type[EngineKitError]] = {
    errors.Unreachable: Unreachable,
    errors.EngineLoading: EngineLoading,
    errors.EngineTimeout: EngineTimeout,
    errors.Unauthorized: Unauthorized,
    errors.ModelNotFound: ModelNotFound,
    errors.BadRequest: BadRequest,
    errors.ContextOverflow: ContextOverflow,
    errors.Unsupported: Unsupported,
    errors.Overloaded: Overloaded,
    errors.BadOutput: BadOutput,
    errors.StreamTruncated: StreamTruncated,
    errors.EngineFault: EngineFault,
    errors.EngineDied: EngineDied,
    errors.MalformedReply: MalformedReply,
    errors.Redirected: Redirected,
    errors.EngineError: EngineError,
    errors.NoEngine: NoEngine,
}
"""Our error to its double. A subclass that is not listed takes its nearest listed ancestor."""


def dual(error: EngineKitError) -> EngineKitError:
    """The double of `error`, ready to be raised `from error.__cause__`.

    Returns `error` itself when it is a double already or has none.
    """
    if isinstance(error, LangChainException):
        return error
    cls = next((TABLE[base] for base in type(error).__mro__ if base in TABLE), None)
    if cls is None:
        return error
    if cls is Unauthorized and getattr(error, "status", None) == 403:
        cls = PermissionDenied
    hint = error.hint
    if isinstance(error, errors.Unsupported) and error.rule.endswith(".constraint.with_tools"):
        hint = f"{hint}; in an agent: response_format=ToolStrategy(…)"
    double = cls(error.message, hint=hint)
    notes = error.__dict__.get("__notes__")
    double.__dict__.update(error.__dict__)
    double.hint = hint
    if isinstance(error, errors.NoEngine):
        # A list of engines may answer later as soon as one of them may.
        said = [dual(one) for one in error.errors]
        double.__dict__["is_retryable"] = any(getattr(one, "is_retryable", False) for one in said)
    if notes:
        told = f"hint: {error.hint}"
        double.__notes__ = [f"hint: {hint}" if note == told else note for note in notes]
    return double.with_traceback(error.__traceback__)
