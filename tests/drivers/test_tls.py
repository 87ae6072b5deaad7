"""TLS: verification, authorities of one's own, client certificates, and no context for http."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from enginekit.drivers import _tls
from enginekit.errors import ConfigError, EngineTimeout, Unreachable
from tests.drivers.test_calls import call
from tests.drivers.toy import DONE, PATH, STOP, Driver, delta, opening, text_of, toy
from tests.support.server import Server, sse, text_reply

HERE = Path(__file__).parent / "tls"
CA = str(HERE / "ca.pem")


@pytest.fixture(autouse=True)
def fresh_contexts():
    _tls.context.cache_clear()


def serving(*, wants_client: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=CA)
    context.load_cert_chain(HERE / "server.pem")
    if wants_client:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture
def secure():
    with Server(tls=serving()) as server:
        server.on("/x", text_reply("ok"))
        yield server


def test_an_authority_of_ones_own_is_trusted(driver: Driver, secure: Server):
    for _ in range(3):
        assert driver.run(call(secure.url, ca_file=CA)).body == b"ok"
    assert secure.connections == 1


def test_streams_and_hang_ups_work_over_tls(driver, secure):
    secure.on(PATH, sse(delta("a"), delta("b"), STOP, DONE))
    engine = toy(secure.url, ca_file=CA)
    assert text_of(driver.read(driver.run(opening(engine)))) == "ab"
    secure.on(PATH, sse(delta("a"), fault="silence"))
    stream = driver.run(opening(engine))
    driver.hang_up(stream)
    assert secure.wait_hung_up()
    stream = driver.run(opening(engine, between_tokens=0.2))
    with pytest.raises(EngineTimeout):
        driver.read(stream)


def test_a_certificate_nobody_vouches_for_is_refused_and_not_retried(driver, secure):
    with pytest.raises(Unreachable, match="not trusted") as caught:
        driver.run(call(secure.url))
    assert not caught.value.retryable
    assert "ca_file" in caught.value.hint
    assert secure.requests == []


def test_a_certificate_for_another_host_is_refused(driver, secure, monkeypatch):
    address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", secure.port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: [address])
    url = secure.url.replace("127.0.0.1", "engine.invalid")
    with pytest.raises(Unreachable, match=r"not trusted.*engine\.invalid"):
        driver.run(call(url, ca_file=CA))
    assert secure.requests == []


def test_verification_can_be_switched_off(driver, secure):
    assert driver.run(call(secure.url, verify=False)).ok


def test_trust_is_not_shared_between_targets(driver, secure):
    """A connection that was opened without verification must not serve one that wants it."""
    assert driver.run(call(secure.url, verify=False)).ok
    with pytest.raises(Unreachable, match="not trusted"):
        driver.run(call(secure.url))


def test_a_client_certificate_is_presented(driver):
    with Server(tls=serving(wants_client=True)) as server:
        server.on("/x", text_reply("ok"))
        good = call(server.url, ca_file=CA, client_cert=str(HERE / "client.pem"))
        assert driver.run(good).body == b"ok"
        with pytest.raises(Unreachable):
            driver.run(call(server.url, ca_file=CA))


@pytest.mark.parametrize("field", ["ca_file", "client_cert"])
@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_a_file_that_cannot_be_used_is_named(driver, secure, tmp_path, field, content):
    path = tmp_path / "x.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=field) as caught:
        driver.run(call(secure.url, **{field: str(path)}))
    assert str(path) in str(caught.value)


def test_https_to_a_plain_server_says_so(driver, server):
    with pytest.raises(Unreachable, match="TLS failed"):
        driver.run(call(server.url.replace("http:", "https:"), ca_file=CA))


def test_no_context_is_built_for_http(driver, server, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a TLS context was built")

    monkeypatch.setattr(ssl, "create_default_context", refuse)
    server.on("/x", text_reply("ok"))
    assert driver.run(call(server.url)).ok


def test_one_context_for_one_set_of_settings():
    assert _tls.context(CA) is _tls.context(CA)
    assert _tls.context(CA) is not _tls.context(CA, None, False)
