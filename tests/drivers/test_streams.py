"""Streams through both drivers on real sockets: budgets, ends, refusals, hang-ups."""

from __future__ import annotations

import gc
import threading

import pytest

from enginekit.engine import Budgets, Open
from enginekit.errors import (
    EngineFault,
    EngineLoading,
    EngineTimeout,
    MalformedReply,
    Overloaded,
    Redirected,
    StreamTruncated,
    Unreachable,
)
from tests.drivers.toy import (
    DONE,
    PATH,
    PROMPT,
    ROLE,
    STOP,
    USAGE,
    Driver,
    delta,
    opening,
    text_of,
    toy,
)
from tests.support.server import Reply, Server, refused_url, sse, text_reply

HELLO = (ROLE, delta("Hel"), delta("lo"), STOP, USAGE, DONE)


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("coalesced", [False, True])
def test_a_whole_reply_in_every_framing(driver: Driver, server: Server, framing, coalesced):
    reply = sse(*HELLO, framing=framing)
    if coalesced:
        reply = reply.but(body=[reply.payload])
    server.on(PATH, reply)
    stream = driver.run(opening(toy(server.url)))
    chunks = driver.read(stream)
    assert text_of(chunks) == "Hello"
    assert chunks[-1].end.usage.total_tokens == 5
    assert stream.closed
    assert stream.receipt.engine == "toy"


def test_open_is_answered_with_the_first_chunk_decoded_and_before_the_second(driver, server):
    gate = threading.Event()
    server.on(PATH, sse(ROLE, delta("a"), gate, delta("b"), STOP, DONE))
    stream = driver.run(opening(toy(server.url)))
    first = driver.next(stream)
    while not first.text:
        first = driver.next(stream)
    assert first.text == "a"
    gate.set()
    assert text_of(driver.read(stream)) == "b"


@pytest.mark.parametrize("noise", [": ping\n\n", ":\n\n", "data: " + '{"choices":[]}' + "\n\n"])
def test_keep_alives_do_not_satisfy_the_first_token(driver, server, noise):
    server.on(PATH, sse(*([noise, 0.05] * 40), delta("late"), STOP, DONE))
    with pytest.raises(EngineTimeout) as caught:
        driver.run(opening(toy(server.url), first_token=0.4))
    assert (caught.value.phase, caught.value.budget) == ("first token", 0.4)
    assert server.wait_hung_up()


def test_a_role_only_event_does_not_satisfy_the_first_token(driver, server):
    server.on(PATH, sse(ROLE, fault="silence"))
    with pytest.raises(EngineTimeout, match="first_token"):
        driver.run(opening(toy(server.url), first_token=0.3))


def test_keep_alives_do_not_extend_the_wait_between_tokens(driver, server):
    server.on(PATH, sse(delta("a"), *([": ping\n\n", 0.05] * 40), delta("b"), STOP, DONE))
    stream = driver.run(opening(toy(server.url), between_tokens=0.4))
    seen: list = []
    with pytest.raises(EngineTimeout) as caught:
        driver.read(stream, seen)
    assert text_of(seen) == "a"
    assert caught.value.phase == "between tokens"
    assert caught.value.partial == "a"
    assert server.wait_hung_up()


def test_tokens_that_keep_coming_may_take_longer_than_any_one_budget(driver, server):
    server.on(PATH, sse(*[x for n in range(8) for x in (delta(str(n)), 0.1)], STOP, DONE))
    stream = driver.run(opening(toy(server.url), first_token=0.5, between_tokens=0.5))
    assert text_of(driver.read(stream)) == "01234567"


def test_a_slow_reader_is_not_a_slow_server(driver, server):
    """The budget counts waiting for the server, not the time the reader takes."""
    server.on(PATH, sse(delta("a"), STOP, DONE, fault=None))
    stream = driver.run(opening(toy(server.url), between_tokens=0.15))
    driver.next(stream)
    threading.Event().wait(0.4)
    driver.read(stream)


@pytest.mark.parametrize(
    "piece", [b"data: ", b": x", b'data: {"choices":[{"delta":{"content":"x'], ids=str
)
def test_a_drip_inside_one_event_defeats_nothing(driver, server, piece):
    drip: list = []
    for byte in piece * 20:
        drip += [bytes([byte]), 0.03]
    server.on(PATH, sse(delta("a"), *drip))
    stream = driver.run(opening(toy(server.url), between_tokens=0.3))
    with pytest.raises(EngineTimeout, match="between_tokens"):
        driver.read(stream)


def test_a_drip_of_the_head_defeats_nothing(driver, server):
    server.on(PATH, sse(*HELLO, fault="drip_head", delay=0.03))
    with pytest.raises(EngineTimeout, match="first_token"):
        driver.run(opening(toy(server.url), first_token=0.3))


def test_a_drip_of_a_chunk_size_defeats_nothing(driver, server):
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    drip = [x for _ in range(80) for x in (b"0", 0.03)]
    server.on(PATH, Reply(framing="raw", body=[head, *drip]))
    with pytest.raises(EngineTimeout, match="first_token"):
        driver.run(opening(toy(server.url), first_token=0.3))


def test_a_slow_first_byte_runs_out_of_the_first_token_budget(driver, server):
    server.on(PATH, sse(*HELLO, fault="slow_first_byte", delay=5))
    with pytest.raises(EngineTimeout) as caught:
        driver.run(opening(toy(server.url), first_token=0.2))
    assert caught.value.phase == "first token"
    assert "first_token" in caught.value.hint


def test_a_reply_that_is_not_streamed_has_one_budget_for_the_whole(driver, server):
    server.on(PATH, text_reply("").but(body=['{"a":', 5, "1}"]))
    with pytest.raises(EngineTimeout) as caught:
        driver.run(opening(toy(server.url), stream=False, whole_reply=0.3, first_token=0.1))
    assert caught.value.phase == "whole reply"
    assert caught.value.budget == 0.3


# ------------------------------------------------------------------------------- refusals


def test_a_redirect_is_not_followed_and_named(driver, server):
    with Server() as other:
        away = {"location": f"{other.url}/elsewhere"}
        server.on(PATH, Reply(status=307, headers=away, framing="length"))
        with pytest.raises(Redirected, match="/elsewhere") as caught:
            driver.run(opening(toy(server.url, headers=(("authorization", "Bearer k"),))))
        assert caught.value.location == f"{other.url}/elsewhere"
        assert caught.value.status == 307
        assert other.requests == []
    assert len(server.requests) == 1


def test_a_refusal_is_what_the_engine_makes_of_it(driver, server):
    server.on(PATH, text_reply("model is loading", 503), text_reply("boom", 500))
    with pytest.raises(EngineLoading):
        driver.run(opening(toy(server.url)))
    with pytest.raises(EngineFault, match="500: boom"):
        driver.run(opening(toy(server.url)))
    assert server.connections == 1, "the connection of a refusal that was read is used again"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("soon", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)
def test_retry_after_is_filled_in(driver, server, header, seconds):
    server.on(PATH, text_reply("full", 429, headers={"retry-after": header}))
    with pytest.raises(Overloaded) as caught:
        driver.run(opening(toy(server.url)))
    assert caught.value.retry_after == seconds


def test_a_refusal_whose_body_never_ends_is_bounded(driver, server):
    server.on(PATH, Reply(status=500, body=["x" * 65536] * 40))
    with pytest.raises(EngineFault) as caught:
        driver.run(opening(toy(server.url)))
    assert 1 << 20 <= len(caught.value.body) < 2 << 20


def test_a_refusal_whose_body_stalls_is_told_all_the_same(driver, server, monkeypatch):
    import enginekit.drivers._async_send
    import enginekit.drivers.sync

    monkeypatch.setattr(enginekit.drivers._async_send, "REFUSAL_WAIT", 0.2)
    monkeypatch.setattr(enginekit.drivers.sync, "REFUSAL_WAIT", 0.2)
    server.on(PATH, Reply(status=500, body=["half"], fault="silence"))
    with pytest.raises(EngineFault, match="half"):
        driver.run(opening(toy(server.url)))


def test_errors_are_thrown_into_the_operation(driver, server):
    server.on(PATH, text_reply("loading", 503), sse(*HELLO))
    engine = toy(server.url)

    def patient():
        effect = Open(engine=engine, encoded=engine.encode(PROMPT), budgets=Budgets())
        try:
            yield effect
        except EngineLoading:
            return (yield effect)
        raise AssertionError("the refusal was not thrown in")

    assert text_of(driver.read(driver.run(patient()))) == "Hello"
    assert len(server.requests) == 2


def test_a_failure_before_the_first_chunk_is_thrown_into_the_operation(driver, server):
    server.on(PATH, sse(ROLE, 'data: {"error": {"message": "no"}}\n\n'), sse(*HELLO))
    engine = toy(server.url)

    def once_more():
        effect = Open(engine=engine, encoded=engine.encode(PROMPT), budgets=Budgets())
        try:
            yield effect
        except EngineFault:
            return (yield effect)
        raise AssertionError("the failure was not thrown in")

    assert text_of(driver.read(driver.run(once_more()))) == "Hello"


def test_a_failure_after_chunks_comes_after_them(driver, server):
    reply = sse(delta("a"), delta("b"), 'data: {"error": {"message": "no"}}\n\n')
    server.on(PATH, reply.but(body=[reply.payload]))
    stream = driver.run(opening(toy(server.url)))
    seen: list = []
    with pytest.raises(EngineFault) as caught:
        driver.read(stream, seen)
    assert text_of(seen) == "ab"
    assert caught.value.partial == "ab"
    with pytest.raises(EngineFault):
        driver.next(stream)


# ------------------------------------------------------------------------------- broken wires


def test_nobody_listening_is_unreachable(driver):
    url = refused_url()
    with pytest.raises(Unreachable, match="connection refused") as caught:
        driver.run(opening(toy(url)))
    assert caught.value.url == url
    assert caught.value.__cause__ is not None


def test_a_host_name_that_does_not_exist_is_unreachable(driver):
    with pytest.raises(Unreachable, match="host name is not known"):
        driver.run(opening(toy("http://no-such-host.invalid:1", proxy="")))


@pytest.mark.parametrize("fault", ["close_without_response", "reset_without_response"])
def test_no_answer_at_all_is_a_fault_and_not_repeated(driver, server, fault):
    """llama-server dies so of a forced call: the prompt that killed it must not be sent again."""
    server.on(PATH, sse(fault=fault))
    with pytest.raises(EngineFault, match="not sent again") as caught:
        driver.run(opening(toy(server.url)))
    assert not caught.value.retryable
    assert caught.value.engine == "toy"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\nhello",
    ],
    ids=["banner", "chunk size"],
)
def test_what_is_not_http_is_malformed_or_cut(driver, server, raw):
    server.on(PATH, Reply(framing="raw", body=[raw]))
    with pytest.raises((MalformedReply, StreamTruncated)):
        driver.run(opening(toy(server.url)))


@pytest.mark.parametrize("framing", ["chunked", "length"])
@pytest.mark.parametrize("fault", ["clean_eof", "reset"])
def test_a_cut_reply_is_an_error_with_the_partial_text(driver, server, framing, fault):
    server.on(PATH, sse(delta("par"), 0.05, delta("tial"), delta("!"), 0.05, framing=framing))
    reply = server._scripts[None, PATH][0]
    server.on(PATH, reply.but(fault=fault, cut=len(reply.payload) - 3))
    stream = driver.run(opening(toy(server.url)))
    seen: list = []
    with pytest.raises(StreamTruncated) as caught:
        driver.read(stream, seen)
    assert text_of(seen) == "partial" == caught.value.partial


def test_a_body_shorter_than_its_length_is_cut_even_at_an_events_end(driver, server):
    server.on(PATH, sse(delta("a"), delta("b"), framing="length"))
    reply = server._scripts[None, PATH][0]
    server.on(PATH, reply.but(fault="clean_eof", cut=len(reply.body[0])))
    with pytest.raises(StreamTruncated):
        driver.read(driver.run(opening(toy(server.url))))


# ------------------------------------------------------------------------------- hanging up


def test_closing_early_hangs_up(driver, server):
    server.on(PATH, sse(delta("a"), fault="silence"))
    stream = driver.run(opening(toy(server.url)))
    assert driver.next(stream).text == "a"
    driver.hang_up(stream)
    assert stream.closed
    assert server.wait_hung_up()


def test_after_its_own_close_a_reader_sees_what_was_decoded_and_the_end(driver, server):
    server.on(PATH, Reply(body=[sse(delta("a"), delta("b")).payload], fault="silence"))
    stream = driver.run(opening(toy(server.url)))
    assert driver.next(stream).text == "a"
    assert text_of(driver.hang_up_and_read(stream)) == "b"


def test_a_reader_whose_stream_someone_else_closed_does_not_take_it_for_the_end(driver, server):
    server.on(PATH, sse(delta("a"), fault="silence"))
    stream = driver.run(opening(toy(server.url)))
    closer = threading.Timer(0.2, driver.hang_up, (stream,))
    closer.start()
    seen: list = []
    with pytest.raises(StreamTruncated, match="another") as caught:
        driver.read(stream, seen)
    closer.join()
    assert text_of(seen) == "a" == caught.value.partial
    assert server.wait_hung_up()


def test_a_dropped_stream_hangs_up(driver, server):
    server.on(PATH, sse(delta("a"), fault="silence"))
    stream = driver.run(opening(toy(server.url)))
    del stream
    gc.collect()
    assert server.wait_hung_up()


def test_an_operation_that_fails_after_opening_hangs_up(driver, server):
    server.on(PATH, sse(delta("a"), fault="silence"))

    def failing():
        stream = yield from opening(toy(server.url))
        keep.append(stream)
        raise RuntimeError("later")

    keep: list = []
    with pytest.raises(RuntimeError, match="later"):
        driver.run(failing())
    assert keep[0].closed
    assert server.wait_hung_up()


@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_a_finished_stream_gives_its_connection_back(driver, server, framing):
    server.on(PATH, sse(*HELLO, framing=framing))
    for _ in range(5):
        driver.read(driver.run(opening(toy(server.url))))
        threading.Event().wait(0.05)  # for the last bytes of the framing, which come by themselves
    assert server.connections == 1


def test_a_reply_whose_body_goes_on_after_its_end_does_not_keep_its_connection(driver, server):
    server.on(PATH, sse(*HELLO, fault="silence"), sse(*HELLO))
    assert text_of(driver.read(driver.run(opening(toy(server.url))))) == "Hello"
    assert text_of(driver.read(driver.run(opening(toy(server.url))))) == "Hello"
    assert server.connections == 2
    assert server.wait_hung_up()


@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_a_reply_larger_than_every_buffer_arrives_whole_at_a_slow_reader(driver, server, framing):
    """The async side pauses its transport when the reader lags, and must go on afterwards."""
    many = [delta(f"{n:06d} " + "x" * 1000) for n in range(3000)]
    server.on(PATH, sse(*many, STOP, DONE, framing=framing))
    stream = driver.run(opening(toy(server.url), between_tokens=20.0))
    threading.Event().wait(0.3)
    chunks = driver.read(stream)
    assert [chunk.text[:6] for chunk in chunks if chunk.text] == [f"{n:06d}" for n in range(3000)]


def test_thousands_of_tiny_http_chunks_arrive_whole(driver, server):
    body = sse(*[delta(str(n)) for n in range(300)], STOP, DONE).payload
    server.on(PATH, Reply(body=[bytes([byte]) for byte in body]))
    stream = driver.run(opening(toy(server.url), between_tokens=20.0))
    assert text_of(driver.read(stream)) == "".join(map(str, range(300)))


def test_a_reply_that_is_whole_when_its_budget_ends_is_a_reply(driver, server):
    """An empty answer that finished and whose server then falls silent: usage lost, no timeout."""
    server.on(PATH, sse(ROLE, STOP, fault="silence"))
    stream = driver.run(opening(toy(server.url), first_token=0.3))
    (chunk,) = driver.read(stream)
    assert chunk.end.finish_reason == "stop"
    assert chunk.end.usage is None
    assert any("usage lost" in repair for repair in chunk.end.repairs)


def test_the_two_budgets_do_not_mix(driver, server):
    server.on(PATH, sse(0.4, delta("a"), fault="silence"))
    stream = driver.run(opening(toy(server.url), first_token=30.0, between_tokens=0.3))
    with pytest.raises(EngineTimeout) as caught:
        driver.read(stream)
    assert (caught.value.phase, caught.value.budget) == ("between tokens", 0.3)


def test_a_decoder_that_breaks_does_not_keep_its_connection(driver, server):
    from dataclasses import replace

    class Broken:
        done, failure = False, None

        def feed(self, data):
            raise RuntimeError("a bug")

    server.on(PATH, sse(delta("a"), fault="silence"))
    engine = toy(server.url)
    encoded = replace(engine.encode(PROMPT), decoder=Broken)

    def operation():
        return (yield Open(engine=engine, encoded=encoded, budgets=Budgets()))

    with pytest.raises(RuntimeError, match="a bug"):
        driver.run(operation())
    assert server.wait_hung_up()
