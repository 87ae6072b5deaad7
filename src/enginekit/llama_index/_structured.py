"""Structured prediction: constrained decoding, and a strict reading of what came."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any, cast

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.program.utils import process_streaming_objects
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import PydanticProgramMode
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, ValidationError

from enginekit.llama_index._errors import BadReply
from enginekit.llama_index._tools import schema_format

_dispatcher = get_dispatcher(__name__)
_OF_PROGRAMS = ("tool_required", "tool_choice", "allow_parallel_tool_calls")


class Structured(FunctionCallingLLM):
    """Objects of a pydantic class, by constrained decoding on the engine."""

    @property
    def _constrains(self) -> bool:
        return self.pydantic_program_mode == PydanticProgramMode.DEFAULT

    def _structured_messages(
        self, prompt: BasePromptTemplate, prompt_args: Mapping[str, Any]
    ) -> list[ChatMessage]:
        messages = prompt.format_messages(llm=self, **prompt_args)
        return self._extend_messages(messages)

    @_dispatcher.span
    def structured_predict(
        self,
        output_cls: type[Any],
        prompt: Any,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """An object of `output_cls`, by constrained decoding on the engine.

        With another `pydantic_program_mode` than the default LlamaIndex's own programs do it. Raises
        BadReply, also a ValueError, when the answer was cut or is not such an object.
        """
        if not self._constrains:
            return super().structured_predict(
                output_cls, prompt, llm_kwargs=llm_kwargs, **prompt_args
            )
        _announce(output_cls, prompt, prompt_args)
        messages = self._structured_messages(prompt, prompt_args)
        response = self.chat(messages, **call_kwargs(output_cls, llm_kwargs))
        return _found(whole(response, output_cls))

    @_dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[Any],
        prompt: Any,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """As `structured_predict`, without blocking the event loop."""
        if not self._constrains:
            return await super().astructured_predict(
                output_cls, prompt, llm_kwargs=llm_kwargs, **prompt_args
            )
        _announce(output_cls, prompt, prompt_args)
        messages = self._structured_messages(prompt, prompt_args)
        response = await self.achat(messages, **call_kwargs(output_cls, llm_kwargs))
        return _found(whole(response, output_cls))

    def _structured_stream_call(
        self,
        output_cls: type[Any],
        prompt: Any,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        if not self._constrains:
            return cast(
                Generator[Any, None, None],
                super()._structured_stream_call(
                    output_cls, prompt, llm_kwargs=llm_kwargs, **prompt_args
                ),
            )
        messages = self._structured_messages(prompt, prompt_args)
        kwargs = call_kwargs(output_cls, llm_kwargs)
        return growing(self.stream_chat(messages, **kwargs), output_cls)

    async def _structured_astream_call(
        self,
        output_cls: type[Any],
        prompt: Any,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        if not self._constrains:
            return cast(
                AsyncGenerator[Any, None],
                await super()._structured_astream_call(
                    output_cls, prompt, llm_kwargs=llm_kwargs, **prompt_args
                ),
            )
        messages = self._structured_messages(prompt, prompt_args)
        kwargs = call_kwargs(output_cls, llm_kwargs)
        return agrowing(await self.astream_chat(messages, **kwargs), output_cls)


def _announce(output_cls: type[BaseModel], prompt: Any, prompt_args: dict[str, Any]) -> None:
    _dispatcher.event(
        LLMStructuredPredictStartEvent(
            output_cls=output_cls, template=prompt, template_args=prompt_args
        )
    )


def _found(output: BaseModel) -> BaseModel:
    _dispatcher.event(LLMStructuredPredictEndEvent(output=output))
    return output


def call_kwargs(
    output_cls: type[BaseModel], llm_kwargs: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Keywords of the chat call that constrains its answer to a class."""
    kept = {k: v for k, v in (llm_kwargs or {}).items() if k not in _OF_PROGRAMS}
    return {**kept, "response_format": schema_format(output_cls)}


def whole(response: ChatResponse, output_cls: type[BaseModel]) -> BaseModel:
    """The object that an answer is.

    Raises BadReply when the answer was cut by the token limit or is not such an object.
    """
    text = response.message.content or ""
    if isinstance(response.raw, dict) and response.raw.get("finish_reason") == "length":
        raise BadReply(
            f"the answer was cut by the token limit after {len(text)} characters, so it is not a "
            f"whole {output_cls.__name__}",
            hint="raise max_tokens",
            partial=text,
        )
    try:
        return output_cls.model_validate_json(_unfenced(text))
    except ValidationError as error:
        raise BadReply(
            f"the model's answer is not a {output_cls.__name__}: {error}", partial=text
        ) from error


def _unfenced(text: str) -> str:
    """Without the Markdown fence that models put around JSON where decoding is not constrained."""
    body = text.strip()
    if body.startswith("```") and body.endswith("```"):
        return body.partition("\n")[2].rpartition("```")[0]
    return body


def growing(
    responses: Generator[ChatResponse, None, None], output_cls: type[BaseModel]
) -> Generator[Any, None, None]:
    """Partial objects while the answer comes, and the whole one last."""
    current: Any = None
    last: ChatResponse | None = None
    for last in responses:
        if last.delta and last.raw is None:
            current = _partial(last, output_cls, current)
            yield current
    yield whole(_one(last), output_cls)


async def agrowing(
    responses: AsyncGenerator[ChatResponse, None], output_cls: type[BaseModel]
) -> AsyncGenerator[Any, None]:
    """As `growing`."""
    current: Any = None
    last: ChatResponse | None = None
    async for last in responses:
        if last.delta and last.raw is None:
            current = _partial(last, output_cls, current)
            yield current
    yield whole(_one(last), output_cls)


def _partial(response: ChatResponse, output_cls: type[BaseModel], current: Any) -> Any:
    return process_streaming_objects(
        response,
        output_cls,
        cur_objects=None if current is None else [current],
        allow_parallel_tool_calls=False,
        flexible_mode=True,
    )


def _one(response: ChatResponse | None) -> ChatResponse:
    if response is None:
        raise BadReply("the answer had no content at all")
    return response
