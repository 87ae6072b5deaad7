"""A recorded stream, cut at many places in three ways, through both drivers and real sockets.

After the terminal fact the text is whole and the usage is said to be lost; before it there is a
typed error with the text so far. There is no third outcome.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enginekit.engines._decoder import USAGE_LOST
from enginekit.errors import EngineError, EngineTimeout, StreamTruncated
from enginekit.types import Chunk
from tests.drivers.toy import PATH, Driver, opening, text_of, toy
from tests.support.server import Reply, Server, replay

RECORDING = Path(__file__).parents[1] / "fixtures/recordings/vllm/chat_stream_usage.json"
SAMPLES = 200


def events_before(body: bytes, cut: int) -> list[dict]:
    """The events that are whole within the first `cut` bytes, or are but for their blank line."""
    events = []
    for block in body[:cut].split(b"\n\n"):
        data = block.removeprefix(b"data: ").strip()
        try:
            event = json.loads(data)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


@pytest.mark.parametrize(
    ("fault", "framing"),
    [
        ("clean_eof", "chunked"),
        ("clean_eof", "length"),
        ("clean_eof", "close"),
        ("reset", "chunked"),
        ("reset", "length"),
        ("silence", "chunked"),
    ],
)
def test_a_cut_is_a_whole_reply_or_a_typed_error(driver: Driver, fault: str, framing: str):
    recorded = replay(RECORDING, framing=framing)
    body = recorded.payload
    offsets = sorted({round(n * len(body) / SAMPLES) for n in range(SAMPLES)})

    def cut(seen) -> Reply:
        return recorded.but(cut=seen.json["cut"], fault=fault, body=[body])

    patience = 3.0 if fault == "silence" else 20.0
    with Server() as server, ThreadPoolExecutor(SAMPLES if fault == "silence" else 8) as threads:
        server.on(PATH, cut)
        engine = toy(server.url)

        def attempt(offset: int) -> tuple[list[Chunk], EngineError | None]:
            chunks: list[Chunk] = []
            try:
                budgets = {"first_token": patience, "between_tokens": patience}
                request = opening(engine, {"cut": offset}, **budgets)
                driver.read(driver.run(request), chunks)
            except EngineError as error:
                return chunks, error
            return chunks, None

        results = list(threads.map(attempt, offsets))
        if fault == "silence":
            assert server.wait_hung_up(sum(error is not None for _, error in results))

    whole = 0
    for offset, (chunks, error) in zip(offsets, results, strict=True):
        events = events_before(body, offset)
        choices = [choice for event in events for choice in event["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        finished = any(choice.get("finish_reason") for choice in choices)
        counted = any(event.get("usage") for event in events)
        if error is None:
            whole += 1
            end = chunks[-1].end
            assert finished, offset
            assert text_of(chunks) == text
            assert end is not None
            assert (end.usage is not None) == counted
            assert (USAGE_LOST in end.repairs) == (not counted)
        elif fault == "reset":  # it may overtake bytes that the kernel had not handed over
            assert isinstance(error, EngineError)
            assert text.startswith(getattr(error, "partial", ""))
        else:
            assert not finished, (offset, error)
            assert isinstance(error, EngineTimeout if fault == "silence" else StreamTruncated)
            assert error.partial == text_of(chunks) == text_before_blank_line(body, offset, fault)
    assert whole or fault == "reset"


def text_before_blank_line(body: bytes, offset: int, fault: str) -> str:
    """The text of the events that a reader has: in silence the blank line must have come."""
    if fault == "silence":
        offset = body.rfind(b"\n\n", 0, offset) + 2 if b"\n\n" in body[:offset] else 0
    events = events_before(body, offset)
    return "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
