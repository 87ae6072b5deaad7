"""What may be said of an engine and its model right now, without asking anyone.

For LangChain's `profile` and LlamaIndex's `metadata`, which are read at any time and may not do I/O.
What a server has said of itself comes first, then the catalog's facts about the model, then the
cautious reading; every value knows where it came from. A context window that nobody has named is the
smallest that the engine is known to start with, never the trained maximum: what is cut to it fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from enginekit import catalog, registry
from enginekit.config import Config, split_engines
from enginekit.errors import EngineKitError
from enginekit.facts.engine import Capability, EngineProfile, Feature, ServerFacts
from enginekit.facts.model import ModelSpec
from enginekit.kit import embedded
from enginekit.kit.address import address_of, clean_url
from enginekit.kit.route import Route
from enginekit.kit.server_facts import known_engine, known_facts

SMALLEST_WINDOW = 1024
"""Tokens; the smallest window that any engine in the registry starts with."""

_OF_THE_MODEL: dict[Feature, str] = {
    "reasoning": "thinking",
    "images": "vision",
    "image_urls": "vision",
    "audio": "audio",
}
"""Features that no server has without a model for them: the field of the catalog that decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A value and where it came from, for people."""

    value: Any
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OneEngine:
    """One engine of the list: its profile and facts as far as they are known."""

    name: str = ""
    profile: EngineProfile | None = None
    facts: ServerFacts | None = None
    model: str = ""
    origin: str = ""
    context: int | None = None

    @property
    def spec(self) -> ModelSpec | None:
        """The catalog's entry for the model, if it has one."""
        found = catalog.find(self.model) if self.model else None
        return found.spec if found is not None else None

    def capability(self, feature: Feature) -> Capability | None:
        """What the server, else the profile, says of a feature."""
        stated = self.facts.told(feature, self.model) if self.facts is not None else None
        if stated is not None or self.profile is None:
            return stated
        return self.profile.capability(feature)

    def can(self, feature: Feature) -> Fact:
        """Whether a request may need this feature."""
        told = self.facts is not None and self.facts.told(feature, self.model) is not None
        capability = self.capability(feature)
        if capability is not None and (told or not capability.usable):
            said = (
                f"{self.name} itself" if told else f"what is {capability.evidence} of {self.name}"
            )
            return Fact(value=capability.usable, origin=said)
        word = _OF_THE_MODEL.get(feature)
        if word is not None:
            return self._of_the_model(word, capability)
        if capability is not None:
            note = f": {capability.note}" if capability.note else ""
            said = f"what is {capability.evidence} of {self.name}{note}"
            return Fact(value=True, origin=said)
        return Fact(value=True, origin="true of every engine here, by a schema where not natively")

    def _of_the_model(self, word: str, capability: Capability | None) -> Fact:
        spec = self.spec
        has = getattr(spec.capabilities, word) if spec is not None else None
        if has is not None:
            flag = capability.note if capability is not None and has else ""
            said = f"the catalog: {self.model} has {'' if has else 'no '}{word}"
            return Fact(value=has, origin=f"{said} ({self.name}: {flag})" if flag else said)
        return Fact(value=False, origin=f"nobody said that the model has {word}")

    def window(self, wanted: int | None) -> Fact:
        """Tokens that a request may count on; `wanted` is what each request itself asks for."""
        spec = self.spec
        trained = spec.context_length if spec is not None else 0
        per_request = self.capability("context_per_request")
        if wanted and (per_request is None or per_request.usable):
            trained = (self.facts.trained_context if self.facts is not None else None) or trained
            if 0 < trained < wanted:
                return Fact(value=trained, origin=f"{self.model} was trained for no more")
            return Fact(value=wanted, origin="context_window, sent with every request")
        facts = self.facts
        if facts is not None and facts.context_window:
            return Fact(
                value=facts.context_window, origin=facts.context_source or f"{self.name} itself"
            )
        card = facts.model(self.model) if facts is not None and self.model else None
        if card is not None and card.context_window:
            return Fact(value=card.context_window, origin=f"{self.name}'s list of models")
        least = self._least(known=trained > 0)
        if 0 < trained < least.value:
            return Fact(value=trained, origin=f"the catalog: {self.model} was trained for no more")
        return least

    def _least(self, *, known: bool) -> Fact:
        if self.profile is None:
            return Fact(value=SMALLEST_WINDOW, origin="the smallest window any engine starts with")
        if self.name not in registry.LAUNCHED:
            said = f"the smallest window {self.name} starts with"
            return Fact(value=self.profile.min_context, origin=said)
        least = embedded.smallest_window()
        said = f"the smallest window a server that enginekit starts has ({self.name})"
        if self.context and (known or self.context < least):
            return Fact(
                value=self.context, origin=f"context, for the server that {self.name} starts"
            )
        return Fact(value=least, origin=said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of the engines that a call may go to: one, or those of a list in order."""

    engines: tuple[OneEngine, ...]

    @property
    def model(self) -> Fact:
        """The model's name; "" when nobody has named it yet."""
        first = self.engines[0]
        return Fact(value=first.model, origin=first.origin or "not known before the first call")

    def can(self, feature: Feature) -> Fact:
        """Whether a request may need this: of a list, the call goes to an engine that has it."""
        found = [engine.can(feature) for engine in self.engines]
        return next((fact for fact in found if fact.value), found[0])

    def window(self, wanted: int | None = None) -> Fact:
        """Tokens, prompt and answer together; of a list, what fits all of them."""
        found = [engine.window(wanted) for engine in self.engines]
        return min(found, key=lambda fact: int(fact.value))


def look(config: Config, routes: Sequence[Route | None] = ()) -> Known:
    """What is known of the engines that `config` names, or of the routes taken already.

    Does no I/O: what a file says counts only if `config` was read from it.
    """
    names: tuple[str | None, ...] = split_engines(str(config.value("engine") or "")) or (None,)
    taken = [*routes, *([None] * len(names))]
    return Known(
        engines=tuple(
            _of_route(route, config) if route is not None else _of_settings(name, config)
            for name, route in zip(names, taken, strict=False)
        )
    )


def _of_route(route: Route, config: Config) -> OneEngine:
    engine = route.engine
    return OneEngine(
        name=engine.name,
        profile=engine.profile,
        facts=engine.facts,
        model=route.model,
        origin=f"the model in use on {engine.name}",
        context=config.value("context"),
    )


def _of_settings(name: str | None, config: Config) -> OneEngine:
    setting = config.for_engine("model", name) if name else config.find("model")
    model = str(setting.value) if setting is not None else ""
    origin = setting.where if setting is not None else ""
    try:
        if name is None:
            url = config.find("base_url")
            name = known_engine(clean_url(str(url.value), url.where)) if url is not None else None
            if name is None:
                return OneEngine(model=model, origin=origin)
        if not model and name in registry.LAUNCHED:
            model, origin = embedded.DEFAULT_MODEL, "the default when no model is named"
        table = config.engine_table(name)
        like = str(table["like"].value) if "like" in table else name
        profile = registry.engine_class(like).profile
        facts = None
        if name not in registry.LAUNCHED:
            facts = known_facts(name, address_of(config, name), model)
    except EngineKitError:
        return OneEngine(model=model, origin=origin)
    return OneEngine(
        name=name,
        profile=profile,
        facts=facts,
        model=model,
        origin=origin,
        context=config.value("context"),
    )
