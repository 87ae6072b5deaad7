"""A model on the Hugging Face Hub, described without downloading its weights.

One request lists the repository; then config.json and the first bytes of each weight file, or of
one GGUF, are read by range. A token is sent only if the caller passes one, and only to `endpoint`:
a redirect to a storage host goes without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import quote, urlsplit

from enginekit.catalog import _gguf_spec, gguf, hf_config, safetensors
from enginekit.catalog._keys import MAX_JSON
from enginekit.catalog._projector import projector_beside
from enginekit.catalog._summary import with_weights
from enginekit.errors import DownloadError, ModelFileError, ModelNotFound
from enginekit.facts.model import ModelNames, ModelSpec
from enginekit.sizing.quantization import gguf_label
from enginekit.sizing.weights import typical_bits

Range = tuple[int, int] | None
Fetch = Callable[[str, Mapping[str, str], Range], tuple[int, bytes]]
"""`fetch(url, headers, (offset, length) or None)` to status and body. A server that ignores ranges
may answer with everything from byte 0 (status 200); the body may then be cut after the range."""

ENDPOINT: Final = "https://huggingface.co"
WINDOW: Final = 4 << 20
MAX_INDEX: Final = 64 << 20
MAX_SHARDS: Final = 24
"""More shards than this are not read one by one; their total comes from the index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoFile:
    """A file of a repository; `size` is 0 where the Hub does not say."""

    path: str
    size: int


class Hub:
    """One hub, with or without a token."""

    def __init__(
        self, *, endpoint: str = ENDPOINT, token: str | None = None, fetch: Fetch | None = None
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.token = token
        self._fetch = fetch or http_fetch

    def files(self, repo: str, revision: str = "main") -> tuple[RepoFile, ...]:
        """Every file of a repository with its size.

        Raises:
            ModelNotFound: there is no such repository, or it is private and no token was given.
            DownloadError: the hub cannot be reached or refuses.
        """
        path = f"/api/models/{quote(repo)}/revision/{quote(revision, safe='')}?blobs=true"
        answer = self._json(self.endpoint + path, f"repository {repo}")
        listed = answer.get("siblings") if isinstance(answer, Mapping) else None
        if not isinstance(listed, list):
            raise ModelFileError(f"{repo}: the hub's listing has no siblings", field="siblings")
        found = []
        for row in listed:
            name = row.get("rfilename") if isinstance(row, Mapping) else None
            if isinstance(name, str):
                size = row.get("size")
                found.append(RepoFile(path=name, size=size if isinstance(size, int) else 0))
        return tuple(found)

    def describe(
        self, repo: str, *, revision: str = "main", quantization: str = "", file: str = ""
    ) -> ModelSpec:
        """Describe a repository: GGUF, safetensors or MLX.

        Args:
            repo: `owner/name`.
            revision: branch, tag or commit.
            quantization: which GGUF of a repository of many; `Q4_K_M` if it is there.
            file: a file of the repository by name, instead.

        Raises:
            ModelNotFound: no such repository, or no such file in it.
            ModelFileError: what is there is broken.
            DownloadError: the hub cannot be reached or refuses.
        """
        files = self.files(repo, revision)
        names = [each.path for each in files]
        if file and file not in names:
            inside = [name for name in names if name.startswith(file.rstrip("/") + "/")]
            chosen = choose_gguf(inside, quantization)
            if chosen:
                return self._gguf(repo, revision, files, chosen)
            raise ModelNotFound(
                f"{repo} has no file {file!r}",
                hint=f"it has: {', '.join(n for n in names if n.endswith('.gguf'))[:300]}",
                model=repo,
            )
        if file.endswith(".gguf"):
            return self._gguf(repo, revision, files, file)
        if "config.json" in names and not quantization and safetensors.one_copy(names):
            return self._safetensors(repo, revision, files)
        chosen = choose_gguf(names, quantization)
        if chosen:
            return self._gguf(repo, revision, files, chosen)
        if quantization and ("config.json" in names or choose_gguf(names)):
            raise _no_quantization(repo, names, quantization)
        if "config.json" in names:
            return self._safetensors(repo, revision, files)
        if "adapter_config.json" in names:
            raise self._adapter(repo, revision)
        raise ModelNotFound(
            f"{repo} has no config.json and no GGUF file",
            hint=f"it has: {', '.join(names)[:300] or 'no files at all'}",
            model=repo,
        )

    def _adapter(self, repo: str, revision: str) -> ModelNotFound:
        """The error for a repository that has an adapter only; names the model it is for."""
        base = self._file_json(repo, revision, "adapter_config.json").get("base_model_name_or_path")
        known = isinstance(base, str) and base.count("/") == 1 and not base.startswith((".", "/"))
        return ModelNotFound(
            f"{repo} is an adapter (LoRA), no model"
            + (f"; it is for {base}" if isinstance(base, str) and base else ""),
            hint=f"enginekit plan hf://{base}" if known else "name the model that it is for",
            model=repo,
        )

    def _gguf(self, repo: str, revision: str, files: Sequence[RepoFile], path: str) -> ModelSpec:
        sizes = {each.path: each.size for each in files}
        parts = gguf.split_names(path)
        missing = [part for part in parts if part not in sizes]
        if missing:
            raise ModelNotFound(
                f"{repo} has only some of the {len(parts)} parts of {path}: {missing[0]} is missing",
                hint="choose another quantization (hf://owner/repo:QUANT) or revision (@REVISION)",
                model=repo,
            )
        headers = [
            gguf.parse(
                self._reader(repo, revision, part),
                size=sizes.get(part) or None,
                source=f"{repo}/{part}",
                window=WINDOW,
            )
            for part in parts
        ]
        joined = headers[0] if len(headers) == 1 else gguf.join(headers, f"{repo}/{path}")
        beside = {each.path: each.size for each in files if each.size}
        taken = projector_beside(path, list(beside))
        spec = _gguf_spec.to_spec(joined, name=repo)
        return replace(
            spec,
            names=ModelNames(gguf=repo, gguf_file=path, revision=_other(revision)),
            projector_bytes=beside[taken] if taken else spec.projector_bytes,
            capabilities=replace(spec.capabilities, vision=True) if taken else spec.capabilities,
        )

    def _safetensors(self, repo: str, revision: str, files: Sequence[RepoFile]) -> ModelSpec:
        names = [each.path for each in files]
        config = self._file_json(repo, revision, "config.json")
        quant = None
        if "hf_quant_config.json" in names:
            quant = self._file_json(repo, revision, "hf_quant_config.json")
        template = self._template(repo, revision, names)
        spec = hf_config.to_spec(
            config,
            name=repo,
            source=f"{repo}/config.json",
            quant_config=quant,
            chat_template=template,
        )
        spec = replace(spec, names=replace(spec.names, revision=_other(revision)))
        chosen = safetensors.one_copy(names)
        sizes = {each.path: each.size for each in files}
        on_disk = sum(sizes[name] for name in chosen)
        if not chosen:
            # A configuration alone: the weights are what its dimensions make of them.
            return spec
        if not all(name.endswith(".safetensors") for name in chosen):
            return replace(spec, format="pytorch", weight_bytes=on_disk, file_bytes=on_disk)
        if len(chosen) > MAX_SHARDS:
            total = self._index_total(repo, revision, names) or on_disk
            return replace(spec, weight_bytes=total, file_bytes=on_disk or total)
        tensors = [
            tensor
            for name in chosen
            for tensor in safetensors.parse(
                self._reader(repo, revision, name),
                size=sizes.get(name) or None,
                source=f"{repo}/{name}",
            )
        ]
        return with_weights(spec, tensors, on_disk)

    def _template(self, repo: str, revision: str, names: Sequence[str]) -> str | None:
        if "chat_template.jinja" in names:
            status, body = self._get(repo, revision, "chat_template.jinja", (0, 1 << 20))
            if status < 300:
                return body.decode("utf-8", "replace")
        if "tokenizer_config.json" in names:
            found = self._file_json(repo, revision, "tokenizer_config.json").get("chat_template")
            return found if isinstance(found, str) else json.dumps(found) if found else ""
        return None

    def _index_total(self, repo: str, revision: str, names: Sequence[str]) -> int:
        if "model.safetensors.index.json" not in names:
            return 0
        # The map of a hundred thousand tensors is not taken apart for one number before it.
        name = "model.safetensors.index.json"
        status, body = self._get(repo, revision, name, (0, MAX_INDEX))
        self._check(status, f"{repo}/{name}", body)
        found = re.search(rb'"total_size"\s*:\s*(\d{1,18})(?![\d])', body)
        return int(found[1]) if found else 0

    def _url(self, repo: str, revision: str, path: str) -> str:
        return f"{self.endpoint}/{quote(repo)}/resolve/{quote(revision, safe='')}/{quote(path)}"

    def _headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    def _get(self, repo: str, revision: str, path: str, part: Range) -> tuple[int, bytes]:
        return self._ask(self._url(repo, revision, path), part)

    def _ask(self, url: str, part: Range) -> tuple[int, bytes]:
        try:
            return self._fetch(url, self._headers(), part)
        except DownloadError as error:
            raise DownloadError(
                error.message,
                hint="use a local file or a catalog name, or set HF_ENDPOINT to a mirror",
            ) from error

    def _reader(self, repo: str, revision: str, path: str) -> Callable[[int, int], bytes]:
        def get(part: Range) -> tuple[int, bytes]:
            return self._get(repo, revision, path, part)

        return _ranges(get, lambda status, body: self._check(status, f"{repo}/{path}", body))

    def _file_json(self, repo: str, revision: str, path: str) -> dict[str, Any]:
        answer = self._json(self._url(repo, revision, path), f"{repo}/{path}")
        if not isinstance(answer, dict):
            raise ModelFileError(f"{repo}/{path}: a JSON object was expected", field=path)
        return answer

    def _json(self, url: str, what: str) -> Any:
        status, body = self._ask(url, (0, MAX_JSON))
        self._check(status, what, body)
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ModelFileError(f"{what}: no JSON: {error}", field="json") from error

    def _check(self, status: int, what: str, body: bytes = b"") -> None:
        if status < 300:
            return
        message = f"{what}: the hub at {self.endpoint} answered {status}{_said(body)}"
        page = f"{self.endpoint}/{'/'.join(what.removeprefix('repository ').split('/')[:2])}"
        token = "HF_TOKEN is not valid there (hf auth login)" if self.token else "set HF_TOKEN"
        hint = {
            401: f"{token}: the repository is private or gated, or its name is misspelt",
            403: f"accept the model's licence on {page}; HF_TOKEN must be allowed to read it",
            404: f"check the name and the revision on {page}; HF_TOKEN must be allowed to read a "
            "private repository",
            429: "wait a few minutes, or set HF_TOKEN: who is known may ask more often",
        }.get(status)
        if status in (401, 403, 404):
            raise ModelNotFound(message, hint=hint, model=what, status=status)
        raise DownloadError(message, hint=hint, status=status)


def _other(revision: str) -> str:
    return "" if revision == "main" else revision


def _said(body: bytes) -> str:
    """What a server gave as its reason, on one line, after a colon; "" if that is no text."""
    text = body[:2000].decode("utf-8", "replace").strip()
    try:
        found = json.loads(text)
        text = found["error"] if isinstance(found["error"], str) else ""
    except (ValueError, LookupError, TypeError):
        pass
    line = " ".join(text.split())
    return f": {line[:200]}" if line and not line.startswith(("<", "{", "[")) else ""


def _no_quantization(repo: str, names: Sequence[str], wanted: str) -> ModelNotFound:
    labels = sorted({label for label in map(_label_of, _first_parts(names)) if label})
    if labels:
        hint = f"it has {', '.join(labels)}"
    elif choose_gguf(names):
        hint = f"name the file: hf://{repo}/{choose_gguf(names)}"
    else:
        hint = f"enginekit plan hf://{repo} --quant {wanted}    (estimates what it would be)"
    return ModelNotFound(f"{repo} has no GGUF file of quantization {wanted}", hint=hint, model=repo)


def describe_url(url: str, *, fetch: Fetch | None = None) -> ModelSpec:
    """Describe a GGUF file at any address by the first bytes of it, or of all its parts.

    A page of the Hub about a file (`/blob/`) stands for the file. No token is sent.

    Raises:
        ModelNotFound: there is no such file.
        ModelFileError: it is broken or no GGUF.
        DownloadError: the host cannot be reached or refuses.
    """
    ask = fetch or http_fetch
    parts = urlsplit(url)
    folder, _, name = parts.path.rpartition("/")
    owner, repo, kind, *rest = [*folder.strip("/").split("/"), "", "", ""][:4]
    if kind == "blob" and rest[0]:
        folder = f"/{owner}/{repo}/resolve/" + folder.split("/blob/", 1)[1]
    headers = []
    for part in gguf.split_names(name):
        address = parts._replace(path=f"{folder}/{part}", fragment="").geturl()

        def get(wanted: Range, address: str = address) -> tuple[int, bytes]:
            return ask(address, {"Accept-Encoding": "identity"}, wanted)

        def check(status: int, body: bytes, address: str = address) -> None:
            if status in (404, 410):
                raise ModelNotFound(
                    f"{address}: no such file (status {status})",
                    hint="check the address; `enginekit plan hf://owner/repo` chooses a file itself",
                    model=url,
                    status=status,
                )
            if status in (401, 403):
                raise DownloadError(
                    f"{address}: status {status}{_said(body)}: the host wants to know who asks, and "
                    "no key or token is sent to an address",
                    hint=f"fetch it yourself, then: enginekit plan {name}",
                    status=status,
                )
            if status >= 300:
                raise DownloadError(f"{address}: status {status}{_said(body)}", status=status)

        headers.append(gguf.parse(_ranges(get, check), source=address, window=WINDOW))
    joined = headers[0] if len(headers) == 1 else gguf.join(headers, url)
    return _gguf_spec.to_spec(joined, name=name.removesuffix(".gguf"))


def _ranges(
    get: Callable[[Range], tuple[int, bytes]], check: Callable[[int, bytes], None]
) -> Callable[[int, int], bytes]:
    """`read(offset, length)` over requests for ranges; `check` raises for a status of refusal."""

    def read(offset: int, length: int) -> bytes:
        status, body = get((offset, length))
        if status == 416:
            return b""
        check(status, body)
        # 200 means that the range was ignored and the body starts at byte 0.
        return body[offset : offset + length] if status == 200 else body[:length]

    return read


def choose_gguf(names: Sequence[str], quantization: str = "") -> str:
    """The GGUF file of a repository that has the quantization; "" if none has.

    Without a wish: the only one, else Q4_K_M, else the usual next best.
    """
    firsts = _first_parts(names)
    if not quantization and len(firsts) == 1:
        return firsts[0]
    wishes = [quantization] if quantization else ["Q4_K_M", "MXFP4", "Q4_0", "Q5_K_M", "Q8_0"]
    for wish in wishes:
        plain = wish.lower().replace("_", "").replace("-", "")
        exact = [n for n in firsts if plain in n.lower().replace("_", "").replace("-", "")]
        # `UD-Q4_K_XL` must not answer for `Q4_K`, nor `Q4_K_M` for `IQ4_K_M`: the shortest match.
        labelled = [n for n in exact if _label_of(n) == gguf_label(wish)]
        labelled = labelled or [n for n in exact if not _label_of(n)]
        if labelled:
            return min(labelled, key=lambda name: (len(name), name))
    if quantization or not firsts:
        return ""
    # None of the usual: the one nearest to what Q4_K_M takes, and of equals the first by name.
    return min(sorted(firsts), key=lambda name: abs(_bits_of(name) - _bits_of("-Q4_K_M.gguf")))


def _bits_of(name: str) -> float:
    """Bits per weight by the label in a file's name; many where it says none."""
    label = _label_of(name)
    return typical_bits(label, 8_000_000_000) if label else 64.0


def _first_parts(names: Sequence[str]) -> list[str]:
    """The GGUF files of models, of split ones the first part."""
    models = [
        name
        for name in names
        if name.endswith(".gguf")
        and "mmproj" not in name.lower()
        and not name.lower().rsplit("/", 1)[-1].startswith(("imatrix", "ggml-vocab"))
    ]
    return [name for name in models if gguf.split_names(name)[0] == name]


def _label_of(name: str) -> str:
    stem = name.rsplit("/", 1)[-1].removesuffix(".gguf").split("-000")[0]
    for separator in ("-", "."):
        label = gguf_label(stem.rpartition(separator)[2])
        if label:
            return label
    return ""


def http_fetch(url: str, headers: Mapping[str, str], part: Range) -> tuple[int, bytes]:
    """Fetch a range over HTTP with the proxies of the environment; at most the range is read.

    Raises:
        DownloadError: the host cannot be reached, or too many redirects.
    """
    import urllib3

    from enginekit.catalog.download import pool

    sent = dict(headers)
    if part is not None:
        sent["Range"] = f"bytes={part[0]}-{part[0] + part[1] - 1}"
    try:
        for _ in range(5):
            with pool(url) as manager:
                response = manager.request(
                    "GET",
                    url,
                    headers=sent,
                    preload_content=False,
                    redirect=False,
                    retries=False,
                    timeout=urllib3.Timeout(connect=5.0, read=30.0),
                )
                target = response.headers.get("Location")
                if response.status in (301, 302, 303, 307, 308) and target:
                    following = urllib3.util.parse_url(url)
                    absolute = target if "://" in target else _join(url, target)
                    if urlsplit(absolute).netloc != following.netloc:
                        sent.pop("Authorization", None)
                    url = absolute
                    response.close()
                    continue
                return response.status, _limited(response, part)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        host = urlsplit(url).netloc
        reason = "its name is not known" if "Failed to resolve" in str(error) else str(error)
        raise DownloadError(
            f"{host} cannot be reached: {reason}",
            hint="check the address, or fetch the file and name it: enginekit plan FILE.gguf",
        ) from error
    raise DownloadError(f"{url}: more than five redirects")


def _join(base: str, target: str) -> str:
    from urllib.parse import urljoin

    return urljoin(base, target)


def _limited(response: Any, part: Range) -> bytes:
    limit = MAX_INDEX
    if part is not None:
        limit = part[1] if response.status == 206 else part[0] + part[1]
    if limit > gguf.MAX_HEADER:
        raise DownloadError(f"the server ignores ranges, and {limit} bytes would have to be read")
    pieces: list[bytes] = []
    got = 0
    while got < limit:
        piece = response.read(min(1 << 20, limit - got))
        if not piece:
            break
        pieces.append(piece)
        got += len(piece)
    response.close()
    return b"".join(pieces)
