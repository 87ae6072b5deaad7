"""`EngineKitChat`: one LangChain chat model over every engine."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import BaseModel, ConfigDict, model_validator

from enginekit._version import __version__
from enginekit.errors import ConfigError, EngineKitError
from enginekit.kit.formats import to_tool_choice
from enginekit.kit.instance import State
from enginekit.kit.keywords import (
    CHAT_FIELDS,
    CHAT_KEYWORDS,
    SAMPLING,
    request_fields,
    unknown,
    with_schema_shown,
)
from enginekit.langchain import _profile, _structured, _tokens
from enginekit.langchain._generating import Generating
from enginekit.langchain._keywords import FOREIGN, NEEDLESS
from enginekit.langchain._messages import to_messages
from enginekit.langchain._replies import ChunkWriter, to_result
from enginekit.langchain._request import with_call
from enginekit.langchain._settings import reraise
from enginekit.langchain._tools import openai_tool, openai_tool_choice
from enginekit.types import ChatRequest

_IDENTIFYING = (
    "model",
    "engine",
    "base_url",
    *SAMPLING,
    *CHAT_FIELDS,
    "context",
    "chat_template",
    "show_schema",
)


class EngineKitChat(Generating, BaseChatModel):
    """A chat model on whatever serves it, changed by one environment variable.

    Every setting that is left alone stays with the server; `response_metadata["receipt"]` of each
    reply says what became of the ones that were set. Constructing one does no I/O. Unknown keywords
    raise `UnknownSetting` and name the nearest known one.

    Example:
        ```python
        from enginekit.langchain import EngineKitChat

        model = EngineKitChat(model="llama3.1", temperature=0)
        print(model.invoke("Name three rivers.").text)
        ```
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    reasoning: bool | str | None = None
    """Switch thinking on or off, or an effort (`"low"`, `"medium"`, `"high"`)."""
    parallel_tool_calls: bool | None = None
    """False asks for at most one tool call."""
    template_options: dict[str, Any] | None = None
    """Variables for the chat template (`chat_template_kwargs`)."""
    show_schema: bool | None = None
    """Tell the model the schema of a structured answer in the prompt too, not only enforce it."""
    streaming: bool | None = None
    """True lets `invoke` read a stream too (for token callbacks); False forbids streaming."""

    _resets: ClassVar[frozenset[str]] = frozenset(_IDENTIFYING)

    @model_validator(mode="after")
    def _note_enginekit_version(self) -> Self:
        self._add_version("enginekit", __version__)
        return self

    @model_validator(mode="after")
    def _check_profile_keys(self) -> Self:
        # The base class works out the type hints of all keys each time: half of a construction.
        check = getattr(super(), "_check_profile_keys", None)
        if check is not None and not isinstance(self.profile, _profile.Profile):
            check()
        return self

    def __repr_args__(self) -> Any:
        # Traces carry the repr of a model with each run: what nobody set stays out of it.
        given = isinstance(self.profile, _profile.Profile)
        return [
            (name, value)
            for name, value in super().__repr_args__()
            if name != "metadata" and not (name == "profile" and given) and value not in ({}, None)
        ]

    @property
    def _llm_type(self) -> str:
        return "enginekit-chat"

    # -- generating ---------------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        try:
            state, client = self._ready()
            request = self._request(state, messages, stop, kwargs)
            reply = client.chat(request)
        except EngineKitError as error:
            reraise(error)
        self._after(state, reply.receipt)
        return to_result(reply, model=self._model_name(kwargs), with_receipt=self.include_receipt)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        try:
            state, client = self._ready()
            request = self._request(state, messages, stop, kwargs)
            reply = await client.achat(request)
        except EngineKitError as error:
            reraise(error)
        self._after(state, reply.receipt)
        return to_result(reply, model=self._model_name(kwargs), with_receipt=self.include_receipt)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        try:
            state, client = self._ready()
            request = self._request(state, messages, stop, kwargs, stream=True)
            stream = client.stream(request)
        except EngineKitError as error:
            reraise(error)
        try:
            writer = self._writer(state, stream.receipt, kwargs)
            for chunk in stream:
                for made in writer.write(chunk):
                    if run_manager:
                        run_manager.on_llm_new_token(made.text, chunk=made)
                    yield made
        except EngineKitError as error:
            reraise(error)
        finally:
            stream.close()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        try:
            state, client = self._ready()
            request = self._request(state, messages, stop, kwargs, stream=True)
            stream = await client.astream(request)
        except EngineKitError as error:
            reraise(error)
        try:
            writer = self._writer(state, stream.receipt, kwargs)
            async for chunk in stream:
                for made in writer.write(chunk):
                    if run_manager:
                        await run_manager.on_llm_new_token(made.text, chunk=made)
                    yield made
        except EngineKitError as error:
            reraise(error)
        finally:
            await stream.aclose()

    def _request(
        self,
        state: State,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        kwargs: Mapping[str, Any],
        *,
        stream: bool = False,
    ) -> ChatRequest:
        base = state.memo.get("request")
        if base is None:
            base = request_fields(self._own_values(), CHAT_FIELDS)
            base["lossy"] = state.lossy
            base["defaults"] = state.defaults
            base["model"] = ""
            state.memo["request"] = base
        if kwargs or stop is not None:
            base = with_call(base, stop, kwargs, where=f"a call of {type(self).__name__}")
            show = kwargs.get("show_schema")
            base = with_schema_shown(base, self.show_schema if show is None else show)
        if stream and base["sampling"].n and base["sampling"].n > 1:
            raise ConfigError(f"n={base['sampling'].n} needs generate(): a stream has one reply")
        return ChatRequest(messages=to_messages(messages), **base)

    def _own_values(self) -> Mapping[str, Any]:
        return self.__dict__

    def _writer(self, state: State, receipt: Any, kwargs: Mapping[str, Any]) -> ChunkWriter:
        self._after(state, receipt)
        return ChunkWriter(
            receipt, model=self._model_name(kwargs), with_receipt=self.include_receipt
        )

    def _after(self, state: State, receipt: Any) -> None:
        self._warn_omitted(receipt)
        if state.client is not None and state.client.all_facts != state.memo.get("facts"):
            self._learned()

    # -- tools and structure ------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call tools.

        Args:
            tools: LangChain tools, functions, pydantic classes, TypedDicts or schemas. An empty
                list binds none.
            tool_choice: `"auto"`, `"any"` (or `"required"`, True), `"none"`, a tool's name, or
                OpenAI's mapping. Engines that cannot force a call have it emulated by a schema.
            strict: ask for strict schema adherence, where the engine has it.
            parallel_tool_calls: False asks for at most one call.

        Raises ConfigError for a choice that is not among the tools.
        """
        for name in kwargs:
            if name not in CHAT_KEYWORDS and name not in ("stop", "ls_structured_output_format"):
                raise unknown(name, CHAT_KEYWORDS, "bind_tools()", FOREIGN, NEEDLESS)
        bound = dict(kwargs)
        formatted = [openai_tool(tool, strict) for tool in tools]
        if formatted:
            bound["tools"] = formatted
            names = [tool.get("function", {}).get("name", "") for tool in formatted]
            choice = openai_tool_choice(to_tool_choice(tool_choice, names))
            if choice is not None:
                bound["tool_choice"] = choice
            if parallel_tool_calls is not None:
                bound["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(**bound)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        show_schema: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Answers that match a schema.

        Args:
            schema: a pydantic class (v1 or v2), a TypedDict, or a JSON schema. A class gives
                instances, anything else dicts.
            method: `json_schema` constrains decoding on the engine; `function_calling` forces a
                call of a tool with that schema; `json_mode` asks for some JSON and only parses it.
            include_raw: return `{"raw", "parsed", "parsing_error"}` and raise no parse error.
            strict: passed on to engines that know it.
            show_schema: with `json_schema`, tell the model the schema in the prompt as well: engines
                only enforce it. None follows the model's own setting.

        An answer that was cut by the token limit is a parse error, never a repaired value.
        Raises ValueError for other keywords or an unknown method.
        """
        if kwargs:
            raise ValueError(f"with_structured_output() does not know {', '.join(kwargs)}")
        bound = {} if show_schema is None else {"show_schema": show_schema}
        return _structured.structured(
            self, schema, method=method, include_raw=include_raw, strict=strict, bound=bound
        )

    # -- what is known of the model -----------------------------------------------------

    def _resolve_model_profile(self) -> ModelProfile | None:
        where = f"{type(self).__name__}(...)"
        found = _profile.before_connecting(
            self._client_settings(), self.context_window, where=where
        )
        return cast(ModelProfile, found)

    def _learned(self) -> None:
        client = self._state.client
        if client is None or client.engine is None:
            return
        self._state.memo["facts"] = client.all_facts
        if isinstance(self.profile, _profile.Profile):
            self.profile = cast(ModelProfile, _profile.of(client.known(), self.context_window))

    @property
    def profile_origins(self) -> Mapping[str, str]:
        """Where each value of `profile` came from; empty for a profile given by the caller."""
        return self.profile.origins if isinstance(self.profile, _profile.Profile) else {}

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids by the engine's own tokenizer.

        Raises Unsupported when the engine has none: no other tokenizer's ids would be right.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self._token_ids(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Tokens of a prompt after the chat template: a `TokenCount`, as `get_num_tokens`."""
        return _tokens.of_messages(self.client, messages, tools, self.custom_get_token_ids)

    # -- tracing and caching ------------------------------------------------------------

    @property
    def _identifying_params(self) -> dict[str, Any]:
        values = self.__dict__
        return {
            name: value
            for name in _IDENTIFYING
            if (value := values[name]) is not None and value != {}
        }

    def _get_invocation_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        # What the base class computes, without its detour over a deprecated method.
        return {**self._identifying_params, "_type": self._llm_type, "stop": stop, **kwargs}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # What a project file says is not among the fields but changes the answer.
        resolved = {
            name: client_setting.value
            for name in ("engine", "base_url", "model", "lossy", "defaults")
            if (client_setting := self.client.config.find(name)) is not None
        }
        return f"{super()._get_llm_string(stop=stop, **kwargs)}---{sorted(resolved.items())}"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = self._ls_params(stop, kwargs)
        params["ls_model_type"] = "chat"
        return params


# langchain-core inspects the bound method on each call; a signature at hand saves most of that.
_methods: tuple[Any, ...] = (EngineKitChat._generate, EngineKitChat._agenerate)
for _method in _methods:
    _method.__signature__ = inspect.signature(_method)

ChatEngineKit = EngineKitChat
"""The same class under the name that LangChain's own conventions give it."""
