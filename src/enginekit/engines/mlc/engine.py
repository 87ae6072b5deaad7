"""The MLC engine: careful bodies for a server that one bad request can end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from enginekit.engine import Answer, Operation, Target
from enginekit.engines import _openai_routes as routes
from enginekit.engines._emulate import LiftedAnswer, as_text
from enginekit.engines._fault import Case
from enginekit.engines._json import parse_json
from enginekit.engines._messages import MessagePolicy
from enginekit.engines._openai import OpenAIEngine, Plan
from enginekit.engines._params import Draft, Rule, Table
from enginekit.engines._think import ThinkSplitter
from enginekit.engines._wrap import Inner
from enginekit.engines.mlc.decode import (
    MLCDecoder,
    MLCWholeDecoder,
    ObjectOnly,
    PythonCalls,
)
from enginekit.engines.mlc.facts import (
    FAULTS,
    HISTORY_HINT,
    MAX_TOP,
    NO_HISTORY,
    PROFILE,
    SAMPLING,
    WINDOW_HINT,
    facts_of,
    load_of,
    read_counters,
    unusable,
)
from enginekit.errors import EngineLoading, EngineTimeout, Unreachable
from enginekit.facts.engine import EngineProfile, Load, ServerFacts
from enginekit.types import (
    UNSET,
    ChatRequest,
    CompletionRequest,
    Constraint,
    Embeddings,
    EmbedRequest,
    Sampling,
    TextPart,
)


class MLC(OpenAIEngine):
    """An `mlc_llm serve` server at one address.

    Options (`[engines.mlc.options]`):
        context_window: tokens; the server does not tell its window.
        native_tools: true sends tools as they are, for a model whose conversation template has
            `{function_string}`; else they are described in the prompt and enforced by a schema.
        tool_history: "text" tells earlier calls and results as plain turns; else they are refused,
            as the server refuses them.
    """

    profile: ClassVar[EngineProfile] = PROFILE
    dialect: ClassVar[str] = "mlc"
    sampling: ClassVar[Table] = SAMPLING
    faults: ClassVar[tuple[Case, ...]] = FAULTS
    policy: ClassVar[MessagePolicy] = MessagePolicy(system="first", developer="system", audio=False)

    # -- messages -----------------------------------------------------------------------

    def _chat_wraps(self) -> list[Callable[[Inner], Inner]]:
        return [ThinkSplitter]

    def _check_messages(self, draft: Draft, request: ChatRequest) -> None:
        super()._check_messages(draft, request)
        history = any(m.tool_calls or m.role == "tool" for m in request.messages)
        if history and self.options.get("tool_history") != "text":
            self.refuse(
                "tools",
                f"tool conversations cannot be continued: {NO_HISTORY}",
                rule=draft.rule_id("messages", "tool_history"),
                hint=HISTORY_HINT,
            )
        for message in request.messages:
            if message.role == "user" or isinstance(message.content, str):
                continue
            if any(not isinstance(part, TextPart) for part in message.content):
                self.refuse(
                    "images",
                    f"only user messages take images, not those of role {message.role}",
                    rule=draft.rule_id("messages", "images"),
                )

    def _messages(self, draft: Draft, plan: Plan) -> None:
        told = as_text(plan.messages)
        if told != plan.messages:
            plan.messages = told
            plan.notes.append("earlier tool calls and results are told as text")
        super()._messages(draft, plan)

    def _text_history(self) -> bool:
        return False

    def _prefill(self, draft: Draft, plan: Plan, notes: list[str]) -> None:
        if plan.messages[-1].role == "assistant":
            notes.append("the last assistant turn is closed: this server continues none")

    def _template_option(self, draft: Draft, key: str, value: Any) -> None:
        draft.refuse(f"template_options.{key}", "conversation templates have no variables here")

    def _request_id(self, draft: Draft, request_id: str) -> None:
        draft.omit(
            "request_id",
            "never sent: the server takes `user` for it, and two at once under one end a stream "
            "in silence",
        )

    def _scalar(self, draft: Draft, name: str, value: Any) -> None:
        if name == "keep_alive":
            draft.omit(name, "the model is in memory as long as the server runs")
        elif name == "lora":
            draft.refuse(name, "adapters are merged when the model is converted")
        else:
            known = self.facts is not None and self.facts.context_window
            enlarge = f"start the server with --overrides context_window_size={value}"
            draft.window_of_launch(value, enlarge if known else WINDOW_HINT)

    # -- tools and constraints ----------------------------------------------------------

    def _emulates(self, mode: str, request: ChatRequest) -> bool:
        return not (self.options.get("native_tools") and mode == "auto")

    def _tools(self, draft: Draft, request: ChatRequest, plan: Plan) -> None:
        super()._tools(draft, request, plan)
        if "tools" not in draft.body:
            return
        names = [tool.name for tool in request.tools]
        limit = request.sampling.max_tokens
        plan.stream = True
        plan.wraps.append(
            lambda inner: PythonCalls(
                inner,
                self,
                names,
                turn=len(request.messages),
                limit=None if limit is UNSET else limit,
                window=self.facts.context_window if self.facts is not None else None,
            )
        )

    def _remarks(self, draft: Draft) -> None:
        """Look at the finished body once more: engine options may hold what ends the engine."""
        body = draft.body
        if "user" in body:
            draft.refuse(
                "engine_options.user",
                "the server takes it for a request id, and two at once under one end a stream in "
                "silence",
            )
        stops = body.get("stop") or ()
        if body.get("stop") == "" or (not isinstance(stops, str) and "" in stops):
            draft.refuse("engine_options.stop", "an empty stop string ends the engine for good")
        if isinstance(top := body.get("top_logprobs"), int) and top > MAX_TOP:
            draft.refuse("engine_options.top_logprobs", f"more than {MAX_TOP} end the engine")
        if "tools" in body:
            draft.receipt.notes.append(
                "asked for as a stream: in a plain reply the server drops positional arguments"
            )

    def _constrain(self, draft: Draft, constraint: Constraint, plan: Plan) -> None:
        if constraint.kind == "choice":
            inner = {"type": "string", "enum": list(constraint.value)}
            schema = {
                "type": "object",
                "properties": {"answer": inner},
                "required": ["answer"],
                "additionalProperties": False,
            }
            parts = self._schema_parts(schema, "answer", None)
            draft.enter(
                "constraint", "emulated", parts, case="choice", note="by an enum in a JSON schema"
            )
            plan.wraps.append(lambda inner: LiftedAnswer(inner, self, (), answer=True))
            return
        if constraint.kind == "json_schema" and (why := unusable(constraint.value)):
            draft.refuse(
                "constraint",
                f"this schema would end the server's engine for every client: {why}",
                case="unusable",
                hint="give the schema a type",
            )
        super()._constrain(draft, constraint, plan)
        if constraint.kind == "json":
            plan.wraps.append(lambda inner: ObjectOnly(inner, self))

    def _schema_parts(
        self, schema: Mapping[str, Any], name: str, strict: bool | None
    ) -> dict[str, Any]:
        if why := unusable(schema):
            self.refuse(
                "json_schema",
                f"a schema would end the server's engine for every client: {why}",
                rule="mlc.constraint.unusable",
                hint="repair the parameters of the tool",
            )
        text = json.dumps(schema, ensure_ascii=False)
        return {"response_format": {"type": "json_object", "schema": text}}

    # -- sampling -----------------------------------------------------------------------

    def _sampling(
        self, draft: Draft, request: ChatRequest | CompletionRequest, plan: Plan
    ) -> Table:
        sampling = request.sampling
        bias = sampling.logit_bias
        if bias is not UNSET and any(not -100 <= by <= 100 for by in bias.values()):
            draft.invalid("sampling.logit_bias", "must be from -100 to 100 on MLC")
        if sampling.top_logprobs is UNSET or sampling.logprobs is True:
            return self.sampling
        if sampling.logprobs is False:
            draft.invalid("sampling.top_logprobs", "needs logprobs, which is off")
        return {
            **self.sampling,
            "top_logprobs": Rule(
                outcome="translated",
                wire="logprobs top_logprobs",
                value=lambda top: {"logprobs": True, "top_logprobs": top},
                low=0,
                high=MAX_TOP,
                note="the server wants logprobs switched on as well",
            ),
        }

    def _completion_logprobs(self, draft: Draft, request: CompletionRequest) -> Sampling:
        top = request.sampling.top_logprobs
        if top is not UNSET and not 0 <= top <= MAX_TOP:
            draft.invalid("sampling.top_logprobs", f"must be from 0 to {MAX_TOP}, got {top}")
        return super()._completion_logprobs(draft, request)

    def _prompt(self, draft: Draft, request: CompletionRequest, plan: Plan) -> None:
        if not request.prompt:
            draft.invalid("prompt", "is empty, which MLC answers with 500")
        if request.suffix is not None:
            draft.refuse("suffix", "it is no fill-in-the-middle: the server appends it to the text")
        super()._prompt(draft, request, plan)

    def _echo(self, draft: Draft, request: CompletionRequest, plan: Plan) -> None:
        draft.enter("echo", "sent", {"echo": request.echo})

    def _decoder_class(self, plan: Plan) -> Callable[..., Inner]:
        return MLCDecoder if plan.stream else MLCWholeDecoder

    # -- probing ------------------------------------------------------------------------

    @classmethod
    def recognise(cls, target: Target) -> Operation[bool]:
        """Whether `GET /v1/models` lists models owned by MLC-LLM."""
        answer: Answer = yield cls(target).call("GET", "/v1/models")
        if not answer.ok:
            return False
        try:
            items = parse_json(answer.body)["data"]
            return any(item.get("owned_by") == "MLC-LLM" for item in items)
        except (ValueError, KeyError, TypeError, AttributeError):
            return False

    def probe(self) -> Operation[ServerFacts]:
        """Read `/v1/models`: the one thing this server tells. The window is not among it."""
        listing = yield from routes.ask(self, "GET", "/v1/models")
        try:
            return facts_of(listing, self.options)
        except (KeyError, TypeError, AttributeError) as error:
            raise routes.malformed(self, "/v1/models", listing, error) from error

    def ready(self, model: str) -> Operation[bool]:
        """`/metrics` answers, which goes through the engine; `/v1/models` says yes for a dead one.

        A refused connection is "not yet" (the engine is built before the port opens), and so is
        silence: an engine that died keeps its port open and never answers again.
        """
        try:
            answer: Answer = yield self.call("GET", "/metrics", timeout=5)
        except (Unreachable, EngineLoading, EngineTimeout):
            return False
        if not answer.ok:
            raise self.failure(answer.status, answer.headers, answer.body, path="/metrics")
        return True

    # -- other routes -------------------------------------------------------------------

    def embed(self, request: EmbedRequest) -> Operation[Embeddings]:
        """`/v1/embeddings`, of a server started with an embedding model."""
        draft = Draft(self, request, self.dialect)
        self._model(draft, request.model)
        draft.enter("texts", "translated", {"input": list(request.texts)}, note="as input")
        if request.dimensions is not UNSET:
            draft.enter("dimensions", "sent", {"dimensions": request.dimensions})
        if request.truncate:
            draft.refuse("truncate", "it has no truncation of long texts")
        if request.keep_alive is not UNSET:
            self._scalar(draft, "keep_alive", request.keep_alive)
        draft.options()
        return (yield from routes.embed(self, request, draft))

    def load_state(self) -> Operation[Load]:
        """From `/metrics`, a text of MLC's own. Silence means that the engine is dead."""
        answer: Answer = yield self.call("GET", "/metrics")
        if not answer.ok:
            raise self.failure(answer.status, answer.headers, answer.body, path="/metrics")
        return load_of(read_counters(answer.body))
