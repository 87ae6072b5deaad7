"""Engines of a list that rest after a wait in vain: when they are passed over, and when asked again.

No socket and no clock: the clock is a number that a test moves.
"""

from __future__ import annotations

from contextlib import suppress

import pytest

from enginekit.engine import Blocking, Call, Target
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineKitError,
    EngineLoading,
    EngineTimeout,
    NoEngine,
    Overloaded,
    Unreachable,
    Unsupported,
)
from enginekit.fallback import Resting, open_first
from enginekit.types import Receipt

NOWHERE = Target(base_url="http://nowhere")
SILENT = EngineTimeout("no connection within 5 s", phase="connect")


class Lists:
    """A list of engines, each with what it answers now, after how many seconds."""

    def __init__(self, seconds=30.0, **outcomes):
        self.now = 1000.0
        self.outcomes = outcomes
        self.asked = []
        self.resting = Resting(seconds, clock=lambda: self.now)

    def call(self):
        names = list(self.outcomes)
        self.asked = []

        def open_on(number, patient):
            self.asked.append((names[number], patient))
            yield Call(target=NOWHERE, method="POST", path=names[number])
            return type("Stream", (), {"receipt": Receipt(engine=names[number])})()

        return self.run(open_first(names, open_on, self.resting)).receipt

    def run(self, operation):
        """Answer each call by what the engine of its name answers now; the operation's result."""
        step, sent = operation.send, None
        while True:
            try:
                effect = step(sent)
            except StopIteration as done:
                return done.value
            outcome = self.outcomes[effect.path]
            if isinstance(outcome, EngineTimeout):
                self.now += 5
            failed = isinstance(outcome, Exception)
            step, sent = operation.throw if failed else operation.send, outcome


@pytest.mark.parametrize("phase", ["connect", "first token", "whole reply"])
def test_who_did_not_answer_is_not_waited_for_again(phase):
    engines = Lists(one=EngineTimeout("nothing within 5 s", phase=phase), two="answers")
    assert engines.call().passed_over == ["one: nothing within 5 s"]
    engines.now += 12
    receipt = engines.call()
    assert engines.asked == [("two", True)]
    assert receipt.engine == "two"
    assert receipt.passed_over == [
        "one: not asked, because it did not answer 12 s ago (nothing within 5 s); asked again in "
        "18 s (cooldown=30)"
    ]
    assert receipt.notes == [f"passed over {receipt.passed_over[0]}"]


def test_when_the_rest_is_over_one_call_asks_while_the_others_still_do_not():
    engines = Lists(one=SILENT, two="answers")
    engines.call()
    engines.now += 30
    assert engines.resting.why(0) is None  # this call asks
    engines.resting.claim(0)
    assert "did not answer 30 s ago" in engines.resting.why(0)  # the others do not
    engines.now += 30
    engines.call()
    assert [name for name, _ in engines.asked] == ["one", "two"]
    engines.call()
    assert [name for name, _ in engines.asked] == ["two"]
    engines.now += 30
    engines.outcomes["one"] = "answers"
    assert engines.call().engine == "one"
    assert engines.call().passed_over == []


@pytest.mark.parametrize(
    "answer", [Overloaded("full"), EngineLoading("loading"), Unreachable("refused")]
)
def test_an_answer_of_any_kind_ends_the_rest(answer):
    engines = Lists(one=SILENT, two="answers")
    engines.call()
    engines.now += 30
    engines.outcomes["one"] = answer
    for _ in range(2):
        assert engines.call().passed_over == [f"one: {answer}"]


@pytest.mark.parametrize(
    "answer",
    [
        Unreachable("refused"),
        Overloaded("full"),
        Unsupported("no images"),
        EngineTimeout("still loading", phase="load"),
    ],
)
def test_who_says_no_at_once_is_asked_by_every_call(answer):
    engines = Lists(one=answer, two="answers")
    engines.call()
    engines.call()
    assert [name for name, _ in engines.asked] == ["one", "two"]


def test_a_connection_that_takes_long_to_fail_counts_as_waited_for():
    now = [0.0]
    resting = Resting(clock=lambda: now[0])

    def no_route():
        yield Call(target=NOWHERE, method="GET", path="/")

    asked = resting.watched(0, no_route())
    next(asked)
    now[0] += 3
    with pytest.raises(Unreachable):
        asked.throw(Unreachable("no route to host"))
    assert "no route to host" in resting.why(0)


def test_who_rests_is_asked_last_when_nobody_else_can():
    engines = Lists(one=SILENT, two="answers", three=Unreachable("gone"))
    engines.call()
    engines.outcomes |= {"one": "answers", "two": Unsupported("no images")}
    receipt = engines.call()
    assert engines.asked == [("two", False), ("three", True), ("one", False)]
    assert (receipt.engine, receipt.passed_over) == ("one", ["two: no images", "three: gone"])


def test_when_all_rest_all_are_asked_and_the_error_names_what_each_said():
    engines = Lists(one=SILENT, two=SILENT)
    for _ in range(2):
        with pytest.raises(NoEngine) as caught:
            engines.run(open_first(*_opening(engines)))
        assert caught.value.tried == ("one: " + str(SILENT), "two: " + str(SILENT))
        assert engines.asked == [("one", False), ("two", True)]
        engines.asked.clear()


def test_a_wrong_request_says_nothing_of_the_server():
    engines = Lists(one=SILENT, two=BadRequest("bad"))
    with pytest.raises(BadRequest):
        engines.run(open_first(*_opening(engines)))
    with pytest.raises(BadRequest) as caught:
        engines.run(open_first(*_opening(engines)))
    assert caught.value.__notes__[-1].startswith("passed over before: one: not asked")


def test_no_cooldown_asks_everybody_every_time():
    engines = Lists(seconds=0.0, one=SILENT, two="answers")
    for _ in range(2):
        assert engines.call().passed_over == [f"one: {SILENT}"]


def _opening(engines):
    names = list(engines.outcomes)

    def open_on(number, patient):
        engines.asked.append((names[number], patient))
        yield Call(target=NOWHERE, method="POST", path=names[number])

    return names, open_on, engines.resting


def test_a_rest_that_is_over_is_kept_for_who_really_asks():
    engines = Lists(one="answers", two=SILENT, three="answers")
    engines.outcomes["one"] = Unreachable("refused")
    engines.call()
    engines.outcomes.update(one="answers", two="answers")
    for _ in range(20):  # nobody comes to the second one, so nobody tries it
        engines.now += 31
        assert engines.call().engine == "one"
    engines.outcomes["one"] = Unreachable("refused")
    assert engines.call().engine == "two"


def test_who_rests_behind_the_one_that_answers_was_not_passed_over():
    engines = Lists(one=Unreachable("refused"), two=SILENT, three="answers")
    engines.call()
    engines.outcomes["one"] = "answers"
    assert engines.call().passed_over == []


def _locally(outcome):
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
    yield


@pytest.mark.parametrize(
    "outcome",
    [
        "known facts",
        Unsupported("no images"),
        ContextOverflow("too long"),
        BadRequest("bad"),
        SILENT,
    ],
)
def test_what_asks_no_server_neither_ends_nor_begins_a_rest(outcome):
    engines = Lists(one=SILENT, two="answers")
    with suppress(EngineKitError):
        engines.run(engines.resting.watched(1, _locally(outcome)))
    assert engines.resting.why(1) is None
    engines.call()
    before = engines.resting.why(0)
    for later in (0, 30):
        engines.now += later
        with suppress(EngineKitError):
            engines.run(engines.resting.watched(0, _locally(outcome)))
        assert engines.resting.why(0) == (None if later else before)
    engines.call()  # nor did it claim the trial that the rest's end allows
    assert [name for name, _ in engines.asked] == ["one", "two"]


def test_a_call_that_is_given_up_closes_what_it_was_waiting_for():
    closed = []

    def waiting():
        try:
            yield Call(target=NOWHERE, method="GET", path="/")
        finally:
            closed.append(True)

    watched = Resting().watched(0, waiting())
    next(watched)
    watched.close()
    assert closed == [True]


def test_a_prompt_that_was_slow_to_prepare_is_no_wait_for_the_server():
    """Fetching an image by URL may take long; the connection that is refused afterwards did not."""
    now = [0.0]
    resting = Resting(clock=lambda: now[0])

    def asked():
        yield Blocking(function=lambda: None)
        yield Call(target=NOWHERE, method="POST", path="/")

    operation = resting.watched(0, asked())
    next(operation)
    now[0] += 20
    operation.send(None)
    with pytest.raises(Unreachable):
        operation.throw(Unreachable("refused"))
    assert resting.why(0) is None
