"""The TGI engine: chats in the OpenAI dialect, text completions on the native route."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Final

from enginekit.engine import Answer, Encoded, Operation, Target
from enginekit.engines import _openai_routes as routes
from enginekit.engines._fault import Case
from enginekit.engines._json import parse_json
from enginekit.engines._messages import MessagePolicy
from enginekit.engines._openai import OpenAIEngine, Plan, wire_choice, wire_tool
from enginekit.engines._params import Draft, Rule, Table
from enginekit.engines._required import CallRequired
from enginekit.engines._think import ThinkSplitter
from enginekit.engines._wrap import Inner, StopCutter, TokenLimit
from enginekit.engines.tgi.decode import (
    NOTIFY_ERROR,
    Decided,
    EventPerToken,
    GenerateDecoder,
    GenerateWholeDecoder,
    NotifyError,
    OneSlice,
    TGIDecoder,
    TGIWholeDecoder,
)
from enginekit.engines.tgi.facts import FAULTS, IMAGES, PROFILE, facts_of, load_of
from enginekit.engines.tgi.params import CAPPED, CHAT, GENERATE, GREEDY, MAX_TOP, SLICE
from enginekit.engines.tgi.schema import NotInlinable, alternation, inlined, single_types
from enginekit.errors import EngineLoading, Unreachable
from enginekit.facts.engine import EngineProfile, Load, ServerFacts
from enginekit.types import (
    UNSET,
    ChatRequest,
    CompletionRequest,
    Constraint,
    ImagePart,
    Message,
    Sampling,
    Tool,
    ToolChoice,
)

UNKNOWN_ADAPTER: Final = "the server answers an unknown name with the base model"


class TGI(OpenAIEngine):
    """A text-generation-inference server at one address.

    Options (`[engines.tgi.options]`): `images = true` says that the model sees; the server itself
    says so only for models it loaded from the Hub.
    """

    profile: ClassVar[EngineProfile] = PROFILE
    dialect: ClassVar[str] = "tgi"
    completion_path: ClassVar[str] = "/generate"
    sampling: ClassVar[Table] = CHAT
    faults: ClassVar[tuple[Case, ...]] = FAULTS
    policy: ClassVar[MessagePolicy] = MessagePolicy(
        developer="system",
        call_content="absent",
        arguments="object",
        tool_name=False,
        names=False,
        audio=False,
    )
    always_streams: ClassVar[str] = (
        "asked for as a stream: a whole answer that ends in half a character comes back empty"
    )

    # -- chat ---------------------------------------------------------------------------

    def _chat_wraps(self) -> list[Callable[[Inner], Inner]]:
        return [ThinkSplitter]

    def _model(self, draft: Draft, model: str) -> None:
        """The field selects a LoRA adapter; an unknown name is answered by the base model."""
        cards = self.facts.models if self.facts is not None else ()
        served = f", {cards[0].id}" if cards else ""
        draft.enter(
            "model",
            "translated",
            {"model": "tgi"},
            note=f"the server has one model{served}, and takes any other name for an adapter's",
        )

    def _check_messages(self, draft: Draft, request: ChatRequest) -> None:
        super()._check_messages(draft, request)
        sees = self.options.get("images") or self.capability("images").support == "native"
        pictures = (
            isinstance(part, ImagePart)
            for message in request.messages
            if not isinstance(message.content, str)
            for part in message.content
        )
        if not sees and any(pictures):
            self.refuse(
                "images",
                "it is not known to serve a model that sees, and a text model reads the image's "
                "base64 as text",
                rule=draft.rule_id("messages", "images"),
                hint=IMAGES,
            )

    def _policy(self) -> MessagePolicy:
        return self.policy

    def _messages(self, draft: Draft, plan: Plan) -> None:
        """A turn with text and calls becomes two: with any text the server drops the calls."""
        messages: list[Message] = []
        for message in map(_addresses, plan.messages):
            if message.tool_calls and message.text:
                messages.append(replace(message, tool_calls=()))
                messages.append(replace(message, content="", reasoning=None))
                plan.notes.append("an assistant turn with text and tool calls was sent as two")
            else:
                messages.append(message)
        plan.messages = tuple(messages)
        super()._messages(draft, plan)

    def _prefill(self, draft: Draft, plan: Plan, notes: list[str]) -> None:
        last = plan.messages[-1]
        if last.role == "assistant" and not last.tool_calls:
            notes.append("the last assistant turn is continued")

    def _template_option(self, draft: Draft, key: str, value: Any) -> None:
        draft.refuse(f"template_options.{key}", "the server drops variables of the chat template")

    def _scalar(self, draft: Draft, name: str, value: Any) -> None:
        if name == "keep_alive":
            draft.omit(name, "the model is in memory as long as the server runs")
        elif name == "context_window":
            draft.window_of_launch(value, f"start the server with --max-total-tokens {value}")
        elif not isinstance(value, str):
            draft.refuse("lora", "an adapter is chosen by its name, and has no scale")
        elif "inputs" in draft.body:
            draft.enter(
                "lora",
                "translated",
                {"parameters.adapter_id": value},
                note=f"as adapter_id; {UNKNOWN_ADAPTER}",
            )
        else:
            draft.body["model"] = value
            note = f"the model field selects it; {UNKNOWN_ADAPTER}"
            draft.enter("lora", "translated", also="model", note=note)

    # -- tools --------------------------------------------------------------------------

    def _tools(self, draft: Draft, request: ChatRequest, plan: Plan) -> None:
        choice = request.tool_choice if isinstance(request.tool_choice, ToolChoice) else None
        parallel = request.parallel_tool_calls
        if not request.tools:
            self._no_tools(draft, choice, parallel)
            return
        self._check_choice(draft, request.tools, choice)
        if isinstance(parallel, bool):
            draft.enter("parallel_tool_calls", "translated", note="it makes one call at most")
        if choice is not None and choice.mode == "none":
            note = "left out: with choice none the template sees no tools either"
            draft.enter("tools", "translated", note=note)
            draft.enter("tool_choice", "translated", note=note)
            return
        if request.constraint is not UNSET:
            draft.refuse(
                "constraint",
                "tools and a constraint on the text exclude each other",
                case="with_tools",
                hint="ask for the structured answer in a request of its own",
            )
        wire = [self._wire_tool(draft, tool) for tool in request.tools]
        plain = all(made == wire_tool(tool) for made, tool in zip(wire, request.tools))
        draft.enter(
            "tools",
            "sent" if plain else "translated",
            {"tools": wire},
            note="" if plain else "definitions inlined, lists of types as anyOf",
        )
        if choice is not None:
            draft.enter("tool_choice", "sent", {"tool_choice": wire_choice(choice)})
        plan.stream = False
        plan.wraps.append(lambda inner: OneSlice(inner, self))
        forced = choice is not None and choice.mode in ("required", "named")
        if forced:
            plan.wraps.append(lambda inner: CallRequired(inner, self))
        else:
            plan.wraps.append(lambda inner: Decided(inner, self))
        if NOTIFY_ERROR not in {tool.name for tool in request.tools}:
            plan.wraps.append(lambda inner: NotifyError(inner, self, forced=forced))

    def _wire_tool(self, draft: Draft, tool: Tool) -> dict[str, Any]:
        if "/" in tool.name:
            draft.invalid("tools", f"has a slash in the name {tool.name!r}, which TGI refuses")
        if tool.name == "no_tool":
            draft.invalid("tools", "has the name 'no_tool', TGI's own word for no call")
        if "_name" in (tool.parameters.get("properties") or {}):
            draft.invalid(
                "tools", f"has a parameter '_name' in {tool.name!r}, where TGI writes the name"
            )
        try:
            parameters, _ = inlined(tool.parameters)
        except NotInlinable as error:
            draft.refuse(
                "tools",
                f"the parameters of {tool.name!r} have references that cannot be inlined: {error}",
                case="references",
                hint="flatten the schema",
            )
        return wire_tool(replace(tool, parameters=single_types(parameters)))

    # -- constraints --------------------------------------------------------------------

    def _constrain(self, draft: Draft, constraint: Constraint, plan: Plan) -> None:
        kind, value = constraint.kind, constraint.value
        if kind == "json_schema":
            if not isinstance(value, Mapping) or "properties" not in value:
                draft.refuse(
                    "constraint",
                    "a schema needs properties at its root",
                    case="json_schema",
                    hint="wrap it in an object with one property",
                )
            grammar: dict[str, Any] = {"type": "json", "value": single_types(value)}
        elif kind == "regex":
            grammar = {"type": "regex", "value": value}
        elif kind == "choice":
            grammar = {"type": "regex", "value": alternation(tuple(value))}
        elif kind == "json":
            draft.refuse(
                "constraint",
                "JSON without a schema cannot be asked for",
                case="json",
                hint="give a schema with properties",
            )
        else:
            draft.refuse("constraint", f"it has no {kind}", case=kind)
        where = "parameters.grammar" if "inputs" in draft.body else "response_format"
        outcome = "emulated" if kind == "choice" else "translated"
        draft.enter(
            "constraint",
            "emulated" if outcome == "emulated" else "translated",
            {where: grammar},
            case=kind,
            note=f"as {where.rpartition('.')[2]}, in the server's own shape",
        )
        plan.wraps.append(lambda inner: OneSlice(inner, self))

    # -- completions --------------------------------------------------------------------

    def _prompt(self, draft: Draft, request: CompletionRequest, plan: Plan) -> None:
        del draft.body["model"]
        entry = draft.receipt.entries[-1]
        draft.receipt.entries[-1] = entry._replace(
            wire="", note="left out: the native route answers with the one model there is"
        )
        plan.native = True
        if not request.prompt:
            draft.invalid("prompt", "is empty, which TGI refuses")
        draft.enter("prompt", "translated", {"inputs": request.prompt}, note="as inputs")
        if request.suffix is not None:
            draft.refuse("suffix", "it has no fill-in-the-middle")
        draft.need("parameters.details", True, note="finish reason and token counts")

    def _completion_logprobs(self, draft: Draft, request: CompletionRequest) -> Sampling:
        """The chosen token's log-probability always comes with the details."""
        sampling = request.sampling
        if isinstance(sampling.logprobs, bool):
            draft.enter(
                "sampling.logprobs",
                "translated",
                also="parameters.details",
                case="completion",
                note="part of the details, given on if asked for",
            )
        if sampling.top_logprobs is not UNSET:
            top = sampling.top_logprobs
            if not 0 <= top <= MAX_TOP:
                draft.invalid("sampling.top_logprobs", f"must be from 0 to {MAX_TOP}, got {top}")
            draft.enter(
                "sampling.top_logprobs",
                "translated",
                {"parameters.top_n_tokens": top},
                case="completion",
                note="as top_n_tokens",
            )
        return replace(sampling, logprobs=UNSET, top_logprobs=UNSET)

    # -- sampling -----------------------------------------------------------------------

    def _sampling(
        self, draft: Draft, request: ChatRequest | CompletionRequest, plan: Plan
    ) -> Table:
        sampling = request.sampling
        native = isinstance(request, CompletionRequest)
        table: dict[str, Any] = dict(GENERATE if native else CHAT)
        limit = sampling.max_tokens
        grammar = "response_format" in draft.body or "tools" in draft.body
        grammar = grammar or "grammar" in draft.body.get("parameters", {})
        if limit is not UNSET and limit > SLICE:
            if grammar:
                where = "parameters.max_new_tokens" if native else "max_tokens"
                table["max_tokens"] = replace(CAPPED, wire=where)
            else:
                plan.stream = True
                plan.wraps.insert(0, lambda inner: TokenLimit(inner, limit))
        if sampling.stop is not UNSET and (stops := [stop for stop in sampling.stop if stop]):
            plan.wraps.append(lambda inner: StopCutter(inner, stops))
        if native:
            self._native_sampling(draft, sampling, table, plan)
        elif sampling.top_logprobs is not UNSET and sampling.logprobs is UNSET:
            table["top_logprobs"] = Rule(
                outcome="translated",
                wire="logprobs top_logprobs",
                value=lambda top: {"logprobs": True, "top_logprobs": top},
                low=0,
                high=MAX_TOP,
                note="the server wants logprobs switched on as well",
            )
        return table

    def _native_sampling(
        self, draft: Draft, sampling: Sampling, table: dict[str, Any], plan: Plan
    ) -> None:
        if sampling.temperature is not UNSET and sampling.temperature == 0:
            table.update(top_p=GREEDY, top_k=GREEDY, typical_p=GREEDY)
        if sampling.n is not UNSET and sampling.n > 1:
            if sampling.seed is not UNSET:
                draft.invalid("sampling.seed", "cannot be set together with n on TGI")
            if sampling.temperature is not UNSET and sampling.temperature == 0:
                draft.invalid("sampling.n", "needs sampling: temperature is 0")
            if sampling.max_tokens is not UNSET and sampling.max_tokens > SLICE:
                draft.refuse("sampling.n", f"cannot be streamed, which max_tokens > {SLICE} needs")
            plan.stream = False

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
        limit = request.sampling.max_tokens
        counted = limit is not UNSET and limit > SLICE and plan.stream
        native = isinstance(request, CompletionRequest)
        if native and plan.stream:
            plan.path = "/generate_stream"
        encoded = super()._finish(draft, request, plan, asked, turn=turn)
        if native:
            wanted = request.sampling.logprobs is True or request.sampling.top_logprobs is not UNSET
            kind = GenerateDecoder if plan.stream else GenerateWholeDecoder
            make: Callable[[], Inner] = partial(
                kind, self, path=plan.path, logprobs=wanted, per_token=counted
            )
        elif counted:
            make = partial(EventPerToken, self, turn=turn, path=plan.path)
        else:
            return encoded
        return replace(encoded, decoder=lambda: _wrapped(make(), plan.wraps))

    def _decoder_class(self, plan: Plan) -> Callable[..., Inner]:
        return TGIDecoder if plan.stream else TGIWholeDecoder

    # -- probing ------------------------------------------------------------------------

    @classmethod
    def recognise(cls, target: Target) -> Operation[bool]:
        """Whether `GET /info` answers as TGI's router does.

        `max_total_tokens` is what tells it from text-embeddings-inference, whose `/info` has the
        model and `max_concurrent_requests` too.
        """
        answer: Answer = yield cls(target).call("GET", "/info")
        if not answer.ok:
            return False
        try:
            value = parse_json(answer.body)
        except ValueError:
            return False
        return isinstance(value, dict) and {"model_id", "max_total_tokens"} <= set(value)

    def probe(self) -> Operation[ServerFacts]:
        """Read `/info`: version, model, both token limits."""
        info = yield from routes.ask(self, "GET", "/info")
        if not isinstance(info, Mapping):
            raise routes.malformed(self, "/info", info, TypeError("not an object"))
        return facts_of(info, images=bool(self.options.get("images")))

    def ready(self, model: str) -> Operation[bool]:
        """`/health` is 200 once the shards are warm; before that the port is closed.

        503 means that a shard is gone: another may come, so it is "not yet".
        """
        try:
            answer: Answer = yield self.call("GET", "/health", timeout=5)
        except (Unreachable, EngineLoading):
            return False
        if answer.status == 503:
            return False
        if not answer.ok:
            raise self.failure(answer.status, answer.headers, answer.body, path="/health")
        return True

    # -- other routes -------------------------------------------------------------------

    def tokenize(self, text: str, *, model: str = "") -> Operation[tuple[int, ...]]:
        """`/tokenize`, and the special tokens that the server always adds taken off again.

        The route reads no `add_special_tokens` (router/src/lib.rs skips the field). An added token
        has no place in the text: where the first or the last has none, the empty text is asked for
        as well, which is nothing but what is added.
        """
        told = yield from self._tokens(text)
        ids = tuple(token for token, _ in told)
        if not any(empty for _, empty in (*told[:1], *told[-1:])):
            return ids
        added = tuple(token for token, _ in (yield from self._tokens("")))
        return bare(ids, added)

    def _tokens(self, text: str) -> Operation[list[tuple[int, bool]]]:
        """Id of each token, and whether it stands for no part of the text."""
        value = yield from routes.ask(self, "POST", "/tokenize", {"inputs": text})
        try:
            return [(token["id"], token["start"] == token["stop"]) for token in value]
        except (KeyError, TypeError) as error:
            raise routes.malformed(self, "/tokenize", value, error) from error

    def count_tokens(self, request: ChatRequest) -> Operation[int]:
        """`/chat_tokenize` of the conversation, template and tools included."""
        body = dict(self.encode(request).call.json)
        for name in ("stream", "stream_options"):
            body.pop(name, None)
        value = yield from routes.ask(self, "POST", "/chat_tokenize", body)
        try:
            return len(value["tokenize_response"])
        except (KeyError, TypeError) as error:
            raise routes.malformed(self, "/chat_tokenize", value, error) from error

    def load_state(self) -> Operation[Load]:
        """From `/metrics`. A fresh server has no series yet: then counts are None."""
        answer: Answer = yield self.call("GET", "/metrics")
        if not answer.ok:
            raise self.failure(answer.status, answer.headers, answer.body, path="/metrics")
        return load_of(routes.read_metrics(answer.body))


def _addresses(message: Message) -> Message:
    """Brackets in addresses of images escaped: the router ends the address at the first one."""
    if isinstance(message.content, str):
        return message
    parts = (
        replace(part, url=part.url.replace(")", "%29"))
        if isinstance(part, ImagePart) and part.url is not None
        else part
        for part in message.content
    )
    return replace(message, content=tuple(parts))


def bare(ids: tuple[int, ...], added: tuple[int, ...]) -> tuple[int, ...]:
    """`ids` without the tokens `added` around them, some before and the rest behind."""
    for before in range(len(added), -1, -1):
        behind = len(ids) - (len(added) - before)
        if before <= behind and (*ids[:before], *ids[behind:]) == added:
            return ids[before:behind]
    return ids


def _wrapped(decoder: Inner, wraps: list[Callable[[Inner], Inner]]) -> Inner:
    for wrap in wraps:
        decoder = wrap(decoder)
    return decoder
