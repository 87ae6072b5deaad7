"""What vLLM's request bodies mean, for every server that takes them: vLLM itself and Ray Serve LLM.

Tables, refusals and the steps of encoding; probing and the routes beside chat differ and are each
engine's own. Seen running as 0.32.0.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final, Literal

from enginekit.engine import Operation
from enginekit.engines import _openai_routes as routes
from enginekit.engines._fault import Case
from enginekit.engines._messages import MessagePolicy
from enginekit.engines._openai import OpenAIEngine, Plan, wire_tool
from enginekit.engines._params import Draft, Rule, Table, omitted, sent
from enginekit.engines._required import CallRequired
from enginekit.engines._think import AnswerInReasoning, ThinkSplitter
from enginekit.engines._vllm_faults import FAULTS
from enginekit.engines._wrap import Inner, StopCutter
from enginekit.errors import (
    EngineError,
    Unsupported,
)
from enginekit.facts.engine import Capability, Evidence, Feature
from enginekit.types import UNSET, ChatRequest, CompletionRequest, Constraint, EmbedRequest, Tool

TOOL_FEATURES: Final[frozenset[Feature]] = frozenset(
    {"tools", "tool_choice_required", "tool_choice_named"}
)
"""What a server without a tool parser lacks."""
MAX_STOPS: Final = 4
"""`VLLM_MAX_STOP_STRINGS`: more are refused by the server."""


def tools_by_parser(native: bool, evidence: Evidence, flags: str) -> dict[Feature, Capability]:
    """The capabilities of a model that has a tool parser, or would have with `flags`."""
    capability = (
        Capability(support="native", evidence=evidence)
        if native
        else Capability(
            support="emulated",
            evidence=evidence,
            note=f"by a JSON schema, one call at a time; natively with {flags}",
        )
    )
    found: dict[Feature, Capability] = dict.fromkeys(TOOL_FEATURES, capability)
    if not native:
        found["parallel_tool_calls"] = replace(capability, support="none")
    return found


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


# ---------------------------------------------------------------------------------- requests


STRUCTURED_SINCE: Final = (0, 11)
"""First version that knows `structured_outputs`; `guided_*` went with 0.12. Each of them is ignored
under HTTP 200 by versions that do not know it."""


SCHEMA_FORMAT_SINCE: Final = (0, 6, 4)
"""First version whose `response_format` takes a schema; before it `guided_json` does."""


_FIRST: Final = (0, 3)
"""Below it a number is none of vLLM's. One built without tags calls itself `0.1.dev1+g5cac6d5`, and
a server like vLLM counts its own; vLLM itself left 0.2 in January 2024."""


def _number(version: str | None) -> tuple[int, ...] | None:
    """The version of vLLM, or None where it is not told: then it is taken for a new one."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", version or "")
    number = () if found is None else tuple(int(part or 0) for part in found.groups())
    return number if number >= _FIRST else None


def structured_by(version: str | None) -> Literal["new", "old", "both"]:
    """Which fields constrain the text on this version; both where a server does not tell it."""
    number = _number(version)
    if number is None:
        return "both"
    return "new" if number >= STRUCTURED_SINCE else "old"


class VLLMRequests(OpenAIEngine):
    """An engine whose chat and completion bodies are vLLM's."""

    sampling: ClassVar[Table] = SAMPLING
    faults: ClassVar[tuple[Case, ...]] = FAULTS
    policy: ClassVar[MessagePolicy] = MessagePolicy(
        call_content="empty", reasoning="reasoning_content"
    )
    settles: ClassVar[frozenset[Feature]] = TOOL_FEATURES
    _window_hint: ClassVar[str] = "set max_tokens, or probe the server first"

    @abstractmethod
    def tool_capabilities(
        self, native: bool, evidence: Evidence = "probed"
    ) -> Mapping[Feature, Capability]:
        """The capabilities of a model with a tool parser, or without one."""

    def takes_tools(self, model: str) -> Operation[bool | None]:
        """Whether there is a tool parser for the model; None when unclear. Generates nothing."""
        try:
            return (yield from routes.takes_tools(self, model, self.chat_path))
        except EngineError:
            return None

    def learnt(self, refusal: Unsupported) -> Mapping[Feature, Capability]:
        """A model that reads text only takes no image by URL either, and no sound; and a version that
        cannot force some call does so by a schema."""
        if refusal.feature == "tool_choice_required":
            note = "by a JSON schema, one call at a time; natively since vLLM 0.8.3"
            fact = Capability(support="emulated", evidence="observed", note=note)
            return {"tool_choice_required": fact}
        found = super().learnt(refusal)
        if "images" in found and "is not a multimodal model" in refusal.message:
            return dict.fromkeys(("images", "image_urls", "audio"), found["images"])
        return found

    def _settle_tools(self, model: str) -> Operation[None]:
        native: bool | None = None
        if self.options.get("probe_tools") is not False:
            # Raises what says nothing of the server (late, loading): then nothing is remembered.
            native = yield from routes.takes_tools(self, model, self.chat_path)
        left_open = {feature: self.profile.capability(feature) for feature in TOOL_FEATURES}
        self.remember(left_open if native is None else self.tool_capabilities(native), model)

    def _chat_wraps(self) -> list[Callable[[Inner], Inner]]:
        return [ThinkSplitter, AnswerInReasoning]

    def _offer(self, draft: Draft, tools: Sequence[Tool], mode: str, plan: Plan) -> None:
        """A forced call keeps to the tool's schema only when the tool is `strict`.

        Without it the server forces the form of a call around any JSON: seen with another tool's
        arguments. A reply that is cut comes as text, the mark of a call in front.
        """
        if mode not in ("required", "named"):
            super()._offer(draft, tools, mode, plan)
            return
        plan.wraps.append(lambda inner: CallRequired(inner, self))
        if all(tool.strict is not None for tool in tools):
            super()._offer(draft, tools, mode, plan)
            return
        strict = [replace(tool, strict=tool.strict is not False) for tool in tools]
        draft.enter(
            "tools",
            "translated",
            {"tools": [wire_tool(tool) for tool in strict]},
            case="strict",
            note="strict: true, without which the arguments of a forced call may be any JSON",
        )

    def _prefill(self, draft: Draft, plan: Plan, notes: list[str]) -> None:
        last = plan.messages[-1]
        if last.role != "assistant" or last.tool_calls:
            return
        notes.append("the last assistant turn is continued")
        draft.need("continue_final_message", True, note="else the turn would be closed")
        draft.need("add_generation_prompt", False, note="goes with continue_final_message")

    def _sampling(
        self, draft: Draft, request: ChatRequest | CompletionRequest, plan: Plan
    ) -> Table:
        sampling = request.sampling
        table = dict(self.sampling)
        if sampling.top_logprobs is not UNSET and sampling.logprobs is UNSET:
            table["top_logprobs"] = Rule(
                outcome="translated",
                wire="logprobs top_logprobs",
                value=lambda top: {"logprobs": True, "top_logprobs": top},
                low=0,
                high=20,
                note="the server wants logprobs switched on as well",
            )
        if sampling.stop is not UNSET:
            stops = [stop for stop in sampling.stop if stop]
            if len(stops) > MAX_STOPS:
                plan.wraps.append(lambda inner: StopCutter(inner, stops))
        if isinstance(request, CompletionRequest) and sampling.max_tokens is UNSET:
            self._whole_context(draft, request.model)
        return table

    def _whole_context(self, draft: Draft, model: str) -> None:
        """Completions stop after 16 tokens unless told otherwise: ask for the whole window.

        The server cuts the number to what the prompt leaves.
        """
        card = self.facts.model(model) if self.facts is not None else None
        window = card.context_window if card is not None else None
        if window is None and self.facts is not None:
            window = self.facts.context_window
        if window is None:
            draft.refuse(
                "sampling.max_tokens",
                "completions are cut after 16 tokens by default, and the context window is unknown",
                case="unset",
                hint=self._window_hint,
            )
        draft.need(
            "max_tokens",
            window,
            case="max_tokens.rest",
            note="the rest of the context; the server's own default is 16 tokens",
        )

    def _request_id(self, draft: Draft, request_id: str) -> None:
        draft.enter("request_id", "sent", {"request_id": request_id})

    def _reasoning(self, draft: Draft, wish: bool | str, plan: Plan) -> None:
        if isinstance(wish, bool):
            # Templates disagree on the variable's name; one that is not used does no harm.
            parts = {
                "chat_template_kwargs.enable_thinking": wish,
                "chat_template_kwargs.thinking": wish,
            }
            draft.enter("reasoning", "translated", parts, note="variables of the chat template")
            return
        levels = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
        if wish not in levels:
            draft.invalid("reasoning", f"must be a bool or one of {', '.join(levels)}")
        draft.enter(
            "reasoning",
            "translated",
            {"reasoning_effort": wish},
            case="level",
            note="as reasoning_effort",
        )

    def _constrain(self, draft: Draft, constraint: Constraint, plan: Plan) -> None:
        kind, value = constraint.kind, constraint.value
        if kind not in ("regex", "choice", "grammar"):
            super()._constrain(draft, constraint, plan)
            return
        wanted = list(value) if kind == "choice" else value
        new: dict[str, Any] = {"structured_outputs": {kind: wanted}}
        old: dict[str, Any] = {f"guided_{kind}": wanted}
        version = structured_by(self.version) if self.facts is not None else "new"
        parts = {"new": new, "old": old, "both": {**new, **old}}[version]
        draft.enter("constraint", "translated", parts, case=kind, note=f"as {' and '.join(parts)}")

    def _schema_parts(
        self, schema: Mapping[str, Any], name: str, strict: bool | None
    ) -> dict[str, Any]:
        version = _number(self.version)
        if version is not None and version < SCHEMA_FORMAT_SINCE:
            return {"guided_json": schema}
        return super()._schema_parts(schema, name, strict)

    def _prompt(self, draft: Draft, request: CompletionRequest, plan: Plan) -> None:
        draft.enter("prompt", "sent", {"prompt": request.prompt})
        if request.suffix is not None:
            draft.enter("suffix", "sent", {"suffix": request.suffix})

    def _echo(self, draft: Draft, request: CompletionRequest, plan: Plan) -> None:
        draft.enter("echo", "sent", {"echo": request.echo})

    def _scalar(self, draft: Draft, name: str, value: Any) -> None:
        if name == "keep_alive":
            draft.omit(name, "the model is in memory as long as the server runs")
        elif name == "context_window":
            draft.window_of_launch(value, f"start the server with --max-model-len {value}")
        elif name == "lora":
            self._lora(draft, value)

    def _embeds(self, request: EmbedRequest) -> Draft:
        """The body for `/v1/embeddings`."""
        draft = Draft(self, request, self.dialect)
        self._model(draft, request.model)
        draft.enter("texts", "translated", {"input": list(request.texts)}, note="as input")
        if request.dimensions is not UNSET:
            draft.enter("dimensions", "sent", {"dimensions": request.dimensions})
        if request.truncate:
            draft.enter(
                "truncate",
                "translated",
                {"truncate_prompt_tokens": -1},
                note="to the model's limit",
            )
        if request.keep_alive is not UNSET:
            self._scalar(draft, "keep_alive", request.keep_alive)
        draft.options()
        return draft

    def _lora(self, draft: Draft, value: Any) -> None:
        """An adapter is a model of its own name."""
        if not isinstance(value, str):
            draft.refuse("lora", "an adapter is chosen by its name, and has no scale")
        draft.adapter(value)
