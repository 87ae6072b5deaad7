"""How people write a repository of the Hub: `hf://` names, pages of its site, addresses of its files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from enginekit.errors import ConfigError

HOSTS: Final = ("huggingface.co", "www.huggingface.co", "hf.co")
_SHORT: Final = tuple(f"{host}/" for host in HOSTS)
_NO_MODELS: Final = (
    "datasets",
    "spaces",
    "docs",
    "papers",
    "collections",
    "blog",
    "api",
    "buckets",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """A repository, and what of it is meant."""

    repo: str
    file: str = ""
    """A file, or a folder of files, of the repository."""
    quantization: str = ""
    revision: str = "main"


def is_hub(url: str, endpoint: str) -> bool:
    """Whether an address is one of the Hub, or of the mirror that stands for it."""
    host = _host(url)
    return bool(host) and host in (*HOSTS, _host(endpoint))


def hub_name(name: str, endpoint: str) -> HubName | None:
    """The repository that a name or address means; None if it means something else.

    Read are `hf://owner/repo` with `:QUANT`, `/file.gguf` and `@REVISION` behind it,
    `hf://owner/repo@REVISION/file.gguf` (as huggingface_hub's file system has it), the same after
    `hf.co/`, and the site's own addresses (`https://huggingface.co/owner/repo/blob/main/file.gguf`).

    Args:
        name: what a user wrote.
        endpoint: `HF_ENDPOINT`, whose addresses count as the Hub's.

    Raises:
        ConfigError: it is of the Hub, but no model repository.
    """
    if name.startswith("hf://"):
        return _parsed(name.removeprefix("hf://"), name)
    for prefix in _SHORT:
        if name.startswith(prefix):
            return _parsed(name.removeprefix(prefix), name)
    if name.startswith(("http://", "https://")) and is_hub(name, endpoint):
        return _of_site(name, endpoint)
    return None


def _parsed(rest: str, name: str) -> HubName:
    place, at, revision = rest.partition("@")
    file = quantization = ""
    if at:
        revision, _, quantization = revision.partition(":")
        if place.count("/") == 1 and revision.lower().endswith(".gguf"):
            # refs/pr/3 and refs/convert/parquet are revisions of three words.
            words = revision.split("/")
            own = 3 if words[0] == "refs" else 1
            revision, file = "/".join(words[:own]), "/".join(words[own:])
        if not revision:
            raise ConfigError(f"{name}: no revision behind the @")
    place, _, label = place.partition(":")
    parts = [part for part in place.split("/") if part]
    if len(parts) < 2:
        raise ConfigError(f"{name}: write hf://owner/repo, with :QUANT or /file.gguf after it")
    return HubName(
        repo="/".join(parts[:2]),
        file=file or "/".join(parts[2:]),
        quantization=quantization or label,
        revision=revision or "main",
    )


def _of_site(url: str, endpoint: str) -> HubName:
    path = urlsplit(url).path
    base = urlsplit(endpoint).path.rstrip("/")
    if base and path.startswith(base + "/"):
        path = path.removeprefix(base)
    parts = [unquote(part) for part in path.split("/") if part]
    if len(parts) < 2 or parts[0] in _NO_MODELS:
        raise ConfigError(
            f"{url} is no model repository", hint="enginekit plan hf://owner/repo[:QUANT]"
        )
    repo, kind, rest = "/".join(parts[:2]), parts[2:3], parts[3:]
    if kind and kind[0] in ("blob", "resolve", "tree", "raw") and rest:
        own = 3 if rest[0] == "refs" else 1
        return HubName(repo=repo, revision="/".join(rest[:own]), file="/".join(rest[own:]))
    return HubName(repo=repo)


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""
