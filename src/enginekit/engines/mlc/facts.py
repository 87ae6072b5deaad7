"""What is known of MLC LLM: its profile, parameters, what its refusals mean, its metrics.

Seen running as v0.26.dev0 (79d603f) on CPU. Three inputs end its engine thread for every client
(an empty stop string, more than five top log-probabilities, a schema without a usable root); the
server then accepts requests for ever and answers none. They are refused here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from enginekit.engines._fault import Case, overflow_facts
from enginekit.engines._params import Rule, Table, omitted, sent
from enginekit.errors import BadRequest, ContextOverflow, ModelNotFound, Unsupported
from enginekit.facts.engine import Capability, EngineProfile, Load, ModelCard, ServerFacts

MAX_TOP: Final = 5
"""More alternatives end the engine thread with the CPU sampler; the server itself allows 20."""

NO_HISTORY: Final = (
    "the server answers 400 'Assistant message having `tool_calls` is not supported yet.', and 500 "
    "to a message of role tool"
)
HISTORY_HINT: Final = (
    'set tool_history = "text" in [engines.mlc.options] to tell calls and results as plain turns'
)
WINDOW_HINT: Final = (
    "set context_window in [engines.mlc.options] to context_window_size of the model's "
    "mlc-chat-config.json"
)
EMULATED: Final = (
    "by a JSON schema: unless the conversation template has {function_string}, tools never reach "
    "the prompt; with the option native_tools = true they are sent"
)


def _seen(note: str = "") -> Capability:
    return Capability(support="native", evidence="observed", note=note)


def _none(note: str) -> Capability:
    return Capability(support="none", evidence="observed", note=note)


def _emulated(note: str) -> Capability:
    return Capability(support="emulated", evidence="observed", note=note)


PROFILE: Final = EngineProfile(
    name="mlc",
    title="MLC LLM",
    wire="OpenAI chat completions, SSE",
    docs_url="https://llm.mlc.ai/docs/deploy/rest.html",
    default_url="http://127.0.0.1:8000",
    capabilities={
        "chat": _seen(),
        "completion": _seen(),
        "stream": _seen("a dead engine is silent for ever: only a time limit notices"),
        "tools": _emulated(EMULATED),
        "tool_choice_required": _emulated("by a JSON schema; the server refuses it with 422"),
        "tool_choice_named": _emulated("by a JSON schema; the server only shortens the prompt"),
        "parallel_tool_calls": _none("a call by schema is always a single one"),
        "stream_tools": _emulated("lifted from the text as it comes"),
        "json": _seen("checked to be an object: the server gives any JSON value"),
        "json_schema": _seen("as a JSON string"),
        "regex": _none("it has JSON schemas only"),
        "grammar": _none("it has JSON schemas only"),
        "choice": _emulated("by an enum in a JSON schema"),
        "logprobs": _seen("at most 5 alternatives; values are taken after the temperature"),
        "n": _seen(),
        "reasoning": _seen("inline <think> is split off; there is no switch"),
        "images": Capability(
            support="server", evidence="observed", note="a vision model; 500 from a text model"
        ),
        "image_urls": Capability(
            support="server", evidence="observed", note="a vision model; 500 if unreachable"
        ),
        "audio": _none("no audio part"),
        "embeddings": Capability(
            support="server",
            evidence="observed",
            note="--embedding-model and --embedding-model-lib",
        ),
        "rerank": _none("no such route"),
        "tokenize": _none("no such route"),
        "detokenize": _none("no such route"),
        "count_tokens": _none("no such route"),
        "fim": _none("suffix is not fill-in-the-middle: it is appended to the answer"),
        "lora": _none("adapters are merged when the model is converted"),
        "metrics": _seen("counters only; no queue"),
        "version": _none("no route tells it"),
    },
    defaults={
        "temperature": "mlc-chat-config.json of the model, else 1.0",
        "top_p": "mlc-chat-config.json of the model, else 1.0",
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "max_tokens": "the rest of the context",
        "n": 1,
    },
    min_context=1024,
    roles=frozenset({"edge", "local", "server"}),
    memory="preallocate",
    sizing="compiled-pool",
    weight_formats=("mlc",),
    model_id="any",
    tested=("0.26.dev0 (79d603f)",),
    start_command="mlc_llm serve {model} --mode server --host 127.0.0.1 --port 8000",
)


def _stops(stops: Sequence[str]) -> Rule:
    given = [stop for stop in stops if stop]
    if len(given) == len(stops):
        return Rule(wire="stop", value=list)
    return Rule(
        outcome="translated",
        wire="stop" if given else "",
        value=lambda _: given,
        case="empty",
        note="empty stop strings, which end the server's engine for good, were left out",
    )


_IGNORED: Final = omitted("the server ignores it")

SAMPLING: Final[Table] = {
    "temperature": sent("temperature", 0),
    "top_p": sent("top_p", 0, 1),
    "top_k": _IGNORED,
    "min_p": _IGNORED,
    "typical_p": _IGNORED,
    "repetition_penalty": _IGNORED,
    "repetition_window": _IGNORED,
    "min_tokens": _IGNORED,
    "ignore_eos": omitted("only a server with --enable-debug has it"),
    "mirostat": omitted("MLC has no Mirostat"),
    "mirostat_tau": omitted("MLC has no Mirostat"),
    "mirostat_eta": omitted("MLC has no Mirostat"),
    "seed": sent("seed", -(2**63), 2**63 - 1),
    "max_tokens": sent("max_tokens", 1),
    "stop": _stops,
    "frequency_penalty": sent("frequency_penalty", -2, 2),
    "presence_penalty": sent("presence_penalty", -2, 2),
    "logit_bias": Rule(
        outcome="translated",
        wire="logit_bias",
        value=lambda bias: {str(int(token)): float(by) for token, by in bias.items()},
        note="token ids as the keys of an object",
    ),
    "logprobs": sent("logprobs"),
    "top_logprobs": sent("top_logprobs", 0, MAX_TOP),
    "n": sent("n", 1),
}
"""`max_tokens` has this one name here: `max_completion_tokens` is ignored."""


# ---------------------------------------------------------------------------------- faults


def _feature(name: str) -> Any:
    return lambda fault, match: {"feature": name, "rule": f"mlc.{name}"}


FAULTS: Final[tuple[Case, ...]] = (
    Case(
        error=ContextOverflow,
        name="context",
        text=r"(?:prompt has (?P<requested>\d+) tokens.*?)?"
        r"larger than the model input length limit(?: (?P<limit>\d+))?",
        facts=overflow_facts,
        hint="shorten the conversation, or start the server with a larger "
        "--overrides context_window_size=N",
    ),
    Case(
        error=Unsupported,
        name="embeddings",
        text="is not served as an embedding model",
        facts=_feature("embeddings"),
        hint="start the server with --embedding-model and --embedding-model-lib",
    ),
    Case(
        error=ModelNotFound,
        name="model",
        status=(400,),
        text=r'the requested model "(?P<model>[^"]*)" is not served',
    ),
    Case(
        error=Unsupported,
        name="history",
        status=(400,),
        text="having `tool_calls` is not supported",
        facts=_feature("tools"),
        hint=HISTORY_HINT,
    ),
    Case(
        error=BadRequest,
        name="unchecked",
        status=(500,),
        text="^internal server error$",
        says="it could not read the request, and closes the connection after this",
        hint="look at the server's log: a value or a part of a message is one it does not take",
    ),
)


# ---------------------------------------------------------------------------------- schemas

_TYPES: Final = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_ROOTS: Final = ("type", "properties", "enum", "const", "anyOf", "oneOf", "allOf", "$ref")
_INNER: Final = ("items", "additionalProperties", "not")
_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED: Final = ("properties", "$defs", "definitions", "patternProperties")


def unusable(schema: Any) -> str | None:
    """Why this schema must not be sent, or None. A bad one ends the engine for every client.

    Recorded is the empty schema; unknown types, dangling references and patterns that do not
    compile are what the grammar compiler behind it rejects as well.
    """
    if not isinstance(schema, Mapping) or not any(schema.get(key) for key in _ROOTS):
        return "it has no root that says what to write (type, properties, enum, anyOf, …)"
    return _broken(schema, schema)


def _broken(schema: Any, root: Mapping[str, Any]) -> str | None:
    if not isinstance(schema, Mapping):
        return None
    kinds = schema.get("type")
    for kind in kinds if isinstance(kinds, list | tuple) else [kinds]:
        if kind is not None and kind not in _TYPES:
            return f"{kind!r} is no type"
    reference = schema.get("$ref")
    if isinstance(reference, str) and not _resolves(reference, root):
        return f"{reference} points at nothing"
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        try:
            re.compile(pattern)
        except re.error as error:
            return f"the pattern {pattern!r} does not compile: {error}"
    inner: list[Any] = [schema.get(key) for key in _INNER]
    for key in _LISTS:
        inner += schema.get(key) or ()
    for key in _NAMED:
        inner += (schema.get(key) or {}).values()
    return next((why for part in inner if (why := _broken(part, root))), None)


def _resolves(reference: str, root: Mapping[str, Any]) -> bool:
    here: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        if not isinstance(here, Mapping) or step not in here:
            return False
        here = here[step]
    return reference.startswith("#")


# ---------------------------------------------------------------------------------- probing


def facts_of(listing: Mapping[str, Any], options: Mapping[str, Any]) -> ServerFacts:
    """What a server says of itself in `/v1/models`, which is little, and what the options add."""
    window = options.get("context_window")
    notes: tuple[str, ...] = (
        "special tokens written in a message are read as those tokens by this server",
    )
    if window is None:
        notes = (
            f"the context window is unknown, {PROFILE.min_context} tokens are assumed: {WINDOW_HINT}",
            *notes,
        )
    return ServerFacts(
        models=tuple(
            ModelCard(id=item["id"], context_window=window, loaded=True)
            for item in listing.get("data") or ()
        ),
        context_window=window,
        context_source="the option context_window" if window else "",
        notes=notes,
    )


def read_counters(body: bytes) -> dict[str, float]:
    """MLC's metrics: `name`, a tab, a number; lines that begin with `#` are comments."""
    found: dict[str, float] = {}
    for line in body.decode("utf-8", "replace").splitlines():
        name, tab, number = line.partition("\t")
        if not tab or line.startswith("#"):
            continue
        try:
            found[name.strip()] = float(number)
        except ValueError:
            continue
    return found


def load_of(counters: Mapping[str, float]) -> Load:
    """MLC's counters in the common shape: it tells neither a queue nor the cache's use."""

    def count(name: str) -> int | None:
        value = counters.get(name)
        return None if value is None else int(value)

    return Load(
        prompt_tokens_total=count("prompt_tokens_sum"),
        generated_tokens_total=count("completion_tokens_sum"),
        extra=dict(counters),
    )
