"""The evidence table names tests that exist and cassettes that are there."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_args

from enginekit.facts.engine import Feature
from tests.cassettes.record import FACTS
from tests.contract import evidence, test_live
from tests.contract.replayed import ENGINES


def test_every_named_proof_is_a_test_of_the_live_contract():
    tests = {name for name, _ in inspect.getmembers(test_live, inspect.isfunction)}
    assert set(evidence.PROVED_BY.values()) <= tests
    assert set(evidence.PROVED_BY) <= set(get_args(Feature))


def test_every_proof_that_stands_alone_is_a_test():
    for proofs in evidence.PROVED_ALONE.values():
        assert set(proofs) <= set(get_args(Feature))
        for proof in proofs.values():
            module, _, name = proof.partition("::")
            assert f"def {name}(" in (Path(__file__).parent / module).read_text("utf-8"), proof


def test_live_engines_are_engines_and_have_cassettes():
    assert set(evidence.LIVE) <= set(ENGINES)
    for engine in evidence.LIVE:
        assert set(evidence.cassette(engine)) >= set(FACTS), engine
