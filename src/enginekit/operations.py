"""Policy that every engine shares: opening a reply with retries, waiting for a model, folding.

All of it is pure: generators that yield effects (see `enginekit.engine`) and never look at a clock.
Retries live here and nowhere else, and only before the first token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NoReturn, TypeAlias, TypeVar

from enginekit.engine import Budgets, Call, Encoded, Engine, Gather, Open, Operation, Sleep
from enginekit.errors import (
    EngineError,
    EngineKitError,
    EngineLoading,
    EngineTimeout,
    ModelNotFound,
    Overloaded,
    Unreachable,
    Unsupported,
    nearest_models,
)
from enginekit.facts.engine import Capability, Feature
from enginekit.types import (
    UNSET,
    AudioPart,
    ChatRequest,
    Chunk,
    CompletionRequest,
    Constraint,
    ImagePart,
    Receipt,
    Reply,
    TokenLogprob,
    ToolChoice,
)

_T = TypeVar("_T")

FIRST_BACKOFF = 0.25
"""Seconds before the first retry; doubled each time, at most `MAX_BACKOFF`."""
MAX_BACKOFF = 8.0
MAX_RETRY_AFTER = 60.0
"""Longest `Retry-After`, in seconds, that is honoured by waiting."""


Passing: TypeAlias = Callable[[Engine, Encoded], EngineKitError | None]
"""Told of a request that its server would first load a model for, while others are asked. It may
have that done elsewhere and must return at once: with what to pass the engine over for, or None
where the model was loaded a moment ago, so that the request may go."""


def open_reply(
    engine: Engine,
    request: ChatRequest | CompletionRequest,
    *,
    stream: bool,
    budgets: Budgets,
    max_retries: int = 2,
    passing: Passing | None = None,
) -> Operation[Any]:
    """Start a reply and return the driver's stream once its first chunk is there.

    A server that is loading is waited for within `budgets.load` and costs no retry. Whatever else
    is retryable is tried again at most `max_retries` times, so a call makes at most
    `1 + max_retries` requests that carry the prompt.

    With `passing` nobody waits for a load, because another engine may be asked: a model that only
    the request would load is EngineLoading, after `passing` was told of it.
    """
    model = request.model
    unclear = yield from settle_needed(engine, request, budgets.first_token)
    refuse_lacking(engine.of(model), request)
    learnt: set[Feature] = set()
    told: list[str] = []
    while True:
        narrow = engine.of(model)
        encoded = narrow.encode(request, stream=stream)
        encoded.receipt.notes.extend(told)
        try:
            opened = yield from open_encoded(
                narrow, encoded, budgets=budgets, max_retries=max_retries, passing=passing
            )
        except Unsupported as refusal:
            found = learn(engine, refusal, model)
            new = set(found) - learnt
            if not new or not _by_other_means(request, found):
                raise
            # The server refused before it generated anything: ask again, by other means.
            learnt |= new
            told.append(f"the server refused this natively: {refusal.message}")
        else:
            if unclear and not learnt:
                engine.remember(dict.fromkeys(unclear, TAKEN), model)
            return opened


def _by_other_means(
    request: ChatRequest | CompletionRequest, found: Mapping[Feature, Capability]
) -> bool:
    """Whether what was found out leaves a way to meet the request: an emulation, and nothing lacking."""
    lacking = [f for f in needs(request) & set(found) if found[f].support == "none"]
    return not lacking and any(fact.support == "emulated" for fact in found.values())


TAKEN = Capability(support="native", evidence="observed", note="the server took it")


def settle_needed(
    engine: Engine, request: ChatRequest | CompletionRequest, seconds: float
) -> Operation[list[Feature]]:
    """Find out what the probe left open of what a reply needs; returns what is still open.

    Waits no longer than `seconds` for any answer.
    """
    if not engine.settles or engine.facts is None:
        return []
    wanted = [f for f in engine.settles & needs(request) if _open(engine, f, request.model)]
    yield from _settle_open(engine, wanted, request.model, seconds)
    return [feature for feature in wanted if _open(engine, feature, request.model)]


def settle_all(engine: Engine, model: str, seconds: float) -> Operation[None]:
    """Find out what the probe left open of chats, for whoever wants to know before the first one."""
    if engine.facts is not None:
        yield from _settle_open(engine, engine.settles, model, seconds)


def _settle_open(
    engine: Engine, features: Iterable[Feature], model: str, seconds: float
) -> Operation[None]:
    """Ask for what nobody asked for yet: what a server left open once it leaves open again."""
    for feature in sorted(features):
        told = engine.facts.told(feature, model) if engine.facts is not None else None
        if told is None and _open(engine, feature, model):  # settling one may settle others
            try:
                yield from within(engine.settle(feature, model), seconds)
            except EngineTimeout:
                return  # who is silent once is not waited for again
            except EngineKitError:
                pass  # what went wrong the call itself will say


def _open(engine: Engine, feature: Feature, model: str) -> bool:
    return engine.of(model).capability(feature).support == "server"


def asked(
    engine: Engine,
    feature: Feature,
    operation: Operation[_T],
    *,
    model: str = "",
    seconds: float = Budgets().whole_reply,
) -> Operation[_T]:
    """Run an operation that needs a feature, unless this server, or its model, is known to lack it.

    No answer may take longer than `seconds`. What the server refuses is remembered: the next call is refused before anything is sent. So is
    what it does, once nobody could tell beforehand.
    """
    if engine.facts is not None:
        yield from _settle_open(engine, (feature,), model, seconds)
    fact = engine.facts.told(feature, model) if engine.facts is not None else None
    if fact is not None and fact.support == "none":
        operation.close()
        _refuse(engine, feature, fact)
    try:
        done = yield from within(operation, seconds)
    except Unsupported as refusal:
        learn(engine, refusal, model)
        raise
    if engine.facts is not None and _open(engine, feature, model):
        engine.remember({feature: TAKEN}, model)
    return done


def learn(engine: Engine, refusal: Unsupported, model: str = "") -> Mapping[Feature, Capability]:
    """Remember what a refusal says of the server, or of its `model`; returns what was new in it."""
    if refusal.status is None:
        return {}
    found = engine.learnt(refusal)
    if found:
        engine.remember(found, model)
    return found


def _refuse(engine: Engine, feature: Feature, fact: Capability) -> NoReturn:
    note = fact.note or f"the server has no {feature.replace('_', ' ')}"
    engine.refuse(feature, note, rule=f"{engine.profile.name}.{feature}")


def refuse_lacking(engine: Engine, request: ChatRequest | CompletionRequest) -> None:
    """Raise Unsupported for what this very server said it lacks, before anything is sent."""
    told = engine.facts.capabilities if engine.facts is not None else None
    if not told:
        return
    lacking = [feature for feature, fact in told.items() if fact.support == "none"]
    for feature in lacking:
        if feature in needs(request):
            _refuse(engine, feature, told[feature])


def needs(request: ChatRequest | CompletionRequest) -> frozenset[Feature]:
    """The features without which a request cannot be met; what merely tunes it is not among them."""
    found: set[Feature] = set()
    sampling = request.sampling
    if sampling.logprobs is True:
        found.add("logprobs")
    if sampling.n is not UNSET and sampling.n > 1:
        found.add("n")
    if request.lora is not UNSET:
        found.add("lora")
    if isinstance(request.constraint, Constraint):
        found.add(request.constraint.kind)
    if isinstance(request, CompletionRequest):
        found.add("completion" if request.suffix is None else "fim")
        return frozenset(found)
    found.add("chat")
    if isinstance(request.reasoning, bool | str) and request.reasoning not in (False, "none"):
        found.add("reasoning")
    choice = request.tool_choice if isinstance(request.tool_choice, ToolChoice) else None
    mode = choice.mode if choice is not None else "auto"
    if request.tools and mode != "none":
        modes: dict[str, Feature] = {
            "required": "tool_choice_required",
            "named": "tool_choice_named",
        }
        found.add(modes.get(mode, "tools"))
    for message in request.messages:
        for part in message.content if isinstance(message.content, tuple) else ():
            if isinstance(part, ImagePart):
                found.add("images")
                if part.url is not None and not part.url.startswith("data:"):
                    found.add("image_urls")
            elif isinstance(part, AudioPart):
                found.add("audio")
    return frozenset(found)


def open_encoded(
    engine: Engine,
    encoded: Encoded,
    *,
    budgets: Budgets,
    max_retries: int = 2,
    passing: Passing | None = None,
) -> Operation[Any]:
    """As `open_reply`, for a request that is encoded already."""
    effect = Open(engine=engine, encoded=encoded, budgets=budgets)
    framing = encoded.call.framing
    apart = passing is not None or budgets.hurried(framing)
    retries = 0
    waited = 0.0
    looked = not apart
    while True:
        try:
            if not looked:
                if (yield from within(engine.cold(encoded), budgets.before_first(framing))):
                    yield from _loaded_apart(engine, encoded, budgets, passing)
                looked = True
            return (yield effect)
        except EngineLoading as error:
            if passing is not None:
                raise
            looked = not apart
            pause = min(0.1 + waited / 4, 2.0)
            if waited + pause > budgets.load:
                raise EngineTimeout(
                    f"{engine.name} at {engine.target.base_url} was still loading its model"
                    + (f" after {budgets.load:g} s" if budgets.load else ""),
                    hint=_longer_load(budgets),
                    engine=engine.name,
                    url=engine.target.base_url,
                    phase="load",
                    budget=budgets.load,
                ) from error
            waited += pause
            yield Sleep(seconds=pause)
        except ModelNotFound as error:
            if error.near:
                raise
            raise (yield from named_neighbours(engine, error)) from None
        except EngineKitError as error:
            if not error.retryable or retries >= max_retries or _not_loaded(error):
                raise
            wanted = backoff(retries, error)
            if wanted is None:
                raise
            retries += 1
            yield Sleep(seconds=wanted)


def _loaded_apart(
    engine: Engine, encoded: Encoded, budgets: Budgets, passing: Passing | None
) -> Operation[None]:
    """Have a model loaded by something else than the request; raises where nobody waits for it."""
    if passing is not None:
        why = passing(engine, encoded)
        if why is not None:
            raise why
        return
    try:
        yield from within(engine.warm(encoded, budgets.load), budgets.load)
    except EngineTimeout as error:
        if error.phase == "load" and error.hint is None:
            error.hint = _longer_load(budgets)
            error.add_note(f"hint: {error.hint}")
        raise


def _longer_load(budgets: Budgets) -> str:
    return f"raise the load budget: timeout={{'load': {max(1800, 2 * budgets.load):g}}}"


def _not_loaded(error: EngineKitError) -> bool:
    """The whole budget for loading is gone: there is none for another try."""
    return isinstance(error, EngineTimeout) and error.phase == "load"


def backoff(retries: int, error: EngineKitError) -> float | None:
    """Seconds to wait before the next attempt; None when the server asks for longer than we wait."""
    if isinstance(error, Overloaded) and error.retry_after is not None:
        return error.retry_after if error.retry_after <= MAX_RETRY_AFTER else None
    pause: float = min(FIRST_BACKOFF * 2.0**retries, MAX_BACKOFF)
    return pause


def named_neighbours(engine: Engine, error: ModelNotFound) -> Operation[ModelNotFound]:
    """The same error with the nearest names that the server has."""
    try:
        cards = yield from engine.models()
    except EngineKitError:
        return error
    near = nearest_models([(card.id, *card.aliases) for card in cards], error.model)
    if not near:
        return ModelNotFound(
            f"{error.message} (the server lists no model at all)",
            hint=error.hint,
            engine=engine.name,
            url=engine.target.base_url,
            status=error.status,
            model=error.model,
        )
    return ModelNotFound(
        f"{engine.name} at {engine.target.base_url} has no model {error.model!r}; "
        f"nearest: {', '.join(near)}",
        hint=error.hint,
        engine=engine.name,
        url=engine.target.base_url,
        status=error.status,
        body=error.body,
        model=error.model,
        near=near,
    )


def wait_ready(engine: Engine, model: str, *, budgets: Budgets) -> Operation[float]:
    """Wait until the server could generate with `model`; returns the seconds waited.

    A refused connection counts as not yet. Raises EngineTimeout (phase `load`) when the budget is
    gone, and at once what waiting cannot mend.
    """
    waited = 0.0
    last: EngineError | None = None
    while True:
        try:
            if (yield from within(engine.ready(model), budgets.load - waited)):
                return waited
        except (EngineLoading, Unreachable, EngineTimeout) as error:
            last = error
            waited += error.budget if isinstance(error, EngineTimeout) else 0.0
        pause = min(0.05 + waited / 4, 2.0)
        if waited + pause > budgets.load:
            raise EngineTimeout(
                f"{engine.name} at {engine.target.base_url} was not ready for {model!r} after "
                f"{budgets.load:g} s" + (f"; last answer: {last}" if last else ""),
                engine=engine.name,
                url=engine.target.base_url,
                phase="load",
                budget=budgets.load,
            ) from last
        waited += pause
        yield Sleep(seconds=pause)


def within(operation: Operation[_T], seconds: float) -> Operation[_T]:
    """The same operation, but that nothing it asks may take longer than `seconds`, waits apart."""
    step, sent = operation.send, None
    while True:
        try:
            effect = step(sent)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        if isinstance(effect, Call) and effect.timeout > seconds:
            effect = replace(effect, timeout=seconds)
        elif isinstance(effect, Gather) and effect.deadline > seconds:
            effect = replace(effect, deadline=seconds)
        try:
            step, sent = operation.send, (yield effect)
        except GeneratorExit:
            operation.close()
            raise
        except BaseException as error:
            step, sent = operation.throw, error


class Folder:
    """Fold chunks into a Reply: `add` each, then `reply`."""

    __slots__ = ("_end", "_logprobs", "_others", "_reasoning", "_text")

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._others: dict[int, list[str]] = {}
        self._end: Chunk | None = None

    def add(self, chunk: Chunk) -> None:
        """Take one chunk in."""
        if chunk.index:
            self._others.setdefault(chunk.index, []).append(chunk.text)
        else:
            if chunk.text:
                self._text.append(chunk.text)
            if chunk.reasoning:
                self._reasoning.append(chunk.reasoning)
            if chunk.logprobs:
                self._logprobs.extend(chunk.logprobs)
        if chunk.end is not None:
            self._end = chunk

    def reply(self, receipt: Receipt) -> Reply:
        """The whole reply. The stream must have ended with an `end` chunk."""
        if self._end is None or self._end.end is None:
            raise AssertionError("a decoder ended without a terminal chunk and without a failure")
        end = self._end.end
        receipt.repairs.extend(end.repairs)
        return Reply(
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            tool_calls=end.tool_calls,
            logprobs=tuple(self._logprobs) or None,
            alternatives=tuple("".join(self._others[i]) for i in sorted(self._others)),
            end=end,
            receipt=receipt,
        )
