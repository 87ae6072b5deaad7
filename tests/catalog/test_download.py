"""One file over HTTP: whole, checked, resumed, or not there at all."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enginekit.catalog import download
from enginekit.catalog.download import Remote, fetch, human, proxy_for, require_space
from enginekit.errors import DownloadError

from .fileserver import FileServer, Served

DATA = random.Random(1).randbytes(1_500_000)
SHA = hashlib.sha256(DATA).hexdigest()


class Count:
    """A Progress that adds up."""

    def __init__(self) -> None:
        self.done = 0
        self.calls: list[str] = []

    def start(self, total: int | None, label: str) -> None:
        self.calls.append(f"start {total} {label}")
        self.done = 0

    def advance(self, count: int) -> None:
        self.done += count

    def finish(self) -> None:
        self.calls.append("finish")


@pytest.fixture
def server() -> Iterator[FileServer]:
    server = FileServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)


def remote(server: FileServer, **changes: Any) -> Remote:
    return Remote(**{"url": f"{server.url}/f", "size": len(DATA), "sha256": SHA, **changes})


def test_a_whole_file_and_its_progress(server: FileServer, tmp_path: Path) -> None:
    server.files["/f"] = Served(DATA)
    count = Count()
    fetch(remote(server, label="the file"), tmp_path / "f", progress=count)
    assert (tmp_path / "f").read_bytes() == DATA
    assert count.done == len(DATA)
    assert count.calls == [f"start {len(DATA)} the file", "finish"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f"]


def test_a_cut_transfer_goes_on_by_range_within_one_call(
    server: FileServer, tmp_path: Path
) -> None:
    server.files["/f"] = Served(DATA, cuts=[400_000, 300_000])
    count = Count()
    fetch(remote(server), tmp_path / "f", progress=count)
    assert (tmp_path / "f").read_bytes() == DATA
    assert count.done == len(DATA)
    assert server.ranges("/f") == ["", "bytes=400000-", "bytes=700000-"]


def test_a_transfer_given_up_goes_on_in_the_next_call(server: FileServer, tmp_path: Path) -> None:
    server.files["/f"] = Served(DATA, cuts=[400_000, *[0] * download.ATTEMPTS])
    with pytest.raises(DownloadError, match="cut off 5 times at byte 400000") as caught:
        fetch(remote(server), tmp_path / "f")
    assert "goes on where it stopped" in str(caught.value.hint)
    assert not (tmp_path / "f").exists()
    assert (tmp_path / "f.part").stat().st_size == 400_000
    server.requests.clear()
    fetch(remote(server), tmp_path / "f")
    assert server.ranges("/f") == ["bytes=400000-"]
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_server_without_ranges_starts_over(server: FileServer, tmp_path: Path) -> None:
    server.files["/f"] = Served(DATA, cuts=[900_000], ranges=False)
    count = Count()
    fetch(remote(server), tmp_path / "f", progress=count)
    assert (tmp_path / "f").read_bytes() == DATA
    assert count.done == len(DATA)


def test_a_wrong_hash_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    server.files["/f"] = Served(DATA[:-1] + b"x")
    with pytest.raises(DownloadError, match=f"expected {SHA}"):
        fetch(remote(server), tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_a_longer_file_than_promised_is_refused(server: FileServer, tmp_path: Path) -> None:
    server.files["/f"] = Served(DATA + b"more")
    with pytest.raises(DownloadError, match=f"expected {len(DATA)}"):
        fetch(remote(server), tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [b"garbage" * 1000, DATA + b"too long"], ids=["garbage", "long"])
def test_a_part_file_that_is_not_the_beginning_costs_one_more_try(
    server: FileServer, tmp_path: Path, left: bytes
) -> None:
    (tmp_path / "f.part").write_bytes(left)
    server.files["/f"] = Served(DATA)
    fetch(remote(server), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_whole_part_file_needs_no_request(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(DATA)
    fetch(remote(server), tmp_path / "f")
    assert server.requests == []
    assert (tmp_path / "f").read_bytes() == DATA


@pytest.mark.parametrize(("status", "word"), [(401, "token"), (403, "licence"), (404, "spelling")])
def test_a_refusal_says_what_helps(
    server: FileServer, tmp_path: Path, status: int, word: str
) -> None:
    server.files["/f"] = Served(DATA, statuses=[status])
    with pytest.raises(DownloadError, match=f"HTTP {status}") as caught:
        fetch(remote(server), tmp_path / "f")
    assert word in str(caught.value.hint)
    assert not (tmp_path / "f").exists()


def test_a_passing_503_is_waited_out(server: FileServer, tmp_path: Path) -> None:
    server.files["/f"] = Served(DATA, statuses=[503, 429])
    fetch(remote(server), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


def test_an_address_where_nobody_listens(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(DownloadError, match="refused"):
        fetch(Remote(url=f"http://127.0.0.1:{port}/f?token=secret"), tmp_path / "f")


def test_a_url_in_an_error_shows_no_password_and_no_query(
    server: FileServer, tmp_path: Path
) -> None:
    url = server.url.replace("http://", "http://user:secret@") + "/none?sig=secret"
    with pytest.raises(DownloadError) as caught:
        fetch(Remote(url=url), tmp_path / "f")
    assert "secret" not in str(caught.value)


def test_the_token_does_not_follow_a_redirect_to_another_host(
    server: FileServer, tmp_path: Path
) -> None:
    server.files["/f"] = Served(location=server.url.replace("127.0.0.1", "localhost") + "/real")
    server.files["/real"] = Served(DATA)
    fetch(remote(server, headers={"Authorization": "Bearer secret"}), tmp_path / "f")
    sent = {path: headers.get("authorization") for _, path, headers in server.requests}
    assert sent == {"/f": "Bearer secret", "/real": None}


def test_a_full_disk_is_named_and_what_came_is_kept(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/f"] = Served(DATA)
    real = os.fdopen

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > 600_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(os, "fdopen", lambda fd, *args, **kwargs: Full(fd, "r+b"))
    with pytest.raises(DownloadError, match="disk is full") as caught:
        fetch(remote(server), tmp_path / "f")
    assert "ENGINEKIT_CACHE_DIR" in str(caught.value.hint)
    monkeypatch.setattr(os, "fdopen", real)
    kept = (tmp_path / "f.part").stat().st_size
    assert kept > 600_000
    fetch(remote(server), tmp_path / "f")
    assert server.ranges("/f")[-1] == f"bytes={kept}-"
    assert (tmp_path / "f").read_bytes() == DATA


def test_room_is_looked_for_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "free_space", lambda folder: 5_000_000)
    with pytest.raises(DownloadError, match=r"needs 98 MB .* where 5 MB are free"):
        require_space(tmp_path, 98_000_000, "the model")


@pytest.mark.parametrize(
    ("size", "text"), [(98_362_432, "98 MB"), (4_700_000_000, "4.7 GB"), (961_248, "961 kB")]
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert human(size) == text


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://example.invalid/f", "http://proxy:1"),
        ("http://example.invalid/f", None),
        ("https://inside.corp/f", None),
        ("https://127.0.0.1/f", None),
        ("https://localhost:8443/f", None),
    ],
)
def test_proxies_come_from_the_environment_and_never_for_loopback(
    url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    monkeypatch.setenv("NO_PROXY", "inside.corp")
    found = proxy_for(url)
    assert (found and found.url) == proxy
