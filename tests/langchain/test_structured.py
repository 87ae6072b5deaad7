"""Structured output: three methods, every kind of schema, and nothing cut is taken for whole."""

from __future__ import annotations

from typing import Any, TypedDict

import pydantic
import pydantic.v1
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import OutputParserException

from tests.langchain.wires import VLLM, Answer, Wire, model_of
from tests.support.server import refused_url


class Person(pydantic.BaseModel):
    """Somebody."""

    name: str
    age: int


class OldPerson(pydantic.v1.BaseModel):
    """Somebody."""

    name: str
    age: int


class DictPerson(TypedDict):
    """Somebody."""

    name: str
    age: int


SCHEMA = {**Person.model_json_schema(), "title": "SchemaPerson"}
KINDS: list[Any] = [Person, OldPerson, DictPerson, SCHEMA]
VALUE = {"name": "Ann", "age": 31}
TEXT = ['{"name": "An', 'n", "age": 31}']


def name_of(schema: Any) -> str:
    return schema["title"] if isinstance(schema, dict) else schema.__name__


def answer(method: str, schema: Any, pieces: list[str] = TEXT, finish: str = "stop") -> Answer:
    if method == "function_calling":
        finish = "tool_calls" if finish == "stop" else finish
        return Answer(calls=[("call_1", name_of(schema), pieces)], finish=finish)
    return Answer(text=pieces, finish=finish)


def check(value: Any, schema: Any) -> None:
    if isinstance(schema, type) and issubclass(schema, pydantic.BaseModel | pydantic.v1.BaseModel):
        assert type(value) is schema
        assert (value.name, value.age) == ("Ann", 31)
    else:
        assert value == VALUE


@pytest.mark.parametrize("schema", KINDS, ids=name_of)
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_every_method_with_every_schema(vllm: VLLM, method: Any, schema: Any) -> None:
    vllm.says(answer(method, schema))
    structured = model_of(vllm).with_structured_output(schema, method=method)
    check(structured.invoke("who?"), schema)
    check(list(structured.stream("who?"))[-1], schema)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_every_engine(wire: Wire, method: Any) -> None:
    wire.says(answer(method, Person))
    if method == "function_calling" and wire.engine != "vllm":
        # These servers do not force calls, so enginekit asks for the call as text by a schema.
        call = '{"name": "Person", "arguments": {"name": "Ann", "age": 31}}'
        wire.says(Answer(text=[call]))
    check(model_of(wire).with_structured_output(Person, method=method).invoke("?"), Person)


def test_what_is_sent(vllm: VLLM) -> None:
    vllm.says(answer("json_schema", Person))
    model = model_of(vllm)
    model.with_structured_output(Person, strict=True).invoke("?")
    sent = vllm.requests[-1]["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["name"] == "Person"
    assert sent["json_schema"]["schema"] == Person.model_json_schema()
    vllm.says(answer("function_calling", Person))
    model.with_structured_output(Person, method="function_calling").invoke("?")
    sent = vllm.requests[-1]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "Person"}}
    assert [t["function"]["name"] for t in sent["tools"]] == ["Person"]


async def test_asynchronously(wire: Wire) -> None:
    wire.says(answer("json_schema", Person))
    structured = model_of(wire).with_structured_output(Person)
    check(await structured.ainvoke("?"), Person)
    check([value async for value in structured.astream("?")][-1], Person)


def test_streamed_dicts_grow(vllm: VLLM) -> None:
    vllm.says(answer("json_schema", DictPerson))
    partial = list(model_of(vllm).with_structured_output(DictPerson).stream("?"))
    assert partial[0] == {"name": "An"}
    assert partial[-1] == VALUE


CUT = ['{"name": "An']


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("schema", [Person, DictPerson], ids=name_of)
def test_a_cut_answer_is_an_error_and_not_a_repaired_value(
    vllm: VLLM, method: Any, schema: Any
) -> None:
    """LangChain's parsers close open JSON: `{"name": "An` would be a person without an age."""
    vllm.says(answer(method, schema, CUT, finish="length"))
    structured = model_of(vllm).with_structured_output(schema, method=method)
    with pytest.raises(OutputParserException, match="cut by the token limit"):
        structured.invoke("?")
    with pytest.raises(OutputParserException, match="cut by the token limit"):
        list(structured.stream("?"))


def test_broken_json_of_a_finished_answer_is_an_error_too(vllm: VLLM) -> None:
    vllm.says(Answer(text=CUT))
    with pytest.raises(OutputParserException, match="not whole JSON"):
        model_of(vllm).with_structured_output(DictPerson).invoke("?")


def test_broken_arguments_are_an_error_and_not_none(vllm: VLLM) -> None:
    vllm.says(Answer(calls=[("call_1", "Person", CUT)], finish="tool_calls"))
    structured = model_of(vllm).with_structured_output(Person, method="function_calling")
    with pytest.raises(OutputParserException, match="'Person' cannot be read"):
        structured.invoke("?")


def test_a_fence_around_json_is_tolerated(vllm: VLLM) -> None:
    vllm.says(Answer(text=["```json\n", *TEXT, "\n```"]))
    structured = model_of(vllm).with_structured_output(Person, method="json_mode")
    check(structured.invoke("?"), Person)


def test_raw_and_parse_errors_on_request(vllm: VLLM) -> None:
    vllm.says(answer("json_schema", Person), Answer(text=CUT, finish="length"))
    structured = model_of(vllm).with_structured_output(Person, include_raw=True)
    good: Any = structured.invoke("?")
    check(good["parsed"], Person)
    assert good["parsing_error"] is None
    bad: Any = structured.invoke("?")
    assert bad["raw"].text == CUT[0]
    assert bad["parsed"] is None
    assert isinstance(bad["parsing_error"], OutputParserException)


def test_the_model_is_shown_its_schema_on_request(wire: Wire) -> None:
    """Engines enforce a schema and do not show it: a small model then guesses what a key means."""
    wire.says(Answer(text=['{"name": "Ann", "age": 31}']))
    model = model_of(wire, show_schema=True)

    def told(question: Any, **more: Any) -> bool:
        message = model.invoke(question, response_format=Person, **more)
        noted = "the schema is shown" in str(message.response_metadata["receipt"].get("notes"))
        first = wire.requests[-1]["messages"][0]
        shown = first["role"] == "system" and "matches this JSON schema" in first["content"]
        assert noted == shown
        return shown

    assert told("?")
    assert told([("system", "Be brief."), ("user", "?")])
    assert wire.requests[-1]["messages"][0]["content"].startswith("Be brief.\n\n")
    assert not told("?", show_schema=False)
    model.invoke("?")
    assert len(wire.requests[-1]["messages"]) == 1
    structured = model_of(wire).with_structured_output(Person, show_schema=True)
    assert structured.invoke("?") == Person(name="Ann", age=31)
    assert '"title": "Person"' in wire.requests[-1]["messages"][0]["content"]


def test_thinking_is_not_parsed(wire: Wire) -> None:
    wire.says(Answer(reasoning=["is it {", "Ann}?"], text=TEXT))
    check(model_of(wire).with_structured_output(Person).invoke("?"), Person)


class Starts(BaseCallbackHandler):
    def __init__(self) -> None:
        self.options: list[Any] = []

    def on_chat_model_start(self, *args: Any, options: Any = None, **kwargs: Any) -> None:
        self.options.append(options)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_traces_see_the_schema_and_the_engine_does_not(vllm: VLLM, method: Any) -> None:
    vllm.says(answer(method, Person))
    handler = Starts()
    structured = model_of(vllm).with_structured_output(Person, method=method)
    structured.invoke("?", config={"callbacks": [handler]})
    traced = handler.options[0]["ls_structured_output_format"]
    assert traced["kwargs"] == {"method": method, "strict": None}
    assert traced["schema"]["title"] == "Person"
    assert "ls_structured_output_format" not in vllm.requests[-1]


def test_a_fallback_keeps_its_structure(vllm: VLLM) -> None:
    vllm.says(answer("json_schema", Person))
    dead = model_of(vllm, base_url=refused_url())
    structured = dead.with_fallbacks([model_of(vllm)]).with_structured_output(Person)
    check(structured.invoke("?"), Person)


def test_wrong_use_is_refused(vllm: VLLM) -> None:
    model = model_of(vllm)
    with pytest.raises(ValueError, match="json_schema"):
        model.with_structured_output(Person, method="xml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="colour"):
        model.with_structured_output(Person, colour="red")
    with pytest.raises(ValueError, match="needs a schema"):
        model.with_structured_output(None)  # type: ignore[arg-type]
    for nonsense in (int, list[Person], Person | None, "Person"):
        with pytest.raises(ValueError, match="wrap anything else in a class"):
            model.with_structured_output(nonsense)  # type: ignore[arg-type]


def test_other_constraints_by_response_format(vllm: VLLM) -> None:
    vllm.says(Answer(text=["yes"]))
    model = model_of(vllm)
    model.invoke("?", response_format={"type": "choice", "choice": ["yes", "no"]})
    assert "yes" in str(vllm.requests[-1])
