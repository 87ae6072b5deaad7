"""The OpenAI dialect: what every engine that speaks it shares, with their differences as overrides.

`OpenAIEngine` turns requests into bodies and receipts step by step; an engine states its tables,
policies and faults as data and overrides the steps that it does its own way. Reading replies is in
`_openai_decode`, the routes beside chat (embeddings, rerank) in `_openai_routes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from enginekit.engine import Encoded
from enginekit.engines._fault import Case, classify, read_fault
from enginekit.engines._messages import MessagePolicy, Refusal, wire_messages
from enginekit.engines._openai_decode import OpenAIDecoder, OpenAIWholeDecoder
from enginekit.engines._openai_tools import Plan, ToolSteps, Wrap, wire_choice, wire_tool
from enginekit.engines._params import Draft, Table
from enginekit.engines._wrap import Echo, Inner
from enginekit.errors import EngineKitError, Unsupported
from enginekit.facts.engine import Capability, Feature
from enginekit.types import (
    UNSET,
    AnyRequest,
    ChatRequest,
    CompletionRequest,
    Constraint,
    Sampling,
)

__all__ = ["OpenAIEngine", "Plan", "Wrap", "wire_choice", "wire_tool"]


class OpenAIEngine(ToolSteps):
    """Base of the engines that speak `/v1/chat/completions`.

    Class attributes are the data an engine states; methods that begin with an underscore are the
    steps that it may override.
    """

    dialect: ClassVar[str]
    chat_path: ClassVar[str] = "/v1/chat/completions"
    completion_path: ClassVar[str] = "/v1/completions"
    sampling: ClassVar[Table] = {}
    scalars: ClassVar[Table] = {}
    """Rules for the plain fields of a request beside sampling: `keep_alive`, `lora`, …"""
    faults: ClassVar[tuple[Case, ...]] = ()
    policy: ClassVar[MessagePolicy] = MessagePolicy()
    always_streams: ClassVar[str] = ""
    """Why a whole reply is asked for as a stream, too; "" where it is not."""

    # -- the contract -------------------------------------------------------------------

    def encode(self, request: AnyRequest, *, stream: bool = False) -> Encoded:
        """The call for a chat or completion request, and its receipt.

        Raises Unsupported for what the engine cannot do and BadRequest for values out of range.
        """
        if isinstance(request, ChatRequest):
            return self._chat(request, stream)
        if isinstance(request, CompletionRequest):
            return self._completion(request, stream)
        raise TypeError(
            f"encode() takes chat and completion requests, not {type(request).__name__}"
        )

    def failure(
        self, status: int, headers: Mapping[str, str], body: bytes, *, path: str = ""
    ) -> EngineKitError:
        """The error that this refusal means, by the engine's table and then the common one."""
        return classify(self, self.faults, read_fault(status, headers, body, path=path))

    learns: ClassVar[frozenset[Feature]] = frozenset()
    """Features of which a refusal tells how the server was started, so that it holds for good."""

    def learnt(self, refusal: Unsupported) -> Mapping[Feature, Capability]:
        """The feature that was refused, or the one whose route is absent, if it is in `learns`."""
        routes: dict[str, Feature] = {self.chat_path: "chat", self.completion_path: "completion"}
        feature = routes.get(refusal.feature, refusal.feature)
        if feature not in self.learns:
            return {}
        why = refusal.message.removeprefix(f"{self.name} cannot do this: ")
        note = f"the server said so: {why}"
        if refusal.hint:
            note += f" ({refusal.hint})"
        return {feature: Capability(support="none", evidence="observed", note=note)}

    # -- chat ---------------------------------------------------------------------------

    def _chat(self, request: ChatRequest, stream: bool) -> Encoded:
        draft = Draft(self, request, self.dialect)
        plan = Plan(
            messages=request.messages,
            path=self.chat_path,
            stream=stream or bool(self.always_streams),
            wraps=self._chat_wraps(),
        )
        self._check_messages(draft, request)
        self._model(draft, request.model)
        self._tools(draft, request, plan)
        if request.constraint is not UNSET:
            self._constrain(draft, request.constraint, plan)
        if request.reasoning is not UNSET:
            self._reasoning(draft, request.reasoning, plan)
        for key, value in request.template_options.items():
            self._template_option(draft, key, value)
        self._scalars(draft, request)
        self._messages(draft, plan)
        draft.sampling(self._sampling(draft, request, plan), request.sampling)
        return self._finish(draft, request, plan, stream, turn=len(request.messages))

    def _check_messages(self, draft: Draft, request: ChatRequest) -> None:
        if not request.messages:
            draft.invalid("messages", "is empty: there is nothing to answer")
        n = request.sampling.n
        if request.tools and n is not UNSET and n > 1:
            draft.refuse("sampling.n", "tool calls of several alternatives cannot be told apart")

    def _chat_wraps(self) -> list[Wrap]:
        """Decoders that every chat reply is read through, innermost first."""
        return []

    def _model(self, draft: Draft, model: str) -> None:
        """The model's name, as the server wants it."""
        draft.enter("model", "sent", {"model": model})

    def _messages(self, draft: Draft, plan: Plan) -> None:
        try:
            wire, notes = wire_messages(plan.messages, self._policy())
        except Refusal as refusal:
            self.refuse(
                refusal.feature, refusal.why, rule=draft.rule_id("messages", refusal.feature)
            )
        notes = [*notes, *plan.notes]
        self._prefill(draft, plan, notes)
        draft.enter(
            "messages",
            "translated" if notes else "sent",
            {"messages": wire},
            note="; ".join(notes),
        )

    def _policy(self) -> MessagePolicy:
        """The message policy, narrowed by what the server's model takes."""
        policy = self.policy
        if not self.capability("images").usable:
            return replace(policy, images="none")
        if policy.images == "any" and not self.capability("image_urls").usable:
            return replace(policy, images="data")
        return policy

    def _prefill(self, draft: Draft, plan: Plan, notes: list[str]) -> None:
        """What a last message of role assistant needs; nothing by default."""

    def _sampling(
        self, draft: Draft, request: ChatRequest | CompletionRequest, plan: Plan
    ) -> Table:
        """The sampling table for this request."""
        return self.sampling

    def _scalars(self, draft: Draft, request: ChatRequest | CompletionRequest) -> None:
        if request.request_id is not None:
            self._request_id(draft, request.request_id)
        for name in ("context_window", "keep_alive", "lora"):
            value = getattr(request, name)
            if value is not UNSET:
                self._scalar(draft, name, value)

    def _request_id(self, draft: Draft, request_id: str) -> None:
        draft.omit("request_id", "the engine logs no id of the caller's")

    def _scalar(self, draft: Draft, name: str, value: Any) -> None:
        draft.apply(self.scalars, {name: value})

    def _template_option(self, draft: Draft, key: str, value: Any) -> None:
        draft.enter(
            f"template_options.{key}",
            "translated",
            {f"chat_template_kwargs.{key}": value},
            note="a variable of the chat template",
        )

    def _reasoning(self, draft: Draft, wish: bool | str, plan: Plan) -> None:
        """Switch thinking; refused unless an engine knows how."""
        draft.refuse("reasoning", "it has no switch for thinking")

    # -- constraints --------------------------------------------------------------------

    def _constrain(self, draft: Draft, constraint: Constraint, plan: Plan) -> None:
        """JSON by `response_format`; anything else is refused unless an engine knows it."""
        if constraint.kind == "json":
            parts: dict[str, Any] = {"response_format": {"type": "json_object"}}
            draft.enter("constraint", "translated", parts, case="json", note="as response_format")
        elif constraint.kind == "json_schema":
            parts = self._schema_parts(constraint.value, constraint.name, constraint.strict)
            draft.enter(
                "constraint", "translated", parts, case="json_schema", note="as a JSON schema"
            )
        else:
            draft.refuse("constraint", f"it has no {constraint.kind}", case=constraint.kind)

    def _schema_parts(
        self, schema: Mapping[str, Any], name: str, strict: bool | None
    ) -> dict[str, Any]:
        """Where a JSON schema goes in the body."""
        inner: dict[str, Any] = {"name": name or "answer", "schema": schema}
        if strict is not None:
            inner["strict"] = strict
        return {"response_format": {"type": "json_schema", "json_schema": inner}}

    # -- completions --------------------------------------------------------------------

    def _completion(self, request: CompletionRequest, stream: bool) -> Encoded:
        draft = Draft(self, request, self.dialect)
        plan = Plan(path=self.completion_path, stream=stream or bool(self.always_streams))
        self._model(draft, request.model)
        self._prompt(draft, request, plan)
        if isinstance(request.echo, bool):
            self._echo(draft, request, plan)
        if request.constraint is not UNSET:
            self._constrain(draft, request.constraint, plan)
        self._scalars(draft, request)
        sampling = self._completion_logprobs(draft, request)
        draft.sampling(self._sampling(draft, request, plan), sampling)
        return self._finish(draft, request, plan, stream, turn=0)

    def _prompt(self, draft: Draft, request: CompletionRequest, plan: Plan) -> None:
        """The text to continue, and with a suffix what should come after the answer."""
        draft.enter("prompt", "sent", {"prompt": request.prompt})
        if request.suffix is not None:
            draft.refuse("suffix", "it has no fill-in-the-middle")

    def _echo(self, draft: Draft, request: CompletionRequest, plan: Plan) -> None:
        """Echo on our side: the prompt is known."""
        draft.enter("echo", "emulated", note="the prompt is put in front of the text by enginekit")
        if request.echo:
            prompt = request.prompt
            plan.wraps.append(lambda inner: Echo(inner, prompt))

    def _completion_logprobs(self, draft: Draft, request: CompletionRequest) -> Sampling:
        """Completions have one integer, `logprobs`, for both of our fields.

        Returns the sampling without them.
        """
        sampling = request.sampling
        wanted, top = sampling.logprobs, sampling.top_logprobs
        if wanted is UNSET and top is UNSET:
            return sampling
        count = self._least_logprobs if top is UNSET else top
        on = wanted is not False
        parts = {"logprobs": max(count, self._least_logprobs)} if on else {}
        note = "completions take one number for logprobs and top_logprobs"
        for name in ("logprobs", "top_logprobs"):
            if getattr(sampling, name) is not UNSET:
                first = name == "logprobs" or wanted is UNSET
                draft.enter(
                    f"sampling.{name}",
                    "translated",
                    parts if first else None,
                    also="" if first else " ".join(parts),
                    case="completion",
                    note=note,
                )
        return replace(sampling, logprobs=UNSET, top_logprobs=UNSET)

    _least_logprobs = 0
    """Smallest number that switches log-probabilities on in a completion."""

    # -- the end ------------------------------------------------------------------------

    def _finish(
        self,
        draft: Draft,
        request: ChatRequest | CompletionRequest,
        plan: Plan,
        asked: bool,
        *,
        turn: int,
    ) -> Encoded:
        draft.need("stream", plan.stream)
        if plan.stream and not plan.native:
            draft.need("stream_options", {"include_usage": True}, note="token counts")
        draft.options()
        self._remarks(draft)
        if plan.stream and not asked and self.always_streams:
            draft.receipt.notes.append(self.always_streams)
        elif asked and not plan.stream:
            draft.receipt.notes.append(
                "asked for without streaming, because the server cannot stream this: "
                "the answer comes in one piece"
            )
        call = self.call("POST", plan.path, draft.body, framing="sse" if plan.stream else "json")
        headers = self._headers(request)
        return Encoded(
            call=replace(call, headers=headers) if headers else call,
            receipt=draft.receipt,
            decoder=self._decoder_factory(plan, choices=_choices(draft.body), turn=turn),
        )

    def _remarks(self, draft: Draft) -> None:
        """Notes for the receipt that depend on the finished body."""

    def _headers(self, request: ChatRequest | CompletionRequest) -> tuple[tuple[str, str], ...]:
        return ()

    def _decoder_factory(self, plan: Plan, *, choices: int, turn: int) -> Callable[[], Any]:
        kind = self._decoder_class(plan)
        path, wraps = plan.path, tuple(plan.wraps)

        def make() -> Any:
            decoder: Inner = kind(self, choices=choices, turn=turn, path=path)
            for wrap in wraps:
                decoder = wrap(decoder)
            return decoder

        return make

    def _decoder_class(self, plan: Plan) -> Callable[..., Inner]:
        return OpenAIDecoder if plan.stream else OpenAIWholeDecoder


def _choices(body: Mapping[str, Any]) -> int:
    n = body.get("n", 1)
    return n if isinstance(n, int) and n > 0 else 1
