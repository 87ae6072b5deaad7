"""Structured output: what is bound to the model, and parsers that never mend a cut answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import (
    JsonOutputKeyToolsParser,
    JsonOutputParser,
    PydanticOutputParser,
    PydanticToolsParser,
)
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass

from enginekit.kit.formats import schema_name
from enginekit.langchain._tools import is_schema, openai_tool, schema_of

if TYPE_CHECKING:
    from enginekit.langchain.chat import EngineKitChat


def structured(
    model: EngineKitChat,
    schema: Any,
    *,
    method: str,
    include_raw: bool,
    strict: bool | None,
    bound: Mapping[str, Any],
) -> Runnable[Any, Any]:
    """The model with a schema and the keywords `bound` bound to it, and the parser that fits.

    Raises ValueError for an unknown method or a missing schema.
    """
    if schema is None and method != "json_mode":
        raise ValueError(f"method {method!r} needs a schema")
    if schema is not None and not is_schema(schema):
        raise ValueError(
            f"{schema!r} is no schema: use a pydantic class, a TypedDict, a dataclass or a JSON schema; "
            "wrap anything else in a class with one field"
        )
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    traced = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
    parser: Runnable[Any, Any]
    if method == "function_calling":
        name = openai_tool(schema)["function"]["name"]
        source = model.bind_tools(
            [schema],
            tool_choice=name,
            parallel_tool_calls=False,
            strict=strict,
            ls_structured_output_format=traced,
        )
        parser = (
            _WholeClass(tools=[schema], first_tool_only=True)
            if is_class
            else _WholeArguments(key_name=name, first_tool_only=True)
        )
    elif method in ("json_schema", "json_mode"):
        if method == "json_mode":
            wanted: dict[str, Any] = {"type": "json_object"}
        else:
            made = schema_of(schema)
            inner: dict[str, Any] = {"name": schema_name(made), "schema": made}
            if strict is not None:
                inner["strict"] = strict
            wanted = {"type": "json_schema", "json_schema": inner}
        source = model.bind(response_format=wanted, ls_structured_output_format=traced, **bound)
        parser = _WholeModel(pydantic_object=schema) if is_class else _WholeJson()
    else:
        raise ValueError(
            f"method {method!r} is not one of 'json_schema', 'function_calling', 'json_mode'"
        )
    if not include_raw:
        return source | parser
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    nothing = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=source) | parsed.with_fallbacks([nothing], exception_key="parsing_error")


def check_whole(message: Any) -> None:
    """Raise OutputParserException when the reply was cut or its tool call is broken."""
    if not isinstance(message, AIMessage):
        return
    if message.response_metadata.get("finish_reason") == "length":
        raise OutputParserException(
            "the answer was cut by the token limit, so it is not the whole value; raise max_tokens",
            llm_output=message.text,
        )
    if message.invalid_tool_calls:
        broken = message.invalid_tool_calls[0]
        raise OutputParserException(
            f"the arguments of {broken['name']!r} cannot be read: "
            f"{broken['error'] or 'they are not a JSON object'}",
            llm_output=broken["args"] or "",
        )


def _message(result: list[Generation]) -> BaseMessage | None:
    first = result[0]
    return first.message if isinstance(first, ChatGeneration) else None


def _check_json(text: str) -> None:
    """LangChain's parser closes what is open; a whole value needs no closing."""
    body = text.strip()
    if body.startswith("```"):
        body = body.partition("\n")[2].rpartition("```")[0]
    try:
        json.loads(body, strict=False)
    except ValueError as error:
        raise OutputParserException(
            f"the answer is not whole JSON: {error}", llm_output=text
        ) from error


class _Last:
    """Watches a stream of messages go by and keeps what their sum needs for the final check."""

    def __init__(self) -> None:
        self.reason: Any = None

    def note(self, item: Any) -> None:
        reason = getattr(item, "response_metadata", {}).get("finish_reason")
        self.reason = reason or self.reason

    def check(self) -> None:
        check_whole(AIMessage(content="", response_metadata={"finish_reason": self.reason}))


class _WholeStream:
    """Mixin: parses partial values as they come and refuses at the end what was cut."""

    def _transform(self, input: Iterator[Any]) -> Iterator[Any]:
        last = _Last()

        def watched() -> Iterator[Any]:
            for item in input:
                last.note(item)
                yield item

        yield from super()._transform(watched())  # type: ignore[misc]
        last.check()

    async def _atransform(self, input: AsyncIterator[Any]) -> AsyncIterator[Any]:
        last = _Last()

        async def watched() -> AsyncIterator[Any]:
            async for item in input:
                last.note(item)
                yield item

        async for value in super()._atransform(watched()):  # type: ignore[misc]
            yield value
        last.check()


class _WholeJson(_WholeStream, JsonOutputParser):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial:
            check_whole(_message(result))
            _check_json(result[0].text)
        return super().parse_result(result, partial=partial)


class _WholeModel(_WholeStream, PydanticOutputParser[Any]):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial:
            check_whole(_message(result))
            _check_json(result[0].text)
        return super().parse_result(result, partial=partial)


class _WholeClass(_WholeStream, PydanticToolsParser):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial:
            check_whole(_message(result))
        return super().parse_result(result, partial=partial)


class _WholeArguments(_WholeStream, JsonOutputKeyToolsParser):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial:
            check_whole(_message(result))
        return super().parse_result(result, partial=partial)
