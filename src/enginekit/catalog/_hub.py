"""Files on the Hugging Face Hub: their size and hash, a repository's listing, what was fetched.

A token is sent only if the user configured one, and only to the Hub itself: a redirect to a storage
host drops it. `HF_HUB_OFFLINE` forbids every request.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from enginekit.catalog.download import CONNECT_TIMEOUT, Remote, pool, proxy_for, within
from enginekit.errors import ConfigError, DownloadError, ModelNotFound, describe_choices

_PATIENCE = 15.0
_TRUE = frozenset({"1", "on", "yes", "true"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A row of a repository's listing."""

    path: str
    size: int
    sha256: str | None


def endpoint() -> str:
    """The Hub's address: `HF_ENDPOINT` or the public one.

    Raises:
        ConfigError: the variable holds no address.
    """
    said = os.environ.get("HF_ENDPOINT", "").strip() or "https://huggingface.co"
    if not re.match(r"https?://[^/?#]", said):
        raise ConfigError(
            f"HF_ENDPOINT is {said!r}, which is no address",
            hint=f"HF_ENDPOINT=https://{said.rpartition('://')[2].strip('/') or 'HOST'}",
        )
    return said.rstrip("/")


def token() -> str | None:
    """The user's token: `HF_TOKEN`, or the file that `hf auth login` writes."""
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() in _TRUE:
        return None
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return os.environ[name].strip()
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    try:
        return (
            Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token").read_text().strip()
            or None
        )
    except OSError:
        return None


def check_online() -> None:
    """Raise DownloadError where `HF_HUB_OFFLINE` forbids every request."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE:
        raise DownloadError(
            "HF_HUB_OFFLINE is set, so the Hub is not asked",
            hint="unset HF_HUB_OFFLINE, or name a local file",
        )


def look_up(repo: str, file: str, revision: str) -> Remote:
    """Address, size and hash of one file.

    Raises:
        ModelNotFound: the repository has no such file.
        DownloadError: the Hub is forbidden, unreachable, or refuses.
    """
    url = _file_url(repo, file, revision)
    status, headers, _ = _request("HEAD", url)
    if status == 404 or headers.get("x-error-code") in ("EntryNotFound", "RepoNotFound"):
        raise _no_file(repo, file, revision)
    if status >= 400:
        raise _refused(repo, status)
    size = headers.get("x-linked-size") or (headers.get("content-length") if status == 200 else "")
    tag = (headers.get("x-linked-etag") or "").removeprefix("W/").strip('"')
    return remote(
        repo,
        file,
        headers.get("x-repo-commit") or revision,
        int(size) if size and size.isdigit() else None,
        tag if len(tag) == 64 else None,
    )


def remote(repo: str, file: str, revision: str, size: int | None, sha256: str | None) -> Remote:
    """A file of the Hub as something to fetch."""
    return Remote(url=_file_url(repo, file, revision), size=size, sha256=sha256, headers=_headers())


def listing(repo: str) -> tuple[HubFile, ...]:
    """The GGUF files of a repository's main branch.

    Raises:
        DownloadError: the Hub is forbidden, unreachable, or refuses.
    """
    url = f"{endpoint()}/api/models/{quote(repo)}/tree/main?recursive=true"
    status, _, body = _request("GET", url)
    if status >= 400:
        raise _refused(repo, status)
    try:
        rows: list[dict[str, Any]] = json.loads(body)
        return tuple(
            HubFile(
                path=str(row["path"]),
                size=int(row["size"]),
                sha256=(row.get("lfs") or {}).get("oid"),
            )
            for row in rows
            if row.get("type") == "file" and str(row["path"]).lower().endswith(".gguf")
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DownloadError(f"the Hub's listing of {repo} could not be read") from error


def choose(repo: str, rows: Sequence[HubFile], quantization: str) -> HubFile:
    """The whole model in one file with this quantization.

    Raises:
        DownloadError: there is none; the message names what there is.
    """
    models = [row for row in rows if "mmproj" not in row.path.lower()]
    single = [row for row in models if "-of-0" not in row.path]
    wanted = quantization.lower()
    for row in sorted(single, key=lambda row: len(row.path)):
        if wanted in Path(row.path).name.lower():
            return row
    split = any(wanted in row.path.lower() for row in models)
    names = ", ".join(sorted(row.path for row in single)[:6])
    raise DownloadError(
        f"{repo} has its {quantization} only in several parts"
        if split
        else f"{repo} has no {quantization} file",
        hint=f"name one: hf://{repo}/FILE.gguf" + (f" (there are {names})" if names else ""),
    )


def nameless(repo: str, file: str, remote: Remote) -> str:
    """A folder name for a file of which the Hub gives no hash."""
    return "hub-" + hashlib.sha256(f"{remote.url}\n{remote.size}".encode()).hexdigest()[:40]


# ---------------------------------------------------------------------------------- memory


def _note(cache: Path, *words: str) -> Path:
    return cache / "hub" / (hashlib.sha256("\n".join(words).encode()).hexdigest()[:40] + ".json")


def remember(
    cache: Path, repo: str, file: str, revision: str, path: Path, sha256: str | None
) -> None:
    """Write down where a Hub file lies, so that the next use needs no request."""
    note = _note(cache, repo, file, revision)
    note.parent.mkdir(parents=True, exist_ok=True)
    part = note.with_suffix(f".{os.getpid()}")
    part.write_text(
        json.dumps(
            {"repo": repo, "file": file, "revision": revision, "path": str(path), "sha256": sha256}
        ),
        encoding="utf-8",
    )
    os.replace(part, note)


def remembered(cache: Path, repo: str, file: str, revision: str) -> tuple[Path, str | None] | None:
    """Path and hash of a Hub file fetched earlier, if it is still there."""
    try:
        note = json.loads(_note(cache, repo, file, revision).read_text(encoding="utf-8"))
        path = Path(note["path"])
    except (OSError, ValueError, LookupError):
        return None
    return (path, note.get("sha256")) if path.is_file() else None


def remembered_choice(cache: Path, repo: str, quantization: str) -> str | None:
    """The file of a repository with this quantization that was fetched earlier."""
    for note in (cache / "hub").glob("*.json"):
        try:
            row = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if (
            row.get("repo") == repo
            and row.get("revision") == "main"
            and quantization.lower() in str(row.get("file")).lower()
            and Path(str(row.get("path"))).is_file()
        ):
            return str(row["file"])
    return None


# ---------------------------------------------------------------------------------- requests


def _file_url(repo: str, file: str, revision: str) -> str:
    return f"{endpoint()}/{quote(repo)}/resolve/{quote(revision, safe='')}/{quote(file)}"


def _headers() -> dict[str, str]:
    from enginekit._version import __version__

    headers = {"User-Agent": f"enginekit/{__version__}"}
    secret = token()
    if secret:
        headers["Authorization"] = f"Bearer {secret}"
    return headers


def _request(method: str, url: str) -> tuple[int, dict[str, str], bytes]:
    """One request, not followed anywhere. Unreachable costs at most `CONNECT_TIMEOUT`."""
    import socket
    from urllib.parse import urlsplit

    import urllib3

    check_online()
    parts = urlsplit(url)
    if proxy_for(url) is None and not within(
        CONNECT_TIMEOUT,
        lambda: _ignore(lambda: socket.getaddrinfo(parts.hostname, parts.port or 443)),
    ):
        raise DownloadError(f"{parts.hostname} could not be resolved in {CONNECT_TIMEOUT:g} s")
    try:
        with pool(url) as manager:
            response = manager.request(
                method,
                url,
                headers={"Accept-Encoding": "identity", **_headers()},
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=_PATIENCE),
            )
            headers = {name.lower(): value for name, value in response.headers.items()}
            return response.status, headers, response.data
    except urllib3.exceptions.HTTPError as error:
        raise DownloadError(f"{parts.hostname} is not reachable: {type(error).__name__}") from error


def _ignore(function: Any) -> None:
    try:
        function()
    except OSError:
        pass  # the request that follows reports it


def _refused(repo: str, status: int) -> DownloadError:
    hint = {
        401: "set HF_TOKEN: the repository is private, gated or misspelt",
        403: "accept the model's licence on its page, then set HF_TOKEN",
        404: "check the spelling of the repository",
    }.get(status)
    return DownloadError(f"the Hub answered HTTP {status} for {repo}", hint=hint, status=status)


def _no_file(repo: str, file: str, revision: str) -> ModelNotFound:
    try:
        near = describe_choices([row.path for row in listing(repo)], file)
    except DownloadError:
        near = ()
    return ModelNotFound(
        f"{repo} has no file {file!r} at revision {revision}"
        + (f"; the nearest are {', '.join(near)}" if near else ""),
        hint=f"hf://{repo}/{near[0]}" if near else "check the spelling of the repository",
        model=file,
        near=near,
    )
