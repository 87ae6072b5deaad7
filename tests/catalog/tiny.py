"""A tiny pinned model, and how to put it on a loopback index or Hub."""

from __future__ import annotations

import hashlib
import io
import os
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginekit.catalog import _index, sources
from enginekit.catalog.sources import Pinned

from .fileserver import FileServer, Served

DATA = b"GGUF" + random.Random(2).randbytes(2_000_000)
SHA = hashlib.sha256(DATA).hexdigest()
MEMBER = "tiny_model/tiny.gguf"
WHEEL = "tiny_model-1.0-py3-none-any.whl"


def make_wheel(data: bytes = DATA) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr(MEMBER, data)
        bundle.writestr("tiny_model-1.0.dist-info/METADATA", "Name: tiny-model\nVersion: 1.0\n")
        bundle.writestr(
            "tiny_model-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        bundle.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return buffer.getvalue()


WHEEL_DATA = make_wheel()

ENTRY = Pinned(
    name="tiny",
    title="Tiny",
    license="MIT",
    file="tiny.gguf",
    size=len(DATA),
    sha256=SHA,
    aliases=("tiny:1",),
    package="tiny-model",
    package_version="1.0",
    module="tiny_model",
    member=MEMBER,
    hub_repo="owner/tiny",
    hub_file="tiny.gguf",
)


@pytest.fixture
def server() -> Iterator[FileServer]:
    server = FileServer()
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer) -> Path:
    """An empty cache, an index and a Hub that have nothing yet, and no model but `tiny`."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ENGINEKIT_CACHE_DIR", str(folder))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", f"{server.url}/links/")
    monkeypatch.setattr(sources, "pinned", lambda: {"tiny": ENTRY})
    # Patience is for real mirrors; a loaded test machine needs more than two seconds for pip.
    monkeypatch.setattr(_index, "PATIENCE", 60.0)
    return folder


def on_index(server: FileServer, wheel: bytes = WHEEL_DATA, sha256: str = "") -> Served:
    sha256 = sha256 or hashlib.sha256(wheel).hexdigest()
    page = f'<a href="/files/{WHEEL}#sha256={sha256}">{WHEEL}</a>'
    server.files["/links/"] = Served(page.encode(), headers={"Content-Type": "text/html"})
    server.files[f"/files/{WHEEL}"] = Served(wheel)
    return server.files[f"/files/{WHEEL}"]


def on_hub(server: FileServer, data: bytes = DATA, revision: str = "main") -> Served:
    path = f"/owner/tiny/resolve/{revision}/tiny.gguf"
    server.files[path] = Served(
        data,
        head={
            "x-linked-size": str(len(data)),
            "x-linked-etag": f'"{hashlib.sha256(data).hexdigest()}"',
            "x-repo-commit": revision,
            "Location": "/elsewhere",
        },
    )
    return server.files[path]
