"""Facts of the model that a running server has, from what the server itself says of it.

In the order of what is worth most: the file or folder it names, if it is on this machine; its own
answer about the model's dimensions; a name that the catalog knows; and at last mere sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from enginekit.errors import ConfigError, ModelNotFound
from enginekit.facts.engine import ModelCard, ServerFacts
from enginekit.facts.model import ModelSpec, Origin

SCHEMES: Final = ("http://", "https://", "unix://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model and the engine that serves it.

    `images` is whether it takes images or sound, so whether what sees or hears is loaded; None: it
    did not say.
    """

    spec: ModelSpec
    engine: str
    version: str
    images: bool | None = None
    path: str = ""
    """Of its file or folder, if that is on this machine."""
    context: int | None = None
    """Tokens that one request may use as it runs now; None if it does not say, or is not loaded."""
    users: int = 1
    """Requests that each have so much."""
    note: str = ""


def is_address(name: str) -> bool:
    """Whether a model is named by the server that has it."""
    return name.startswith(SCHEMES)


def is_file_address(name: str) -> bool:
    """Whether a model is named by the address of its GGUF file."""
    if not name.startswith(("http://", "https://")):
        return False
    try:
        return urlsplit(name).path.lower().endswith(".gguf")
    except ValueError as error:
        raise ConfigError(f"{name!r} is no address: {error}") from error


def model_of_server(address: str) -> Served:
    """Ask the server at `address`; `#NAME` behind it picks one of several models.

    Raises:
        ConfigError: no engine of ours answers there.
        Unreachable: nothing answers there.
        ModelNotFound: the server has no such model, or says too little of it.
    """
    from enginekit.kit.client import Client

    url, _, name = address.partition("#")
    if not address.startswith("unix://") and not urlsplit(url).hostname:
        raise ConfigError(f"{address!r} names no host", hint="enginekit plan http://HOST:PORT")
    client = Client({"base_url": url, "model": name or None}, where="model")
    try:
        facts = client.connect()
        engine, wanted = client.engine, name or client.model
    finally:
        client.close()
    if facts is None or engine is None:
        raise ModelNotFound(f"{url} says nothing of its models", hint="name the model itself")
    card = _card(facts, wanted, url)
    spec = _spec(facts, card, url)
    if spec is None:
        raise ModelNotFound(
            f"{url} says too little of {wanted or 'its model'} to know its size",
            hint="enginekit plan MODEL    (a catalog name, a file or hf://owner/repo)",
        )
    context, users, note = _running(facts, card)
    return Served(
        spec=spec,
        engine=engine.name,
        version=facts.version or "",
        images=seeing(facts, card.id),
        path=_here(facts, card),
        context=context,
        users=users,
        note=note,
    )


def _running(facts: ServerFacts, card: ModelCard) -> tuple[int | None, int, str]:
    """Tokens per request, requests that have so many, and what remains in doubt."""
    if card.loaded is False:
        return None, 1, ""
    window, slots = card.context_window or facts.context_window, facts.slots or 1
    if slots > 1 and facts.extra.get("slots_may_share"):
        note = (
            f"the server does not say whether its {slots} slots share one cache, as they do where "
            f"nobody gave -np: one user is planned for (--users {slots} for a cache each)"
        )
        return window, 1, note
    return window, slots, ""


def _places(facts: ServerFacts, card: ModelCard) -> list[str]:
    """Paths of the model's file or folder, as the server names them."""
    places = [facts.extra.get("model_path"), card.extra.get("root")]
    status = card.extra.get("status")
    words = status.get("args") if isinstance(status, Mapping) else None
    if isinstance(words, list) and "--model" in words[:-1]:
        # A router's models are children with a command line of their own.
        places.insert(0, words[words.index("--model") + 1])
    return [str(place) for place in places if place]


def _here(facts: ServerFacts, card: ModelCard) -> str:
    return next((place for place in _places(facts, card) if Path(place).exists()), "")


def _card(facts: ServerFacts, wanted: str, url: str) -> ModelCard:
    card = facts.model(wanted) if wanted else None
    if card is None and len(facts.models) == 1:
        card = facts.models[0]
    if card is None:
        listed = ", ".join(one.id for one in facts.models[:8]) or "none"
        raise ModelNotFound(
            f"{url} has {len(facts.models)} models: {listed}",
            hint=f"enginekit plan '{url}#NAME'",
        )
    return card


def seeing(facts: ServerFacts, model: str) -> bool | None:
    """Whether the server takes images or sound for this model; None if it did not say."""
    told = [facts.told("images", model), facts.told("audio", model)]
    if any(each is not None and each.support != "none" for each in told):
        return True
    return None if None in told else False


def _spec(facts: ServerFacts, card: ModelCard, url: str) -> ModelSpec | None:
    from enginekit import catalog

    place = _here(facts, card)
    if place:
        return catalog.describe(place)
    shown, size = card.extra.get("show"), card.extra.get("size")
    if isinstance(shown, Mapping) and shown.get("model_info"):
        return catalog.describe_ollama(shown, card.id, size=size if isinstance(size, int) else 0)
    for name in (*_places(facts, card), card.id, *card.aliases):
        found = catalog.find(name) or catalog.find(name.rsplit("/", 1)[-1])
        if found is not None:
            known = found.spec
            return replace(known, quantization=found.quantization or known.quantization)
    return _by_size(card.extra, card.id, url)


def _by_size(meta: Mapping[str, Any], name: str, url: str) -> ModelSpec | None:
    """What is left where only numbers are known: a size, and a cache that is not to be guessed."""
    params, size = meta.get("n_params"), meta.get("size")
    if not isinstance(params, int) or not isinstance(size, int) or params <= 0 or size <= 0:
        return None
    told = Origin(source=f"{url}: /v1/models", confidence="exact")
    return ModelSpec(
        name=name,
        architecture="unknown",
        layers=(),
        hidden=int(meta.get("n_embd") or 0),
        vocab=int(meta.get("n_vocab") or 0),
        context_length=int(meta.get("n_ctx_train") or 0),
        known_layout=False,
        params_total=params,
        format="gguf",
        weight_bytes=size,
        file_bytes=size,
        provenance={"params_total": told, "weight_bytes": told},
    )
