"""The llama.cpp engine: requests, probing and the routes of `llama-server`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from enginekit.engine import Operation
from enginekit.engines import _openai_routes as routes
from enginekit.engines._emulate import LiftedString
from enginekit.engines._fault import Case
from enginekit.engines._messages import MessagePolicy
from enginekit.engines._openai import OpenAIEngine, Plan
from enginekit.engines._params import Draft, Rule, Table
from enginekit.engines._think import ThinkSplitter
from enginekit.engines._wrap import Inner, PrefixStrip
from enginekit.engines.llamacpp.facts import (
    FAULTS,
    PROFILE,
    SAMPLING,
    facts_of,
    model_cards,
    router_facts,
)
from enginekit.engines.llamacpp.infill import InfillDecoder
from enginekit.errors import EngineError, EngineFault, EngineLoading, ModelNotFound, Unsupported
from enginekit.facts.engine import EngineProfile, Load, ModelCard, ServerFacts
from enginekit.types import (
    UNSET,
    ChatRequest,
    CompletionRequest,
    Constraint,
    Embeddings,
    EmbedRequest,
    Ranking,
    RerankRequest,
)


class LlamaCpp(OpenAIEngine):
    """`llama-server` at one address.

    Options (`[engines.llamacpp.options]`): `substituted_template`, the name of a chat template that
    the server was started with instead of the model's own; every receipt then says so.
    """

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

    # -- requests -----------------------------------------------------------------------

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
        if sampling.logprobs is True and "tools" in draft.body:
            # The server refuses logprobs with tools in a stream.
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
            plan.wraps.append(LiftedString)
        else:
            super()._constrain(draft, constraint, plan)

    def _scalar(self, draft: Draft, name: str, value: Any) -> None:
        if name == "keep_alive":
            draft.omit(name, "set at launch: --sleep-idle-seconds")
        elif name == "context_window":
            window = self.facts.context_window if self.facts is not None else None
            if window is None or window < value:
                draft.refuse(
                    name,
                    f"the window is set at launch and is {window or 'unknown'}",
                    hint=f"start the server with -c {value}",
                )
            draft.enter(name, "translated", note=f"the server's window is {window} already")
        elif name == "lora":
            pairs = ((self._adapter(draft, value), 1.0),) if isinstance(value, str) else value
            parts = {"lora": [{"id": number, "scale": scale} for number, scale in pairs]}
            draft.enter(name, "translated", parts, note="by the number the server gave the adapter")

    def _adapter(self, draft: Draft, name: str) -> int:
        known = self.facts.extra.get("lora", ()) if self.facts is not None else ()
        for number, path in known:
            stem = path.rpartition("/")[2]
            if name in (path, stem, stem.removesuffix(".gguf")):
                return int(number)
        names = ", ".join(path for _, path in known) or "none"
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
        return InfillDecoder if plan.native else super()._decoder_class(plan)

    def _remarks(self, draft: Draft) -> None:
        template = self.options.get("substituted_template")
        if template:
            draft.receipt.notes.append(
                f"the chat template is {template}, not the one inside the model"
            )
        if draft.body.get("n", 1) > 1:
            draft.receipt.notes.append("the server counts the tokens of the first choice only")

    # -- probing ------------------------------------------------------------------------

    def probe(self) -> Operation[ServerFacts]:
        """Read `/props`, `/v1/models` and `/lora-adapters`.

        Raises EngineLoading while the model loads and Unauthorized without the right key: all of
        these routes are guarded.
        """
        props = yield from self._props()
        if props.get("role") == "router":
            listing = yield from routes.ask(self, "GET", "/models")
            return router_facts(props, listing)
        listing = yield from routes.ask(self, "GET", "/v1/models")
        adapters = yield from self.adapters()
        return facts_of(props, listing, adapters)

    def _props(self) -> Operation[Mapping[str, Any]]:
        try:
            value = yield from routes.ask(self, "GET", "/props")
        except Unsupported:
            return {}
        return value if isinstance(value, Mapping) else {}

    def adapters(self) -> Operation[Sequence[Mapping[str, Any]]]:
        """The LoRA adapters that are loaded; empty where the route is missing."""
        try:
            value = yield from routes.ask(self, "GET", "/lora-adapters")
        except Unsupported:
            return ()
        return value if isinstance(value, list) else ()

    def ready(self, model: str) -> Operation[bool]:
        """`/health`, and for a router the model's own status; an unloaded one is asked to load."""
        try:
            yield from routes.ask(self, "GET", "/health", timeout=5)
        except EngineLoading:
            return False
        if not self._router:
            return True
        card = (yield from self._card(model)) if model else None
        if card is None or card.loaded:
            return True
        status = card.extra.get("status") or {}
        if status.get("failed"):
            raise EngineFault(
                f"{self.name} at {self.target.base_url} failed to load {model!r} "
                f"(exit code {status.get('exit_code')})",
                hint="look at the server's log",
                engine=self.name,
                url=self.target.base_url,
            )
        if status.get("value") == "unloaded":
            yield from self.load(model)
        return False

    def _card(self, model: str) -> Operation[ModelCard]:
        cards = model_cards((yield from routes.ask(self, "GET", "/models")))
        for card in cards:
            if model == card.id or model in card.aliases:
                return card
        raise ModelNotFound(
            f"{self.name} at {self.target.base_url} has no model {model!r}",
            engine=self.name,
            url=self.target.base_url,
            model=model,
        )

    def models(self) -> Operation[tuple[ModelCard, ...]]:
        """The models of `/v1/models`: one, or all that a router knows."""
        return model_cards((yield from routes.ask(self, "GET", "/v1/models")))

    # -- other routes -------------------------------------------------------------------

    def embed(self, request: EmbedRequest) -> Operation[Embeddings]:
        """`/v1/embeddings`; a text longer than one batch (`-ub`) is a ContextOverflow."""
        draft = Draft(self, request, self.dialect)
        self._model(draft, request.model)
        draft.enter("texts", "translated", {"input": list(request.texts)}, note="as input")
        if request.dimensions is not UNSET:
            draft.refuse("dimensions", "it ignores the number of dimensions")
        if request.truncate:
            draft.refuse("truncate", "it never cuts a text that is too long")
        if request.keep_alive is not UNSET:
            self._scalar(draft, "keep_alive", request.keep_alive)
        draft.options()
        return (yield from routes.embed(self, request, draft))

    def rerank(self, request: RerankRequest) -> Operation[Ranking]:
        """`/v1/rerank`; needs a server started with `--reranking`."""
        draft = Draft(self, request, self.dialect)
        self._model(draft, request.model)
        draft.enter("query", "sent", {"query": request.query})
        draft.enter("documents", "sent", {"documents": list(request.documents)})
        if request.top_n is not UNSET:
            draft.enter("top_n", "sent", {"top_n": request.top_n})
        draft.options()
        return (yield from routes.rerank(self, request, draft))

    def tokenize(self, text: str, *, model: str = "") -> Operation[tuple[int, ...]]:
        """`/tokenize`, without special tokens added; text that looks like one is read as one."""
        body = {**self._named(model), "content": text, "add_special": False}
        value = yield from routes.ask(self, "POST", "/tokenize", body)
        return tuple(value["tokens"])

    def detokenize(self, tokens: Sequence[int], *, model: str = "") -> Operation[str]:
        """`/detokenize`."""
        body = {**self._named(model), "tokens": list(tokens)}
        value = yield from routes.ask(self, "POST", "/detokenize", body)
        return str(value["content"])

    def count_tokens(self, request: ChatRequest) -> Operation[int]:
        """Tokens of the prompt as the server's own template makes it.

        Asks `/v1/chat/completions/input_tokens`; older servers are asked for the rendered template
        and its tokens.
        """
        body = dict(self.encode(request).call.json)
        for key in ("stream", "stream_options"):
            body.pop(key, None)
        try:
            value = yield from routes.ask(self, "POST", f"{self.chat_path}/input_tokens", body)
            return int(value["input_tokens"])
        except Unsupported:
            rendered = yield from routes.ask(self, "POST", "/apply-template", body)
            return len((yield from self.tokenize(rendered["prompt"], model=request.model)))

    def load_state(self) -> Operation[Load]:
        """From `/metrics`; where that is off, from the slots that are busy."""
        answer = yield self.call("GET", "/metrics")
        if answer.ok:
            return load_of(routes.read_metrics(answer.body))
        error = self.failure(answer.status, answer.headers, answer.body, path="/metrics")
        if not isinstance(error, Unsupported):
            raise error
        try:
            slots = yield from self.slots()
        except EngineError:
            raise error from None
        return Load(running=sum(1 for slot in slots if slot.get("is_processing")))

    def slots(self) -> Operation[Sequence[Mapping[str, Any]]]:
        """What each slot is doing. Unsupported when the server was started with `--no-slots`."""
        value = yield from routes.ask(self, "GET", "/slots")
        return value if isinstance(value, list) else ()

    def load(self, model: str) -> Operation[None]:
        """Router mode: start loading; returns at once, `ready` says when it is done."""
        yield from self._manage("load", model)

    def unload(self, model: str) -> Operation[None]:
        """Router mode: take a model out of memory."""
        yield from self._manage("unload", model)

    def _manage(self, verb: str, model: str) -> Operation[None]:
        if not self._router:
            self.refuse(
                "load" if verb == "load" else "unload",
                "a server with one model has it loaded as long as it runs",
                rule=f"llamacpp.{verb}",
                hint="start llama-server without a model: then it is a router",
            )
        answer = yield self.call("POST", f"/models/{verb}", {"model": model})
        if not answer.ok and b"already" not in answer.body and b"not running" not in answer.body:
            raise self.failure(answer.status, answer.headers, answer.body, path=f"/models/{verb}")

    def _named(self, model: str) -> dict[str, str]:
        return {"model": model} if model and self._router else {}


def load_of(metrics: Mapping[str, float]) -> Load:
    """llama-server's metrics in the common shape; it has none for the KV cache."""

    def count(name: str) -> int | None:
        value = metrics.get(f"llamacpp:{name}")
        return None if value is None else int(value)

    cached = count("prompt_tokens_cached_total") or 0
    prompt = count("prompt_tokens_total")
    return Load(
        running=count("requests_processing"),
        waiting=count("requests_deferred"),
        prompt_tokens_total=None if prompt is None else prompt + cached,
        generated_tokens_total=count("tokens_predicted_total"),
        extra={name.removeprefix("llamacpp:"): value for name, value in metrics.items()},
    )


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
