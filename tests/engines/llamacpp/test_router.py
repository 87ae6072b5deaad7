"""A router of several models, recorded from build b11434: its models come and go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from enginekit.engine import Answer, Budgets, Call, Open, Operation, Sleep
from enginekit.engines.llamacpp import LlamaCpp
from enginekit.errors import (
    BadRequest,
    ConfigError,
    EngineFault,
    EngineLoading,
    EngineTimeout,
    ModelNotFound,
    Unsupported,
)
from enginekit.kit.route import _only_model
from enginekit.operations import open_reply
from tests.engines.llamacpp.test_llamacpp import HEALTHY, TARGET, chat
from tests.engines.recordings import load


def rec(name: str) -> Answer:
    return load("llamacpp", f"router/{name}").answer


def play(operation: Operation[Any], answers: dict[str, Any], log: list[Any] | None = None) -> Any:
    """Run an operation; several answers to one call come in their order, the last again and again."""
    left = {
        key: list(value) if isinstance(value, tuple) else [value] for key, value in answers.items()
    }
    log = [] if log is None else log
    try:
        effect = next(operation)
        while True:
            log.append(effect)
            if isinstance(effect, Sleep):
                effect = operation.send(None)
                continue
            assert isinstance(effect, Call), effect
            queue = left[f"{effect.method} {effect.path}"]
            effect = operation.send(queue.pop(0) if len(queue) > 1 else queue[0])
    except StopIteration as stop:
        return stop.value


def router(models: str = "models_loaded", **options: Any) -> LlamaCpp:
    server = LlamaCpp(TARGET, options=options)
    server.facts = play(server.probe(), {"GET /props": rec("props"), "GET /models": rec(models)})
    return server


def test_a_probe_lists_the_models_and_whether_they_are_loaded() -> None:
    facts = router().facts
    assert facts is not None
    assert facts.version == "b11434-unknown"
    assert {card.id: card.loaded for card in facts.models} == {
        "broken": False, "embed": False, "scripted": True, "smollm2": False,
    }  # fmt: skip
    assert facts.context_window is None, "no model is in use"


@pytest.mark.parametrize(
    ("model", "window"), [("scripted", 4096), ("smollm2", None), ("nope", None)]
)
def test_the_window_is_that_of_the_model_in_use_once_it_is_loaded(model, window) -> None:
    facts = router(model=model).facts
    assert facts is not None
    assert facts.context_window == window
    assert bool(facts.context_source) == (window is not None)


def test_ready_says_loaded_loading_or_why_it_never_will_be() -> None:
    server = router()
    base = {"GET /health": HEALTHY.answer, "POST /models/load": rec("load")}
    loaded, loading = (
        {**base, "GET /models": rec("models_loaded")},
        {**base, "GET /models": rec("models_loading")},
    )
    assert play(server.ready("scripted"), loaded) is True
    assert play(server.ready("scripted"), loading) is False
    log: list[Any] = []
    assert play(server.ready("smollm2"), loaded, log) is False
    assert [call.path for call in log if call.method == "POST"] == ["/models/load"]
    with pytest.raises(EngineFault, match="exit code 1"):
        play(server.ready("broken"), loaded)
    with pytest.raises(ModelNotFound, match="nearest: scripted") as caught:
        play(server.ready("scriptd"), loaded)
    assert caught.value.near[0] == "scripted"
    assert server.encode(replace(chat(), model="smollm2")).call.json["model"] == "smollm2"


def test_loading_is_over_when_the_model_is_loaded() -> None:
    """The server says `success` at once."""
    log: list[Any] = []
    states = (
        rec("models_cold"),
        rec("models_loading"),
        rec("models_loading"),
        rec("models_loaded"),
    )
    play(router().load("scripted"), {"GET /models": states, "POST /models/load": rec("load")}, log)
    assert [type(effect) for effect in log[-3:]] == [Call, Sleep, Call]
    assert log[1].json == {"model": "scripted"}


def test_unloading_is_over_when_the_model_is_out() -> None:
    """Right after `success` the model is still listed as loaded: a load that came then was lost."""
    log: list[Any] = []
    states = (rec("models_loaded"), rec("models_unloading"), rec("models_unloaded"))
    play(
        router().unload("scripted"),
        {"GET /models": states, "POST /models/unload": rec("unload")},
        log,
    )
    assert any(isinstance(effect, Sleep) for effect in log)


@pytest.mark.parametrize(
    ("verb", "models", "said"),
    [("load", "models_loaded", "load_loaded"), ("unload", "models_unloaded", "unload_unloaded")],
)
def test_what_is_so_already_is_fine(verb, models, said) -> None:
    answers = {"GET /models": rec(models), f"POST /models/{verb}": rec(said)}
    play(getattr(router(), verb)("scripted"), answers)


def test_a_model_that_cannot_be_loaded_says_so() -> None:
    answers = {"GET /models": rec("models_broken"), "POST /models/load": rec("load_broken")}
    with pytest.raises(EngineFault, match="exit code 1"):
        play(router().load("broken"), answers)


def test_a_model_that_is_pushed_out_meanwhile_is_not_loaded() -> None:
    answers = {"GET /models": rec("models_cold"), "POST /models/load": rec("load")}
    with pytest.raises(EngineFault, match="unloaded"):
        play(router().load("scripted"), answers)


def test_loading_has_an_end() -> None:
    log: list[Any] = []
    answers = {"GET /models": rec("models_loading"), "POST /models/load": rec("load")}
    with pytest.raises(EngineTimeout, match="still loading") as caught:
        play(router().load("scripted"), answers, log)
    assert caught.value.phase == "load"
    assert sum(effect.seconds for effect in log if isinstance(effect, Sleep)) <= 600


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_a_name_that_the_router_does_not_know(verb) -> None:
    """The server itself says "File Not Found", as if the route were missing."""
    assert rec("load_unknown").status == 404
    with pytest.raises(ModelNotFound) as caught:
        play(getattr(router(), verb)("scriptd"), {"GET /models": rec("models_loaded")})
    assert caught.value.near[0] == "scripted"


@pytest.mark.parametrize(
    ("case", "kind"),
    [("chat_unknown", ModelNotFound), ("chat_broken", EngineFault), ("chat_unnamed", BadRequest)],
)
def test_refusals_of_a_router(case, kind) -> None:
    said = rec(case)
    error = router().failure(said.status, said.headers, said.body, path="/v1/chat/completions")
    assert type(error) is kind
    assert kind is not EngineFault or "log" in (error.hint or "")


def test_metrics_are_those_of_the_loaded_models_together() -> None:
    """Asked without a model, the router answers 400."""
    assert rec("metrics_unnamed").status == 400
    answers = {"GET /models": rec("models_loaded"), "GET /v1/models": rec("models_loaded"),
               "GET /metrics?model=scripted": rec("metrics")}  # fmt: skip
    state = play(router().load_state(), answers)
    assert (state.running, state.waiting) == (0, 0)
    assert state.prompt_tokens_total == 26


def test_without_a_name_only_the_one_loaded_model_is_meant() -> None:
    """Not the first of the list: that one may not even load."""
    assert play(_only_model(router()), {"GET /v1/models": rec("models_loaded")}) == "scripted"
    with pytest.raises(ConfigError, match="has 4: broken, embed"):
        play(_only_model(router()), {"GET /v1/models": rec("models_cold")})


def test_load_and_unload_need_a_router() -> None:
    """A server with one model refuses before anything is sent."""
    for verb in ("load", "unload"):
        with pytest.raises(Unsupported, match="as long as it runs"):
            play(getattr(LlamaCpp(TARGET), verb)("tiny"), {})


def test_of_a_router_the_adapters_are_not_known() -> None:
    """Each model has its own: a number is believed."""
    assert router().encode(chat(lora=((1, 0.5),))).call.json["lora"] == [{"id": 1, "scale": 0.5}]


HURRIED = Budgets(load=20.0, first_token=10.0)


def opened(server: LlamaCpp, model: str, answers: dict[str, Any], budgets: Budgets) -> list[Any]:
    """What was done before the request itself was opened."""
    log: list[Any] = []
    operation = open_reply(
        server, replace(chat(), model=model), stream=True, budgets=budgets, max_retries=0
    )
    with pytest.raises(AssertionError, match="Open"):
        play(operation, answers, log)
    assert isinstance(log.pop(), Open)
    return log


def test_a_hurried_request_has_its_model_loaded_first() -> None:
    """The request itself would wait in silence, and its first token would be late."""
    states = (rec("models_cold"), rec("models_cold"), rec("models_loading"), rec("models_loaded"))
    answers = {"GET /models": states, "POST /models/load": rec("load")}
    log = opened(router(), "scripted", answers, HURRIED)
    assert [one.json for one in log if isinstance(one, Call) and one.method == "POST"] == [
        {"model": "scripted"}
    ]


def test_a_model_that_is_loaded_is_only_looked_at() -> None:
    log = opened(router(), "scripted", {"GET /models": rec("models_loaded")}, HURRIED)
    assert [one.path for one in log] == ["/models"]
    patient = Budgets(load=20.0, first_token=20.0)
    assert opened(router(), "scripted", {}, patient) == []


def test_a_load_that_is_too_slow_or_fails_sends_no_prompt() -> None:
    request = replace(chat(), model="scripted")
    slow = {"GET /models": rec("models_loading"), "POST /models/load": rec("load_again")}
    with pytest.raises(EngineTimeout) as caught:
        play(open_reply(router(), request, stream=True, budgets=HURRIED), slow)
    assert (caught.value.phase, caught.value.budget) == ("load", 20.0)
    broken = {"GET /models": rec("models_broken"), "POST /models/load": rec("load_broken")}
    with pytest.raises(EngineFault, match="exit code 1"):
        play(
            open_reply(router(), replace(request, model="broken"), stream=True, budgets=HURRIED),
            broken,
        )


def test_in_a_list_nobody_waits_for_a_load_but_it_is_begun() -> None:
    """The next engine answers; whoever is told of it has the model loaded meanwhile."""
    request = replace(chat(), model="scripted")
    told: list[Any] = []

    def passing(engine: Any, encoded: Any) -> Any:
        told.append((engine, encoded.call.json["model"]))
        return why

    def opening() -> Operation[Any]:
        return open_reply(
            router(), request, stream=True, budgets=Budgets(), max_retries=0, passing=passing
        )

    why: Any = EngineLoading("it has not loaded the model yet")
    with pytest.raises(EngineLoading, match="has not loaded the model yet"):
        play(opening(), {"GET /models": rec("models_cold")})
    ((engine, model),) = told
    assert model == "scripted"
    log: list[Any] = []
    warming = {"GET /models": rec("models_loaded"), "POST /models/load": rec("load")}
    encoded = engine.encode(request, stream=True)
    play(engine.warm(encoded, 600.0), warming, log)
    assert "/models/load" in [one.path for one in log]
    why = EngineFault("it failed the last time")
    with pytest.raises(EngineFault, match="last time"):
        play(opening(), {"GET /models": rec("models_cold")})
    why = None  # loaded a moment ago, whatever is listed: the request may go
    with pytest.raises(AssertionError, match="Open"):
        play(opening(), {"GET /models": rec("models_cold")})
    with pytest.raises(AssertionError, match="Open"):  # loaded: the request itself
        play(opening(), {"GET /models": rec("models_loaded")})
    assert len(told) == 3
