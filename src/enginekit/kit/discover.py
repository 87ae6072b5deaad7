"""What is running: look at the places where engines listen by default, and tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginekit import registry
from enginekit.engine import Call, Engine, Gather, Operation, Target
from enginekit.errors import EngineKitError, EngineTimeout, Unreachable
from enginekit.facts.engine import ServerFacts

DEADLINE = 1.5
"""Seconds for the whole look at one address; on loopback a server answers in milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An address that was looked at, and what was there.

    `engine` is None when nothing (or nothing known) answered; then `why` says what happened, and
    `answered` whether there is a server of some kind.
    """

    url: str
    asked: tuple[str, ...]
    engine: Engine | None = None
    facts: ServerFacts | None = None
    why: str = ""
    answered: bool = False


def identify(
    target: Target, among: tuple[str, ...] | None = None, *, deadline: float = DEADLINE
) -> Operation[Found]:
    """Which kind of engine answers at an address, by asking each candidate's own signature."""
    classes = [registry.engine_class(name) for name in among or known()]
    asked = tuple(cls.profile.name for cls in classes)
    answers = yield Gather(
        operations=tuple(cls.recognise(target) for cls in classes), deadline=deadline
    )
    cls = meant([cls for cls, yes in zip(classes, answers, strict=True) if yes is True])
    if cls is not None:
        engine = cls(target)
        try:
            facts = yield from engine.probe()
        except EngineKitError as error:
            return Found(url=target.base_url, asked=asked, engine=engine, why=str(error))
        engine.facts = facts
        return Found(url=target.base_url, asked=asked, engine=engine, facts=facts)
    try:
        yield Call(target=target, method="GET", path="/", framing="text", timeout=deadline)
    except EngineKitError as error:
        silent = isinstance(error, Unreachable | EngineTimeout)
        return Found(url=target.base_url, asked=asked, why=str(error), answered=not silent)
    kinds = ", ".join(asked)
    why = f"something answers there but it is none of {kinds}"
    return Found(url=target.base_url, asked=asked, why=why, answered=True)


def meant(said_yes: Sequence[type[Engine]]) -> type[Engine] | None:
    """The engine that answers, of those that recognised it: one that imitates others is meant."""
    names = {cls.profile.name for cls in said_yes}
    return next(
        (cls for cls in said_yes if cls.profile.imitates & names), next(iter(said_yes), None)
    )


def discover(deadline: float = DEADLINE) -> Operation[list[Found]]:
    """Look at every default address once, all at the same time."""
    by_url: dict[str, list[str]] = {}
    for name in known():
        url = registry.engine_class(name).profile.default_url
        if url:
            by_url.setdefault(url, []).append(name)
    looks = tuple(
        identify(Target(base_url=url), tuple(among), deadline=deadline)
        for url, among in by_url.items()
    )
    answers = yield Gather(operations=looks, deadline=deadline * 2)
    return [
        answer if isinstance(answer, Found) else Found(url=url, asked=tuple(among), why=str(answer))
        for answer, (url, among) in zip(answers, by_url.items(), strict=True)
    ]


def known() -> tuple[str, ...]:
    """Names of the engines that are servers, in the registry's order."""
    return tuple(name for name in registry.names() if name not in registry.LAUNCHED)
