"""Fetch one file over HTTP: resumable, hash-checked, whole or not there at all.

Bytes go to `NAME.part`; only a file of the right size and hash is renamed to `NAME`. A cut transfer
is taken up where it stopped, within one call and in the next one. Nothing is printed: who wants to
show progress passes a `Progress`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from enginekit.errors import DownloadError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

    from enginekit.drivers._proxy import Proxy

CONNECT_TIMEOUT = 2.0
"""Seconds an address may take to accept a connection before its source counts as unreachable."""
READ_TIMEOUT = 30.0
"""Seconds without a single byte before a transfer counts as cut."""
ATTEMPTS = 5
"""Cuts in a row, none of which brought a byte, before a transfer is given up."""
_BLOCK = 1 << 18


class Progress(Protocol):
    """Told how far a long wait has come. Called from the thread that waits; must not block."""

    def start(self, total: int | None, label: str) -> None:
        """A step begins: `total` bytes (None: not known) of what `label` says."""
        ...

    def advance(self, count: int) -> None:
        """`count` more bytes are there; negative when a transfer had to start over."""
        ...

    def finish(self) -> None:
        """The step is over, well or badly; always called once per `start`."""
        ...


class Silent:
    """A `Progress` that tells nobody."""

    def start(self, total: int | None, label: str) -> None:
        """Ignore it."""

    def advance(self, count: int) -> None:
        """Ignore it."""

    def finish(self) -> None:
        """Ignore it."""


@contextlib.contextmanager
def step(progress: Progress, total: int | None, label: str) -> Iterator[None]:
    """One `start` and, whatever happens, one `finish`."""
    progress.start(total, label)
    try:
        yield
    finally:
        progress.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file somewhere else.

    Attributes:
        url: `http(s)://`.
        size: bytes; None when unknown, then the server's word counts.
        sha256: what the whole file must hash to, lower-case hex; None when nobody knows it.
        headers: sent with the request; `Authorization` is dropped when redirected to another host.
        label: what a progress bar should call it.
        ca_file: PEM file to trust instead of the system's authorities.
    """

    url: str
    size: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    label: str = ""
    ca_file: str | None = None


def fetch(
    remote: Remote,
    target: Path,
    *,
    progress: Progress | None = None,
    read_timeout: float = READ_TIMEOUT,
) -> None:
    """Bring `remote` to `target`. The caller holds the lock that makes it the only writer.

    Raises:
        DownloadError: unreachable, refused, cut too often, wrong hash, or no room on the disk. What
            already came stays in `target` + `.part` for the next try, except after a wrong hash.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    progress = progress or Silent()
    resumed = part.exists() and part.stat().st_size > 0
    try:
        _whole(remote, part, progress, read_timeout)
    except _Stale as stale:
        part.unlink(missing_ok=True)
        if not resumed:
            raise stale.error from None
        try:
            _whole(remote, part, progress, read_timeout)
        except _Stale as again:
            part.unlink(missing_ok=True)
            raise again.error from None
    os.replace(part, target)


def free_space(folder: Path) -> int:
    """Free bytes on the disk that holds `folder` (or its nearest existing parent)."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise DownloadError when `folder` cannot hold `needed` more bytes."""
    free = free_space(folder)
    if free < needed:
        raise DownloadError(
            f"{what} needs {human(needed)} in {folder}, where {human(free)} are free",
            hint="free some disk, or set ENGINEKIT_CACHE_DIR to a folder on a larger one",
        )


def human(size: int) -> str:
    """Bytes for people: `98 MB`, `4.7 GB` (powers of ten, as disks and download pages count)."""
    if size >= 10**9:
        return f"{size / 10**9:.1f} GB"
    if size >= 10**6:
        return f"{size / 10**6:.0f} MB"
    return f"{size / 10**3:.0f} kB"


def hash_file(path: Path) -> str:
    """The sha256 of a file, as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------- transfer


class _Cut(Exception):
    """The transfer stopped early; worth another try."""


class _Stale(Exception):
    """What lies in the `.part` file is not the beginning of this file."""

    def __init__(self, error: DownloadError) -> None:
        super().__init__(error.message)
        self.error = error


def _whole(remote: Remote, part: Path, progress: Progress, read_timeout: float) -> None:
    """Fill `part` and check it."""
    with step(progress, remote.size, remote.label or part.stem):
        try:
            digest = _transfer(remote, part, progress, read_timeout)
        except OSError as error:
            raise _disk_error(error, part.with_suffix(""), remote.size) from error
    if remote.sha256 and digest != remote.sha256:
        raise _Stale(
            DownloadError(
                f"{_shown(remote.url)} sent a file with sha256 {digest}, expected "
                f"{remote.sha256}; it was deleted",
                hint="a proxy or mirror may have replaced it; try again or use another source",
            )
        )


def _transfer(remote: Remote, part: Path, progress: Progress, read_timeout: float) -> str:
    """Fill `part` and return its sha256; resumes across cuts."""
    digest = hashlib.sha256()
    fd = os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(fd, "r+b", buffering=0) as file:
        have = 0
        while block := file.read(_BLOCK):
            digest.update(block)
            have += len(block)
        progress.advance(have)
        fruitless = 0
        while True:
            before = have
            try:
                for block, offset in _read(remote, have, read_timeout):
                    if offset != have:
                        # The server cannot resume: it began again from the first byte.
                        progress.advance(-have)
                        file.seek(0)
                        file.truncate()
                        digest, have = hashlib.sha256(), 0
                    file.write(block)
                    digest.update(block)
                    have += len(block)
                    progress.advance(len(block))
                break
            except _Cut as cut:
                fruitless = 0 if have > before else fruitless + 1
                if fruitless >= ATTEMPTS:
                    raise DownloadError(
                        f"{_shown(remote.url)} was cut off {ATTEMPTS} times at byte {have}"
                        + (f" of {remote.size}" if remote.size else "")
                        + f": {cut}",
                        hint="run the same command again: it goes on where it stopped",
                    ) from cut.__cause__
                time.sleep(min(0.2 * 2**fruitless, 3.0))
        if remote.size is not None and have > remote.size:
            raise _Stale(
                DownloadError(
                    f"{_shown(remote.url)} sent {have} bytes, expected {remote.size}; "
                    "they were deleted"
                )
            )
        os.fsync(fd)
    return digest.hexdigest()


def _read(remote: Remote, have: int, read_timeout: float) -> Iterator[tuple[bytes, int]]:
    """Blocks of the body with their offsets, from byte `have` on if the server can.

    Ends only when the whole file came; raises _Cut when it stopped before.
    """
    import urllib3

    if have and have == remote.size:
        return
    headers = {"Accept-Encoding": "identity", **remote.headers}
    if have:
        headers["Range"] = f"bytes={have}-"
    timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=read_timeout)
    with pool(remote.url, remote.ca_file) as manager:
        try:
            response = manager.request(
                "GET",
                remote.url,
                headers=headers,
                preload_content=False,
                timeout=timeout,
                retries=urllib3.Retry(connect=0, read=0, redirect=5, status=0, other=0),
            )
        except urllib3.exceptions.HTTPError as error:
            if have:
                raise _Cut(_reason(error)) from error
            raise DownloadError(f"{_shown(remote.url)}: {_reason(error)}") from error
        try:
            offset, total = _placed(remote, response, have)
            if offset is None:
                return
            if total is None:
                total = remote.size
            # read1 and not read: what had come before a cut must not be lost with the exception.
            while block := response.read1(_BLOCK):
                yield block, offset
                offset += len(block)
            if total is not None and offset < total:
                raise _Cut(f"connection closed at byte {offset} of {total}")
        except (urllib3.exceptions.HTTPError, ConnectionError, ssl.SSLError) as error:
            raise _Cut(_reason(error)) from error
        finally:
            response.close()


def _placed(remote: Remote, response: BaseHTTPResponse, have: int) -> tuple[int | None, int | None]:
    """Where this body begins and how long the whole file is; (None, …) when it is all there."""
    if response.status == 206:
        content_range = response.headers.get("Content-Range", "")
        unit, _, rest = content_range.partition(" ")
        span, _, whole = rest.partition("/")
        start, _, _ = span.partition("-")
        if unit == "bytes" and start == str(have):
            return have, int(whole) if whole.isdigit() else None
        raise DownloadError(
            f"{_shown(remote.url)} was asked for bytes from {have} and sent {content_range!r}"
        )
    if response.status == 416 and have:
        whole = response.headers.get("Content-Range", "").rpartition("/")[2]
        if whole.isdigit() and int(whole) == have:
            return None, have
        raise _Stale(
            DownloadError(f"{_shown(remote.url)} is now shorter than the {have} bytes kept of it")
        )
    if response.status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    if response.status in (429, 500, 502, 503, 504):
        raise _Cut(f"HTTP {response.status}")
    raise DownloadError(
        f"{_shown(remote.url)} answered HTTP {response.status}",
        hint=_HINTS.get(response.status),
        status=response.status,
    )


_HINTS = {
    401: "this file needs a token: set HF_TOKEN, or the credentials of your package index",
    403: "this file needs permission: accept its licence on its page, or check your token",
    404: "check the spelling of the repository, the revision and the file",
}


@contextlib.contextmanager
def pool(url: str, ca_file: str | None = None) -> Iterator[PoolManager]:
    """A connection pool that honours the environment's proxies, closed afterwards."""
    import urllib3

    context: ssl.SSLContext | None = None
    if url.startswith("https:"):
        context = ssl.create_default_context(cafile=ca_file)
    proxy = proxy_for(url)
    manager: PoolManager
    if proxy:
        manager = urllib3.ProxyManager(
            proxy.url, proxy_headers=dict(proxy.headers), ssl_context=context, maxsize=2
        )
    else:
        manager = urllib3.PoolManager(ssl_context=context, maxsize=2)
    try:
        yield manager
    finally:
        manager.clear()


def proxy_for(url: str) -> Proxy | None:
    """The proxy the environment names for this URL; never for loopback."""
    from enginekit.drivers import _proxy, _target

    parts = urlsplit(url)
    site = _target.parse(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
    return _proxy.proxy_for(site, None)


def within(seconds: float, function: Callable[[], None]) -> bool:
    """Run `function` in a thread; whether it ended in time. It is left behind if not.

    For what no socket timeout covers: resolving a name can hang for half a minute.
    """
    import threading

    thread = threading.Thread(target=function, daemon=True, name="enginekit-source")
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def _shown(url: str) -> str:
    """A URL without user, password and query: those may be secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reason(error: Exception) -> str:
    """The innermost sentence of a urllib3 error, without the object addresses it prints."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, Exception):
        return _reason(inner)
    text = str(error)
    return text.rpartition(": ")[2] if text.startswith(("<", "HTTP")) else text


def _disk_error(error: OSError, target: Path, size: int | None) -> DownloadError:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return DownloadError(
            f"the disk is full: {target.name}"
            + (f" ({human(size)})" if size else "")
            + f" does not fit in {target.parent}, {human(free_space(target.parent))} are free",
            hint="free some disk and run the same command again, or set ENGINEKIT_CACHE_DIR",
        )
    return DownloadError(f"cannot write {target}: {error.strerror or error}")
