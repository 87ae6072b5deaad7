"""What shapes an answer on Ollama: tools, the choice among them, and constraints on the text.

The API has tools and one constraint, `format`. A forced choice is emulated by a schema; tools and
`format` never go out together, because that can kill the process that runs the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from enginekit.engine import Engine
from enginekit.engines._emulate import LiftedCall, LiftedString, as_text, call_schema, call_text
from enginekit.engines._messages import add_instruction
from enginekit.engines._params import Draft
from enginekit.engines._wrap import FirstCallOnly, Inner
from enginekit.engines.ollama.decode import ANY_OBJECT, STRAIGHT, KeepsForm
from enginekit.engines.ollama.messages import ollama_tool
from enginekit.engines.ollama.probe import ModelFacts
from enginekit.engines.ollama.profile import STREAMS_CALLS_SINCE, older_than
from enginekit.types import UNSET, ChatRequest, Constraint, Message, Tool, ToolChoice


@dataclass(slots=True, kw_only=True)
class Plan:
    """What the steps of one encoding leave for each other.

    Attributes:
        model: what is known of the model asked for.
        messages: the conversation as it will go out, instructions added.
        wraps: decoders to put around the reply's, innermost first.
    """

    model: ModelFacts
    path: str
    stream: bool
    messages: tuple[Message, ...] = ()
    wraps: list[Callable[[Inner], Inner]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sends_tools: bool = False


# ---------------------------------------------------------------------------------- tools


def shape_tools(engine: Engine, draft: Draft, request: ChatRequest, plan: Plan) -> None:
    """Send the tools, or emulate what the API has no field for: a forced or named choice.

    Raises Unsupported for tools together with a constraint, BadRequest for a choice of nothing.
    """
    choice = request.tool_choice if isinstance(request.tool_choice, ToolChoice) else None
    parallel = request.parallel_tool_calls
    _check_tools(draft, request, choice)
    mode = "auto" if choice is None else choice.mode
    if not request.tools or mode == "none":
        if request.tools:
            draft.enter("tools", "emulated", note="not sent: none may be called")
        if choice is not None:
            draft.enter("tool_choice", "emulated", note="no tool is offered")
        if isinstance(parallel, bool):
            draft.enter("parallel_tool_calls", "translated", note="no tool is offered")
        if plan.model.lacks("tools"):
            plan.messages = _told(plan)
        return
    if request.constraint is not UNSET:
        draft.refuse(
            "constraint",
            "tools and a constraint on the text cannot be had in one request: the constraint "
            "takes the whole answer, and on some models it kills the runner",
            case="with_tools",
            hint="ask for the structured answer in a request of its own",
        )
    if mode != "auto" or plan.model.lacks("tools"):
        _emulate(engine, draft, request.tools, choice, parallel, plan)
        return
    notes: list[str] = []
    tools = [ollama_tool(tool, notes) for tool in request.tools]
    draft.enter("tools", "translated" if notes else "sent", {"tools": tools}, note="; ".join(notes))
    plan.sends_tools = True
    if plan.stream and older_than(engine.version, STREAMS_CALLS_SINCE):
        plan.stream = False
        draft.receipt.notes.append(
            "asked for without streaming, because this version finds calls in a whole reply only: "
            "the answer comes in one piece"
        )
    if choice is not None:
        note = "auto is what Ollama always does; the API has no field for it"
        draft.enter("tool_choice", "translated", note=note)
    if parallel is True:
        draft.enter("parallel_tool_calls", "translated", note="the model decides; no field for it")
    elif parallel is False:
        draft.enter("parallel_tool_calls", "emulated", note="kept to the first call by enginekit")
        plan.wraps.append(FirstCallOnly)


def _check_tools(draft: Draft, request: ChatRequest, choice: ToolChoice | None) -> None:
    names = [tool.name for tool in request.tools]
    if len(set(names)) != len(names):
        draft.invalid("tools", f"has two tools of one name: {', '.join(names)}")
    if choice is None:
        return
    if choice.mode in ("required", "named") and not names:
        draft.invalid("tool_choice", "asks for a call, but the request has no tools")
    if choice.mode == "named" and choice.name not in names:
        draft.invalid("tool_choice", f"names {choice.name!r}, but the tools are {', '.join(names)}")


def _emulate(
    engine: Engine,
    draft: Draft,
    tools: Sequence[Tool],
    choice: ToolChoice | None,
    parallel: Any,
    plan: Plan,
) -> None:
    """A call by a JSON schema: the API has no tool_choice, and tools with format kill runners."""
    mode = "auto" if choice is None else choice.mode
    named = choice.name if choice is not None and mode == "named" else None
    offered = [tool for tool in tools if named is None or tool.name == named]
    answer = mode == "auto"
    if plan.model.lacks("tools"):
        plan.messages = _told(plan)
    plan.messages = add_instruction(plan.messages, call_text(offered, answer=answer))
    plan.notes.append("the tools are described in the system message")
    draft.enter(
        "tools",
        "emulated",
        {"format": call_schema(offered, answer=answer)},
        also="messages",
        note="described in the prompt and enforced by a JSON schema",
    )
    if choice is not None:
        draft.enter("tool_choice", "emulated", also="format", note=f"{mode}: enforced by a schema")
    if isinstance(parallel, bool):
        note = "a call by schema is always a single one"
        draft.enter("parallel_tool_calls", "emulated", note=note)
    names = frozenset(tool.name for tool in offered)
    turn = len(plan.messages)
    hint = STRAIGHT if plan.model.has("thinking") else "use a stronger model or a simpler tool"
    plan.wraps.append(
        lambda inner: LiftedCall(inner, engine, names, turn=turn, answer=answer, hint=hint)
    )


def _told(plan: Plan) -> tuple[Message, ...]:
    """Earlier calls and results as plain turns: the model's template knows none."""
    told = as_text(plan.messages)
    if told != plan.messages:
        plan.notes.append("earlier tool calls and results were told as text")
    return told


# ---------------------------------------------------------------------------------- constraints


def shape_text(engine: Engine, draft: Draft, constraint: Constraint, plan: Plan) -> None:
    """Constrain the text by `format`. Raises Unsupported for a grammar."""
    kind, value = constraint.kind, constraint.value
    hint = STRAIGHT if plan.model.has("thinking") else "use a stronger model"
    if kind == "json":
        # A model with a Jinja template ignores "json" and answers in prose; a schema works on all.
        form: Any = "json" if plan.model.path == "rendered" else dict(ANY_OBJECT)
        note = "as format" if form == "json" else "as a schema of any object"
        draft.enter("constraint", "translated", {"format": form}, case="json", note=note)
        plan.wraps.append(lambda inner: KeepsForm(inner, engine, hint=hint))
    elif kind == "json_schema":
        if not isinstance(value, Mapping):
            draft.invalid("constraint", f"needs a schema as a mapping, got {type(value).__name__}")
        draft.enter("constraint", "translated", {"format": value}, case=kind, note="as format")
        plan.wraps.append(lambda inner: KeepsForm(inner, engine, value, hint=hint))
    elif kind == "choice":
        schema = {"type": "string", "enum": list(value)}
        note = "as the enum of a JSON string, whose quotes enginekit takes off"
        draft.enter("constraint", "emulated", {"format": schema}, case=kind, note=note)
        plan.wraps.append(
            lambda inner: LiftedString(inner, engine, choices=tuple(value), hint=hint)
        )
    elif kind == "regex":
        schema = {"type": "string", "pattern": _anchored(value)}
        note = "as the pattern of a JSON string, whose quotes enginekit takes off"
        draft.enter("constraint", "emulated", {"format": schema}, case=kind, note=note)
        plan.wraps.append(lambda inner: LiftedString(inner, engine, hint=hint))
    else:
        draft.refuse("constraint", "it takes no grammar", case=kind, hint="use a JSON schema")


def _anchored(pattern: str) -> str:
    return f"^{pattern.removeprefix('^').removesuffix('$')}$"
