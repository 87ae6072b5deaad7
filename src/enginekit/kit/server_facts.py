"""What servers said of themselves: asked once, shared by all clients of the process."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from enginekit.engine import Engine, Operation, Sleep
from enginekit.errors import (
    BadOutput,
    BadRequest,
    ContextOverflow,
    EngineKitError,
    EngineLoading,
    EngineTimeout,
    Overloaded,
    Unreachable,
)
from enginekit.facts.engine import Capability, Feature, ServerFacts
from enginekit.fallback import forget_rests

if TYPE_CHECKING:
    from enginekit.kit.route import Route

_facts: dict[tuple[str, str, str], ServerFacts] = {}
"""What servers said of themselves, by engine, address and model: shared by the whole process."""
_read: dict[tuple[str, str, str], float] = {}
"""When each was read, by `_clock`."""
_doubted: dict[tuple[str, str, str], ServerFacts] = {}
"""What was forgotten because of a refusal that may have another reason; what was learnt is kept if
the server still is what it was."""

DOUBT = 60.0
"""Seconds for which facts are not doubted because a request was refused as wrong."""
_clock = time.monotonic


def known_facts(engine: str, base_url: str, model: str = "") -> ServerFacts | None:
    """What a server is known to have said of itself, without asking; by its model, else by any."""
    exact = _facts.get((engine, base_url, model))
    if exact is not None or model:
        return exact
    every = list(_facts.items())
    return next((f for (name, url, _), f in every if (name, url) == (engine, base_url)), None)


def known_engine(base_url: str) -> str | None:
    """The engine that answered at an address before, without asking."""
    return next((name for name, url, _ in list(_facts) if url == base_url), None)


def forget_facts() -> None:
    """Forget what servers said of themselves; the next call asks again (and warns again)."""
    for known in (_facts, _read, _doubted):
        known.clear()
    _warned.clear()
    forget_rests()


def probe_once(route: Route, *, budget: float, patient: bool = True) -> Operation[None]:
    """Let the engine ask its server what it is, once per process, address and model.

    A server that is loading is waited for, at most `budget` seconds: a request encoded without
    facts could ask for what its template cannot do. Any other probe that fails is not a call that
    fails: the facts stay unknown and the call itself will say what is wrong. When not `patient`, a
    server that is loading or does not answer is an error at once: another engine may be asked.
    """
    route.probed = True
    engine = route.engine
    key = (engine.name, engine.target.base_url, route.model)
    cached = _facts.get(key)
    if cached is not None:
        engine.facts = cached
        return
    waited = 0.0
    while True:
        try:
            facts = yield from engine.probe()
            break
        except EngineLoading:
            _doubted.pop(key, None)  # it was started anew
            if not patient:
                route.probed = False
                raise
            pause = min(0.1 + waited / 4, 2.0)
            if waited + pause > budget:
                return
            waited += pause
            yield Sleep(seconds=pause)
        except (Unreachable, EngineTimeout) as error:
            if isinstance(error, Unreachable) or error.phase == "connect":
                _doubted.pop(key, None)  # whoever answers next may be another
            route.probed = False  # the next call asks again
            if not patient:
                raise
            return
        except EngineKitError:
            return
    if route.lease is not None:
        # A server from a wheel may not know its own build; the wheel's version says more.
        facts = replace(facts, version=f"xllamacpp {route.lease.version}")
    before = _doubted.pop(key, None)
    if before is not None and _same(before, facts):
        facts = _relearnt(before, facts)
    engine.facts = _facts[key] = facts
    _read[key] = _clock()
    _warn_unverified(engine, facts)


_warned: set[tuple[str, str | None]] = set()
"""Engines and versions of which it was said that nobody tested them."""


def _warn_unverified(engine: Engine, facts: ServerFacts) -> None:
    """Say once per process that a version is newer than any tested: what is documented is assumed.

    Of an engine that nobody ever tested every receipt says so instead.
    """
    key = (engine.profile.name, facts.version)
    if facts.verified or not engine.profile.tested or key in _warned:
        return
    _warned.add(key)
    warnings.warn(
        f"{engine.profile.title} {facts.version} at {engine.target.base_url} is newer than "
        f"{engine.profile.tested[-1]}, the newest that was tested: what is documented is assumed",
        UserWarning,
        stacklevel=2,
    )


def keep_facts(route: Route) -> None:
    """Let every client know what this route's engine learnt of its server since it was probed."""
    engine = route.engine
    key = (engine.name, engine.target.base_url, route.model)
    if engine.facts is not None and key in _facts:
        _facts[key] = engine.facts


def forget_route(route: Route, error: EngineKitError) -> None:
    """Forget what a server said of itself where an error may come of its being another one by now.

    A request that is wrong, too many of them, an answer that was slow or bad say nothing of that,
    nor does a load of which the server itself says nothing; a refusal that names another window
    does, and so does any refusal once in a while (`DOUBT`): a server that was replaced refuses what
    the former one took.
    """
    key = (route.engine.name, route.engine.target.base_url, route.model)
    if isinstance(error, (Overloaded, BadOutput)) or (
        isinstance(error, EngineTimeout) and error.phase not in ("connect", "load")
    ):
        return
    loading = isinstance(error, EngineLoading) or getattr(error, "phase", "") == "load"
    if loading and route.engine.loads_silently():
        return
    doubted = None
    if isinstance(error, BadRequest):
        known = route.engine.facts
        if known is None or not _another_window(error, known):
            if _clock() - _read.get(key, 0.0) < DOUBT:
                return
            doubted = known if key in _facts else _doubted.get(key)
    route.probed = False
    _facts.pop(key, None)
    if doubted is not None:
        _doubted[key] = doubted
    else:
        _doubted.pop(key, None)


def _another_window(error: BadRequest, known: ServerFacts) -> bool:
    told = error.limit if isinstance(error, ContextOverflow) else None
    return None not in (told, known.context_window) and told != known.context_window


def _same(before: ServerFacts, now: ServerFacts) -> bool:
    return (before.version, before.context_window, [card.id for card in before.models]) == (
        now.version,
        now.context_window,
        [card.id for card in now.models],
    )


def _relearnt(before: ServerFacts, now: ServerFacts) -> ServerFacts:
    """What a server says now, and what was seen of it before where that leaves it open."""
    facts = now
    for model, told in (("", before.capabilities), *before.by_model.items()):
        if found := _left_open(told, now, model):
            facts = facts.with_told(found, model)
    return facts


def _left_open(
    told: Mapping[Feature, Capability], now: ServerFacts, model: str
) -> dict[Feature, Capability]:
    found: dict[Feature, Capability] = {}
    for feature, fact in told.items():
        said = now.told(feature, model)
        if said is not None and said.support != "server":
            continue
        if fact.evidence == "observed" and fact.support != "server":
            found[feature] = fact
    return found
