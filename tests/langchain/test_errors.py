"""Each of our errors is LangChain's as well, says the same, and survives pickling."""

from __future__ import annotations

import copy
import pickle

import pytest
from langchain_core import exceptions as lc

from enginekit import errors
from enginekit.errors import EngineKitError
from enginekit.langchain._errors import TABLE, PermissionDenied, dual

FAMILY = {
    errors.Unreachable: (lc.ModelConnectionError, True),
    errors.EngineLoading: (lc.ModelAPIError, True),
    errors.EngineTimeout: (lc.ModelTimeoutError, True),
    errors.Unauthorized: (lc.ModelAuthenticationError, False),
    errors.ModelNotFound: (lc.ModelNotFoundError, False),
    errors.BadRequest: (lc.ModelInvalidRequestError, False),
    errors.ContextOverflow: (lc.ContextOverflowError, False),
    errors.Unsupported: (lc.ModelInvalidRequestError, False),
    errors.Overloaded: (lc.ModelRateLimitError, True),
    errors.BadOutput: (lc.ModelError, True),
    errors.StreamTruncated: (lc.ModelConnectionError, True),
    errors.EngineFault: (lc.ModelAPIError, True),
    errors.EngineDied: (lc.ModelAPIError, True),
    errors.MalformedReply: (lc.ModelAPIError, False),
    errors.Redirected: (lc.ModelInvalidRequestError, False),
    errors.EngineError: (lc.ModelError, False),
    errors.NoEngine: (lc.ModelConnectionError, False),
}


def every_engine_error() -> list[type[EngineKitError]]:
    found: list[type[EngineKitError]] = []
    queue: list[type[EngineKitError]] = [errors.EngineError]
    while queue:
        cls = queue.pop()
        if cls.__module__ == errors.__name__:
            found.append(cls)
            queue.extend(cls.__subclasses__())
    return found


def test_no_engine_error_is_forgotten() -> None:
    assert set(TABLE) == {*every_engine_error(), errors.NoEngine} == set(FAMILY)


@pytest.mark.parametrize("cls", list(TABLE), ids=lambda cls: cls.__name__)
def test_both_families_catch_it(cls: type[EngineKitError]) -> None:
    family, retryable = FAMILY[cls]
    error = cls("what happened", hint="do this", engine="vllm", status=400, response="r")
    double = dual(error)
    assert isinstance(double, cls)
    assert isinstance(double, family)
    assert double.is_retryable is retryable  # type: ignore[attr-defined]
    assert (str(double), double.hint) == ("what happened", "do this")
    assert (double.engine, double.response) == ("vllm", "r")  # type: ignore[attr-defined]
    assert double.__notes__ == ["hint: do this"]


@pytest.mark.parametrize("cls", list(TABLE), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_it_travels_between_processes(cls: type[EngineKitError], clone: object) -> None:
    double = dual(cls("what happened", hint="do this", status=400))
    twin = clone(double)  # type: ignore[operator]
    assert type(twin) is type(double)
    assert (str(twin), twin.hint, twin.status) == ("what happened", "do this", 400)


def test_403_is_a_permission_and_401_an_authentication_problem() -> None:
    assert isinstance(dual(errors.Unauthorized("no", status=403)), PermissionDenied)
    assert isinstance(dual(errors.Unauthorized("no", status=401)), lc.ModelAuthenticationError)


def test_what_was_set_after_construction_is_kept() -> None:
    error = errors.StreamTruncated("cut")
    error.partial = "Hel"
    double = dual(error)
    assert isinstance(double, errors.StreamTruncated)
    assert double.partial == "Hel"


def test_settings_errors_stay_what_they_are() -> None:
    error = errors.UnknownSetting("no")
    assert dual(error) is error
    double = dual(errors.Unreachable("no"))
    assert dual(double) is double
