"""Ollama as data: what it can do and on which evidence, its defaults, its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from enginekit.engines._params import Rule, Table, omitted, refused, sent
from enginekit.facts.engine import Capability, EngineProfile, Feature

WINDOW_RULE: Final = "4096 tokens below 23 GiB of video memory, 32768 from 23, 262144 from 47"
"""Ollama's choice of a window when neither request, Modelfile nor environment names one."""

SMALLEST_WINDOW: Final = 4096

HONEST_SINCE: Final = (0, 12, 6)
"""First version whose chat route has `truncate` and `shift`; older ones always cut silently."""
STREAMS_CALLS_SINCE: Final = (0, 4, 6)
"""First version that finds the calls in a stream; before it they came as raw text."""
SCHEMA_SINCE: Final = (0, 5, 0)
"""First version whose `format` takes a schema; before it the word `json` was all it knew."""
THINKS_SINCE: Final = (0, 9, 0)
"""First version with `think`; an older one drops the field without a word."""
LOGPROBS_SINCE: Final = (0, 12, 11)
"""First version with log-probabilities."""


def _seen(note: str = "") -> Capability:
    return Capability(support="native", evidence="observed", note=note)


def _emulated(note: str) -> Capability:
    return Capability(support="emulated", evidence="observed", note=note)


def _by_model(capability: str, note: str) -> Capability:
    return Capability(
        support="server", evidence="observed", note=f"{note} (capability {capability!r})"
    )


def _none(note: str) -> Capability:
    return Capability(support="none", evidence="observed", note=note)


CAPABILITIES: Final[Mapping[Feature, Capability]] = {
    "chat": _seen(),
    "completion": _seen("/api/generate with raw:true, so that no chat template is applied"),
    "stream": _seen("one JSON object a line"),
    "tools": _by_model("tools", "models whose template has tools; else emulated by a JSON schema"),
    "tool_choice_required": _emulated("the API has no tool_choice: enforced by a JSON schema"),
    "tool_choice_named": _emulated("the API has no tool_choice: enforced by a JSON schema"),
    "parallel_tool_calls": _emulated("the model decides; false keeps the first call"),
    "stream_tools": _seen("each call comes whole; Jinja templates: all of them on the last line"),
    "json": _seen('format "json"; a schema instead on models with a Jinja template'),
    "json_schema": _seen("format"),
    "regex": _emulated("as the pattern of a JSON string"),
    "choice": _emulated("as the enum of a JSON string"),
    "grammar": _none("the API takes no grammar"),
    "logprobs": _seen("up to 20 alternatives, since 0.12.11"),
    "n": _none("always one reply"),
    "reasoning": _by_model("thinking", "thinking models think unless told not to"),
    "images": _by_model("vision", "as bytes"),
    "image_urls": _none("images are taken as bytes only"),
    "audio": _by_model("audio", "as bytes"),
    "embeddings": _by_model("embedding", "/api/embed"),
    "rerank": _none("no route"),
    "tokenize": _none("no route"),
    "detokenize": _none("no route"),
    "count_tokens": _none("no route; the count comes with the reply"),
    "fim": _by_model("insert", "suffix"),
    "lora": _none("adapters are baked into a model by its Modelfile"),
    "context_per_request": _seen("options.num_ctx; a change reloads the model"),
    "keep_alive": _seen(),
    "metrics": _seen("/api/ps lists loaded models; there is no queue depth"),
    "load": _seen(),
    "unload": _seen(),
    "version": _seen(),
}

DEFAULTS: Final[Mapping[str, Any]] = {
    "temperature": 0.8,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.0,
    "typical_p": 1.0,
    "seed": -1,
    "max_tokens": -1,
    "repetition_penalty": 1.0,
    "repetition_window": 64,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}

MODELFILE: Final[Mapping[str, str]] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "seed": "seed",
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "repetition_window",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "stop": "stop",
}
"""Modelfile parameter to the field of `Sampling` whose default it sets."""

PROFILE: Final = EngineProfile(
    name="ollama",
    title="Ollama",
    wire="Ollama /api, JSON lines",
    docs_url="https://docs.ollama.com/api",
    default_url="http://127.0.0.1:11434",
    url_env="OLLAMA_HOST",
    capabilities=CAPABILITIES,
    defaults=DEFAULTS,
    min_context=SMALLEST_WINDOW,
    roles=frozenset({"local", "desktop"}),
    memory="file",
    sizing="tiered-context",
    weight_formats=("gguf", "safetensors"),
    model_id="tag",
    tested=("0.33.0-rc2",),
    start_command="ollama serve",
)


def _stop(value: tuple[str, ...]) -> Rule:
    kept = [text for text in value if text]
    if len(kept) == len(value):
        return Rule(outcome="sent", wire="options.stop", value=list)
    return Rule(
        outcome="translated",
        wire="options.stop",
        value=lambda _: kept,
        case="without_empty",
        note="empty stop strings were left out: they would stop nothing",
    )


def _one(value: int) -> Rule:
    if value == 1:
        return Rule(outcome="translated", note="one reply is what there always is")
    return refused("it gives one reply to a prompt", hint="ask once per alternative")


def _translated(wire: str, low: float | None = None, high: float | None = None) -> Rule:
    return Rule(outcome="translated", wire=wire, low=low, high=high, note=f"as {wire}")


_MIROSTAT: Final = omitted("Ollama has removed mirostat: it would warn in its log and ignore it")

SAMPLING: Final[Table] = {
    "temperature": sent("options.temperature", 0),
    "top_p": sent("options.top_p", 0, 1),
    "top_k": sent("options.top_k", 0),
    "min_p": sent("options.min_p", 0, 1),
    "typical_p": sent("options.typical_p", 0, 1),
    "seed": sent("options.seed"),
    # 0 means no limit at all where Ollama renders the template itself, and one token elsewhere.
    "max_tokens": _translated("options.num_predict", 1),
    "min_tokens": omitted("Ollama has no least length"),
    "stop": _stop,
    "repetition_penalty": _translated("options.repeat_penalty", 0),
    "repetition_window": _translated("options.repeat_last_n", -1),
    "frequency_penalty": sent("options.frequency_penalty"),
    "presence_penalty": sent("options.presence_penalty"),
    "logit_bias": refused("the API has no logit_bias"),
    "ignore_eos": omitted("Ollama cannot ignore the end token"),
    "mirostat": _MIROSTAT,
    "mirostat_tau": _MIROSTAT,
    "mirostat_eta": _MIROSTAT,
    "logprobs": sent("logprobs"),
    "top_logprobs": sent("top_logprobs", 0, 20),
    "n": _one,
}


def _seconds(value: float) -> int | float:
    """Seconds for the wire: negative is for ever, whole numbers without a fraction."""
    return -1 if value < 0 else int(value) if float(value).is_integer() else float(value)


SCALARS: Final[Table] = {
    "context_window": _translated("options.num_ctx", 4),
    "keep_alive": Rule(outcome="sent", wire="keep_alive", value=_seconds),
    "lora": refused(
        "adapters are baked into a model", hint="ollama create with ADAPTER in the Modelfile"
    ),
}


def version_tuple(version: str | None) -> tuple[int, ...] | None:
    """`"0.33.0-rc2"` as `(0, 33, 0)`; None for what is no version (a build from source says 0.0.0)."""
    if not version:
        return None
    try:
        numbers = tuple(int(part) for part in version.split("-")[0].split(".")[:3])
    except ValueError:
        return None
    return numbers if any(numbers) else None


def older_than(version: str | None, first: tuple[int, ...]) -> bool:
    """Whether a server certainly is older than `first`; an unknown version is not."""
    numbers = version_tuple(version)
    return numbers is not None and numbers < first
