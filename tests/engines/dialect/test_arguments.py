"""Arguments of a tool call are the JSON text of an object, or they are no arguments."""

from __future__ import annotations

import json

import pytest

from enginekit.engines._decoder import arguments_problem


@pytest.mark.parametrize("text", ["", "  ", "{}", ' {"a": 1} ', '{"a": [1, 2.5e3, "NaN"]}'])
def test_an_object_is_fine(text: str) -> None:
    assert arguments_problem(text) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": [-Infinity]}', "-Infinity is no JSON number"),
        ('{"a": 1', "not valid JSON"),
        ('{"a": 1} {}', "not valid JSON"),
        ('{"a": "\n"}', "not valid JSON"),
        ("[1]", "JSON list, not an object"),
        ("null", "JSON NoneType, not an object"),
        ('{"a":' + "[" * 200_000, "nested too deeply"),
    ],
)
def test_anything_else_is_not(text: str, said: str) -> None:
    problem = arguments_problem(text)
    assert problem is not None
    assert said in problem


def test_what_python_would_read_is_not_what_servers_take_back() -> None:
    assert json.loads(
        '{"a": NaN}'
    )  # which is why the parser of the standard library does not decide
