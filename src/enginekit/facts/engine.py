"""What is known of an engine: nouns that can do nothing.

A profile is fixed knowledge about a kind of engine; `ServerFacts` is what one running server said
of itself. Every capability knows on which evidence it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Feature = Literal[
    "chat",
    "completion",
    "stream",
    "tools",
    "tool_choice_required",
    "tool_choice_named",
    "parallel_tool_calls",
    "stream_tools",
    "json",
    "json_schema",
    "regex",
    "grammar",
    "choice",
    "logprobs",
    "n",
    "reasoning",
    "images",
    "image_urls",
    "audio",
    "embeddings",
    "rerank",
    "tokenize",
    "detokenize",
    "count_tokens",
    "fim",
    "lora",
    "context_per_request",
    "keep_alive",
    "metrics",
    "load",
    "unload",
    "version",
]
"""Everything that a user can ask for and some engine cannot do."""

Support = Literal["native", "emulated", "none", "server"]
"""`server`: it depends on the server's flags or model and is unknown until `probe()`."""

Evidence = Literal["documented", "probed", "observed"]
"""`documented`: in the engine's docs or source; `probed`: the running server says so;
`observed`: seen happening on a running server of a tested version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """Whether a feature is there, how we know, and what to say about it.

    `note` is the reason or the server flag that would change it.
    """

    support: Support
    evidence: Evidence = "documented"
    note: str = ""

    @property
    def usable(self) -> bool:
        """Whether a request that needs it may be sent at all."""
        return self.support != "none"


NATIVE = Capability(support="native")
EMULATED = Capability(support="emulated")
NONE = Capability(support="none")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """Fixed facts about a kind of engine. Defaults are conservative: an engine opts in.

    Attributes:
        name: what users type and the receipt says.
        wire: the wire format, for people (`"OpenAI chat completions, SSE"`).
        default_url: where a server of this kind listens when nothing else is configured.
        url_env: the engine's own environment variable for its address, if it has one.
        capabilities: what is absent from the mapping is `none`.
        defaults: the server's own sampling defaults, by field name of `Sampling`.
        min_context: the smallest window such a server is known to start with, in tokens.
        roles: what it is used for: `local`, `desktop`, `edge`, `server`, `cluster`, `production`.
        memory: how it takes memory: `grow`, `preallocate` or `file` (mapped weights).
        sizing: name of the policy in `enginekit.sizing.policy`; empty: the rules that `memory`
            implies, without a command.
        weight_formats: `gguf`, `safetensors`, `mlc`.
        model_id: which form of a model name it wants: `any`, `served`, `tag`, `hub`.
        tested: server versions seen running, oldest first; empty for an engine that is known from
            its documentation only.
        sources: what was read of it, with its version; wanted where nothing was `tested`.
        imitates: engines whose routes such a server answers as well; it is the one that is meant.
        start_command: a command line that starts a server, with `{model}` in it.
        starts_itself: enginekit starts this engine in a child process when nothing is configured.
        retired: one sentence when upstream has retired the engine, else "".
        many_models: one server has models that differ, so that what a refusal tells of a feature
            is told of the model that was asked for.
    """

    name: str
    title: str
    wire: str
    docs_url: str = ""
    default_url: str = ""
    url_env: str = ""
    capabilities: Mapping[Feature, Capability] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    min_context: int = 2048
    roles: frozenset[str] = frozenset()
    memory: Literal["grow", "preallocate", "file"] = "grow"
    sizing: str = ""
    weight_formats: tuple[str, ...] = ()
    model_id: Literal["any", "served", "tag", "hub"] = "served"
    tested: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    imitates: frozenset[str] = frozenset()
    start_command: str = ""
    starts_itself: bool = False
    retired: str = ""
    many_models: bool = False

    def capability(self, feature: Feature) -> Capability:
        """The capability, `none` if the profile does not mention it."""
        return self.capabilities.get(feature, NONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One model a server lists. `context_window` in tokens where the list says so."""

    id: str
    context_window: int | None = None
    aliases: tuple[str, ...] = ()
    loaded: bool | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What one running server said of itself. None is "it did not say".

    Attributes:
        context_window: tokens one request may use, prompt and output together.
        context_source: where that number came from, for people.
        slots: how many requests it decodes at once.
        capabilities: those that the probe narrowed or widened; they win over the profile's.
        by_model: the same for one model of a server that has several, by the name it is asked for;
            they win over those of the server.
        template_tools: whether the chat template knows tools.
        verified: False when the version is newer than any that was tested.
        notes: what a person should know, one sentence each.
    """

    version: str | None = None
    models: tuple[ModelCard, ...] = ()
    context_window: int | None = None
    context_source: str = ""
    trained_context: int | None = None
    slots: int | None = None
    modalities: tuple[str, ...] = ()
    capabilities: Mapping[Feature, Capability] = field(default_factory=dict)
    by_model: Mapping[str, Mapping[Feature, Capability]] = field(default_factory=dict)
    template_tools: bool | None = None
    verified: bool = True
    notes: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def model(self, name: str) -> ModelCard | None:
        """The card of a model by its id or an alias."""
        for card in self.models:
            if name == card.id or name in card.aliases:
                return card
        return None

    def told(self, feature: Feature, model: str = "") -> Capability | None:
        """What was found out about a feature, for a model; None when nothing was."""
        if model in self.by_model and feature in self.by_model[model]:
            return self.by_model[model][feature]
        return self.capabilities.get(feature)

    def with_told(self, found: Mapping[Feature, Capability], model: str = "") -> ServerFacts:
        """The facts with more found out, of the server or of one `model`."""
        if not model:
            return replace(self, capabilities={**self.capabilities, **found})
        own = {**self.by_model.get(model, {}), **found}
        return replace(self, by_model={**self.by_model, model: own})

    def of(self, model: str) -> ServerFacts:
        """The facts with what is known of one model laid over them."""
        own = self.by_model.get(model)
        if not own:
            return self
        return replace(self, capabilities={**self.capabilities, **own}, by_model={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy a server is: every engine's metrics in one shape. None is "it does not say".

    `kv_cache_usage` is a fraction from 0 to 1; `running` and `waiting` count requests.
    """

    running: int | None = None
    waiting: int | None = None
    kv_cache_usage: float | None = None
    prompt_tokens_total: int | None = None
    generated_tokens_total: int | None = None
    extra: Mapping[str, float] = field(default_factory=dict)
