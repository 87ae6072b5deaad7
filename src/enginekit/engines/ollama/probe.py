"""What an Ollama server says of itself and of its models, as facts.

A server holds many models, and what it can do depends on the model. So the facts about each are in
its card, and the facts of the server are those of the model in focus: the one configured, else the
only one loaded, else the only one there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from enginekit.engines.ollama.profile import (
    HONEST_SINCE,
    MODELFILE,
    PROFILE,
    SMALLEST_WINDOW,
    WINDOW_RULE,
    older_than,
    version_tuple,
)
from enginekit.facts.engine import Capability, Feature, ModelCard, ServerFacts

Path = Literal["rendered", "native"]
"""How a chat becomes a prompt: `rendered` by Ollama from its Go TEMPLATE, or `native`, by the model's
own Jinja template. The two differ in tool calls, plain JSON mode, overflow and prefill."""

_LIBRARY: Final = "library/"
_REGISTRY: Final = f"registry.ollama.ai/{_LIBRARY}"


def full_name(model: str) -> str:
    """The name as the server lists it: case does not count, and the tag is `latest` by default."""
    name = model.strip().lower().removeprefix("https://").removeprefix(_REGISTRY)
    name = name.removeprefix(_LIBRARY)
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def is_cloud(model: str) -> bool:
    """Whether a name means a model that runs on ollama.com: `gpt-oss:120b-cloud`, `name:cloud`."""
    return full_name(model).endswith((":cloud", "-cloud"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is known of one model. None is "the server did not say".

    Attributes:
        capabilities: Ollama's words: completion, tools, thinking, vision, insert, embedding, audio.
        lacking: those that a version which does not list them (before 0.6.4) refused.
        path: which code renders its chats.
        trained: the longest context it was trained on, in tokens.
        num_ctx: the window its Modelfile sets.
        num_batch: tokens its runner takes at once, where its Modelfile says so.
        pooling: llama.cpp's number of how an embedding model pools: 1 mean, 2 first, 3 last token.
        window: the window it is loaded with right now.
        defaults: sampling defaults its Modelfile sets, by our names.
        system: its Modelfile has a system prompt, put first when a chat has none.
        examples: its Modelfile has messages, put before every chat.
        remote: the host it runs on, when not this server.
    """

    capabilities: tuple[str, ...] | None = None
    lacking: tuple[str, ...] = ()
    path: Path | None = None
    trained: int | None = None
    num_ctx: int | None = None
    num_batch: int | None = None
    pooling: int | None = None
    window: int | None = None
    defaults: Mapping[str, Any] | None = None
    system: bool = False
    examples: bool = False
    remote: str = ""
    family: str = ""

    def lacks(self, capability: str) -> bool:
        """Whether the server says that the model does not have this."""
        if capability in self.lacking:
            return True
        return self.capabilities is not None and capability not in self.capabilities

    def has(self, capability: str) -> bool:
        """Whether the server says that the model has this."""
        return self.capabilities is not None and capability in self.capabilities


def read_model(
    listed: Mapping[str, Any], loaded: Mapping[str, Any] | None, shown: Mapping[str, Any] | None
) -> ModelFacts:
    """Facts of one model from its items of `/api/tags`, `/api/ps` and the answer of `/api/show`."""
    shown = shown or {}
    details = listed.get("details") or {}
    info = shown.get("model_info") or {}
    capabilities = shown.get("capabilities") or listed.get("capabilities")
    parameters = read_parameters(shown.get("parameters") or "")
    trained = info.get(f"{info.get('general.architecture')}.context_length")
    return ModelFacts(
        capabilities=tuple(sorted(capabilities)) if capabilities else None,
        path=_path(shown),
        trained=trained or details.get("context_length"),
        num_ctx=parameters.get("num_ctx"),
        num_batch=parameters.get("num_batch"),
        pooling=info.get(f"{info.get('general.architecture')}.pooling_type"),
        window=(loaded or {}).get("context_length") or None,
        defaults={
            field: parameters[name] for name, field in MODELFILE.items() if name in parameters
        },
        system=bool(shown.get("system")),
        examples=bool(shown.get("messages")),
        remote=shown.get("remote_host") or listed.get("remote_host") or "",
        family=details.get("family") or "",
    )


def _path(shown: Mapping[str, Any]) -> Path | None:
    template = shown.get("template") or ""
    if shown.get("renderer") or shown.get("parser"):
        return "rendered"
    if "{%" in template:
        return "native"
    return "rendered" if "{{" in template else None


def read_parameters(text: str) -> dict[str, Any]:
    """The `parameters` text of `/api/show`: a name and a value a line; `stop` comes several times."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, _, rest = line.strip().partition(" ")
        value = _value(rest.strip())
        if not name:
            continue
        if name == "stop":
            found.setdefault(name, []).append(value)
        else:
            found[name] = value
    return found


def _value(text: str) -> Any:
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)


def card(
    listed: Mapping[str, Any], loaded: Mapping[str, Any] | None, shown: Mapping[str, Any] | None
) -> ModelCard:
    """The card of one model; its facts are in `extra["model"]`."""
    name = str(listed.get("name") or listed.get("model"))
    model = read_model(listed, loaded, shown)
    short = name.removesuffix(":latest")
    return ModelCard(
        id=name,
        context_window=model.window,
        aliases=(short,) if short != name else (),
        loaded=loaded is not None,
        extra={
            "model": model,
            "size": listed.get("size"),
            "size_vram": (loaded or {}).get("size_vram"),
            "expires_at": (loaded or {}).get("expires_at"),
            "details": listed.get("details") or {},
            "show": {
                name: value
                for name, value in (shown or {}).items()
                if name in ("model_info", "details", "capabilities", "tensors", "template")
            },
        },
    )


def server_facts(
    version: str | None, cards: Sequence[ModelCard], focus: ModelCard | None
) -> ServerFacts:
    """Everything the probe learned, the capabilities narrowed to those of the model in focus."""
    model = None if focus is None else focus.extra["model"]
    window, source = effective_window(focus)
    numbers = version_tuple(version)
    newest = version_tuple(PROFILE.tested[-1])
    verified = numbers is None or newest is None or numbers[:2] <= newest[:2]
    return ServerFacts(
        version=version,
        models=tuple(cards),
        context_window=window,
        context_source=source,
        trained_context=None if model is None else model.trained,
        modalities=_modalities(model),
        capabilities={} if model is None else model_capabilities(model),
        template_tools=None if model is None or model.capabilities is None else model.has("tools"),
        verified=verified,
        notes=tuple(_notes(version, model, verified)),
        extra={"focus": focus.id} if focus is not None else {},
    )


def effective_window(focus: ModelCard | None) -> tuple[int | None, str]:
    """How many tokens a request may use, and where that number is from.

    Only a loaded model has a window for certain; before that the rule that Ollama would apply says
    what is safe to count on.
    """
    if focus is None:
        return None, "the window depends on the model: /api/ps has it once one is loaded"
    model: ModelFacts = focus.extra["model"]
    if model.window is not None:
        return model.window, f"/api/ps: {focus.id} is loaded with it"
    if model.remote or is_cloud(focus.id):
        return model.trained, f"{focus.id} runs on ollama.com; this is what /api/show names"
    capped = model.trained or model.num_ctx or SMALLEST_WINDOW
    if model.num_ctx is not None:
        return min(model.num_ctx, capped), f"num_ctx in the Modelfile of {focus.id} (not loaded)"
    return (
        min(SMALLEST_WINDOW, model.trained or SMALLEST_WINDOW),
        f"the least that Ollama's rule gives {focus.id}, which is not loaded: {WINDOW_RULE}, or "
        "OLLAMA_CONTEXT_LENGTH",
    )


_CAPABILITIES: Final[Mapping[Feature, tuple[str, str]]] = {
    "chat": ("completion", "the model makes embeddings and no text"),
    "completion": ("completion", "the model makes embeddings and no text"),
    "reasoning": ("thinking", "the model does not think"),
    "images": ("vision", "the model takes no images"),
    "audio": ("audio", "the model takes no audio"),
    "embeddings": ("embedding", "the model makes no embeddings"),
    "fim": ("insert", "the model's template has no suffix"),
}


def model_capabilities(model: ModelFacts) -> dict[Feature, Capability]:
    """What the server says that this model can do."""
    if model.capabilities is None:
        return {}
    found: dict[Feature, Capability] = {
        feature: Capability(support="native", evidence="probed")
        if name in model.capabilities
        else Capability(support="none", evidence="probed", note=why)
        for feature, (name, why) in _CAPABILITIES.items()
    }
    if "tools" in model.capabilities:
        found["tools"] = Capability(support="native", evidence="probed")
    elif "completion" in model.capabilities:
        note = "the model's template has no tools: described in the prompt, enforced by a schema"
        found["tools"] = Capability(support="emulated", evidence="probed", note=note)
    else:
        found["tools"] = found["chat"]
    return found


def _modalities(model: ModelFacts | None) -> tuple[str, ...]:
    if model is None or model.capabilities is None:
        return ()
    words = {"completion": "text", "embedding": "text", "vision": "image", "audio": "audio"}
    return tuple(dict.fromkeys(kind for word, kind in words.items() if model.has(word)))


def _notes(version: str | None, model: ModelFacts | None, verified: bool) -> list[str]:
    notes = []
    if not verified:
        notes.append(
            f"Ollama {version} is newer than {PROFILE.tested[-1]}, the newest that was tested"
        )
    if older_than(version, HONEST_SINCE):
        notes.append(
            f"Ollama {version} cuts a prompt that is too long without saying so; "
            f"{'.'.join(map(str, HONEST_SINCE))} and later can be told not to"
        )
    if model is not None and model.remote:
        notes.append(f"the model runs on {model.remote}, not on this server")
    return notes
