"""The scripted weights themselves: what they answer must not hang on a narrow margin."""

from __future__ import annotations

import numpy as np

from tests.support.scripted import _tensors, script


def test_every_token_has_its_own_successor_by_a_wide_margin() -> None:
    """At temperature 1 a margin of 10 errs once in twenty thousand tokens; greedy never does."""
    made = script()
    tensors = _tensors(made)
    embedding = tensors["embedding"]
    normed = embedding / np.sqrt((embedding**2).mean(axis=1, keepdims=True))
    logits = normed @ tensors["output"].T
    for before, after in made.successors.items():
        rest = np.delete(logits[before], after)
        assert logits[before, after] - rest.max() > 10, made.vocabulary[before]


def test_where_a_grammar_rules_out_the_first_the_others_stand_out() -> None:
    made = script()
    tensors = _tensors(made)
    embedding = tensors["embedding"]
    normed = embedding / np.sqrt((embedding**2).mean(axis=1, keepdims=True))
    logits = normed @ tensors["output"].T
    for before in {row[0] for row in made.others}:
        wanted = [made.successors[before], *(a for b, a, _ in made.others if b == before)]
        assert list(np.argsort(-logits[before])[: len(wanted)]) == wanted
        falling = -np.sort(-logits[before])
        assert all(falling[: len(wanted)] - falling[1 : len(wanted) + 1] > 1)
