"""Recorded streams of every engine, cut on the wire in three ways, through both drivers.

After the terminal fact the whole reply comes, with its usage lost at most; before it a typed error
with the text so far. There is no third outcome, whichever engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from enginekit.engine import Budgets
from enginekit.errors import EngineError, EngineTimeout, StreamTruncated
from enginekit.operations import open_reply
from enginekit.types import Chunk
from tests.contract.replayed import (
    ENGINES,
    ROOT,
    decoded,
    engine_at,
    request_of,
    streams,
    terminal_fact,
)
from tests.drivers.toy import Driver, drivers
from tests.engines.recordings import Recording
from tests.support.server import Reply, Server, replay

CUTS = 200
"""Offsets per engine, over its recordings, faults and drivers in turn."""
PATIENCE = 2.0
"""Seconds without a byte before a silent server is given up."""

FAULTS = ("clean_eof", "reset", "silence")


@pytest.fixture(params=["sync", "async"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    yield from drivers(request.param)


def plan(name: str, fault: str, kind: str) -> list[tuple[Recording, int]]:
    """This fault's and driver's share of the cuts: evenly spread, the ends always among them."""
    found = streams(name)
    share = CUTS // (len(found) * len(FAULTS) * 2) + 1
    shift = FAULTS.index(fault) * 2 + (kind == "async")
    cuts = []
    for recording in found:
        size = len(recording.body)
        step = size / share
        evenly = {int(n * step + shift * step / 6) for n in range(share)}
        before, after = terminal_fact(recording)
        cuts += [(recording, cut) for cut in sorted({*evenly, before - 1, min(after, size)})]
    return cuts


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ENGINES)
def test_a_cut_reply_is_whole_or_a_typed_error(name: str, fault: str, driver: Driver):
    cuts = plan(name, fault, driver.name)
    assert cuts, f"no recorded stream of {name}: tests/fixtures/recordings/{name}"
    with ThreadPoolExecutor(64 if fault == "silence" else 4) as threads:
        results = list(threads.map(lambda cut: attempt(name, driver, fault, *cut), cuts))
    wholes = 0
    for (recording, cut), (chunks, error) in zip(cuts, results, strict=True):
        place = f"{recording.name} at {cut} of {len(recording.body)}"
        before, after = terminal_fact(recording)
        if error is None:
            wholes += 1
            assert cut >= before, f"{place}: a short reply was taken for a whole one"
            check_whole(name, recording, chunks, place)
        else:
            check_error(name, recording, chunks, error, fault, place)
            if fault != "reset":  # which may overtake bytes that were not read yet
                assert cut < after, f"{place}: {error!r} although the reply was whole"
    assert wholes or fault == "reset"


def attempt(
    name: str, driver: Driver, fault: Any, recording: Recording, cut: int
) -> tuple[list[Chunk], EngineError | None]:
    """One request to a server that sends so much of the recording."""
    chunks: list[Chunk] = []
    stored: Reply = replay(ROOT / name / f"{recording.name}.json")
    with Server() as server:
        server.always(stored.but(cut=cut, fault=fault, framing="chunked"))
        engine = engine_at(name, server.url)
        budgets = Budgets(
            load=PATIENCE,  # no longer than the rest: nobody asks for a load apart
            first_token=PATIENCE if fault == "silence" else 30.0,
            between_tokens=PATIENCE if fault == "silence" else 30.0,
            whole_reply=PATIENCE if fault == "silence" else 30.0,
        )
        opening = open_reply(
            engine, request_of(recording), stream=True, budgets=budgets, max_retries=0
        )
        try:
            driver.read(driver.run(opening), chunks)
        except EngineError as error:
            assert len(server.requests) == 1
            return chunks, error
        assert len(server.requests) == 1
    return chunks, None


def check_whole(name: str, recording: Recording, chunks: list[Chunk], place: str) -> None:
    """Everything but the usage is what the uncut stream gives."""
    whole = decoded(name, recording)
    assert "".join(chunk.text for chunk in chunks) == whole.text, place
    assert "".join(chunk.reasoning for chunk in chunks) == whole.reasoning, place
    end, uncut = chunks[-1].end, whole.end
    assert end is not None, place
    assert uncut is not None
    assert (end.finish_reason, end.tool_calls) == (uncut.finish_reason, uncut.tool_calls), place
    lost = end.usage is None and uncut.usage is not None
    assert end.usage == uncut.usage or lost, place
    assert any("usage lost" in repair for repair in end.repairs) == lost, place


def check_error(
    name: str,
    recording: Recording,
    chunks: list[Chunk],
    error: EngineError,
    fault: str,
    place: str,
) -> None:
    """A cut is a truncation, a silence a timeout; both hold the text that came, and no end."""
    expected: tuple[type, ...] = (EngineTimeout,) if fault == "silence" else (StreamTruncated,)
    if not chunks:  # nothing came: the connection was the failure
        expected = (*expected, EngineError)
    assert isinstance(error, expected), f"{place}: {error!r}"
    assert not any(chunk.end for chunk in chunks), place
    partial = str(getattr(error, "partial", ""))
    assert decoded(name, recording).text.startswith(partial), place
    assert partial.startswith("".join(chunk.text for chunk in chunks)), place
