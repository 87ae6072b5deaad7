"""Images by URL: who may be asked, what comes back, and that nothing is asked for uninvited."""

from __future__ import annotations

import ssl
from functools import partial
from pathlib import Path

import pytest

from enginekit.drivers import _tls
from enginekit.errors import DownloadError, Unsupported
from enginekit.kit import _fetch
from enginekit.kit.images import Limits, Place, guarded, kind_of, place_of
from tests.support.server import Reply, Server, refused_url

CERTIFICATES = Path(__file__).parents[1] / "drivers" / "tls"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))
JPEG = b"\xff\xd8\xff\xe0" + bytes(64)
GIF = b"GIF89a" + bytes(64)
WEBP = b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(64)
ELSEWHERE = "10.1.2.3"
"""An address that the test's guard refuses, as the real one does."""


def image_reply(data: bytes = PNG, kind: str = "image/png", **more: object) -> Reply:
    more.setdefault("framing", "length")
    return Reply(headers={"content-type": kind, **more.pop("headers", {})}, body=[data], **more)


def moved(to: str, status: int = 307) -> Reply:
    return Reply(status=status, headers={"location": to}, framing="length")


def loopback_guard(address: str) -> str:
    return "" if address in ("127.0.0.1", "::1") else guarded(address)


def lenient(*, names: dict[str, list[str]] | None = None, guard=loopback_guard, **limits):
    """`fetch_image` that may reach loopback, with a resolver of its own."""

    def resolve(host: str, port: int) -> list[str]:
        return (names or {}).get(host, [host])

    return partial(_fetch.fetch_image, resolve=resolve, guard=guard, limits=Limits(**limits))


# ---------------------------------------------------------------------------------- pure guards


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "169.254.1.1",
        "100.64.0.1",
        "100.127.255.255",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "192.0.2.1",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "::ffff:0.0.0.0",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::",
        "2002:a00:1::",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fc00::1",
        "fd12:3456::1",
        "fd00:ec2::254",
        "ff02::1",
        "ff0e::1",
        "2001:db8::1",
        "3fff::1",
        "100::1",
        "localhost",
        "127.1",
        "0x7f000001",
        "2130706433",
    ],
)
def test_these_addresses_are_never_connected_to(address):
    assert guarded(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "172.15.255.255",
        "172.32.0.1",
        "100.63.255.255",
        "100.128.0.1",
        "169.253.255.255",
        "2606:4700::1111",
        "2a00:1450::1",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2002:808:808::",
    ],
)
def test_public_addresses_may_be_connected_to(address):
    assert guarded(address) == ""


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("file:///etc/passwd", "images.scheme"),
        ("ftp://example.org/a.png", "images.scheme"),
        ("gopher://example.org/_x", "images.scheme"),
        ("a.png", "images.scheme"),
        ("http://user:secret@example.org/a.png", "images.credentials"),
        ("http://example.org\\@127.0.0.1/a.png", "images.credentials"),
        ("http:///a.png", "images.url"),
        ("http://exa mple.org/", "images.url"),
        ("http://[::1/a.png", "images.url"),
        ("http://[fe80::1%25eth0]/a.png", "images.url"),
        ("http://example.org:99999/", "images.url"),
        ("http://" + "a" * 70 + ".org/", "images.url"),
    ],
)
def test_these_urls_are_refused_by_their_form(url, rule):
    with pytest.raises(Unsupported) as caught:
        place_of(url)
    assert caught.value.rule == rule
    assert "secret" not in str(caught.value)


def test_a_url_is_made_safe_for_the_wire():
    place = place_of("HTTP://BÜCHER.example:8080/a b\r\nHost: x/é.png?q=1&sig=a%2Fb c#part")
    assert place.host == "xn--bcher-kva.example"
    assert place.netloc == "xn--bcher-kva.example:8080"
    assert place.path == "/a%20bHost:%20x/%C3%A9.png?q=1&sig=a%2Fb%20c"
    assert "sig" not in place.shown
    assert place_of("https://[2606:4700::1111]").url == "https://[2606:4700::1111]/"


@pytest.mark.parametrize(
    ("where", "to"),
    [
        ("https://a.example/x", "http://a.example/y"),
        ("http://a.example/x", "http://b.example:22/y"),
        ("http://a.example:8080/x", "http://b.example:6379/y"),
        ("http://a.example/x", "file:///etc/passwd"),
        ("http://a.example/x", "http://u:p@b.example/"),
    ],
)
def test_a_redirect_has_stricter_rules(where, to):
    first = place_of(where)
    with pytest.raises(Unsupported):
        place_of(to, first, first)


def test_a_redirect_may_be_relative_and_keep_the_port_the_user_wrote():
    first = place_of("http://a.example:8080/x/y.png")
    assert place_of("../z.png?1", first, first).url == "http://a.example:8080/z.png?1"
    assert place_of("https://b.example/z", first, first) == Place(
        scheme="https", host="b.example", port=443, path="/z"
    )


def test_kinds_are_told_by_their_first_bytes():
    kinds = [kind_of(data) for data in (PNG, JPEG, GIF, WEBP, b"<html>", b"", b"RIFFxxxxWAVE")]
    assert kinds == ["image/png", "image/jpeg", "image/gif", "image/webp", "", "", ""]


# ---------------------------------------------------------------------------------- fetching


@pytest.mark.parametrize(
    ("data", "said", "kind"),
    [
        (PNG, "image/png", "image/png"),
        (JPEG, "image/jpg; charset=binary", "image/jpeg"),
        (GIF, "IMAGE/GIF", "image/gif"),
        (WEBP, "image/webp", "image/webp"),
    ],
)
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_an_image_comes_with_the_type_its_bytes_have(server, data, said, kind, framing):
    server.on("/a", image_reply(data, said, framing=framing))
    image = lenient()(f"{server.url}/a?size=2")
    assert (image.data, image.mime_type, image.host) == (data, kind, "127.0.0.1")
    (seen,) = server.requests
    assert seen.path == "/a?size=2"
    assert set(seen.headers) == {"host", "user-agent", "accept", "accept-encoding", "connection"}
    assert seen.headers["accept-encoding"] == "identity"


def test_without_an_injected_guard_loopback_is_refused_before_any_connection(server):
    for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
        with pytest.raises(Unsupported, match=r"guarded \(this machine itself\)") as caught:
            _fetch.fetch_image(f"{url}/a")
        assert caught.value.rule == "images.address"
    assert server.connections == 0


def test_one_guarded_address_among_several_is_enough_to_refuse(server):
    names = {"two.example": ["127.0.0.1", ELSEWHERE]}
    with pytest.raises(Unsupported, match=ELSEWHERE):
        lenient(names=names)(f"http://two.example:{server.port}/a")
    assert server.connections == 0


def test_a_name_that_changes_its_address_is_looked_up_once_and_the_socket_follows_that(server):
    """DNS rebinding: the second answer, a guarded address, is never asked for."""
    server.on("/a", image_reply())
    answers = [["127.0.0.1"], [ELSEWHERE]]
    asked = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers.pop(0)

    url = f"http://rebind.example:{server.port}/a"
    image = _fetch.fetch_image(url, resolve=resolve, guard=loopback_guard)
    assert image.host == "rebind.example"
    assert asked == ["rebind.example"]
    assert server.requests[0].headers["host"] == f"rebind.example:{server.port}"


def test_the_address_connected_to_is_checked_again_before_anything_is_sent(server):
    """A guard that let the name pass and refuses the peer: connected, but not a byte was sent."""
    verdicts = ["", "seen on the socket"]
    with pytest.raises(Unsupported, match="seen on the socket"):
        lenient(guard=lambda _: verdicts.pop(0))(f"{server.url}/a")
    assert server.wait(lambda s: s.connections == 1 and s.open_connections == 0)
    assert server.requests == []


def test_a_redirect_to_a_guarded_address_is_not_followed(server):
    with Server(host="::1") as inner:
        inner.on("/secret", image_reply())
        server.on("/a", moved(f"http://inner.example:{server.port}/secret"))
        fetch = lenient(names={"inner.example": ["::1"]}, guard=_only_v4)
        with pytest.raises(Unsupported, match=r"inner\.example"):
            fetch(f"{server.url}/a")
        assert inner.connections == 0


def _only_v4(address: str) -> str:
    return "" if address == "127.0.0.1" else guarded(address)


def test_redirects_are_followed_three_times_and_no_more(server):
    server.on("/0", moved("/1", 301)).on("/1", moved("2", 302)).on("/2", moved("/3", 308))
    server.on("/3", image_reply())
    assert lenient()(f"{server.url}/0").data == PNG
    server.on("/3", moved("/4")).on("/4", image_reply())
    with pytest.raises(DownloadError, match="redirected more than 3 times"):
        lenient()(f"{server.url}/0")
    assert server.paths()[-1] == "GET /3"


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_too_large_is_noticed_while_reading(server, framing):
    endless = [PNG + bytes(100_000), *[bytes(100_000)] * 200]
    server.on("/a", image_reply(framing=framing).but(body=endless))
    with pytest.raises(DownloadError, match="larger than 300,000 bytes"):
        lenient(size=300_000)(f"{server.url}/a")
    assert server.wait_hung_up()


def test_exactly_the_limit_is_not_too_large(server):
    server.on("/a", image_reply(framing="chunked"))
    assert lenient(size=len(PNG))(f"{server.url}/a").data == PNG
    with pytest.raises(DownloadError, match="larger"):
        lenient(size=len(PNG) - 1)(f"{server.url}/a")


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (image_reply(b"<html>hello", "text/html"), "sent text/html, not an image"),
        (image_reply(PNG, ""), "no content type"),
        (image_reply(b"<svg/>", "image/svg+xml"), "is no PNG, JPEG, WebP or GIF"),
        (image_reply(b"<html>", "image/png"), "is no PNG, JPEG, WebP or GIF"),
        (image_reply(JPEG, "image/png"), "called image/png but its bytes are image/jpeg"),
        (image_reply(b"", "image/png"), "is no PNG"),
        (image_reply(status=404), "answered 404"),
        (image_reply(headers={"content-encoding": "gzip"}), "compressed"),
        (image_reply(cut=20, fault="clean_eof"), "could not be fetched"),
        (image_reply(cut=20, fault="clean_eof", framing="chunked"), "could not be fetched"),
        (image_reply(cut=20, fault="reset"), "could not be fetched"),
        (image_reply(fault="close_without_response"), "could not be fetched"),
        (moved(""), "redirected to nowhere"),
        (Reply(framing="raw", body=[b"SSH-2.0-OpenSSH_9\r\n"], close=True), "could not be"),
    ],
)
def test_what_is_no_whole_image_is_an_error_that_says_so(server, reply, says):
    server.on("/a", reply)
    with pytest.raises(DownloadError, match=says) as caught:
        lenient()(f"{server.url}/a?token=hush")
    assert "127.0.0.1" in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "reply",
    [
        image_reply(framing="close").but(body=[PNG, *[0.05, b"x"] * 2000]),
        image_reply(framing="chunked").but(body=[PNG, *[0.05, b"x"] * 2000]),
        image_reply(fault="drip_head", delay=0.05),
        image_reply(fault="slow_first_byte", delay=60),
        image_reply(framing="close").but(fault="silence"),
    ],
    ids=["body", "chunks", "head", "nothing", "silence"],
)
def test_a_server_that_drips_is_late_too(server, reply):
    """Every byte comes well within a socket's timeout; the deadline holds for all of them."""
    server.on("/a", reply)
    with pytest.raises(DownloadError, match=r"was not there within 0\.5 s"):
        lenient(seconds=0.5)(f"{server.url}/a")
    assert server.wait_hung_up()


def test_nobody_there():
    with pytest.raises(DownloadError, match="could not be fetched"):
        lenient()(f"{refused_url()}/a")
    with pytest.raises(DownloadError, match="has no address"):
        _fetch.fetch_image("http://nowhere.invalid/a")


def test_the_next_address_of_a_name_is_tried(server):
    server.on("/a", image_reply())
    names = {"both.example": ["::1", "127.0.0.1"]}
    assert lenient(names=names)(f"http://both.example:{server.port}/a").data == PNG


def test_the_certificate_must_be_for_the_name_and_not_for_the_address(monkeypatch):
    """The socket goes to an address; the certificate is still checked against the URL's host."""
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(CERTIFICATES / "server.pem")
    trusting = ssl.create_default_context(cafile=str(CERTIFICATES / "ca.pem"))
    monkeypatch.setattr(_tls, "context", lambda: trusting)
    with Server(tls=serving) as server:
        server.on("/a", image_reply())
        fetch = lenient(names={"localhost": ["127.0.0.1"], "other.example": ["127.0.0.1"]})
        assert fetch(f"https://localhost:{server.port}/a").data == PNG
        with pytest.raises(DownloadError, match=r"(?i)certificate"):
            fetch(f"https://other.example:{server.port}/a")
        assert len(server.requests) == 1
    assert trusting.check_hostname


def test_a_proxy_of_the_environment_is_not_used(server, monkeypatch):
    server.on("/a", image_reply())
    monkeypatch.setenv("HTTP_PROXY", refused_url())
    names = {"plain.example": ["127.0.0.1"]}
    assert lenient(names=names)(f"http://plain.example:{server.port}/a").data == PNG
