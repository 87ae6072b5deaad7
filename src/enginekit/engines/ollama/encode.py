"""Requests to `/api/chat` and `/api/generate`, each field with its receipt. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from enginekit.engine import Encoded, Engine
from enginekit.engines._messages import Refusal
from enginekit.engines._params import Draft
from enginekit.engines._think import ThinkSplitter
from enginekit.engines._wrap import Echo, Inner, PrefixStrip
from enginekit.engines.ollama.decode import OllamaDecoder, OllamaWholeDecoder
from enginekit.engines.ollama.messages import POLICY, ollama_messages
from enginekit.engines.ollama.order import in_order
from enginekit.engines.ollama.probe import ModelFacts, is_cloud
from enginekit.engines.ollama.profile import (
    HONEST_SINCE,
    LOGPROBS_SINCE,
    SAMPLING,
    SCALARS,
    SCHEMA_SINCE,
    SMALLEST_WINDOW,
    THINKS_SINCE,
    older_than,
)
from enginekit.engines.ollama.shape import Plan, shape_text, shape_tools
from enginekit.errors import ContextOverflow
from enginekit.types import (
    UNSET,
    ChatRequest,
    CompletionRequest,
    Outcome,
    Sampling,
)

CHAT: Final = "/api/chat"
GENERATE: Final = "/api/generate"

_LEVELS: Final[Mapping[str, bool | str]] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}


def encode_chat(engine: Engine, model: ModelFacts, request: ChatRequest, stream: bool) -> Encoded:
    """A conversation to `/api/chat`."""
    draft = Draft(engine, request, "ollama")
    plan = Plan(model=model, path=CHAT, stream=stream, messages=request.messages)
    if not request.messages:
        draft.invalid("messages", "is empty: Ollama would load the model and answer nothing")
    if model.lacks("completion"):
        engine.refuse("chat", "the model makes embeddings only", rule="ollama.model.lacks_chat")
    draft.enter("model", "sent", {"model": request.model})
    shape_tools(engine, draft, request, plan)
    if request.constraint is not UNSET:
        shape_text(engine, draft, request.constraint, plan)
    if request.reasoning is not UNSET:
        _reasoning(draft, request.reasoning, plan)
    for key in request.template_options:
        draft.refuse(
            f"template_options.{key}",
            "its templates take no variables from a request",
            hint="to switch thinking use reasoning=",
        )
    headers = _scalars(draft, request, plan)
    _messages(engine, draft, plan)
    if "format" not in draft.body:
        if not model.has("thinking") or draft.body.get("think") is False:
            plan.wraps.append(ThinkSplitter)
    elif model.has("thinking"):
        draft.receipt.notes.append(
            "format holds only after the model has thought: an answer without thinking is checked "
            "by enginekit, and the token counts leave the thinking out"
        )
    return _finish(engine, draft, request, plan, headers, turn=len(request.messages))


def encode_completion(
    engine: Engine, model: ModelFacts, request: CompletionRequest, stream: bool
) -> Encoded:
    """A text to continue, or with a suffix a gap to fill, to `/api/generate`."""
    draft = Draft(engine, request, "ollama")
    # This route never takes the model's Jinja template, so plain JSON mode works on every model.
    plan = Plan(model=replace(model, path="rendered"), path=GENERATE, stream=stream)
    if not request.prompt:
        draft.invalid("prompt", "is empty: Ollama would load the model and answer nothing")
    if model.lacks("completion"):
        engine.refuse(
            "completion", "the model makes embeddings only", rule="ollama.model.lacks_chat"
        )
    draft.enter("model", "sent", {"model": request.model})
    draft.enter("prompt", "sent", {"prompt": request.prompt})
    _too_long(engine, request.prompt, request.context_window, plan)
    if request.suffix is None:
        draft.need("raw", True, note="no chat template around the prompt")
    elif model.lacks("insert"):
        draft.refuse(
            "suffix", "the model's template has no place for a suffix", case="lacks_insert"
        )
    else:
        draft.enter("suffix", "sent", {"suffix": request.suffix})
    if isinstance(request.echo, bool):
        draft.enter("echo", "emulated", note="the prompt is put in front of the text by enginekit")
        if request.echo:
            prompt = request.prompt
            plan.wraps.append(lambda inner: Echo(inner, prompt))
    if request.constraint is not UNSET:
        shape_text(engine, draft, request.constraint, plan)
    headers = _scalars(draft, request, plan)
    return _finish(engine, draft, request, plan, headers, turn=0)


# ---------------------------------------------------------------------------------- messages


def _messages(engine: Engine, draft: Draft, plan: Plan) -> None:
    model = plan.model
    policy = POLICY
    if model.lacks("vision"):
        policy = replace(policy, images="none")
    if model.lacks("audio"):
        policy = replace(policy, audio=False)
    try:
        wire, notes = ollama_messages(plan.messages, policy)
    except Refusal as refusal:
        rule = draft.rule_id("messages", refusal.feature)
        engine.refuse(refusal.feature, refusal.why, rule=rule)
    notes = [*notes, *plan.notes]
    last = plan.messages[-1]
    if last.role == "assistant" and last.text and not last.tool_calls:
        _prefill(last.text, plan, notes)
    if model.system and plan.messages[0].role not in ("system", "developer"):
        draft.receipt.notes.append("the system prompt of the model's Modelfile leads the chat")
    if model.examples:
        draft.receipt.notes.append("the messages of the model's Modelfile lead the chat")
    outcome: Outcome = "translated" if notes else "sent"
    draft.enter("messages", outcome, {"messages": wire}, note="; ".join(notes))


def _prefill(text: str, plan: Plan, notes: list[str]) -> None:
    if plan.model.path == "native":
        notes.append("the last turn is continued; its text, which the server repeats, is cut off")
        plan.wraps.insert(0, lambda inner: PrefixStrip(inner, text))
    else:
        notes.append("whether the last turn is continued depends on the model's template")


# ---------------------------------------------------------------------------------- the rest


def _reasoning(draft: Draft, wish: bool | str, plan: Plan) -> None:
    if isinstance(wish, str):
        if wish not in _LEVELS:
            draft.invalid("reasoning", f"must be one of {', '.join(_LEVELS)}, got {wish!r}")
        think = _LEVELS[wish]
    else:
        think = wish
    if older_than(draft.receipt.engine_version, THINKS_SINCE):
        why = "this version knows no think: whether it thinks is the model's own affair"
        draft.omit("reasoning", why, case="since")
        return
    if think is not False and plan.model.lacks("thinking"):
        draft.omit("reasoning", "the model does not think", case="lacks_thinking")
        return
    note = "" if think is wish else f"as think={think!r}"
    draft.enter("reasoning", "translated", {"think": think}, note=note or "as think")
    if think is False and plan.model.family.startswith("gptoss"):
        draft.receipt.notes.append("gpt-oss cannot be kept from thinking, only made to think less")


def _scalars(
    draft: Draft, request: ChatRequest | CompletionRequest, plan: Plan
) -> tuple[tuple[str, str], ...]:
    window = request.context_window
    trained = plan.model.trained
    if isinstance(window, int) and trained and window > trained:
        draft.invalid(
            "context_window",
            f"must be at most {trained}, the context this model was trained on (Ollama would "
            f"silently use that), got {window}",
        )
    values = {
        name: value
        for name in ("context_window", "keep_alive", "lora")
        if (value := getattr(request, name)) is not UNSET
    }
    draft.apply(SCALARS, values)
    loaded = plan.model.window
    if isinstance(window, int) and loaded and loaded != window:
        draft.receipt.notes.append(
            f"the model is loaded with a window of {loaded} tokens and will be loaded again"
        )
    if request.request_id is None:
        return ()
    note = "as the header X-Request-Id, for proxies: Ollama logs no id"
    draft.enter("request_id", "translated", note=note)
    return (("x-request-id", request.request_id),)


def _logprobs(draft: Draft, sampling: Sampling, plan: Plan) -> Sampling:
    """`top_logprobs` alone would give nothing; and some servers and combinations have none."""
    on = sampling.logprobs is True or (
        sampling.logprobs is UNSET and isinstance(sampling.top_logprobs, int)
    )
    if on and older_than(draft.receipt.engine_version, LOGPROBS_SINCE):
        draft.refuse("sampling.logprobs", "this version has no log-probabilities", hint="update it")
    if on and plan.sends_tools and plan.model.path == "native":
        draft.refuse(
            "sampling.logprobs",
            "models with a Jinja template have no log-probabilities together with tools",
            case="with_tools",
            hint="ask without tools, or force the call by tool_choice",
        )
    if sampling.logprobs is UNSET and on:
        draft.need("logprobs", True, note="top_logprobs alone would give nothing")
    if sampling.logprobs is False and isinstance(sampling.top_logprobs, int):
        draft.invalid("sampling.top_logprobs", "asks for alternatives while logprobs is off")
    return sampling


def _honest(draft: Draft, extra: Mapping[str, Any]) -> None:
    """Make the server refuse what does not fit; by default it cuts the prompt without a word."""
    asked = [name for name in ("truncate", "shift") if name in extra]
    if "truncate" not in asked:
        draft.need("truncate", False, note="a prompt that does not fit is refused, not cut")
    if "shift" not in asked:
        draft.need("shift", False, note="generation ends at the window, nothing is pushed out")
    for name in asked:
        if extra[name]:
            draft.receipt.notes.append(f"{name} is on by engine_options: text may be cut silently")


def _too_long(engine: Engine, text: str, asked: Any, plan: Plan) -> None:
    """On a server that cannot be told to refuse: refuse what certainly does not fit.

    Tokenizers do not put several words into one token, so words are a lower bound of tokens.
    """
    if not older_than(engine.version, HONEST_SINCE):
        return
    window = asked if isinstance(asked, int) else plan.model.window or plan.model.num_ctx
    window = window or SMALLEST_WINDOW
    words = len(text.split())
    if words > window:
        raise ContextOverflow(
            f"the prompt has at least {words} tokens, the window of {engine.name} {window}; version "
            f"{engine.version} would cut it without saying so",
            hint="update Ollama, shorten the prompt, or set context_window",
            engine=engine.name,
            url=engine.target.base_url,
            limit=window,
            requested=words,
        )


def _finish(
    engine: Engine,
    draft: Draft,
    request: ChatRequest | CompletionRequest,
    plan: Plan,
    headers: tuple[tuple[str, str], ...],
    *,
    turn: int,
) -> Encoded:
    if isinstance(request, ChatRequest):
        text = "\n".join(message.text for message in plan.messages)
        _too_long(engine, text, request.context_window, plan)
    draft.sampling(SAMPLING, _logprobs(draft, request.sampling, plan))
    draft.need("stream", plan.stream)
    _honest(draft, request.engine_options)
    if isinstance(draft.body.get("format"), Mapping):
        if older_than(engine.version, SCHEMA_SINCE):
            engine.refuse(
                "json_schema",
                f"version {engine.version} knows no schemas, and forced calls, choices and patterns "
                "are made by one",
                rule="ollama.constraint.since",
                hint=f"update Ollama to {'.'.join(map(str, SCHEMA_SINCE))} or later",
            )
        draft.body["format"] = in_order(draft.body["format"])
    draft.options()
    _defaults(draft, request, plan)
    receipt = draft.receipt
    if older_than(receipt.engine_version, HONEST_SINCE):
        receipt.notes.append("this version knows no truncate and may cut a long prompt silently")
    if plan.model.remote or is_cloud(request.model):
        receipt.notes.append("the model runs on ollama.com: the prompt leaves this server")
    framing, kind = ("ndjson", OllamaDecoder) if plan.stream else ("json", OllamaWholeDecoder)
    call = engine.call("POST", plan.path, draft.body, framing=framing)  # type: ignore[arg-type]
    limit = (draft.body.get("options") or {}).get("num_predict")
    path, wraps = plan.path, tuple(plan.wraps)

    def decoder() -> Any:
        made: Inner = kind(engine, turn=turn, path=path, limit=limit)
        for wrap in wraps:
            made = wrap(made)
        return made

    return Encoded(call=replace(call, headers=headers), receipt=receipt, decoder=decoder)


def _defaults(draft: Draft, request: ChatRequest | CompletionRequest, plan: Plan) -> None:
    """The server's defaults for what was left unset: the Modelfile's beat Ollama's own."""
    receipt = draft.receipt
    known = dict(receipt.defaults)
    known |= {
        name: value
        for name, value in (plan.model.defaults or {}).items()
        if getattr(request.sampling, name) is UNSET and receipt.outcome(f"sampling.{name}") is None
    }
    thinks = plan.model.capabilities is not None and plan.model.has("thinking")
    if isinstance(request, ChatRequest) and request.reasoning is UNSET and thinks:
        known["reasoning"] = True
    if request.context_window is UNSET and (plan.model.window or plan.model.num_ctx):
        known["context_window"] = plan.model.window or plan.model.num_ctx
    receipt.defaults = known
