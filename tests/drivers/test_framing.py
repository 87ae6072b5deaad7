"""The framing, against a slow reading of the specification and cut everywhere."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from enginekit.drivers import framing
from enginekit.drivers.framing import NDJSON, SSE, Frames, Whole
from enginekit.errors import MalformedReply
from tests.support.soak import fuzz, seconds

ENDS = ("\n", "\r\n", "\r")
LINE = st.one_of(
    st.sampled_from(
        ["data: {}", "data:x", "data", ": ping", "event: e", "id: 1", "", "", "dataset: 1"]
    ),
    st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=8).map(
        "data: {}".format
    ),
)
STREAM = st.lists(st.tuples(LINE, st.sampled_from(ENDS)), max_size=12).map(
    lambda lines: "".join(line + end for line, end in lines).encode()
)
CUTS = st.lists(st.integers(0, 400), max_size=12)


def specified(body: bytes) -> tuple[list[bytes], bytes | None]:
    """The events of the HTML specification's algorithm, and what its end throws away."""
    body = body.removeprefix(b"\xef\xbb\xbf")
    lines = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    events: list[bytes] = []
    data: list[bytes] = []
    *whole, last = lines
    for line in whole:
        if not line:
            if data:
                events.append(b"\n".join(data))
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line == b"data":
            data.append(b"")
    if last.startswith(b"data:"):
        data.append(last[5:].removeprefix(b" "))
    elif last == b"data":
        data.append(b"")
    return events, b"\n".join(data) if data else None


def cut(frames: Frames, body: bytes, cuts: list[int]) -> tuple[list[bytes], bytes | None]:
    """Feed `body` in pieces that end at `cuts`."""
    events: list[bytes] = []
    edges = sorted({0, len(body), *[at for at in cuts if at < len(body)]})
    for start, end in itertools.pairwise(edges):
        events += frames.feed(body[start:end])
    return events, frames.eof()


@pytest.mark.timeout(seconds(120))
@fuzz(400)
@given(STREAM, CUTS)
@example(b"data: a\r\n\r\ndata: b\r\r", [8, 9, 10])
@example(b"data: a\n\r\n\n\n", [])
@example(b"\n\ndata: a\n\n", [1])
def test_events_are_those_of_the_specification_however_they_are_cut(body, cuts):
    events, rest = cut(SSE(), body, cuts)
    expected, left = specified(body)
    if rest is not None and rest != left:
        # A last blank line that ends in CR is only known to be one when the body ends.
        assert [*events, rest] == expected
    else:
        assert events == expected


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_single_cut_of_one_stream(end):
    lines = [
        b"\xef\xbb\xbfdata: {",
        b'data: "a": "\xc3\xa4"',
        b"data: }",
        b"",
        b": ping",
        b"",
        b"event: x",
        b"data:[DONE]",
        b"",
        b"",
    ]
    body = end.join(lines)
    for at in range(len(body) + 1):
        events, rest = cut(SSE(), body, [at])
        assert [*events, *([rest] if rest else [])] == ['{\n"a": "ä"\n}'.encode(), b"[DONE]"]


def test_byte_by_byte():
    body = b"data: 1\r\n\r\n: x\r\n\r\ndata: 2\r\n\r\n"
    events, rest = cut(SSE(), body, list(range(len(body))))
    assert (events, rest) == ([b"1", b"2"], None)


def test_an_event_comes_out_with_its_blank_line_and_not_a_byte_later():
    frames = SSE()
    assert frames.feed(b"data: 1\n") == []
    assert frames.feed(b"\n") == [b"1"]


def test_a_last_event_without_its_blank_line_is_left_over():
    frames = SSE()
    assert frames.feed(b'data: {"a": 1}\n\ndata: {"b"') == [b'{"a": 1}']
    assert frames.eof() == b'{"b"'
    assert frames.eof() is None


@pytest.mark.timeout(seconds(120))
@fuzz(200)
@given(st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\n", b"?")), max_size=8), CUTS)
def test_json_lines_however_they_are_cut(lines, cuts):
    body = b"\n".join(lines)
    events, rest = cut(NDJSON(), body, cuts)
    whole = [line for line in lines if line and not line.isspace()]
    assert [*events, *([] if rest is None else [rest])] == whole


def test_json_lines_with_crlf_are_json_all_the_same():
    import json

    frames = NDJSON()
    assert [json.loads(line) for line in frames.feed(b'{"a": 1}\r\n\r\n{"b": 2}\r\n')] == [
        {"a": 1},
        {"b": 2},
    ]


@given(st.binary(max_size=50), CUTS)
def test_a_whole_document_is_what_came(body, cuts):
    assert cut(Whole(), body, cuts) == ([], body)


@pytest.mark.parametrize("make", [SSE, NDJSON, Whole])
def test_an_endless_event_is_refused(make, monkeypatch):
    monkeypatch.setattr(framing, "MAX_EVENT", 1000)
    frames = make()
    with pytest.raises(MalformedReply, match="larger than"):
        for _ in range(20):
            frames.feed(b"data: " + b"x" * 100)


@pytest.mark.parametrize("make", [SSE, NDJSON])
def test_a_large_event_in_small_pieces_is_not_quadratic(make):
    """Four times the pieces cost about four times the work: far from sixteen times."""
    import time

    def seconds(pieces: int) -> float:
        best = 9.0
        for _ in range(3):
            frames = make()
            start = time.process_time()
            for _ in range(pieces):
                frames.feed(b"x" * 64)
            frames.feed(b"\n\n")
            best = min(best, time.process_time() - start)
        return best

    assert seconds(40_000) < 10 * seconds(10_000)
