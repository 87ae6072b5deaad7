"""Errors survive pickling with their facts, and show their hint in a traceback."""

from __future__ import annotations

import copy
import pickle
import traceback

import pytest

from enginekit import errors
from enginekit.errors import ContextOverflow, EngineKitError, ModelNotFound, describe_choices

ALL = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, EngineKitError)]


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.__name__)
@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_an_error_survives_copying(cls, again):
    error = again(cls("it broke", hint="mend it", url="http://x", status=500))
    assert type(error) is cls
    assert (str(error), error.hint, error.url, error.status) == (
        "it broke",
        "mend it",
        "http://x",
        500,
    )


def test_what_was_set_later_survives_too():
    error = errors.EngineTimeout("slow", phase="first token")
    error.partial = "so far"
    again = pickle.loads(pickle.dumps(error))
    assert (again.partial, again.phase) == ("so far", "first token")


def test_the_hint_is_in_the_traceback():
    try:
        raise ContextOverflow("too long", hint="use fewer tokens", limit=10, requested=12)
    except ContextOverflow as error:
        shown = "".join(traceback.format_exception(error))
    assert "hint: use fewer tokens" in shown


def test_builtin_families_catch_ours():
    """Code that catches ConnectionError, TimeoutError or ValueError need not know enginekit."""
    assert issubclass(errors.Unreachable, ConnectionError)
    assert issubclass(errors.EngineTimeout, TimeoutError)
    assert issubclass(errors.BadRequest, ValueError)
    assert issubclass(errors.MissingExtra, ImportError)


def test_nearest_names_ignore_case_and_come_best_first():
    names = ["llama3.1:8b", "Qwen3:8b", "mistral"]
    assert describe_choices(names, "LLAMA3:8b")[0] == "llama3.1:8b"
    assert describe_choices(names, "qwen3") == ("Qwen3:8b",)
    assert describe_choices([], "x") == ()


def test_defaults_of_facts_are_on_the_class():
    assert ModelNotFound("x").near == ()
    assert ContextOverflow("x").limit is None
