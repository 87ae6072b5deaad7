"""Every field of every request is accounted for by every engine of the registry.

The body is what the receipt says, path by path; `tests/engines/dialect/test_receipts.py` has the
strategies and the check, and drives servers that said of themselves what they lack.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginekit import registry
from enginekit.engine import Engine
from enginekit.facts.engine import ModelCard, ServerFacts
from enginekit.types import ChatRequest, CompletionRequest
from tests.contract.replayed import ALL, SERVER
from tests.engines.dialect.test_receipts import chats, check, completions, encode

CARDS = (ModelCard(id="m", context_window=2048),)


def probed(name: str) -> Engine:
    facts = ServerFacts(models=CARDS, context_window=2048, slots=2)
    return registry.engine_class(name)(SERVER, facts=facts)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=60, deadline=None)
@given(request=chats, stream=st.booleans())
def test_chat(name: str, request: ChatRequest, stream: bool) -> None:
    encoded = encode(probed(name), request, stream)
    if encoded is not None:
        check(request, encoded.receipt, encoded.call.json)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=60, deadline=None)
@given(request=completions, stream=st.booleans())
def test_completion(name: str, request: CompletionRequest, stream: bool) -> None:
    encoded = encode(probed(name), request, stream)
    if encoded is not None:
        check(request, encoded.receipt, encoded.call.json)
