"""`EngineKitLLM`: one LlamaIndex LLM over every engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from llama_index.core.base.llms.generic_utils import prompt_to_messages
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from pydantic import ConfigDict

from enginekit.errors import ConfigError
from enginekit.kit.instance import State
from enginekit.kit.keywords import (
    CHAT_FIELDS,
    CHAT_KEYWORDS,
    COMMON_FIELDS,
    request_fields,
    with_call,
    with_schema_shown,
)
from enginekit.llama_index import _metadata
from enginekit.llama_index._generating import Generating
from enginekit.llama_index._messages import to_messages
from enginekit.llama_index._replies import (
    StreamWriter,
    chat_response,
    to_completion,
)
from enginekit.llama_index._request import DIALECT, TEXT_KEYWORDS
from enginekit.llama_index._structured import Structured
from enginekit.llama_index._tokenizer import EngineTokenizer
from enginekit.llama_index._tool_calls import ToolCalling
from enginekit.types import ChatRequest, CompletionRequest, Receipt

_Request = ChatRequest | CompletionRequest


class EngineKitLLM(Generating, ToolCalling, Structured):
    """An LLM on whatever serves it, changed by one environment variable.

    Every setting that is left alone stays with the server; `raw["receipt"]` of each reply says what
    became of the ones that were set. Constructing one does no I/O. Unknown keywords raise
    `UnknownSetting` and name the nearest known one. Everything that goes wrong is an
    `EngineKitError`.

    Example:
        ```python
        from llama_index.core import Settings
        from enginekit.llama_index import EngineKitLLM

        Settings.llm = EngineKitLLM(model="llama3.1", temperature=0)
        ```
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex serializes it under."""
        return "EngineKitLLM"

    # -- what is known of the model -----------------------------------------------------

    def _known(self) -> _metadata.Known:
        state = self._state
        client = state.client
        facts = client.all_facts if client is not None else None
        memo = state.memo.get("metadata")
        if memo is not None and facts and memo[0] == facts:
            return cast(_metadata.Known, memo[1])
        wishes = _metadata.Wishes(
            context_window=self.context_window,
            max_tokens=self.max_tokens,
            is_function_calling_model=self.is_function_calling_model,
            is_chat_model=not self.use_completion_endpoint,
        )
        if client is None:
            where = f"{type(self).__name__}(...)"
            return _metadata.before_connecting(self._client_settings(), wishes, where=where)
        known = _metadata.of(client.known(), wishes)
        state.memo["metadata"] = (facts, known)
        return known

    @property
    def metadata(self) -> LLMMetadata:
        """Context window, model name and so on; never does I/O.

        From what the server said, once it has been asked (by the first call or `connect()`, or by
        another instance); until then from the catalog, and the context window is the smallest that
        the engine starts with. `metadata_source` says which.
        """
        return LLMMetadata(**self._known().values)

    @property
    def metadata_source(self) -> Mapping[str, str]:
        """Where each value of `metadata` comes from."""
        return self._known().sources

    def to_payload(self) -> dict[str, Any]:
        """What events may know of this model: its metadata, never a key."""
        return {"class_name": "EngineKitLLM", **self._known().values, "system_role": "system"}

    @property
    def tokenizer(self) -> EngineTokenizer:
        """The engine's own tokenizer: `Settings.tokenizer = llm.tokenizer`."""
        found = self._state.memo.get("tokenizer")
        if found is None:
            found = self._state.memo["tokenizer"] = EngineTokenizer(self.client)
        return cast(EngineTokenizer, found)

    # -- requests -----------------------------------------------------------------------

    def _chat_request(
        self,
        state: State,
        messages: Sequence[ChatMessage],
        kwargs: Mapping[str, Any],
        *,
        stream: bool = False,
    ) -> ChatRequest:
        fields = self._fields(state, "chat", CHAT_FIELDS, kwargs, CHAT_KEYWORDS, stream)
        show = kwargs.get("show_schema")
        fields = with_schema_shown(fields, self.show_schema if show is None else show)
        return ChatRequest(messages=to_messages(messages), **fields)

    def _text_request(
        self, state: State, prompt: str, kwargs: Mapping[str, Any], *, stream: bool = False
    ) -> CompletionRequest:
        fields = self._fields(state, "text", COMMON_FIELDS, kwargs, TEXT_KEYWORDS, stream)
        return CompletionRequest(prompt=prompt, **fields)

    def _fields(
        self,
        state: State,
        kind: str,
        names: Sequence[str],
        kwargs: Mapping[str, Any],
        known: Sequence[str],
        stream: bool,
    ) -> dict[str, Any]:
        base: dict[str, Any] | None = state.memo.get(kind)
        if base is None:
            base = request_fields(self.__dict__, names)
            base.update(model="", lossy=state.lossy, defaults=state.defaults)
            state.memo[kind] = base
        if kwargs:
            base = with_call(
                base, kwargs, DIALECT, where=f"a call of {type(self).__name__}", known=known
            )
        if not base.get("tools") and "parallel_tool_calls" in base:
            base = {k: v for k, v in base.items() if k != "parallel_tool_calls"}
        if stream and base["sampling"].n and base["sampling"].n > 1:
            raise ConfigError(f"n={base['sampling'].n} needs a whole reply: a stream has one only")
        return base

    def _model_in_use(self, kwargs: Mapping[str, Any]) -> str:
        client = self._state.client
        return str(kwargs.get("model") or (client.model if client is not None else self.model))

    # -- chat ---------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """One whole reply."""
        return self._chat(messages, kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """One whole reply, without blocking the event loop."""
        return await self._achat(messages, kwargs)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """A reply as it comes; returns once its first piece is there.

        Each response holds the message so far, and in `delta` what is new; thinking is in
        `additional_kwargs["thinking_delta"]` and a `ThinkingBlock`. The last has `raw`.
        """
        state, _ = self._ready()
        return self._stream(self._chat_request(state, messages, kwargs, stream=True), kwargs)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """As `stream_chat`; await it for the async generator."""
        state, _ = self._ready()
        return await self._astream(self._chat_request(state, messages, kwargs, stream=True), kwargs)

    # -- completion ---------------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt: as a user's message, or with `use_completion_endpoint` by continuing it.

        There `completion_to_prompt` is applied unless the prompt is `formatted` already.
        """
        if not self.use_completion_endpoint:
            return to_completion(self._chat(prompt_to_messages(prompt), kwargs))
        state, _ = self._ready()
        text = self._text(prompt, formatted)
        return to_completion(self._whole(self._text_request(state, text, kwargs), kwargs))

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """As `complete`, without blocking the event loop."""
        if not self.use_completion_endpoint:
            return to_completion(await self._achat(prompt_to_messages(prompt), kwargs))
        state, _ = self._ready()
        text = self._text(prompt, formatted)
        return to_completion(await self._awhole(self._text_request(state, text, kwargs), kwargs))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """As `complete`, as it comes: each response holds the text so far and the `delta`."""
        responses = self._stream(self._prompt_request(prompt, formatted, kwargs), kwargs)
        return (to_completion(response) for response in responses)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """As `stream_complete`; await it for the async generator."""
        responses = await self._astream(self._prompt_request(prompt, formatted, kwargs), kwargs)
        return (to_completion(response) async for response in responses)

    def _prompt_request(self, prompt: str, formatted: bool, kwargs: Mapping[str, Any]) -> _Request:
        state, _ = self._ready()
        if self.use_completion_endpoint:
            return self._text_request(state, self._text(prompt, formatted), kwargs, stream=True)
        return self._chat_request(state, prompt_to_messages(prompt), kwargs, stream=True)

    def _text(self, prompt: str, formatted: bool) -> str:
        return prompt if formatted else cast(str, self.completion_to_prompt(prompt))  # type: ignore[misc]

    # -- replies ------------------------------------------------------------------------

    def _chat(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> ChatResponse:
        state, _ = self._ready()
        return self._whole(self._chat_request(state, messages, kwargs), kwargs)

    async def _achat(
        self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]
    ) -> ChatResponse:
        state, _ = self._ready()
        return await self._awhole(self._chat_request(state, messages, kwargs), kwargs)

    def _whole(self, request: _Request, kwargs: Mapping[str, Any]) -> ChatResponse:
        reply = self.client.chat(request)
        self._warn_omitted(reply.receipt)
        return chat_response(reply, self._model_in_use(kwargs), with_receipt=self.include_receipt)

    async def _awhole(self, request: _Request, kwargs: Mapping[str, Any]) -> ChatResponse:
        reply = await self.client.achat(request)
        self._warn_omitted(reply.receipt)
        return chat_response(reply, self._model_in_use(kwargs), with_receipt=self.include_receipt)

    def _stream(self, request: _Request, kwargs: Mapping[str, Any]) -> ChatResponseGen:
        stream = self.client.stream(request)
        writer = self._writer(stream.receipt, kwargs)

        def responses() -> ChatResponseGen:
            try:
                for chunk in stream:
                    yield writer.write(chunk)
            finally:
                stream.close()

        return responses()

    async def _astream(self, request: _Request, kwargs: Mapping[str, Any]) -> ChatResponseAsyncGen:
        stream = await self.client.astream(request)
        writer = self._writer(stream.receipt, kwargs)

        async def responses() -> ChatResponseAsyncGen:
            try:
                async for chunk in stream:
                    yield writer.write(chunk)
            finally:
                await stream.aclose()

        return responses()

    def _writer(self, receipt: Receipt, kwargs: Mapping[str, Any]) -> StreamWriter:
        self._warn_omitted(receipt)
        return StreamWriter(receipt, self._model_in_use(kwargs), with_receipt=self.include_receipt)
