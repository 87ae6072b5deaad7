"""Proxies: one decision for both drivers, and what goes over the wire."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from enginekit.drivers._proxy import bypassed, parse, proxy_for
from enginekit.drivers._target import is_loopback
from enginekit.drivers._target import parse as parse_target
from enginekit.errors import ConfigError, Unreachable
from tests.drivers.test_calls import call
from tests.drivers.test_tls import CA, serving
from tests.drivers.toy import Driver
from tests.support.server import Server, refused_url, text_reply


class Tunnel:
    """A proxy that only tunnels: it notes each CONNECT and passes bytes on to a fixed address."""

    def __init__(self, port: int, status: str = "200 OK") -> None:
        self.asked: list[str] = []
        self._status = status
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            self.asked.append(head.decode())
            client.sendall(f"HTTP/1.1 {self._status}\r\n\r\n".encode())
            if not self._status.startswith("200"):
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._port))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture(params=["HTTP_PROXY", "http_proxy"])
def variable(request):
    return request.param


def test_plain_http_goes_through_the_proxy_of_the_environment(
    driver: Driver, server: Server, monkeypatch, variable
):
    monkeypatch.setenv(variable, server.url.replace("//", "//me:s%20cret@"))
    server.always(text_reply("by proxy"))
    for _ in range(2):
        assert driver.run(call("http://engine.invalid:8000/base")).body == b"by proxy"
    seen = server.requests[0]
    assert seen.path == "http://engine.invalid:8000/base/x"
    assert seen.headers["host"] == "engine.invalid:8000"
    assert seen.headers["proxy-authorization"] == "Basic bWU6cyBjcmV0"
    assert server.connections == 1


def test_https_is_tunnelled_and_the_proxy_sees_neither_key_nor_prompt(driver, monkeypatch):
    with Server(tls=serving()) as server:
        server.on("/x", text_reply("ok"))
        tunnel = Tunnel(server.port)
        monkeypatch.setenv("HTTPS_PROXY", tunnel.url.replace("//", "//me:pw@"))
        operation = call(
            "https://localhost.localdomain",
            ca_file=CA,
            verify=False,
            headers=(("authorization", "Bearer key"),),
        )
        assert driver.run(operation).body == b"ok"
        tunnel.close()
    (asked,) = tunnel.asked
    assert asked.startswith("CONNECT localhost.localdomain:443 HTTP/1.")
    assert "Basic bWU6cHc=" in asked
    assert "key" not in asked
    assert "proxy-authorization" not in server.requests[0].headers


def test_the_certificate_behind_a_tunnel_is_checked_against_the_engines_name(driver, monkeypatch):
    with Server(tls=serving()) as server:
        tunnel = Tunnel(server.port)
        monkeypatch.setenv("HTTPS_PROXY", tunnel.url)
        with pytest.raises(Unreachable):
            driver.run(call("https://engine.invalid", ca_file=CA))
        assert server.requests == []
        tunnel.close()


def test_a_proxy_that_refuses_is_named(driver, monkeypatch):
    tunnel = Tunnel(1, status="407 Proxy Authentication Required")
    monkeypatch.setenv("HTTPS_PROXY", tunnel.url)
    with pytest.raises(Unreachable, match="proxy"):
        driver.run(call("https://engine.invalid"))
    tunnel.close()


def test_a_proxy_that_is_not_there_is_named(driver, monkeypatch):
    url = refused_url()
    monkeypatch.setenv("HTTP_PROXY", url)
    with pytest.raises(Unreachable, match="through the proxy") as caught:
        driver.run(call("http://engine.invalid"))
    assert url in str(caught.value)
    assert "NO_PROXY" in caught.value.hint


def test_loopback_never_goes_through_a_proxy_of_the_environment(driver, server, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, refused_url())
    server.on("/x", text_reply("direct"))
    assert driver.run(call(server.url)).body == b"direct"


def test_a_proxy_that_is_set_outright_wins(driver, server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", refused_url())
    server.always(text_reply("by proxy"))
    assert driver.run(call("http://engine.invalid", proxy=server.url)).body == b"by proxy"


def test_an_empty_proxy_forbids_one(driver, server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url)
    with pytest.raises(Unreachable, match="host name"):
        driver.run(call("http://engine.invalid", proxy=""))
    assert server.requests == []


def test_netrc_is_not_read(driver, server, clean_environment):
    (clean_environment / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (clean_environment / ".netrc").chmod(0o600)
    server.on("/x", text_reply("ok"))
    driver.run(call(server.url))
    assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    ("host", "port", "no_proxy", "expected"),
    [
        ("engine.corp", 80, "", False),
        ("engine.corp", 80, "*", True),
        ("engine.corp", 80, "corp", True),
        ("engine.corp", 80, ".corp", True),
        ("engine.corp", 80, "*.corp", True),
        ("engine.corp", 80, "ENGINE.CORP.", True),
        ("engine.corp", 80, "rp", False),
        ("engine.corp", 80, "a.engine.corp", False),
        ("engine.corp", 80, "other, corp", True),
        ("engine.corp", 80, "other corp", True),
        ("engine.corp", 80, "corp:80", True),
        ("engine.corp", 80, "corp:81", False),
        ("10.1.2.3", 80, "10.0.0.0/8", True),
        ("11.1.2.3", 80, "10.0.0.0/8", False),
        ("10.1.2.3", 80, "10.1.2.3", True),
        ("10.1.2.3", 80, "3", False),
        ("fd00::1", 80, "fd00::/8", True),
        ("fd00::1", 80, "[fd00::1]:80", True),
        ("fd00::1", 80, "[fd00::1]:81", False),
    ],
)
def test_no_proxy(host, port, no_proxy, expected):
    assert bypassed(host, port, no_proxy) is expected


def test_lower_case_wins_and_a_cgi_server_cannot_be_told_a_proxy(monkeypatch):
    site = parse_target("http://engine.corp")
    monkeypatch.setenv("HTTP_PROXY", "http://upper:1")
    assert proxy_for(site, None).host == "upper"
    monkeypatch.setenv("http_proxy", "http://lower:1")
    assert proxy_for(site, None).host == "lower"
    monkeypatch.delenv("http_proxy")
    monkeypatch.setenv("REQUEST_METHOD", "GET")
    assert proxy_for(site, None) is None


def test_credentials_never_show(monkeypatch):
    proxy = parse("http://me:secret@proxy:3128", "HTTP_PROXY")
    assert "secret" not in repr(proxy)
    assert "secret" not in proxy.url


@pytest.mark.parametrize("url", ["socks5://p:1080", "http://", "http://p:port"])
def test_a_proxy_that_cannot_be_used_is_a_setting_error(url):
    with pytest.raises(ConfigError, match="HTTP_PROXY"):
        parse(url, "HTTP_PROXY")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("a.localhost", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost.corp", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
    ],
)
def test_what_loopback_is(host, expected):
    assert is_loopback(host) is expected
