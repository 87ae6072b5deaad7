"""Images by URL for engines that take bytes only: fetched by us, if the user allows it.

Whoever writes a message can write a URL, and it would be asked for from this machine: that is
server-side request forgery. So nothing is fetched unless `fetch_images` is set, and then only what
passes these guards: http and https, no credentials in the URL, an address on the public internet
(checked again on the socket that was connected, so a name that changes its address between check
and use gains nothing), at most three redirects under the same rules, 20 MiB, thirty seconds, and a
body that is the image its content type says. No cookie, no key and no header of the engine is sent,
and no proxy is used, for a proxy would resolve the name out of our sight.

Ports: the one written in the user's URL is taken; a redirect may go to 80, 443 or that same port.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NoReturn
from urllib.parse import quote, urljoin, urlsplit

from enginekit.engine import Blocking, Engine, Operation
from enginekit.errors import DownloadError, Unsupported
from enginekit.operations import refuse_lacking
from enginekit.types import ChatRequest, CompletionRequest, ImagePart, Message, Part

MAX_BYTES: Final = 20 * 1024 * 1024
MAX_SECONDS: Final = 30.0
MAX_REDIRECTS: Final = 3

_PORTS: Final = {"http": 80, "https": 443}
_HOST: Final = re.compile(r"[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_.])?|[0-9a-f:.]*:[0-9a-f:.]*")
_HINT: Final = "get the image yourself and pass its bytes instead of its URL"
_ALIASES: Final = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
}

_NETWORKS: Final = tuple(
    (ipaddress.ip_network(network), why)
    for network, why in (
        ("168.63.129.16/32", "a cloud's metadata service"),
        ("169.254.169.254/32", "a cloud's metadata service"),
        ("100.100.100.200/32", "a cloud's metadata service"),
        ("192.0.0.0/24", "reserved"),
        ("fd00:ec2::254/128", "a cloud's metadata service"),
        ("100.64.0.0/10", "a carrier's private network"),
        ("192.88.99.0/24", "reserved"),
        ("fec0::/10", "a private network"),
        ("3fff::/20", "reserved"),
    )
)
_NAT64: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_COMPATIBLE: Final = ipaddress.ip_network("::/96")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one image may cost: bytes of its body, seconds in all, redirects followed."""

    size: int = MAX_BYTES
    seconds: float = MAX_SECONDS
    redirects: int = MAX_REDIRECTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A URL that passed the guards. `host` is ASCII and lower case, `path` percent-encoded."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def netloc(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL to ask for."""
        return f"{self.scheme}://{self.netloc}{self.path}"

    @property
    def shown(self) -> str:
        """The URL for people: without its query, which may hold a signature."""
        return f"{self.scheme}://{self.netloc}{self.path.partition('?')[0]}"[:120]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A fetched image: its bytes, the type they really have, and the host they came from."""

    data: bytes
    mime_type: str
    host: str


# ---------------------------------------------------------------------------------- guards, pure


def guarded(address: str) -> str:
    """Why an address may not be connected to, in a few words; "" when it may.

    Takes IPv4 and IPv6; an IPv4 address inside an IPv6 one (mapped, compatible, NAT64, 6to4,
    Teredo) is judged too. What cannot be parsed is refused.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "not an IP address"
    for network, why in _NETWORKS:
        if parsed in network:
            return why
    inner = _inside(parsed) if isinstance(parsed, ipaddress.IPv6Address) else None
    if parsed.is_unspecified:
        return "the unspecified address"
    if parsed.is_loopback:
        return "this machine itself"
    if inner is not None:
        return guarded(str(inner))
    if parsed.is_link_local:
        return "link-local"
    if parsed.is_multicast:
        return "multicast"
    if parsed.is_private:
        return "a private network"
    if parsed.is_reserved or not parsed.is_global:
        return "reserved"
    return ""


def _inside(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _COMPATIBLE or any(address in network for network in _NAT64):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def place_of(url: str, before: Place | None = None, first: Place | None = None) -> Place:
    """The place a URL names; with `before`, where a redirect from there leads.

    `first` is the place the user named. Raises Unsupported for a scheme, host, port or form that
    is not allowed.
    """
    try:
        parts = urlsplit(url if before is None else urljoin(before.url, url))
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
    except ValueError as error:
        refuse(url, f"it is not a URL: {error}", "url")
    shown = f"{scheme}://{host}"
    if scheme not in _PORTS:
        refuse(shown, "only http:// and https:// images are fetched", "scheme")
    if parts.username is not None or parts.password is not None:
        refuse(shown, "credentials in an image's URL are not sent", "credentials")
    try:
        host = host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        host = ""
    if not _HOST.fullmatch(host):
        refuse(shown, "it names no host", "url")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]|")
    place = Place(
        scheme=scheme,
        host=host,
        port=_PORTS[scheme] if port is None else port,
        path=f"{path}?{query}" if query else path,
    )
    if before is not None:
        allowed = {80, 443, first.port if first is not None else before.port}
        if place.port not in allowed:
            refuse(place.shown, "it was redirected to an unusual port", "redirect")
        if before.scheme == "https" and place.scheme == "http":
            refuse(place.shown, "it was redirected from https to http", "redirect")
    return place


def kind_of(data: bytes) -> str:
    """The MIME type by the first bytes: PNG, JPEG, WebP or GIF; "" for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return ""


def declared(content_type: str, shown: str) -> str:
    """The image type that a Content-Type header declares. Raises DownloadError for no image."""
    name = content_type.partition(";")[0].strip().lower()
    name = _ALIASES.get(name, name)
    if not name.startswith("image/"):
        fail(shown, f"the server sent {name or 'no content type'}, not an image")
    return name


def checked(data: bytes, name: str, shown: str) -> str:
    """The type of these bytes, which must be the declared one. Raises DownloadError."""
    kind = kind_of(data)
    if not kind:
        fail(shown, f"it is called {name} but is no PNG, JPEG, WebP or GIF")
    if kind != name:
        fail(shown, f"it is called {name} but its bytes are {kind}")
    return kind


def refuse(shown: str, why: str, rule: str) -> NoReturn:
    """Raise Unsupported: a guard does not let this URL be fetched."""
    raise Unsupported(
        f"the image {shown} was not fetched: {why}",
        hint=_HINT,
        feature="image_urls",
        rule=f"images.{rule}",
    )


def fail(shown: str, why: str, cause: BaseException | None = None) -> NoReturn:
    """Raise DownloadError: the URL is allowed but no image came."""
    raise DownloadError(f"the image {shown} could not be fetched: {why}", hint=_HINT) from cause


# ---------------------------------------------------------------------------------- the operation


def with_bytes(
    engine: Engine,
    request: ChatRequest | CompletionRequest,
    *,
    allowed: bool,
    stream: bool = False,
) -> Operation[tuple[ChatRequest | CompletionRequest, tuple[str, ...]]]:
    """The request as this engine can take it, and a note for each image that was fetched.

    Where the engine takes URLs, or no images at all, the request comes back as it is. What the
    engine would refuse anyway is refused before anything is fetched. Raises Unsupported when
    fetching is not allowed or a guard says no, DownloadError when no image comes.
    """
    urls = _urls(request)
    if not urls or not isinstance(request, ChatRequest):
        return request, ()
    takes = engine.capability("image_urls")
    if takes.support in ("native", "server") or not engine.capability("images").usable:
        return request, ()
    if not allowed:
        reason = takes.note or "it takes images as bytes only, not by URL"
        engine.refuse(
            "image_urls",
            f"{reason}, and enginekit fetches no image unless told to",
            rule=f"{engine.profile.name}.image_urls",
            hint="ENGINEKIT_FETCH_IMAGES=1 (or fetch_images=True) lets enginekit fetch images from "
            f"public addresses and send their bytes; or {_HINT}",
        )
    blank = Image(data=b"\x89PNG\r\n\x1a\n", mime_type="image/png", host="")
    rehearsal = _replaced(request, dict.fromkeys(urls, blank))
    refuse_lacking(engine, rehearsal)
    engine.encode(rehearsal, stream=stream)
    found: dict[str, Image] = {}
    for url in urls:
        found[url] = yield Blocking(function=partial(_fetch, url))
    notes = tuple(
        f"an image of {len(image.data)} bytes was fetched from {image.host} and sent as bytes"
        for image in found.values()
    )
    return _replaced(request, found), notes


def _fetch(url: str) -> Image:
    from enginekit.kit import _fetch as fetching

    return fetching.fetch_image(url)


def _urls(request: ChatRequest | CompletionRequest) -> tuple[str, ...]:
    if not isinstance(request, ChatRequest):
        return ()
    found: dict[str, None] = {}
    for message in request.messages:
        if isinstance(message.content, str):
            continue
        for part in message.content:
            if isinstance(part, ImagePart) and part.data is None and part.url is not None:
                found[part.url] = None
    return tuple(url for url in found if url[:5].lower() != "data:")


def _replaced(request: ChatRequest, images: Mapping[str, Image]) -> ChatRequest:
    def part_of(part: Part) -> Part:
        if not isinstance(part, ImagePart) or part.data is not None or part.url is None:
            return part
        image = images.get(part.url)
        if image is None:
            return part
        return ImagePart(data=image.data, mime_type=image.mime_type, detail=part.detail)

    def message_of(message: Message) -> Message:
        if isinstance(message.content, str):
            return message
        return replace(message, content=tuple(part_of(part) for part in message.content))

    return replace(request, messages=tuple(message_of(message) for message in request.messages))
