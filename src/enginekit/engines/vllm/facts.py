"""What is known of vLLM: its profile, its parameter tables, what its refusals mean.

Seen running as 0.32.0 on CPU; request bodies of Ray Serve LLM are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from enginekit.engines._fault import Case, Fault, overflow_facts, retry_facts
from enginekit.engines._params import Rule, Table, omitted, sent
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineDied,
    EngineFault,
    ModelNotFound,
    Overloaded,
    Unauthorized,
    Unsupported,
)
from enginekit.facts.engine import Capability, EngineProfile, Feature, ModelCard, ServerFacts

NEWEST_TESTED: Final = (0, 32)
"""Newest minor version that was seen running."""

TOOL_FLAGS: Final = "--enable-auto-tool-choice --tool-call-parser NAME"
MAX_STOPS: Final = 4
"""`VLLM_MAX_STOP_STRINGS`: more are refused by the server."""


def _seen(note: str = "") -> Capability:
    return Capability(support="native", evidence="observed", note=note)


def _by_flag(note: str) -> Capability:
    return Capability(support="server", evidence="observed", note=note)


PROFILE: Final = EngineProfile(
    name="vllm",
    title="vLLM",
    wire="OpenAI chat completions, SSE",
    docs_url="https://docs.vllm.ai",
    default_url="http://127.0.0.1:8000",
    capabilities={
        "chat": _seen(),
        "completion": _seen(),
        "stream": _seen(),
        "tools": _by_flag(TOOL_FLAGS),
        "tool_choice_required": _by_flag("--tool-call-parser NAME"),
        "tool_choice_named": _by_flag("--tool-call-parser NAME"),
        "parallel_tool_calls": _seen(),
        "stream_tools": _seen(),
        "json": _seen(),
        "json_schema": _seen(),
        "regex": _seen(),
        "grammar": _seen("GBNF or Lark, by the structured-outputs backend"),
        "choice": _seen(),
        "logprobs": _seen("at most --max-logprobs, 20 by default"),
        "n": _seen(),
        "reasoning": _by_flag("--reasoning-parser NAME; without it thinking comes inline"),
        "images": _by_flag("a multimodal model"),
        "image_urls": _by_flag("a multimodal model; --allowed-media-domains limits the fetching"),
        "audio": _by_flag("a multimodal model"),
        "embeddings": _by_flag("--runner pooling --convert embed"),
        "rerank": _by_flag("a scoring model started with --runner pooling"),
        "tokenize": _seen(),
        "detokenize": _seen(),
        "count_tokens": _seen(),
        "fim": _by_flag("a model whose completions know fill-in-the-middle"),
        "lora": _by_flag("--enable-lora --lora-modules name=path"),
        "metrics": _seen(),
        "load": _by_flag("--enable-sleep-mode and VLLM_SERVER_DEV_MODE=1"),
        "unload": _by_flag("--enable-sleep-mode and VLLM_SERVER_DEV_MODE=1"),
        "version": _seen("GET /version"),
    },
    defaults={
        "temperature": "generation_config.json of the model, else 1.0",
        "top_p": "generation_config.json of the model, else 1.0",
        "top_k": "generation_config.json of the model, else off",
        "min_p": 0.0,
        "repetition_penalty": "generation_config.json of the model, else 1.0",
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "max_tokens": "the rest of the context",
        "min_tokens": 0,
        "n": 1,
    },
    min_context=2048,
    roles=frozenset({"server", "cluster", "production"}),
    memory="preallocate",
    weight_formats=("safetensors",),
    model_id="served",
    tested=("0.32.0",),
    start_command="vllm serve {model} --host 127.0.0.1 --port 8000 " + TOOL_FLAGS,
)


def stop_rule(stops: Sequence[str]) -> Rule:
    """Up to four stop strings are the server's; of more, all are enforced on our side, too."""
    if len(stops) <= MAX_STOPS and all(stops):
        return Rule(wire="stop", value=list)
    given = [stop for stop in stops if stop]
    if len(given) <= MAX_STOPS:
        return Rule(
            outcome="translated",
            wire="stop",
            value=lambda _: given,
            case="empty",
            note="empty stop strings, which the server refuses, were left out",
        )
    return Rule(
        outcome="emulated",
        wire="stop",
        value=lambda _: given[:MAX_STOPS],
        case="many",
        note=f"the server takes {MAX_STOPS}; the rest is enforced on the text by enginekit",
    )


SAMPLING: Final[Table] = {
    "temperature": sent("temperature", 0, 2),
    "top_p": sent("top_p", 0, 1, above=True),
    "top_k": sent("top_k", -1),
    "min_p": sent("min_p", 0, 1),
    "typical_p": omitted("vLLM has no typical sampling"),
    "seed": sent("seed", -(2**63), 2**63 - 1),
    "max_tokens": sent("max_tokens", 1),
    "min_tokens": sent("min_tokens", 0),
    "stop": stop_rule,
    "repetition_penalty": sent("repetition_penalty", 0, above=True),
    "repetition_window": omitted("the penalty always looks at the whole text"),
    "frequency_penalty": sent("frequency_penalty", -2, 2),
    "presence_penalty": sent("presence_penalty", -2, 2),
    "logit_bias": Rule(
        outcome="translated",
        wire="logit_bias",
        value=lambda bias: {str(int(token)): float(by) for token, by in bias.items()},
        note="token ids as the keys of an object",
    ),
    "ignore_eos": sent("ignore_eos"),
    "mirostat": omitted("vLLM has no Mirostat"),
    "mirostat_tau": omitted("vLLM has no Mirostat"),
    "mirostat_eta": omitted("vLLM has no Mirostat"),
    "logprobs": sent("logprobs"),
    "top_logprobs": sent("top_logprobs", 0, 20),
    "n": sent("n", 1, 16384),
}
"""The server checks these ranges itself; stated here, a wrong value costs no request."""


# ---------------------------------------------------------------------------------- faults


def _feature(name: str) -> Any:
    return lambda fault, match: {"feature": name, "rule": f"vllm.{name}"}


def missing_model(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
    """The name asked for, and those the server offers in its own message."""
    offered = re.search(r"Valid aliases: (.+?)\.?$", fault.message)
    near = tuple(name.strip() for name in offered[1].split(",")) if offered else ()
    return {"model": match["model"] if match is not None else "", "near": near}


FAULTS: Final[tuple[Case, ...]] = (
    Case(
        error=Overloaded,
        name="queue",
        status=(503,),
        text="currently busy|queue",
        facts=retry_facts,
        says="its queue is full",
    ),
    Case(
        error=ContextOverflow,
        name="context",
        text=r"maximum (?:context|model) length (?:is |of )(?P<limit>\d+)"
        r"(?:.*?(?:contains at least|requested|contains|prompt of) (?P<requested>\d+))?",
        facts=overflow_facts,
        hint="shorten the conversation, or start the server with a larger --max-model-len",
    ),
    Case(
        error=ContextOverflow,
        name="max-tokens",
        text=r"max_tokens=(?P<requested>\d+) cannot be greater than max_model_len=(?P<limit>\d+)",
        facts=overflow_facts,
        hint="ask for fewer tokens, or start the server with a larger --max-model-len",
    ),
    Case(
        error=ContextOverflow,
        name="context-param",
        param="input_tokens",
        facts=overflow_facts,
        hint="shorten the conversation, or start the server with a larger --max-model-len",
    ),
    Case(
        error=ModelNotFound,
        name="model",
        status=(404,),
        text=r"the model `(?P<model>[^`]*)` does not exist",
        facts=missing_model,
    ),
    Case(
        error=Unsupported,
        name="tools",
        text="requires --(?:enable-auto-tool-choice|tool-call-parser)",
        facts=_feature("tools"),
        hint=f"start the server with {TOOL_FLAGS}",
    ),
    Case(
        error=Unsupported,
        name="images",
        text="is not a multimodal model|does not support (?:image|multimodal)",
        facts=_feature("images"),
        hint="serve a model that sees",
    ),
    Case(
        error=Unsupported,
        name="infill",
        text="suffix is (?:only|not) ",
        facts=_feature("fim"),
        hint="serve a model with fill-in-the-middle",
    ),
    Case(error=Unsupported, name="flag", status=(400,), text=r"requires --|does not support"),
    Case(
        error=EngineDied,
        name="engine-dead",
        status=(500,),
        text="enginecore encountered|enginedead|cannot schedule new futures",
        says="its engine is gone; the server ends by itself after this",
        hint="look at the server's log and start it again",
    ),
    Case(error=Unauthorized, name="unauthorized", status=(401,)),
    Case(
        error=BadRequest,
        name="schema",
        status=(400,),
        type="Bad Request",
        says="the request's form",
    ),
    Case(error=EngineFault, name="fault", status=(500,)),
)


# ---------------------------------------------------------------------------------- probing


def facts_of(
    version: Mapping[str, Any], listing: Mapping[str, Any], *, tools: bool | None = None
) -> ServerFacts:
    """What a server says of itself in `/version` and `/v1/models`.

    `tools` is what a trial call told: True when it takes tools, None when none was made.
    """
    cards = model_cards(listing)
    told = version.get("version")
    verified, notes = judge_version(told)
    capabilities: dict[Feature, Capability] = {}
    if tools is not None:
        capabilities = tool_capabilities(tools)
    windows = [card.context_window for card in cards if card.context_window]
    return ServerFacts(
        version=told,
        models=cards,
        context_window=min(windows) if windows else None,
        context_source="max_model_len of GET /v1/models" if windows else "",
        capabilities=capabilities,
        verified=verified,
        notes=notes,
        extra={
            "lora": tuple(card.id for card in cards if card.extra.get("parent")),
        },
    )


def tool_capabilities(native: bool) -> dict[Feature, Capability]:
    """The capabilities of a server that was started with, or without, a tool parser."""
    capability = (
        Capability(support="native", evidence="probed")
        if native
        else Capability(
            support="emulated",
            evidence="probed",
            note=f"by a JSON schema; natively with {TOOL_FLAGS}",
        )
    )
    return {
        "tools": capability,
        "tool_choice_required": capability,
        "tool_choice_named": capability,
    }


def model_cards(listing: Mapping[str, Any]) -> tuple[ModelCard, ...]:
    """The models of `/v1/models`: one for each served name and each LoRA adapter."""
    return tuple(
        ModelCard(
            id=item["id"],
            context_window=item.get("max_model_len"),
            loaded=True,
            extra={"root": item.get("root"), "parent": item.get("parent")},
        )
        for item in listing.get("data") or ()
    )


def judge_version(version: str | None) -> tuple[bool, tuple[str, ...]]:
    """Whether this version was tested, and what to say if not."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    if match is None:
        return True, ()
    if (int(match[1]), int(match[2])) > NEWEST_TESTED:
        newest = ".".join(map(str, NEWEST_TESTED))
        return False, (f"vLLM {version} is newer than {newest}, the newest that was tested",)
    return True, ()
