"""The contract: what an engine is, described without I/O.

An engine turns a request into a `Call` and a `Receipt` (`encode`), bytes into chunks (`Decoder`),
and a refusal into one of our errors (`failure`). Whatever takes more than one request is an
*operation*: a generator that yields effects (`Call`, `Open`, `Sleep`, `Gather`, `Blocking`) and is
sent their outcome. `enginekit.drivers` runs operations, blocking or async; nothing else touches a
socket, and no policy is written twice.

Rules for operations: a failed effect is *thrown* into the generator as an `EngineKitError`; cleanup
never yields, because a `yield` in `finally` breaks on cancellation; the driver owns and closes every
open response.
"""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NoReturn, Self, TypeVar

from enginekit.effects import (
    Answer,
    Blocking,
    Budgets,
    Call,
    Decoder,
    Effect,
    Encoded,
    Framing,
    Gather,
    Open,
    Operation,
    Sleep,
    Target,
)
from enginekit.errors import EngineKitError, MalformedReply, Unsupported
from enginekit.facts.engine import (
    Capability,
    EngineProfile,
    Feature,
    Load,
    ModelCard,
    ServerFacts,
)
from enginekit.types import (
    AnyRequest,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    Ranking,
    Receipt,
    RerankRequest,
)

__all__ = [
    "NONSENSE",
    "Answer",
    "Blocking",
    "Budgets",
    "Call",
    "Decoder",
    "Effect",
    "Encoded",
    "Engine",
    "Framing",
    "Gather",
    "Open",
    "Operation",
    "Sleep",
    "Target",
]

_T = TypeVar("_T")

# ---------------------------------------------------------------------------------- the engine

_GUARDED = (
    *("probe", "settle", "warm", "ready", "models", "embed", "rerank"),
    *("tokenize", "detokenize", "count_tokens", "load_state", "load", "unload"),
)
"""Operations that read what a server says of itself or of a text."""

NONSENSE = (ValueError, KeyError, TypeError, AttributeError, IndexError)
"""What reading a payload of the wrong shape raises."""


def _guarded(method: Callable[..., Operation[_T]]) -> Callable[..., Operation[_T]]:
    @functools.wraps(method)
    def guarded(self: Engine, *args: Any, **named: Any) -> Operation[_T]:
        try:
            return (yield from method(self, *args, **named))
        except EngineKitError:
            raise
        except NONSENSE as error:
            raise MalformedReply(
                f"{self.name} at {self.target.base_url} answered {method.__name__} with something "
                f"else than its protocol says ({error!r})",
                engine=self.name,
                url=self.target.base_url,
            ) from error

    return guarded


class Engine(ABC):
    """One kind of server at one address. Holds no socket and may be shared by threads.

    Args:
        target: where the server is.
        facts: what it said of itself, once probed.
        options: engine-level settings from configuration (`[engines.NAME.options]`).
        name: what the receipt calls it, when it differs from the profile's name
            (`embedded`, `attic`).
    """

    profile: ClassVar[EngineProfile]

    def __init_subclass__(cls, **more: Any) -> None:
        """Guard the operations of an engine: no foreign exception leaves them.

        What reading a server's nonsense raises (a key that lacks, a list for an object) becomes
        MalformedReply, whichever engine and route it is.
        """
        super().__init_subclass__(**more)
        for name in _GUARDED:
            if name in cls.__dict__:
                setattr(cls, name, _guarded(cls.__dict__[name]))

    def __init__(
        self,
        target: Target,
        *,
        facts: ServerFacts | None = None,
        options: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        self.target = target
        self.facts = facts
        self.options: Mapping[str, Any] = options or {}
        self.name = name or self.profile.name

    # -- pure ---------------------------------------------------------------------------

    @abstractmethod
    def encode(self, request: AnyRequest, *, stream: bool = False) -> Encoded:
        """The call for a chat or completion request, and its receipt.

        Raises Unsupported for what must be refused. An engine may stream although a whole reply
        was asked for, and the other way round, where its server demands it: the receipt says so.
        """

    @abstractmethod
    def failure(
        self, status: int, headers: Mapping[str, str], body: bytes, *, path: str = ""
    ) -> EngineKitError:
        """The error that this refusal means. `status` 200 is an error event inside a stream."""

    def capability(self, feature: Feature) -> Capability:
        """The capability of this very server: what it said of itself, else the profile's."""
        if self.facts is not None and feature in self.facts.capabilities:
            return self.facts.capabilities[feature]
        return self.profile.capability(feature)

    def of(self, model: str) -> Self:
        """This engine as it is for one model: what was learnt of that one laid over its facts."""
        if self.facts is None or not self.facts.by_model.get(model):
            return self
        narrow = copy.copy(self)
        narrow.facts = self.facts.of(model)
        return narrow

    @property
    def version(self) -> str | None:
        """The server's version, once probed and where it has one."""
        return None if self.facts is None else self.facts.version

    def receipt(self) -> Receipt:
        """An empty receipt that names this engine."""
        return Receipt(engine=self.name, engine_version=self.version, url=self.target.base_url)

    def call(
        self,
        method: Literal["GET", "POST", "DELETE", "HEAD"],
        path: str,
        json: Any = None,
        *,
        framing: Framing = "json",
        timeout: float = 10.0,
    ) -> Call:
        """A call to this server."""
        return Call(
            target=self.target,
            method=method,
            path=path,
            json=json,
            framing=framing,
            timeout=timeout,
        )

    def refuse(
        self,
        feature: Feature | str,
        why: str,
        *,
        rule: str,
        hint: str = "",
        status: int | None = None,
    ) -> NoReturn:
        """Raise Unsupported for this engine; `status` when its server said so."""
        raise Unsupported(
            f"{self.name} cannot do this: {why}",
            hint=hint or None,
            engine=self.name,
            url=self.target.base_url,
            status=status,
            feature=feature,
            rule=rule,
        )

    def _lacks(self, feature: Feature, why: str, *, rule: str = "") -> Operation[NoReturn]:
        self.refuse(feature, why, rule=f"{self.profile.name}.{rule or feature}")
        yield  # makes this a generator

    def learnt(self, refusal: Unsupported) -> Mapping[Feature, Capability]:
        """What a refusal by the server says of its capabilities, so that it is not asked again.

        Called for refusals that came from the server only. The default learns nothing: an engine
        names the features that depend on how its server was started, and not on one request.
        """
        return {}

    @property
    def many_models(self) -> bool:
        """Whether what is found out holds for the model that was asked for, and not for the server."""
        return self.profile.many_models

    def remember(self, found: Mapping[Feature, Capability], model: str = "") -> None:
        """Lay what was found out over what the server said of itself, or of this `model`."""
        facts = self.facts or ServerFacts()
        self.facts = facts.with_told(found, model if self.many_models else "")

    # -- operations ---------------------------------------------------------------------

    @classmethod
    def recognise(cls, target: Target) -> Operation[bool]:
        """Whether the server at this address is of this kind. Cheap, and sends no prompt.

        The default says no, so that an engine which cannot be told apart is never guessed.
        Raises an EngineError when nothing answers.
        """
        return False
        yield  # makes this a generator

    @abstractmethod
    def probe(self) -> Operation[ServerFacts]:
        """Ask the server what it is. Raises an EngineError when it does not answer."""

    settles: ClassVar[frozenset[Feature]] = frozenset()
    """Features of a chat that `settle` can find out, and that no server takes and then ignores."""

    def settle(self, feature: Feature, model: str = "") -> Operation[None]:
        """Find out, cheaply and without any text of a caller, what the probe left open.

        Asked before the first use of a feature whose support is `server`, with the model that the
        use is for; what is found is laid over the facts with `remember`, also that it stays open:
        then nobody asks again. The default finds out nothing.
        """
        return
        yield  # makes this a generator

    def loads_silently(self) -> bool:
        """Whether a request may wait in silence for its model to be loaded: its answer then has
        the budget of a load beside its own. False where a server says that it is loading."""
        return False

    def cold(self, encoded: Encoded) -> Operation[bool]:
        """Whether the server would first have to load what a request needs, and is not doing so yet.

        Only where the request itself would wait for that in silence; a server that says it is
        loading raises EngineLoading instead. Cheap, and False where nobody can tell: the default.
        """
        return False
        yield  # makes this a generator

    def warm(self, encoded: Encoded, seconds: float) -> Operation[None]:
        """Have the server load what a request needs, within `seconds`, after `cold` said so.

        Carries nothing of the prompt. Raises EngineTimeout (phase `load`), and why loading failed.
        The default does nothing.
        """
        return
        yield  # makes this a generator

    @abstractmethod
    def ready(self, model: str) -> Operation[bool]:
        """Whether the server could generate with `model` right now. Never waits long.

        False means not yet; raises ModelNotFound or another error that waiting cannot mend.
        """

    def models(self) -> Operation[tuple[ModelCard, ...]]:
        """The models the server lists."""
        facts = yield from self.probe()
        return facts.models

    def embed(self, request: EmbedRequest) -> Operation[Embeddings]:
        """Embed texts, in order."""
        return (yield from self._lacks("embeddings", "it has no embeddings"))

    def rerank(self, request: RerankRequest) -> Operation[Ranking]:
        """Order documents by relevance."""
        return (yield from self._lacks("rerank", "it has no reranking"))

    def tokenize(self, text: str, *, model: str = "") -> Operation[tuple[int, ...]]:
        """Token ids of `text`, without special tokens added."""
        return (yield from self._lacks("tokenize", "it has no tokenizer route"))

    def detokenize(self, tokens: Sequence[int], *, model: str = "") -> Operation[str]:
        """Text of token ids."""
        return (yield from self._lacks("detokenize", "it has no detokenizer route"))

    def count_tokens(self, request: ChatRequest) -> Operation[int]:
        """How many tokens the prompt has after the chat template."""
        return (
            yield from self._lacks("count_tokens", "it cannot count a chat's tokens", rule="count")
        )

    def load_state(self) -> Operation[Load]:
        """Queue depth, running requests and cache use, from the server's metrics."""
        return (yield from self._lacks("metrics", "it has no metrics"))

    def load(self, model: str) -> Operation[None]:
        """Load a model into memory."""
        yield from self._lacks("load", "models are loaded at launch")

    def unload(self, model: str) -> Operation[None]:
        """Take a model out of memory."""
        yield from self._lacks("unload", "models are loaded at launch")
