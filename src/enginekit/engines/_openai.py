"""The OpenAI dialect: what every engine that speaks it shares, with their differences as overrides.

`OpenAIEngine` turns requests into bodies and receipts step by step; an engine states its tables,
policies and faults as data and overrides the steps that it does its own way. Reading replies is in
`_openai_decode`, the routes beside chat (embeddings, rerank) in `_openai_routes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from enginekit.engine import Encoded, Engine
from enginekit.engines._emulate import LiftedCall, as_text, call_schema, call_text
from enginekit.engines._fault import Case, classify, read_fault
from enginekit.engines._messages import (
    MessagePolicy,
    Refusal,
    add_instruction,
    wire_messages,
)
from enginekit.engines._openai_decode import OpenAIDecoder, OpenAIWholeDecoder
from enginekit.engines._params import Draft, Table
from enginekit.engines._wrap import Echo, FirstCallOnly, Inner
from enginekit.errors import EngineKitError
from enginekit.facts.engine import Feature
from enginekit.types import (
    UNSET,
    AnyRequest,
    ChatRequest,
    CompletionRequest,
    Constraint,
    Message,
    Sampling,
    Tool,
    ToolChoice,
)

Wrap = Callable[[Inner], Inner]


@dataclass(slots=True, kw_only=True)
class Plan:
    """What the steps of one encoding leave for each other.

    Attributes:
        messages: the conversation as it will go out, instructions added.
        path: where it is sent.
        stream: whether the server is asked to stream, which may differ from what the caller wants.
        wraps: decoders to put around the reply's, innermost first.
        native: the route speaks the engine's own format, without the dialect's stream options.
    """

    messages: tuple[Message, ...] = ()
    path: str = ""
    stream: bool = False
    wraps: list[Wrap] = field(default_factory=list)
    native: bool = False
    notes: list[str] = field(default_factory=list)


class OpenAIEngine(Engine):
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

    # -- tools --------------------------------------------------------------------------

    def _tools(self, draft: Draft, request: ChatRequest, plan: Plan) -> None:
        """Send tools and choice, or emulate them by a schema where the engine cannot."""
        choice = request.tool_choice if isinstance(request.tool_choice, ToolChoice) else None
        parallel = request.parallel_tool_calls
        if not request.tools:
            self._no_tools(draft, choice, parallel)
            return
        self._check_choice(draft, request.tools, choice)
        mode = choice.mode if choice is not None else "auto"
        if request.constraint is not UNSET and mode != "none":
            draft.refuse(
                "constraint",
                "tools and a constraint on the text cannot be had in one request: one of them loses",
                case="with_tools",
                hint="ask for the structured answer in a request of its own",
            )
        if self._emulates(mode, request):
            self._emulate_tools(draft, request.tools, choice, parallel, plan)
            return
        draft.enter("tools", "sent", {"tools": [wire_tool(tool) for tool in request.tools]})
        if choice is not None:
            draft.enter("tool_choice", "sent", {"tool_choice": wire_choice(choice)})
        if isinstance(parallel, bool):
            self._parallel(draft, parallel, plan)

    def _no_tools(self, draft: Draft, choice: ToolChoice | None, parallel: Any) -> None:
        if choice is not None:
            if choice.mode in ("required", "named"):
                draft.invalid("tool_choice", "asks for a call, but the request has no tools")
            draft.enter("tool_choice", "translated", note="nothing to choose: there are no tools")
        if isinstance(parallel, bool):
            draft.enter(
                "parallel_tool_calls", "translated", note="nothing to call: there are no tools"
            )

    def _check_choice(self, draft: Draft, tools: Sequence[Tool], choice: ToolChoice | None) -> None:
        names = [tool.name for tool in tools]
        if len(set(names)) != len(names):
            draft.invalid("tools", f"has two tools of one name: {', '.join(names)}")
        if choice is not None and choice.mode == "named" and choice.name not in names:
            draft.invalid(
                "tool_choice", f"names {choice.name!r}, but the tools are {', '.join(names)}"
            )

    def _emulates(self, mode: str, request: ChatRequest) -> bool:
        """Whether a tool choice of this mode is emulated by a schema."""
        feature: dict[str, Feature] = {
            "required": "tool_choice_required",
            "named": "tool_choice_named",
        }
        return self.capability(feature.get(mode, "tools")).support == "emulated"

    def _emulate_tools(
        self,
        draft: Draft,
        tools: Sequence[Tool],
        choice: ToolChoice | None,
        parallel: Any,
        plan: Plan,
    ) -> None:
        mode = choice.mode if choice is not None else "auto"
        plan.messages = as_text(plan.messages) if self._text_history() else plan.messages
        if mode == "none":
            draft.enter("tools", "emulated", note="not shown to the model: none may be called")
            draft.enter("tool_choice", "emulated", note="no tool is offered")
            self._one_call(draft, parallel)
            return
        offered = (
            [tool for tool in tools if tool.name == choice.name]
            if choice is not None and mode == "named"
            else list(tools)
        )
        answer = mode == "auto"
        plan.messages = add_instruction(plan.messages, call_text(offered, answer=answer))
        plan.notes.append("the tools are described in the system message")
        where = self._schema_parts(call_schema(offered, answer=answer), "tool_call", None)
        paths = " ".join(where)
        draft.enter(
            "tools",
            "emulated",
            where,
            also="messages",
            note="described in the prompt and enforced by a JSON schema",
        )
        if choice is not None:
            draft.enter(
                "tool_choice", "emulated", also=paths, note=f"{mode}: enforced by a JSON schema"
            )
        self._one_call(draft, parallel)
        names = frozenset(tool.name for tool in offered)
        turn = len(plan.messages)
        plan.wraps.append(lambda inner: LiftedCall(inner, self, names, turn=turn, answer=answer))

    def _text_history(self) -> bool:
        """Whether earlier tool calls and results are told as text: the template knows no tools."""
        return self.facts is not None and self.facts.template_tools is False

    def _one_call(self, draft: Draft, parallel: Any) -> None:
        if isinstance(parallel, bool):
            draft.enter(
                "parallel_tool_calls", "emulated", note="a call by schema is always a single one"
            )

    def _parallel(self, draft: Draft, parallel: bool, plan: Plan) -> None:
        """By default sent, and kept to the first call on our side as well."""
        parts = {"parallel_tool_calls": parallel}
        if parallel:
            draft.enter("parallel_tool_calls", "sent", parts)
            return
        draft.enter(
            "parallel_tool_calls", "emulated", parts, note="sent, and kept to the first call"
        )
        plan.wraps.append(FirstCallOnly)

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
        if plan.stream and not asked:
            draft.receipt.notes.append(self.always_streams)
        elif asked and not plan.stream:
            draft.receipt.notes.append(
                "asked for without streaming, because the server cannot stream this: "
                "the answer comes in one piece"
            )
        return Encoded(
            call=replace(
                self.call("POST", plan.path, draft.body, framing="sse" if plan.stream else "json"),
                headers=self._headers(request),
            ),
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


def wire_tool(tool: Tool) -> dict[str, Any]:
    """A tool as the dialect writes it."""
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    function["parameters"] = dict(tool.parameters)
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def wire_choice(choice: ToolChoice) -> str | dict[str, Any]:
    """A tool choice as the dialect writes it."""
    if choice.mode == "named":
        return {"type": "function", "function": {"name": choice.name}}
    return choice.mode


def _choices(body: Mapping[str, Any]) -> int:
    n = body.get("n", 1)
    return n if isinstance(n, int) and n > 0 else 1
