"""The vLLM engine: requests, probing and the routes of its OpenAI server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from enginekit.engine import Answer, Operation
from enginekit.engines import _openai_routes as routes
from enginekit.engines._fault import Case
from enginekit.engines._messages import MessagePolicy
from enginekit.engines._openai import OpenAIEngine, Plan
from enginekit.engines._params import Draft, Rule, Table
from enginekit.engines._think import AnswerInReasoning, ThinkSplitter
from enginekit.engines._wrap import Inner, StopCutter
from enginekit.engines.vllm.facts import (
    FAULTS,
    MAX_STOPS,
    PROFILE,
    SAMPLING,
    facts_of,
    model_cards,
)
from enginekit.errors import (
    BadRequest,
    EngineError,
    EngineLoading,
    ModelNotFound,
    Unreachable,
    Unsupported,
)
from enginekit.facts.engine import EngineProfile, Load, ModelCard, ServerFacts
from enginekit.types import (
    UNSET,
    ChatRequest,
    CompletionRequest,
    Constraint,
    Embeddings,
    EmbedRequest,
    Message,
    Ranking,
    RerankRequest,
    Tool,
)


class VLLM(OpenAIEngine):
    """A vLLM OpenAI server at one address.

    Options (`[engines.vllm.options]`): `probe_tools = true` lets `probe()` find out, by one call of
    a single token, whether the server was started with a tool parser; else this is learnt from the
    first refusal, which names the flags.
    """

    profile: ClassVar[EngineProfile] = PROFILE
    dialect: ClassVar[str] = "vllm"
    sampling: ClassVar[Table] = SAMPLING
    faults: ClassVar[tuple[Case, ...]] = FAULTS
    policy: ClassVar[MessagePolicy] = MessagePolicy(
        call_content="empty", reasoning="reasoning_content"
    )

    # -- requests -----------------------------------------------------------------------

    def _chat_wraps(self) -> list[Callable[[Inner], Inner]]:
        return [ThinkSplitter, AnswerInReasoning]

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
                hint="set max_tokens, or probe the server first",
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
        inner = {kind: list(value) if kind == "choice" else value}
        draft.enter(
            "constraint",
            "translated",
            {"structured_outputs": inner},
            case=kind,
            note="as structured_outputs",
        )

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
            window = self.facts.context_window if self.facts is not None else None
            if window is None or window < value:
                draft.refuse(
                    name,
                    f"the window is set at launch and is {window or 'unknown'}",
                    hint=f"start the server with --max-model-len {value}",
                )
            draft.enter(name, "translated", note=f"the server's window is {window} already")
        elif name == "lora":
            self._lora(draft, value)

    def _lora(self, draft: Draft, value: Any) -> None:
        """An adapter is a model of its own name."""
        if not isinstance(value, str):
            draft.refuse("lora", "an adapter is chosen by its name, and has no scale")
        base, draft.body["model"] = draft.body["model"], value
        entries = draft.receipt.entries
        entries[:] = [
            entry._replace(outcome="translated", note=f"the adapter's name stands for {base}")
            if entry.field == "model"
            else entry
            for entry in entries
        ]
        draft.enter("lora", "translated", also="model", note="an adapter is a model of its own")

    # -- probing ------------------------------------------------------------------------

    def probe(self) -> Operation[ServerFacts]:
        """Read `/version` and `/v1/models`; with the option `probe_tools` try a tool, too."""
        try:
            version = yield from routes.ask(self, "GET", "/version")
        except Unsupported:
            version = {}
        listing = yield from routes.ask(self, "GET", "/v1/models")
        tools: bool | None = None
        cards = model_cards(listing)
        if self.options.get("probe_tools") and cards:
            tools = yield from self.takes_tools(cards[0].id)
        return facts_of(version, listing, tools=tools)

    def takes_tools(self, model: str) -> Operation[bool | None]:
        """Whether the server has a tool parser, by a call of one token; None when unclear."""
        trial = ChatRequest(
            model=model, messages=(Message(role="user", content="hi"),), tools=(Tool(name="f"),)
        )
        body = {**self.encode(trial).call.json, "max_tokens": 1}
        try:
            yield from routes.ask(self, "POST", self.chat_path, body, timeout=60)
        except Unsupported:
            return False
        except EngineError:
            return None
        return True

    def ready(self, model: str) -> Operation[bool]:
        """`/health` answers once the model is loaded, and `/v1/models` has the name.

        A refused connection is "not yet": the port opens only when everything is loaded.
        """
        try:
            answer: Answer = yield self.call("GET", "/health", timeout=5)
        except (Unreachable, EngineLoading):
            return False
        if answer.status == 503:
            return False
        if not answer.ok:
            raise self.failure(answer.status, answer.headers, answer.body, path="/health")
        cards = yield from self.models()
        if model and not any(model == card.id for card in cards):
            raise ModelNotFound(
                f"{self.name} at {self.target.base_url} does not serve {model!r}",
                engine=self.name,
                url=self.target.base_url,
                model=model,
            )
        return True

    def models(self) -> Operation[tuple[ModelCard, ...]]:
        """Every served name and every LoRA adapter."""
        return model_cards((yield from routes.ask(self, "GET", "/v1/models")))

    # -- other routes -------------------------------------------------------------------

    def embed(self, request: EmbedRequest) -> Operation[Embeddings]:
        """`/v1/embeddings`, on a server started with a pooling model."""
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
        made: Embeddings = yield from self._pooling(
            "embeddings", routes.embed(self, request, draft)
        )
        return made

    def rerank(self, request: RerankRequest) -> Operation[Ranking]:
        """`/v1/rerank`, on a server started with a scoring model."""
        draft = Draft(self, request, self.dialect)
        self._model(draft, request.model)
        draft.enter("query", "sent", {"query": request.query})
        draft.enter("documents", "sent", {"documents": list(request.documents)})
        if request.top_n is not UNSET:
            draft.enter("top_n", "sent", {"top_n": request.top_n})
        draft.options()
        made: Ranking = yield from self._pooling("rerank", routes.rerank(self, request, draft))
        return made

    def _pooling(
        self, feature: Literal["embeddings", "rerank"], operation: Operation[Any]
    ) -> Operation[Any]:
        """The routes of pooling models are absent from a server that generates."""
        try:
            return (yield from operation)
        except Unsupported as error:
            self.refuse(
                feature,
                f"the server answered {error.status}; it serves no pooling model",
                rule=f"vllm.{feature}",
                hint=self.profile.capability(feature).note,
            )

    def tokenize(self, text: str, *, model: str = "") -> Operation[tuple[int, ...]]:
        """`/tokenize`, without special tokens added."""
        body = {**_named(model), "prompt": text, "add_special_tokens": False}
        value = yield from routes.ask(self, "POST", "/tokenize", body)
        return tuple(value["tokens"])

    def detokenize(self, tokens: Sequence[int], *, model: str = "") -> Operation[str]:
        """`/detokenize`."""
        body = {**_named(model), "tokens": list(tokens)}
        value = yield from routes.ask(self, "POST", "/detokenize", body)
        return str(value["prompt"])

    def count_tokens(self, request: ChatRequest) -> Operation[int]:
        """`/tokenize` of the conversation, template and tools included."""
        body = self.encode(request).call.json
        keys = (
            "model",
            "messages",
            "tools",
            "chat_template_kwargs",
            "add_generation_prompt",
            "continue_final_message",
        )
        asked = {key: body[key] for key in keys if key in body}
        value = yield from routes.ask(self, "POST", "/tokenize", asked)
        return int(value["count"])

    def load_state(self) -> Operation[Load]:
        """From `/metrics`; absent series mean `--disable-log-stats`."""
        answer: Answer = yield self.call("GET", "/metrics")
        if not answer.ok:
            raise self.failure(answer.status, answer.headers, answer.body, path="/metrics")
        return load_of(routes.read_metrics(answer.body, mean=("vllm:kv_cache_usage_perc",)))

    def load(self, model: str) -> Operation[None]:
        """Wake a sleeping server."""
        yield from self._sleep("load", "/wake_up")

    def unload(self, model: str) -> Operation[None]:
        """Put the server to sleep: weights leave the GPU. Requests sent meanwhile hang."""
        yield from self._sleep("unload", "/sleep?level=1")

    def asleep(self) -> Operation[bool]:
        """Whether the server sleeps; False where it cannot."""
        try:
            value = yield from routes.ask(self, "GET", "/is_sleeping")
        except Unsupported:
            return False
        return bool(value.get("is_sleeping"))

    def _sleep(self, verb: Literal["load", "unload"], path: str) -> Operation[None]:
        answer: Answer = yield self.call("POST", path, timeout=120)
        if answer.ok:
            return
        error = self.failure(answer.status, answer.headers, answer.body, path=path)
        if isinstance(error, Unsupported | BadRequest):
            self.refuse(
                verb,
                "sleep mode is off",
                rule=f"vllm.{verb}",
                hint="start the server with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1",
            )
        raise error


def load_of(metrics: Mapping[str, float]) -> Load:
    """vLLM's metrics in the common shape."""

    def count(name: str) -> int | None:
        value = metrics.get(f"vllm:{name}")
        return None if value is None else int(value)

    return Load(
        running=count("num_requests_running"),
        waiting=count("num_requests_waiting"),
        kv_cache_usage=metrics.get("vllm:kv_cache_usage_perc"),
        prompt_tokens_total=count("prompt_tokens_total"),
        generated_tokens_total=count("generation_tokens_total"),
        extra={
            name.removeprefix("vllm:"): value
            for name, value in metrics.items()
            if name.startswith("vllm:") and not name.endswith("_bucket")
        },
    )


def _named(model: str) -> dict[str, str]:
    return {"model": model} if model else {}
