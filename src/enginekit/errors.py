"""Every exception enginekit raises.

EngineKitError
├── ConfigError
│   ├── UnknownSetting
│   └── UntrustedOrigin
├── MissingExtra
├── UnsupportedPlatform
├── NoEngine
├── ModelFileError
├── DownloadError
│   └── DownloadTooLarge
├── LaunchError
└── EngineError
    ├── Unreachable
    ├── EngineLoading
    ├── EngineTimeout
    ├── Unauthorized
    ├── ModelNotFound
    ├── BadRequest
    │   └── ContextOverflow
    ├── Unsupported
    ├── Overloaded
    ├── BadOutput
    ├── StreamTruncated
    ├── EngineFault
    │   └── EngineDied
    ├── MalformedReply
    └── Redirected

Each carries a sentence of what happened, and where one exists a `hint`: the command or setting that
helps. The hint is also a PEP 678 note, so it shows below a traceback. Foreign exceptions (urllib3,
aiohttp, OSError) never leave enginekit: they are the `__cause__` of one of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

Phase = Literal["connect", "load", "first token", "between tokens", "whole reply"]
"""Which wait ran out: each has its own budget (see `enginekit.engine.Budgets`)."""


class EngineKitError(Exception):
    """Root of the tree.

    Args:
        message: one or more sentences of what happened and what was tried.
        hint: the one command or setting that helps, if there is one.
        facts: attributes to set on the error (`status=404`); they survive pickling.
    """

    retryable: ClassVar[bool] = False
    """Whether the same request may succeed if it is simply sent again."""

    def __init__(self, message: str = "", *, hint: str | None = None, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self._facts = facts
        for name, value in facts.items():
            setattr(self, name, value)
        if hint:
            self.add_note(f"hint: {hint}")

    def __reduce__(self) -> tuple[Any, ...]:
        # What was set after construction (the partial text of a cut stream) goes along.
        own = ("message", "hint", "_facts", "__notes__")
        later = {name: value for name, value in vars(self).items() if name not in own}
        return _rebuild, (type(self), self.message, self.hint, {**self._facts, **later})


def _rebuild(
    cls: type[EngineKitError], message: str, hint: str | None, facts: dict[str, Any]
) -> EngineKitError:
    return cls(message, hint=hint, **facts)


class ConfigError(EngineKitError):
    """A setting is missing, malformed or contradicts another one; names the setting and its origin."""


class UnknownSetting(ConfigError, TypeError):
    """A keyword or key that enginekit does not know; the message names the nearest known one."""

    name: str = ""
    near: tuple[str, ...] = ()


class UntrustedOrigin(ConfigError):
    """A key would go to a URL that a weaker layer named; the message names both origins."""


class MissingExtra(EngineKitError, ImportError):
    """A feature needs an optional dependency; the hint is the install command."""

    extra: str = ""


class UnsupportedPlatform(EngineKitError):
    """The feature does not exist on this operating system or version; names the minimum."""


class NoEngine(EngineKitError):
    """No engine could be found or started; the message lists what was tried, in order.

    `errors` holds what each engine of a list said, where there is a list.
    """

    tried: tuple[str, ...] = ()
    errors: tuple[EngineKitError, ...] = ()


class ModelFileError(EngineKitError, ValueError):
    """A model file (GGUF, safetensors, config.json) is truncated, hostile or of an unknown kind.

    The message names the file, the field and, for binary formats, the byte offset.
    """

    field: str = ""


class DownloadError(EngineKitError):
    """A model or image could not be fetched; the message says what was tried and why it failed."""


class DownloadTooLarge(DownloadError):
    """The file is larger than library code may fetch unasked; names size, free disk and command."""

    size: int = 0
    free: int = 0


class LaunchError(EngineKitError):
    """A local server could not be started; holds the last lines of its log and the likely cause."""

    log: tuple[str, ...] = ()
    cause: str = ""


class EngineError(EngineKitError):
    """Something an engine, or the way to it, did.

    `response` mimics the part of an HTTP response that tracing code looks for
    (`status_code`, `headers`, `json()`); None when no response came.
    """

    engine: str = ""
    url: str = ""
    status: int | None = None
    code: str | None = None
    body: str = ""
    response: Any = None


class Unreachable(EngineError, ConnectionError):
    """No connection. Nothing that was sent can have been worked on."""

    retryable = True


class EngineLoading(EngineError):
    """The engine is up but its model is not loaded yet; waited for within the load budget."""

    retryable = True


class EngineTimeout(EngineError, TimeoutError):
    """A wait ran out; `phase` says which and `budget` how long it was, in seconds."""

    retryable = True
    phase: Phase = "whole reply"
    budget: float = 0.0
    partial: str = ""


class Unauthorized(EngineError):
    """The engine wants a key or refuses the one sent."""


class ModelNotFound(EngineError):
    """The engine does not serve this model; `near` holds the closest names it does serve."""

    model: str = ""
    near: tuple[str, ...] = ()


class BadRequest(EngineError, ValueError):
    """The engine refused the request as malformed or out of range."""


class ContextOverflow(BadRequest):
    """Prompt plus requested output do not fit.

    Attributes:
        limit: the context window, in tokens; None when the engine did not say.
        requested: what was asked for, in tokens; None when the engine did not say.
    """

    limit: int | None = None
    requested: int | None = None


class Unsupported(EngineError):
    """The engine cannot do this; raised before anything that carries the prompt is sent.

    `feature` names it (`"tools"`, `"regex"`), `rule` the receipt rule that decided.
    """

    feature: str = ""
    rule: str = ""


class Overloaded(EngineError):
    """The engine refuses work because its queue or cache is full.

    `retry_after` is in seconds; None when the engine gave none.
    """

    retryable = True
    retry_after: float | None = None


class BadOutput(EngineError):
    """The engine is well but what the model wrote could not be read as what was asked for."""

    retryable = True
    partial: str = ""


class StreamTruncated(EngineError):
    """A reply ended without its protocol's terminal fact; `partial` holds the text that came."""

    partial: str = ""
    partial_reasoning: str = ""


class EngineFault(EngineError):
    """The engine failed on its side; `partial` holds the text before it.

    It said so (5xx or an error event), or it hung up after the request was sent and before any
    answer. Then it may have died of the request: `retryable` is False and enginekit does not send
    it again.
    """

    retryable = True
    partial: str = ""


class EngineDied(EngineFault):
    """The engine process is gone or its worker is dead."""


class MalformedReply(EngineError):
    """The engine answered something that is not its protocol; `partial` holds the text before it."""

    partial: str = ""


class Redirected(EngineError):
    """The engine answered 3xx; enginekit does not follow it with a prompt and a key."""

    location: str = ""


def describe_choices(names: Sequence[str], wanted: str, count: int = 3) -> tuple[str, ...]:
    """The `count` names nearest to `wanted`, best first, for a did-you-mean."""
    import difflib

    lowered: Mapping[str, str] = {name.lower(): name for name in names}
    close = difflib.get_close_matches(wanted.lower(), list(lowered), n=count, cutoff=0.3)
    return tuple(lowered[name] for name in close)


def nearest_models(models: Sequence[Sequence[str]], wanted: str, count: int = 3) -> tuple[str, ...]:
    """The models nearest to `wanted`, best first, each by the one of its names that is nearest.

    `models` holds the names of each model. When none is near, the first few by their first names.
    """
    owner = {name: number for number, names in reversed([*enumerate(models)]) for name in names}
    near: dict[int, str] = {}
    for name in describe_choices(tuple(owner), wanted, max(len(owner), 1)):
        near.setdefault(owner[name], name)
    found = near.values() if near else (names[0] for names in models if names)
    return tuple(found)[:count]
