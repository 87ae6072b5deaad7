"""The blocking side's HTTP reader: cut anywhere it reads the same, and nonsense is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginekit.drivers._errors import EndedEarlyError, NotHTTPError
from enginekit.drivers._wire import Incoming, Wire
from tests.support.soak import fuzz, seconds


class Script:
    """A socket that hands out prepared pieces, then its end."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = [piece for piece in pieces if piece]
        self.timeouts: list[float] = []

    def settimeout(self, seconds: float) -> None:
        self.timeouts.append(seconds)

    def recv(self, most: int) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


def read(pieces: list[bytes], method: str = "GET") -> tuple[Incoming, bytes]:
    answer = Incoming(Wire(Script(pieces)))  # type: ignore[arg-type]
    answer.wire.begin(5)
    answer.read_head(method)
    body = b""
    while data := answer.some():
        body += data
    return answer, body


def pieces_of(raw: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(raw), *[cut % (len(raw) + 1) for cut in cuts]})
    return [raw[a:b] for a, b in zip(edges, edges[1:])]  # noqa: RUF007


@pytest.mark.timeout(seconds(120))
@fuzz(300)
@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.lists(st.integers(0, 2000), max_size=20),
    st.sampled_from([b"", b";name=value"]),
    st.sampled_from([b"", b"x-trailer: 1\r\n"]),
    st.binary(max_size=4),
)
def test_chunked_bodies_however_they_are_cut(chunks, cuts, extension, trailer, after):
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(c), extension, c) for c in chunks)
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed
    raw += b"0\r\n" + trailer + b"\r\n"
    answer, body = read([*pieces_of(raw, cuts), after])
    assert body == b"".join(chunks)
    assert answer.over
    answer, body = read([*pieces_of(raw, cuts)[:-1], pieces_of(raw, cuts)[-1] + after])
    assert body == b"".join(chunks)
    assert answer.reusable == (not after), "what nobody asked for makes a connection unusable"


@pytest.mark.timeout(seconds(120))
@fuzz(200)
@given(st.binary(max_size=60), st.lists(st.integers(0, 200), max_size=10), st.integers(0, 60))
def test_bodies_with_a_length_however_they_are_cut(body, cuts, short):
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    answer, came = read(pieces_of(raw, cuts))
    assert (came, answer.reusable) == (body, True)
    if 0 < short <= len(body):
        with pytest.raises(EndedEarlyError):
            read(pieces_of(raw[:-short], cuts))


@given(st.integers(0, 120))
def test_every_cut_of_a_chunked_answer_is_noticed(at):
    raw = (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\n...\r\n0\r\n\r\n"
    )
    if at >= len(raw):
        read([raw])
        return
    with pytest.raises(EndedEarlyError):
        read([raw[:at]])


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1, 2\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello!\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70000,
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 300 + b"\r\n",
    ],
    ids=range(11),
)
def test_what_is_not_http_is_refused(raw):
    with pytest.raises(NotHTTPError):
        read([raw])


def test_many_chunks_in_one_read_come_out_together():
    framed = b"5\r\nhello\r\n" * 40
    answer = Incoming(
        Wire(Script([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + framed]))  # type: ignore[arg-type]
    )
    answer.wire.begin(5)
    answer.read_head("GET")
    assert answer.some() == b"hello" * 40


def test_a_timeout_is_not_set_again_while_each_wait_has_one_read():
    script = Script([b"HTTP/1.1 200 OK\r\n\r\n", *[b"x"] * 50])
    answer = Incoming(Wire(script))  # type: ignore[arg-type]
    answer.wire.begin(5)
    answer.read_head("GET")
    for _ in range(50):
        answer.wire.begin(7)
        assert answer.some() == b"x"
    assert script.timeouts == [5, 7]


def test_a_connection_that_the_server_will_close_is_not_kept():
    for head in (
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    ):
        assert not read([head])[0].reusable
    kept = b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n"
    assert read([kept])[0].reusable
