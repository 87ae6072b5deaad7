"""What one running llama-server says of itself, from the bodies of its routes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from enginekit.engines.llamacpp.profile import NEWEST_TESTED
from enginekit.facts.engine import Capability, Feature, ModelCard, ServerFacts


def facts_of(
    props: Mapping[str, Any],
    listing: Mapping[str, Any],
    adapters: Sequence[Mapping[str, Any]] = (),
) -> ServerFacts:
    """What a server with one model says of itself in `/props`, `/v1/models`, `/lora-adapters`."""
    cards = model_cards(listing)
    settings = props.get("default_generation_settings") or {}
    window, source = settings.get("n_ctx"), "default_generation_settings.n_ctx of GET /props"
    if not window and cards:
        window, source = cards[0].context_window, "meta.n_ctx of GET /v1/models"
    meta = cards[0].extra if cards else {}
    template = props.get("chat_template") or ""
    caps = props.get("chat_template_caps") or {}
    version, verified, notes = version_of(props)
    return ServerFacts(
        version=version,
        models=cards,
        context_window=window or None,
        context_source=source if window else "",
        trained_context=meta.get("n_ctx_train"),
        slots=props.get("total_slots"),
        modalities=tuple(name for name, on in (props.get("modalities") or {}).items() if on),
        capabilities=_narrow(props, caps, template),
        template_tools=caps.get("supports_tools"),
        verified=verified,
        notes=notes,
        extra={
            "defaults": _server_defaults(settings.get("params") or {}),
            "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
            "chat_template_caps": dict(caps),
            "lora": tuple(
                (item.get("id"), str(item.get("path") or item.get("task_name") or ""))
                for item in adapters
            ),
            "model_path": props.get("model_path"),
            "sleeping": props.get("is_sleeping"),
            "media_marker": props.get("media_marker"),
            "slots_route": props.get("endpoint_slots"),
            # What llama-server takes by itself, and then with one cache; it does not tell which.
            "slots_may_share": props.get("total_slots") == AUTO_SLOTS,
            "meta": dict(meta),
        },
    )


AUTO_SLOTS: Final = 4
"""`-np` where nobody gives it, together with `--kv-unified` (tools/server/server.cpp)."""


def router_facts(
    props: Mapping[str, Any], listing: Mapping[str, Any], wanted: str | None = None
) -> ServerFacts:
    """What a router says of itself: its models, loaded or not.

    A window is known of a loaded model only; the server's is that of the model in use.
    """
    version, verified, notes = version_of(props)
    cards = model_cards(listing)
    in_use = next((card for card in cards if wanted in (card.id, *card.aliases)), None)
    window = None if in_use is None else in_use.context_window
    return ServerFacts(
        version=version,
        models=cards,
        context_window=window,
        context_source="meta.n_ctx of GET /models" if window else "",
        trained_context=None if in_use is None else in_use.extra.get("n_ctx_train"),
        verified=verified,
        notes=(*notes, "router mode: the first request to a model loads it"),
        capabilities={
            "load": Capability(support="native", evidence="probed"),
            "unload": Capability(support="native", evidence="probed"),
        },
        extra={
            "router": True,
            "max_models": props.get("max_instances"),
            "autoload": props.get("models_autoload", False),
        },
    )


def model_cards(listing: Mapping[str, Any]) -> tuple[ModelCard, ...]:
    """The models of `/v1/models`; in router mode each with its status."""
    cards = []
    for item in listing.get("data") or ():
        meta = item.get("meta") or {}
        status = (item.get("status") or {}).get("value")
        extra = {**meta, **({"status": item["status"]} if status is not None else {})}
        cards.append(
            ModelCard(
                id=item["id"],
                context_window=meta.get("n_ctx"),
                aliases=tuple(item.get("aliases") or ()),
                loaded=None if status is None else status in ("loaded", "sleeping"),
                extra=extra,
            )
        )
    return tuple(cards)


def version_of(props: Mapping[str, Any]) -> tuple[str | None, bool, tuple[str, ...]]:
    """Version, whether it was tested, and what to say about it."""
    version = props.get("build_info")
    match = re.match(r"b(\d+)", version or "")
    build = int(match[1]) if match else 0
    if build == 0:
        return version, True, ("the server does not know its build number",)
    if build > NEWEST_TESTED:
        return (
            version,
            False,
            (f"build {build} is newer than {NEWEST_TESTED}, the newest that was tested",),
        )
    return version, True, ()


def _narrow(
    props: Mapping[str, Any], caps: Mapping[str, Any], template: str
) -> dict[Feature, Capability]:
    found: dict[Feature, Capability] = {}
    probed = Capability(support="native", evidence="probed")
    modalities = props.get("modalities")
    if modalities is not None:
        no_eyes = Capability(
            support="none", evidence="probed", note="this model takes no images; --mmproj FILE"
        )
        found["images"] = found["image_urls"] = probed if modalities.get("vision") else no_eyes
        found["audio"] = (
            probed
            if modalities.get("audio")
            else Capability(
                support="none", evidence="probed", note="this model takes no audio; --mmproj FILE"
            )
        )
    if caps.get("supports_tools") is False:
        found["tools"] = Capability(
            support="emulated",
            evidence="probed",
            note="the chat template knows no tools: described in the prompt, enforced by a schema",
        )
    if template:
        thinks = "enable_thinking" in template or "<think>" in template
        found["reasoning"] = (
            probed
            if thinks
            else Capability(
                support="none", evidence="probed", note="the chat template has no thinking"
            )
        )
    if props.get("endpoint_metrics") is False and props.get("endpoint_slots") is False:
        found["metrics"] = Capability(
            support="none", evidence="probed", note="start the server with --metrics"
        )
    return found


_DEFAULT_NAMES: Final[Mapping[str, str]] = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repeat_penalty",
    "repetition_window": "repeat_last_n",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
    "ignore_eos": "ignore_eos",
}


def _server_defaults(params: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling defaults this very server was started with, by our field names."""
    told: dict[str, Any] = {}
    for ours, theirs in _DEFAULT_NAMES.items():
        if theirs in params:
            value = params[theirs]
            # The server keeps 32-bit floats: 0.800000011920929 is what it makes of 0.8.
            told[ours] = round(value, 6) if isinstance(value, float) else value
    limit = params.get("n_predict")
    if isinstance(limit, int) and limit > 0:
        told["max_tokens"] = limit
    return told
