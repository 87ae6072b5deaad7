"""`EngineKitLLM`: text completion for LangChain, without a chat template."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import ConfigDict

from enginekit.errors import EngineKitError
from enginekit.kit.instance import State
from enginekit.kit.keywords import SAMPLING, request_fields
from enginekit.langchain._generating import Generating
from enginekit.langchain._replies import end_metadata, logprob_rows, usage_metadata
from enginekit.langchain._request import COMPLETION_FIELDS, COMPLETION_KEYWORDS, with_call
from enginekit.langchain._settings import reraise
from enginekit.types import Chunk, CompletionRequest, Receipt, Reply

_IDENTIFYING = (
    "model",
    "engine",
    "base_url",
    *SAMPLING,
    *COMPLETION_FIELDS,
    "context",
)


class EngineKitLLM(Generating, BaseLLM):
    """Continue a text on any engine; with `suffix`, fill in the middle.

    The settings, environment variables and errors are those of `EngineKitChat`. `generate()` returns
    usage, finish reason and receipt in `generation_info`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    suffix: str | None = None
    """Text after the gap: fills in the middle, on engines and models that can."""

    _resets: ClassVar[frozenset[str]] = frozenset(_IDENTIFYING)

    @property
    def _llm_type(self) -> str:
        return "enginekit-llm"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        values = self.__dict__
        return {
            name: value
            for name in _IDENTIFYING
            if (value := values[name]) is not None and value != {}
        }

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        generations = []
        try:
            state, client = self._ready()
            for prompt in prompts:
                request = self._request(state, prompt, stop, kwargs)
                generations.append(self._read(client.chat(request), kwargs))
        except EngineKitError as error:
            reraise(error)
        return self._result(generations)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        generations = []
        try:
            state, client = self._ready()
            for prompt in prompts:
                request = self._request(state, prompt, stop, kwargs)
                reply = await client.achat(request)
                generations.append(self._read(reply, kwargs))
        except EngineKitError as error:
            reraise(error)
        return self._result(generations)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        try:
            state, client = self._ready()
            stream = client.stream(self._request(state, prompt, stop, kwargs))
        except EngineKitError as error:
            reraise(error)
        try:
            self._warn_omitted(stream.receipt)
            for chunk in stream:
                made = self._piece(chunk, stream.receipt, kwargs)
                if run_manager:
                    run_manager.on_llm_new_token(made.text, chunk=made)
                yield made
        except EngineKitError as error:
            reraise(error)
        finally:
            stream.close()

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        try:
            state, client = self._ready()
            stream = await client.astream(self._request(state, prompt, stop, kwargs))
        except EngineKitError as error:
            reraise(error)
        try:
            self._warn_omitted(stream.receipt)
            async for chunk in stream:
                made = self._piece(chunk, stream.receipt, kwargs)
                if run_manager:
                    await run_manager.on_llm_new_token(made.text, chunk=made)
                yield made
        except EngineKitError as error:
            reraise(error)
        finally:
            await stream.aclose()

    def _request(
        self, state: State, prompt: str, stop: Sequence[str] | None, kwargs: Mapping[str, Any]
    ) -> CompletionRequest:
        base = state.memo.get("request")
        if base is None:
            base = request_fields(self.__dict__, COMPLETION_FIELDS)
            base["lossy"] = state.lossy
            base["defaults"] = state.defaults
            base["model"] = ""
            state.memo["request"] = base
        if kwargs or stop is not None:
            where = f"a call of {type(self).__name__}"
            base = with_call(base, stop, kwargs, where=where, known=COMPLETION_KEYWORDS)
        return CompletionRequest(prompt=prompt, **base)

    def _read(self, reply: Reply, kwargs: Mapping[str, Any]) -> list[Generation]:
        self._warn_omitted(reply.receipt)
        info = end_metadata(
            reply.end,
            reply.receipt,
            self._model_name(kwargs),
            with_receipt=self.include_receipt,
        )
        info["usage_metadata"] = usage_metadata(reply.usage)
        if reply.logprobs:
            info["logprobs"] = {"content": logprob_rows(reply.logprobs)}
        texts = (reply.text, *reply.alternatives)
        return [Generation(text=text, generation_info=info) for text in texts]

    def _piece(self, chunk: Chunk, receipt: Receipt, kwargs: Mapping[str, Any]) -> GenerationChunk:
        info: dict[str, Any] = {}
        if chunk.logprobs:
            info["logprobs"] = {"content": logprob_rows(chunk.logprobs)}
        if chunk.end is not None:
            receipt.repairs.extend(chunk.end.repairs)
            info |= end_metadata(
                chunk.end, receipt, self._model_name(kwargs), with_receipt=self.include_receipt
            )
            info["usage_metadata"] = usage_metadata(chunk.end.usage)
        return GenerationChunk(text=chunk.text, generation_info=info or None)

    def _result(self, generations: list[list[Generation]]) -> LLMResult:
        total = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        names: list[str] = []
        for first, *_ in generations:
            info = first.generation_info or {}
            names.append(info.get("model_name", ""))
            usage = info.get("usage_metadata")
            if usage is not None:
                total["prompt_tokens"] += usage["input_tokens"]
                total["completion_tokens"] += usage["output_tokens"]
                total["total_tokens"] += usage["total_tokens"]
        output: dict[str, Any] = {"token_usage": total}
        if names:
            output["model_name"] = names[-1]
        return LLMResult(generations=generations, llm_output=output)

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids by the engine's own tokenizer. Raises Unsupported when it has none."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self._token_ids(text)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = self._ls_params(stop, kwargs)
        params["ls_model_type"] = "llm"
        return params
