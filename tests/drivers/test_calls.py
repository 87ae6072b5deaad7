"""Whole answers, what is sent, and connections: reuse, staleness, Unix sockets, forks, threads."""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from enginekit import __version__
from enginekit.engine import Call, Target
from enginekit.errors import (
    BadRequest,
    ConfigError,
    EngineFault,
    EngineTimeout,
    MalformedReply,
    Redirected,
    StreamTruncated,
    Unreachable,
)
from tests.drivers.toy import (
    DONE,
    PATH,
    STOP,
    Driver,
    delta,
    drivers,
    one,
    opening,
    text_of,
    toy,
)
from tests.support.server import Reply, Server, json_reply, refused_url, sse, text_reply


def call(url: str, path: str = "/x", *, json=None, method=None, headers=(), timeout=5.0, **target):
    return one(
        Call(
            target=Target(base_url=url, **target),
            method=method or ("GET" if json is None else "POST"),
            path=path,
            json=json,
            headers=headers,
            timeout=timeout,
        )
    )


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_a_whole_answer_in_every_framing(driver: Driver, server: Server, framing):
    server.on("/x", json_reply({"a": 1}, framing=framing, headers={"X-Thing": "1"}))
    answer = driver.run(call(server.url))
    assert (answer.status, answer.ok, json.loads(answer.body)) == (200, True, {"a": 1})
    assert answer.headers["x-thing"] == "1"


@pytest.mark.parametrize("status", [404, 500, 503])
def test_a_call_is_answered_whatever_the_status(driver, server, status):
    server.on("/x", text_reply("no", status))
    answer = driver.run(call(server.url))
    assert (answer.status, answer.ok, answer.body) == (status, False, b"no")


def test_a_call_that_is_redirected_says_where_to(driver, server):
    server.on("/x", Reply(status=302, headers={"location": "/y"}, framing="length"))
    with pytest.raises(Redirected, match="/y"):
        driver.run(call(server.url))
    assert server.paths() == ["GET /x"]


def test_head_and_204_have_no_body(driver, server):
    server.on(
        "/x",
        text_reply("hello"),
        Reply(status=204, framing="raw", body=["HTTP/1.1 204 No Content\r\n\r\n"]),
    )
    assert driver.run(call(server.url, method="HEAD")).body == b""
    assert driver.run(call(server.url)).body == b""
    assert server.connections == 1


def test_interim_answers_are_skipped(driver, server):
    raw = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    server.on("/x", Reply(framing="raw", body=[raw]))
    assert driver.run(call(server.url)).body == b"ok"


def test_repeated_headers_are_joined(driver, server):
    raw = "HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 0\r\n\r\n"
    server.on("/x", Reply(framing="raw", body=[raw]))
    assert driver.run(call(server.url)).headers["x-a"] == "1, 2"


def test_both_drivers_send_the_same_request(server):
    server.on("/p/x y", text_reply("ok"))
    for kind in ("sync", "async"):
        for driver in drivers(kind):
            driver.run(
                one(
                    Call(
                        target=Target(
                            base_url=server.url + "/p",
                            headers=(("Authorization", "Bearer k"), ("x-call", "0")),
                        ),
                        method="POST",
                        path="/x y?q=1&z=ä",
                        json={"text": "näin", "n": 1.5},
                        headers=(("X-Call", "1"),),
                    )
                )
            )
    first, second = server.requests
    assert (first.method, first.path, first.body) == (second.method, second.path, second.body)
    assert (
        first.headers
        == second.headers
        == {
            "host": f"127.0.0.1:{server.port}",
            "accept": "*/*",
            "accept-encoding": "identity",
            "user-agent": f"enginekit/{__version__}",
            "authorization": "Bearer k",
            "x-call": "1",
            "content-type": "application/json",
            "content-length": str(len(first.body)),
        }
    )
    assert first.path == "/p/x%20y?q=1&z=%C3%A4"
    assert first.json == {"text": "näin", "n": 1.5}


def test_a_large_body_is_sent_whole(driver, server):
    server.on("/x", text_reply("ok"))
    driver.run(call(server.url, json={"image": "A" * 3_000_000}))
    assert len(server.requests[0].json["image"]) == 3_000_000


def test_a_post_without_a_body_says_so(driver, server):
    server.on("/x", text_reply("ok"))
    driver.run(call(server.url, method="POST"))
    assert server.requests[0].headers["content-length"] == "0"
    assert "content-type" not in server.requests[0].headers


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_what_is_not_json_is_refused_before_anything_is_sent(driver, server, value):
    with pytest.raises(BadRequest, match="cannot be written as JSON"):
        driver.run(call(server.url, json={"v": value}))
    assert server.connections == 0


@pytest.mark.parametrize("header", [("x", "a\r\nb: c"), ("x", "€"), ("a b", "c"), ("", "c")])
def test_a_header_that_cannot_be_sent_is_refused(driver, server, header):
    with pytest.raises(ConfigError, match="header"):
        driver.run(call(server.url, headers=(header,)))
    assert server.connections == 0


def test_a_key_with_a_line_end_after_it_is_taken_without(driver, server):
    server.on("/x", text_reply("ok"))
    driver.run(call(server.url, headers=(("authorization", "Bearer k\n"),)))
    assert server.requests[0].headers["authorization"] == "Bearer k"


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://x",
        "http://",
        "http://h:99999",
        "http://u:secret@h",
        "unix:relative",
        "http://h/?q=1",
        "http://[::1",
    ],
)
def test_a_base_url_that_cannot_be_used_is_a_setting_error(driver, url):
    with pytest.raises(ConfigError) as caught:
        driver.run(call(url))
    assert "secret" not in str(caught.value)


def test_the_timeout_of_a_call_covers_all_of_it(driver, server):
    server.on("/x", Reply(body=[x for _ in range(60) for x in ("a", 0.05)]))
    with pytest.raises(EngineTimeout) as caught:
        driver.run(call(server.url, timeout=0.4))
    assert (caught.value.phase, caught.value.budget) == ("whole reply", 0.4)
    assert server.wait_hung_up()


@pytest.mark.parametrize("fault", ["clean_eof", "reset"])
@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_an_answer_that_is_cut_is_never_taken_for_a_whole_one(driver, server, fault, framing):
    server.on("/x", Reply(body=["[1, ", 0.05, "2]"], framing=framing, cut=4, fault=fault))
    with pytest.raises(StreamTruncated):
        driver.run(call(server.url))


def test_compressed_answers_are_inflated_though_not_asked_for(driver, server):
    import gzip

    body = gzip.compress(b'{"a": 1}')
    server.on("/x", Reply(headers={"content-encoding": "gzip"}, body=[body]))
    assert driver.run(call(server.url)).body == b'{"a": 1}'
    server.on("/x", Reply(headers={"content-encoding": "gzip"}, body=[body[:-9]]))
    with pytest.raises(MalformedReply):
        driver.run(call(server.url))
    server.on("/x", Reply(headers={"content-encoding": "br"}, body=[body]))
    with pytest.raises(MalformedReply, match="'br'"):
        driver.run(call(server.url))
    stream = gzip.compress(sse(delta("a"), delta("b"), STOP, DONE).payload)
    pieces = [stream[i : i + 7] for i in range(0, len(stream), 7)]
    server.on(PATH, Reply(headers={"content-encoding": "gzip"}, body=pieces))
    assert text_of(driver.read(driver.run(opening(toy(server.url))))) == "ab"


# ------------------------------------------------------------------------------- connections


def test_connections_are_kept_and_used_again(driver, server):
    server.on("/x", text_reply("ok"))
    for _ in range(10):
        driver.run(call(server.url))
    assert server.connections == 1


def test_a_connection_that_the_server_closed_while_idle_costs_nothing(driver):
    with Server(keep_alive_requests=3) as server:
        server.on("/x", text_reply("ok"))
        for _ in range(12):
            assert driver.run(call(server.url, json={})).ok
        assert len(server.requests) == 12


def test_a_stale_connection_is_reopened_once(driver, server):
    """The server closes on the second request of a connection without a byte: sent again once."""
    server.on("/x", text_reply("ok"), Reply(fault="close_without_response"), text_reply("again"))
    assert driver.run(call(server.url, json={})).body == b"ok"
    assert driver.run(call(server.url, json={})).body == b"again"
    assert [seen.connection for seen in server.requests] == [1, 1, 2]


def test_a_stale_connection_by_reset_is_reopened_once(driver, server):
    server.on("/x", text_reply("ok"), Reply(fault="reset_without_response"), text_reply("again"))
    driver.run(call(server.url, json={}))
    assert driver.run(call(server.url, json={})).body == b"again"
    assert len(server.requests) == 3


def test_a_request_is_reopened_no_more_than_once(driver, server):
    dead = Reply(fault="close_without_response")
    server.on("/x", text_reply("ok"), dead)
    driver.run(call(server.url, json={}))
    with pytest.raises(EngineFault):
        driver.run(call(server.url, json={}))
    assert len(server.requests) == 3


def test_many_stale_connections_cost_one_repeat(driver, server):
    """All idle connections died at once: the repeat goes over a new one, not the next dead one."""
    together = threading.Barrier(4)

    def meet(seen):
        together.wait(5)
        return text_reply("ok")

    server.on("/x", meet)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: driver.run(call(server.url)), range(4)))
    assert server.connections == 4
    before = len(server.requests)
    server.on(
        "/x",
        lambda seen: (
            Reply(fault="close_without_response") if seen.connection <= 4 else text_reply("new")
        ),
    )
    assert driver.run(call(server.url, json={})).body == b"new"
    assert len(server.requests) - before == 2


@pytest.mark.parametrize(("method", "meant"), [("GET", Unreachable), ("POST", EngineFault)])
@pytest.mark.parametrize("fault", ["clean_eof", "reset"])
def test_once_a_byte_came_the_request_is_never_repeated(driver, server, fault, method, meant):
    server.on("/x", text_reply("ok"), Reply(framing="raw", body=["H", 0.05], fault=fault))
    driver.run(call(server.url, method=method))
    with pytest.raises(meant):
        driver.run(call(server.url, method=method))
    assert len(server.requests) == 2


def test_a_fresh_connection_is_never_reopened_not_even_for_a_get(driver, server):
    """aiohttp repeats a GET by itself unless it is told not to."""
    server.on("/x", Reply(fault="close_without_response"))
    with pytest.raises(Unreachable):
        driver.run(call(server.url))
    assert server.paths() == ["GET /x"]


def test_a_timeout_on_a_used_connection_is_not_repeated(driver, server):
    server.on("/x", text_reply("ok"), Reply(fault="slow_first_byte", delay=3))
    driver.run(call(server.url))
    with pytest.raises(EngineTimeout):
        driver.run(call(server.url, timeout=0.2))
    assert len(server.requests) == 2


def test_a_unix_socket(driver, tmp_path):
    with Server(unix=tmp_path / "s") as server:
        server.on("/x", text_reply("ok"))
        server.on(PATH, sse(delta("a"), STOP, DONE))
        assert driver.run(call(server.url)).body == b"ok"
        assert text_of(driver.read(driver.run(opening(toy(server.url))))) == "a"
        assert server.requests[0].headers["host"] == "localhost"
        assert server.connections == 1
    with pytest.raises(Unreachable, match="no such file"):
        driver.run(call(f"unix://{tmp_path}/gone"))


def test_threads_share_a_driver(driver, server):
    server.on("/x", lambda seen: text_reply(str(seen.json)))
    with ThreadPoolExecutor(16) as threads:
        bodies = list(threads.map(lambda n: driver.run(call(server.url, json=n)).body, range(200)))
    assert bodies == [str(n).encode() for n in range(200)]
    assert server.connections <= 16


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_uses_connections_of_its_own(server):
    from enginekit.drivers.sync import SyncDriver

    server.on("/x", text_reply("ok"))
    server.on(PATH, sse(delta("a"), 0.3, delta("b"), STOP, DONE))
    driver = SyncDriver()
    driver.run(call(server.url))
    stream = driver.run(opening(toy(server.url)))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            stream.close()
            del stream
            body = driver.run(call(server.url)).body
            code = 0 if body == b"ok" and driver._pool.idle == 1 else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert text_of(list(stream)) == "ab", "closing it in the child must not touch the parent's"
    connections = server.connections
    driver.run(call(server.url))
    assert server.connections == connections, "the parent still has its own"
    driver.close()


def test_refused_is_told_at_once(driver):
    with pytest.raises(Unreachable, match=r"nothing answers at http://127\.0"):
        driver.run(call(refused_url()))


def test_the_drivers_can_be_had_one_per_process():
    from enginekit.drivers import async_, sync

    assert sync.default() is sync.default()
    assert async_.default() is async_.default()


def test_one_driver_does_not_load_the_others_library():
    import subprocess

    code = (
        "import sys\n"
        "import enginekit.drivers.{}\n"
        "print('urllib3' in sys.modules, 'aiohttp' in sys.modules)\n"
    )
    seen = [
        subprocess.run(
            [sys.executable, "-c", code.format(name)], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("sync", "async_")
    ]
    assert seen == ["True False", "False True"]
