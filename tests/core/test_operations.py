"""Policy without sockets or clocks: operations are driven by hand and sent their outcomes."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from enginekit.engine import Budgets, Call, Encoded, Engine, Gather, Open, Sleep, Target
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineFault,
    EngineLoading,
    EngineTimeout,
    ModelNotFound,
    NoEngine,
    Overloaded,
    Unreachable,
    Unsupported,
    nearest_models,
)
from enginekit.facts.engine import Capability, EngineProfile, ModelCard, ServerFacts
from enginekit.fallback import open_first
from enginekit.operations import Folder, open_reply, wait_ready, within
from enginekit.types import ChatRequest, Chunk, End, Message, Receipt, Tool, ToolCall, Usage

REQUEST = ChatRequest(model="m", messages=(Message(role="user", content="hi"),))


class Paper(Engine):
    """An engine on paper: it encodes anything and answers what the test sends in."""

    profile = EngineProfile(name="paper", title="Paper", wire="none", tested=("1",))
    readiness: tuple = ()

    def encode(self, request, *, stream=False):
        call = self.call("POST", "/chat", {"stream": stream})
        return Encoded(call=call, receipt=self.receipt(), decoder=lambda: None)

    def failure(self, status, headers, body, *, path=""):
        return EngineFault(body.decode())

    def probe(self):
        answer = yield self.call("GET", "/models")
        return ServerFacts(models=tuple(ModelCard(id=name) for name in answer))

    def ready(self, model):
        return (yield self.call("GET", "/ready"))


@pytest.fixture
def engine():
    return Paper(Target(base_url="http://paper"))


class Script:
    """Run an operation, answering each effect with the next outcome; keeps what was asked."""

    def __init__(self, operation, *outcomes):
        self.asked = []
        self.result = None
        outcomes = iter(outcomes)
        try:
            effect = next(operation)
            while True:
                self.asked.append(effect)
                outcome = None if isinstance(effect, Sleep) else next(outcomes)
                if isinstance(outcome, Exception):
                    effect = operation.throw(outcome)
                else:
                    effect = operation.send(outcome)
        except StopIteration as stop:
            self.result = stop.value

    @property
    def opened(self):
        return sum(isinstance(effect, Open) for effect in self.asked)

    @property
    def slept(self):
        return sum(effect.seconds for effect in self.asked if isinstance(effect, Sleep))


def opening(engine, **kw):
    return open_reply(engine, REQUEST, stream=True, budgets=kw.pop("budgets", Budgets()), **kw)


def test_what_the_driver_opened_is_handed_on(engine):
    script = Script(opening(engine), "the stream")
    assert script.result == "the stream"
    assert script.opened == 1


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_timeout_costs_exactly_the_configured_number_of_requests(engine, retries):
    outcomes = [EngineTimeout("slow") for _ in range(10)]
    requests = []

    def count():
        operation = opening(engine, max_retries=retries)
        effect = next(operation)
        while True:
            requests.append(isinstance(effect, Open))
            effect = (
                operation.send(None)
                if isinstance(effect, Sleep)
                else operation.throw(outcomes.pop())
            )

    with pytest.raises(EngineTimeout):
        count()
    assert sum(requests) == 1 + retries


def test_loading_is_not_failure_and_costs_no_retry(engine):
    script = Script(opening(engine, max_retries=0), *[EngineLoading("loading")] * 5, "the stream")
    assert script.result == "the stream"
    assert script.opened == 6
    assert script.slept > 0


def test_loading_has_its_own_budget(engine):
    with pytest.raises(EngineTimeout) as caught:
        Script(opening(engine, budgets=Budgets(load=3)), *[EngineLoading("loading")] * 100)
    assert caught.value.phase == "load"
    assert caught.value.budget == 3


@pytest.mark.parametrize("error", [BadRequest("no"), ContextOverflow("big"), Unsupported("no")])
def test_what_would_fail_again_is_not_sent_again(engine, error):
    with pytest.raises(type(error)):
        Script(opening(engine), error)


def test_retry_after_is_honoured_up_to_a_minute(engine):
    script = Script(opening(engine), Overloaded("full", retry_after=7.0), "the stream")
    assert script.slept == 7.0
    with pytest.raises(Overloaded):
        Script(opening(engine), Overloaded("full", retry_after=3600.0))


def test_backoff_doubles(engine):
    script = Script(opening(engine, max_retries=3), *[Unreachable("x")] * 3, "the stream")
    sleeps = [effect.seconds for effect in script.asked if isinstance(effect, Sleep)]
    assert sleeps == [0.25, 0.5, 1.0]


def test_a_wrong_model_name_brings_the_nearest_names(engine):
    with pytest.raises(ModelNotFound) as caught:
        Script(
            opening(engine),
            ModelNotFound("no", model="lama3"),
            ["llama3", "llama3.1", "qwen", "mistral"],
        )
    assert caught.value.near[:2] == ("llama3", "llama3.1")
    assert "nearest: llama3" in str(caught.value)


def test_a_model_of_two_names_is_named_once_by_the_nearer():
    models = [("x:latest", "x"), ("/models/big.gguf", "big"), ("y:7b",), ()]
    assert nearest_models(models, "xx")[0] == "x"
    assert nearest_models(models, "x:lates")[0] == "x:latest"
    assert nearest_models(models, "bigg") == ("big",)
    assert nearest_models(models, "????") == ("x:latest", "/models/big.gguf", "y:7b")
    assert nearest_models([], "x") == ()


def test_waiting_counts_the_time_that_calls_took_and_gives_none_more_than_is_left(engine):
    """A server that answers nothing takes the budget once, not once per question."""
    operation = wait_ready(engine, "m", budgets=Budgets(load=15.0))
    given = [next(operation).timeout]
    pause = operation.throw(EngineTimeout("no reply", phase="whole reply", budget=given[0]))
    assert isinstance(pause, Sleep)
    given.append(operation.send(None).timeout)
    assert given[0] == 10.0
    assert 0 < given[1] <= 5.0
    with pytest.raises(EngineTimeout, match="was not ready") as caught:
        operation.throw(EngineTimeout("no reply", phase="whole reply", budget=given[1]))
    assert caught.value.phase == "load"


def test_wait_ready_takes_refused_for_not_yet(engine):
    script = Script(wait_ready(engine, "m", budgets=Budgets()), Unreachable("refused"), False, True)
    assert script.result == script.slept
    assert all(isinstance(effect, Sleep | Call) for effect in script.asked)


class Stream:
    def __init__(self, name):
        self.receipt = Receipt(engine=name)


def engines(**outcomes):
    """Engines by name, each with what its turns bring; also who was asked and how patiently."""
    names = list(outcomes)
    asked = []

    def open_on(number, patient):
        asked.append((names[number], patient))
        outcome = outcomes[names[number]].pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome
        yield

    return open_first(names, open_on), asked


def test_fallback_takes_the_first_that_answers_and_says_who_was_passed_over():
    operation, asked = engines(one=[Unreachable("refused")], two=[Stream("two")])
    receipt = Script(operation).result.receipt
    assert receipt.passed_over == ["one: refused"]
    assert receipt.notes == ["passed over one: refused"]
    assert receipt.to_dict()["passed_over"] == ["one: refused"]
    # Only the last one is worth a retry or a wait.
    assert asked == [("one", False), ("two", True)]


def test_fallback_does_not_hide_a_wrong_request():
    operation, asked = engines(one=[Unreachable("gone")], two=[BadRequest("bad")], three=[])
    with pytest.raises(BadRequest) as caught:
        Script(operation)
    assert caught.value.__notes__ == ["passed over before: one: gone"]
    assert len(asked) == 2


def test_another_engine_may_have_more_room():
    operation, _ = engines(
        one=[ContextOverflow("long", limit=9, requested=10)], two=[Stream("two")]
    )
    assert Script(operation).result.receipt.passed_over == ["one: long"]


def test_when_room_is_all_that_lacks_the_error_says_so():
    said = [ContextOverflow("long", limit=9, requested=20), ContextOverflow("long too", limit=12)]
    for third in (ContextOverflow("as well"), Unreachable("gone"), Unsupported("cannot")):
        operation, _ = engines(one=[said[0]], two=[said[1]], three=[third])
        with pytest.raises(ContextOverflow) as caught:
            Script(operation)
        assert (caught.value.limit, caught.value.requested) == (12, 20)
        assert "1. one: long\n  2. two: long too\n  3. three" in str(caught.value)


def test_what_no_engine_can_is_unsupported():
    operation, _ = engines(
        one=[Unsupported("no", feature="images")], two=[Unsupported("nor", feature="images")]
    )
    with pytest.raises(Unsupported) as caught:
        Script(operation)
    assert caught.value.feature == "images"
    assert caught.value.__cause__.message == "nor"


def test_fallback_that_finds_nobody_lists_all():
    operation, _ = engines(
        one=[Unreachable("refused", hint="no")], two=[Overloaded("full", hint="wait")]
    )
    with pytest.raises(NoEngine) as caught:
        Script(operation)
    assert caught.value.tried == ("one: refused", "two: full")
    assert [type(error) for error in caught.value.errors] == [Unreachable, Overloaded]
    assert caught.value.hint == "wait"
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.tried == caught.value.tried


def test_a_server_that_loads_is_waited_for_only_when_nobody_else_can():
    operation, asked = engines(one=[EngineLoading("loading")], two=[Stream("two")])
    assert Script(operation).result.receipt.engine == "two"
    assert asked == [("one", False), ("two", False)]
    loads = EngineTimeout("still loading", phase="load")
    operation, asked = engines(one=[loads, Stream("one")], two=[Unreachable("gone")])
    receipt = Script(operation).result.receipt
    assert (receipt.engine, receipt.passed_over) == ("one", ["two: gone"])
    assert asked == [("one", False), ("two", False), ("one", True)]


def test_a_server_that_never_finishes_loading_is_named_once():
    operation, asked = engines(
        one=[EngineLoading("loading"), EngineTimeout("600 s", phase="load")],
        two=[EngineTimeout("loading too", phase="load"), Unreachable("died")],
    )
    with pytest.raises(NoEngine) as caught:
        Script(operation)
    assert caught.value.tried == ("one: 600 s", "two: died")
    assert len(asked) == 4


def test_folding_joins_text_and_keeps_alternatives_apart():
    folder = Folder()
    call = ToolCall(id="1", name="f", arguments="{}")
    end = End(
        finish_reason="tool_calls",
        tool_calls=(call,),
        usage=Usage(1, 2, 3),
        repairs=("mended",),
    )
    for chunk in (
        Chunk("a", reasoning="r"),
        Chunk("x", index=1),
        Chunk("b"),
        Chunk("y", index=1),
        Chunk(end=end),
    ):
        folder.add(chunk)
    reply = folder.reply(Receipt(engine="paper"))
    assert (reply.text, reply.reasoning, reply.alternatives) == ("ab", "r", ("xy",))
    assert reply.tool_calls == (call,)
    assert reply.receipt.repairs == ["mended"]


@pytest.mark.parametrize("bad", [0, -1, {"first": 3}, {"load": -1}])
def test_a_timeout_that_makes_no_sense_is_refused(bad):
    with pytest.raises(ValueError):
        Budgets.of(bad)


def test_one_number_limits_every_wait_for_tokens():
    budgets = Budgets.of(2)
    assert (budgets.first_token, budgets.between_tokens, budgets.whole_reply) == (2, 2, 2)
    assert budgets.connect == 2
    assert budgets.load == Budgets().load, "loading is not failure"
    assert Budgets.of({"load": 5}).load == 5
    assert Budgets.of({"first_token": 2}).load == Budgets().load, "who names one speaks of one"


def test_a_load_has_its_own_budget_beside_one_number(engine):
    """A server that says it is loading is waited for longer than its first token may take."""
    slept = []
    operation = opening(engine, budgets=Budgets.of(1))
    with pytest.raises(EngineTimeout) as caught:
        effect = next(operation)
        while True:
            if isinstance(effect, Sleep):
                slept.append(effect.seconds)
                effect = operation.send(None)
            else:
                effect = operation.throw(EngineLoading("loading"))
    assert (caught.value.phase, caught.value.budget) == ("load", 600)
    assert "timeout={'load': 1800}" in caught.value.hint
    assert 590 < sum(slept) <= 600


class Asking(Paper):
    """It leaves open whether it has tools, and says nothing when it is asked."""

    profile = replace(
        Paper.profile, capabilities={"tools": Capability(support="server", evidence="documented")}
    )
    settles = frozenset({"tools", "tool_choice_required"})

    def settle(self, feature, model=""):
        yield self.call("POST", "/trial", {})


def test_what_is_asked_beforehand_waits_no_longer_than_the_first_token():
    engine = Asking(Target(base_url="http://paper"), facts=ServerFacts())
    request = replace(REQUEST, tools=(Tool(name="t", description="", parameters={}),))
    operation = open_reply(engine, request, stream=True, budgets=Budgets(first_token=1.5))
    trial = next(operation)
    assert (trial.path, trial.timeout) == ("/trial", 1.5)
    # Who is silent once is not asked for the next thing: the call itself says what is wrong.
    assert isinstance(operation.throw(EngineTimeout("silent")), Open)
    patient = open_reply(engine, request, stream=True, budgets=Budgets())
    assert next(patient).timeout == 10


def test_what_is_asked_side_by_side_waits_no_longer_either():
    def several():
        return (yield Gather(operations=(), deadline=10.0))

    assert next(within(several(), 0.5)).deadline == 0.5
    assert next(within(several(), 50)).deadline == 10
