"""The part of the OpenAI dialect that deals with tools: sent, emulated, or kept to one call."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from enginekit.engine import Engine
from enginekit.engines._emulate import LiftedCall, as_text, call_schema, call_text
from enginekit.engines._messages import add_instruction
from enginekit.engines._params import Draft
from enginekit.engines._wrap import FirstCallOnly, Inner
from enginekit.facts.engine import Feature
from enginekit.types import UNSET, ChatRequest, Message, Tool, ToolChoice

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


class ToolSteps(Engine):
    """The steps of encoding that deal with tools; mixed into `OpenAIEngine`."""

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
        self._offer(draft, request.tools, mode, plan)
        if choice is not None:
            draft.enter("tool_choice", "sent", {"tool_choice": wire_choice(choice)})
        if isinstance(parallel, bool):
            self._parallel(draft, parallel, plan)

    def _offer(self, draft: Draft, tools: Sequence[Tool], mode: str, plan: Plan) -> None:
        """Place the tools in the body, as they are."""
        draft.enter("tools", "sent", {"tools": [wire_tool(tool) for tool in tools]})

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
        return self.capability(_feature_of(mode)).support == "emulated"

    def _emulate_tools(
        self,
        draft: Draft,
        tools: Sequence[Tool],
        choice: ToolChoice | None,
        parallel: Any,
        plan: Plan,
    ) -> None:
        mode = choice.mode if choice is not None else "auto"
        told = self.facts.told(_feature_of(mode)) if self.facts is not None else None
        if told is not None and told.note:
            draft.receipt.notes.append(f"tools: {told.note}")
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

    @abstractmethod
    def _schema_parts(
        self, schema: Mapping[str, Any], name: str, strict: bool | None
    ) -> dict[str, Any]:
        """Where a JSON schema goes in the body."""


def _feature_of(mode: str) -> Feature:
    """The feature that a tool choice of this mode needs."""
    features: dict[str, Feature] = {
        "required": "tool_choice_required",
        "named": "tool_choice_named",
    }
    return features.get(mode, "tools")


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
