"""Requests in llama-server's form, and what has to be done by other means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from enginekit.engines._emulate import LiftedString
from enginekit.engines._fault import Case
from enginekit.engines._messages import MessagePolicy
from enginekit.engines._openai import OpenAIEngine, Plan
from enginekit.engines._params import Draft, Rule, Table
from enginekit.engines._think import ThinkSplitter
from enginekit.engines._wrap import Inner, PrefixStrip
from enginekit.engines.llamacpp.faults import FAULTS
from enginekit.engines.llamacpp.infill import EitherDecoder, InfillDecoder
from enginekit.engines.llamacpp.profile import PROFILE, SAMPLING
from enginekit.errors import Unsupported
from enginekit.facts.engine import Capability, EngineProfile, Feature
from enginekit.types import UNSET, ChatRequest, CompletionRequest, Constraint


class LlamaCppRequests(OpenAIEngine):
    """The steps of encoding that llama-server wants otherwise than the dialect."""

    profile: ClassVar[EngineProfile] = PROFILE
    dialect: ClassVar[str] = "llamacpp"
    sampling: ClassVar[Table] = SAMPLING
    faults: ClassVar[tuple[Case, ...]] = FAULTS
    policy: ClassVar[MessagePolicy] = MessagePolicy(
        call_content="empty", reasoning="reasoning_content"
    )
    always_streams: ClassVar[str] = (
        "asked for as a stream although a whole reply was wanted: only then does the server stop "
        "generating when the caller leaves"
    )

    learns: ClassVar[frozenset[Feature]] = frozenset({"embeddings", "rerank", "fim", "metrics"})

    def learnt(self, refusal: Unsupported) -> Mapping[Feature, Capability]:
        """What its flags rule out, of a router each model's; with `--no-jinja` tools are emulated.

        Before June 2025 it refused tools in a stream: then they are asked for in one piece.
        """
        if refusal.feature == "stream_tools":
            note = "in one piece: this version cannot stream tool calls"
            return {"stream_tools": Capability(support="emulated", evidence="observed", note=note)}
        if refusal.feature == "tools":
            note = "by a JSON schema: the server was started with --no-jinja"
            return {"tools": Capability(support="emulated", evidence="observed", note=note)}
        return super().learnt(refusal)

    @property
    def many_models(self) -> bool:
        """A router starts a server for each model."""
        return self._router

    @property
    def _router(self) -> bool:
        return self.facts is not None and bool(self.facts.extra.get("router"))

    def _model(self, draft: Draft, model: str) -> None:
        facts = self.facts
        if facts is None or self._router or not facts.models or facts.model(model) is not None:
            draft.enter("model", "sent", {"model": model})
            return
        served = facts.models[0].id
        draft.enter(
            "model",
            "translated",
            {"model": served},
            case="single",
            note=f"the server has one model, {served}, and ignores the name",
        )

    def _policy(self) -> MessagePolicy:
        policy = super()._policy()
        caps = {} if self.facts is None else self.facts.extra.get("chat_template_caps", {})
        if caps.get("supports_system_role") is False:
            policy = replace(policy, system="user")
        return policy

    def _chat_wraps(self) -> list[Callable[[Inner], Inner]]:
        return [ThinkSplitter]

    def _prefill(self, draft: Draft, plan: Plan, notes: list[str]) -> None:
        last = plan.messages[-1]
        if last.role != "assistant" or last.tool_calls:
            return
        if len(plan.messages) > 1 and plan.messages[-2].role == "assistant":
            draft.invalid("messages", "end with two assistant turns: only one can be continued")
        notes.append("the last assistant turn is continued")
        prefix = last.text
        plan.wraps.insert(0, lambda inner: PrefixStrip(inner, prefix))

    def _emulates(self, mode: str, request: ChatRequest) -> bool:
        # Tools and a schema in one request can abort the server process, whatever the choice.
        if mode == "none" and request.constraint is not UNSET:
            return True
        return super()._emulates(mode, request)

    def _sampling(
        self, draft: Draft, request: ChatRequest | CompletionRequest, plan: Plan
    ) -> Table:
        sampling = request.sampling
        if "tools" in draft.body and (
            # The server refuses logprobs with tools in a stream, an old one tools altogether.
            sampling.logprobs is True or self.capability("stream_tools").support == "emulated"
        ):
            plan.stream = False
        table = dict(self.sampling)
        if sampling.top_logprobs is not UNSET and sampling.logprobs is UNSET:
            table["top_logprobs"] = Rule(
                outcome="translated",
                wire="logprobs top_logprobs",
                value=lambda top: {"logprobs": True, "top_logprobs": top},
                low=0,
                note="the server wants logprobs switched on as well",
            )
        slots = self.facts.slots if self.facts is not None else None
        if slots:
            note = f"more than the server has slots ({slots})"
            table["n"] = lambda n: (
                Rule(wire="n", low=1)
                if n <= slots
                else Rule(outcome="refused", note=note, hint="start the server with a larger -np")
            )
        return table

    def _reasoning(self, draft: Draft, wish: bool | str, plan: Plan) -> None:
        none = self.capability("reasoning").support == "none"
        if wish is False and none:
            draft.enter(
                "reasoning", "translated", case="off", note="this model's template never thinks"
            )
        elif none:
            draft.omit("reasoning", "this model's chat template has no thinking")
        elif isinstance(wish, bool):
            parts = {"chat_template_kwargs.enable_thinking": wish}
            draft.enter("reasoning", "translated", parts, note="a variable of the chat template")
        elif self._has_levels():
            draft.enter(
                "reasoning",
                "translated",
                {"reasoning_effort": wish},
                case="level",
                note="as reasoning_effort",
            )
        else:
            draft.enter(
                "reasoning",
                "translated",
                {"chat_template_kwargs.enable_thinking": wish != "none"},
                case="level_as_switch",
                note="this model's template has thinking on or off, and no levels",
            )

    def _has_levels(self) -> bool:
        caps = {} if self.facts is None else self.facts.extra.get("chat_template_caps", {})
        return caps.get("supports_reasoning_effort") is not False

    def _constrain(self, draft: Draft, constraint: Constraint, plan: Plan) -> None:
        kind, value = constraint.kind, constraint.value
        if kind == "grammar":
            draft.enter("constraint", "sent", {"grammar": value}, case="grammar")
        elif kind == "choice":
            draft.enter(
                "constraint",
                "emulated",
                {"grammar": choice_grammar(value)},
                case="choice",
                note="as a grammar of alternatives",
            )
        elif kind == "regex":
            schema = {"type": "string", "pattern": anchored(value)}
            draft.enter(
                "constraint",
                "emulated",
                self._schema_parts(schema, constraint.name, None),
                case="regex",
                note="as the pattern of a JSON string, whose quotes are taken off the answer",
            )
            plan.wraps.append(lambda inner: LiftedString(inner, self))
        else:
            super()._constrain(draft, constraint, plan)

    def _scalar(self, draft: Draft, name: str, value: Any) -> None:
        if name == "keep_alive":
            draft.omit(name, "set at launch: --sleep-idle-seconds")
        elif name == "context_window":
            draft.window_of_launch(value, f"start the server with -c {value}")
        elif name == "lora":
            parts = {"lora": self._adapters(draft, value)}
            draft.enter(name, "translated", parts, note="by the number the server gave the adapter")

    def _adapters(self, draft: Draft, value: Any) -> list[dict[str, Any]]:
        """The wire form of adapters and scales; none of them is every adapter at scale 0.

        The server takes any number for an adapter, silently, and turns the others off.
        """
        pairs = ((value, 1.0),) if isinstance(value, str) else value
        try:
            wanted = [(name, float(scale)) for name, scale in pairs]
        except (TypeError, ValueError):
            draft.invalid("lora", f"must be a name or pairs of adapter and scale, got {value!r}")
        known = self.facts.extra.get("lora") if self.facts is not None else None
        if not wanted:
            wanted = [(number, 0.0) for number, _ in known or ()]
        return [{"id": self._adapter(draft, name, known), "scale": s} for name, s in wanted]

    def _adapter(
        self, draft: Draft, name: str | int, known: Sequence[tuple[int, str]] | None
    ) -> int:
        if known is None and isinstance(name, int):
            return name
        for number, path in known or ():
            stem = path.rpartition("/")[2]
            if name in (number, path, stem, stem.removesuffix(".gguf")):
                return int(number)
        names = ", ".join(f"{number}: {path}" for number, path in known or ()) or "none"
        return draft.refuse(
            "lora", f"it has no adapter {name!r}; loaded: {names}", hint="--lora FILE"
        )

    def _prompt(self, draft: Draft, request: CompletionRequest, plan: Plan) -> None:
        """Fill-in-the-middle has a route of its own, with a format of its own."""
        if request.suffix is None:
            super()._prompt(draft, request, plan)
            return
        plan.path = "/infill"
        plan.native = True
        for name in ("n", "logprobs", "top_logprobs"):
            if getattr(request.sampling, name) not in (UNSET, 1, False):
                draft.refuse(f"sampling.{name}", "not together with fill-in-the-middle")
        draft.enter(
            "prompt", "translated", {"input_prefix": request.prompt}, case="infill", note="/infill"
        )
        draft.enter("suffix", "translated", {"input_suffix": request.suffix}, note="/infill")

    _least_logprobs = 1

    def _decoder_class(self, plan: Plan) -> Callable[..., Inner]:
        if plan.native:
            return InfillDecoder
        whole = not plan.stream or plan.path != self.completion_path
        return super()._decoder_class(plan) if whole else EitherDecoder

    def _remarks(self, draft: Draft) -> None:
        template = self.options.get("substituted_template")
        if template:
            draft.receipt.notes.append(
                f"the chat template is {template}, not the one inside the model"
            )
        if draft.body.get("n", 1) > 1:
            draft.receipt.notes.append("the server counts the tokens of the first choice only")


def choice_grammar(alternatives: Sequence[str]) -> str:
    """A GBNF grammar that allows exactly these texts."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    quoted = ("".join(escapes.get(c, c) for c in text) for text in alternatives)
    return "root ::= " + " | ".join(f'"{text}"' for text in quoted)


def anchored(pattern: str) -> str:
    """The pattern with `^` and `$`, which the server demands of a schema's pattern."""
    if pattern.startswith("^") and pattern.endswith("$"):
        return pattern
    return f"^({pattern.removeprefix('^').removesuffix('$')})$"
